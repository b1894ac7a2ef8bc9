#pragma once

#include <algorithm>
#include <limits>

#include "seqmix/core/numeric.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// To which position a token is turned that stands at p: min(⌊p / divide⌋ mod modulo + shift,
/// last). Where queries and keys follow rules of their own, scores see other distances than p_q -
/// p_k: see `KeyBand`.
struct PositionRule {
  Index divide = 1;
  Index modulo = 0;  // 0: none
  Index shift = 0;
  Index last = std::numeric_limits<Index>::max();

  constexpr bool operator==(const PositionRule&) const = default;
  constexpr Index operator()(Index position) const {
    if (divide > 1) position = floor_div(position, divide);
    if (modulo > 0) position -= floor_div(position, modulo) * modulo;
    return std::min(position + shift, last);
  }

 private:
  static constexpr Index floor_div(Index a, Index b) {
    const Index quotient = a / b;
    return quotient * b > a ? quotient - 1 : quotient;
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
