#pragma once

#include <string>
#include <string_view>

#include "seqmix/core/error.hpp"
#include "seqmix/core/parameter.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Throws `ConfigError` at the first number of a table for which `expected(i, j, number)` is not
/// empty but says what is.
inline void check_table(std::string_view layer, std::string_view name,
                        const Parameter<Index, 3>& table, auto&& expected) {
  for (Index h = 0; h < table.extent(0); ++h) {
    for (Index i = 0; i < table.extent(1); ++i) {
      for (Index j = 0; j < table.extent(2); ++j) {
        const Index number = table(h, i, j);
        const std::string text = expected(i, j, number);
        if (text.empty()) continue;
        throw ConfigError(std::string(layer) + ": " + std::string(name) + "(" + std::to_string(h) +
                          ", " + std::to_string(i) + ", " + std::to_string(j) + ") is " +
                          std::to_string(number) + ", expected " + text);
      }
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
