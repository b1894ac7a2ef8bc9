#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/error.hpp"

namespace seqmix {

/// An enumeration that a config may hold: `names_of(value)`, found by its argument, is what configs
/// call the values 0, 1, ... of it.
template <class Enum>
concept NamedEnum = std::is_enum_v<Enum> && requires(Enum value) {
  names_of(value)[0];
};

template <NamedEnum Enum>
constexpr std::string_view to_string(Enum value) {
  constexpr auto names = names_of(Enum{});
  const auto i = static_cast<std::size_t>(value);
  return i < names.size() ? names[i] : "unknown";
}
/// Which of `names` a text is; throws `ConfigError` where it is none.
inline std::size_t index_of_name(std::string_view text, std::span<const std::string_view> names) {
  std::string known;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == text) return i;
    known.append(known.empty() ? "" : ", ").append(names[i]);
  }
  throw ConfigError("got \"" + std::string(text) + "\", expected one of " + known);
}
/// Throws `ConfigError` on a text that names no value.
template <NamedEnum Enum>
void from_string(std::string_view text, Enum& value) {
  constexpr auto names = names_of(Enum{});
  value = static_cast<Enum>(index_of_name(text, names));
}

}  // namespace seqmix
