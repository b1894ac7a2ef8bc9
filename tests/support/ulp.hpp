#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace seqmix::test {

/// The type in which the exact value of a function of S is computed.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, float>, double, long double>;

/// The distance of `value` from `exact` in units in the last place of S at `exact`.
///
/// An infinite value stands where the first number past the range would. Below the smallest normal
/// number 0 is right too. NaN is right for NaN alone.
template <class S>
double ulp_error(S value, Wide<S> exact) {
  using W = Wide<S>;
  using Limits = std::numeric_limits<S>;
  if (std::isnan(value) || std::isnan(exact)) {
    return std::isnan(value) && std::isnan(exact) ? 0 : std::numeric_limits<double>::infinity();
  }
  const W past = std::ldexp(W(1), Limits::max_exponent);
  const auto bounded = [past](W v) { return std::clamp(v, -past, past); };
  const W expected = bounded(exact), difference = std::fabs(bounded(value) - expected);
  if (std::fabs(expected) < Limits::min() && value == 0) return 0;
  const int exponent = expected == 0 ? Limits::min_exponent - 1 : std::ilogb(expected);
  const int clamped =
      std::min(std::max(exponent, Limits::min_exponent - 1), Limits::max_exponent - 1);
  return static_cast<double>(std::ldexp(difference, Limits::digits - 1 - clamped));
}

}  // namespace seqmix::test
