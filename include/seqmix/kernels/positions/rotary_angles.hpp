#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

#include "seqmix/kernels/positions/rope_scaling.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// base^(-2n / rotary_dim), [rotary_dim / 2].
inline std::vector<double> inverse_powers(Index rotary_dim, double base) {
  require(rotary_dim >= 0 && rotary_dim % 2 == 0, "rotary_dim must be even and not negative");
  require(base > 0, "the base of the rotary frequencies must be positive");
  std::vector<double> angles;
  for (Index n = 0; n < rotary_dim; n += 2) {
    angles.push_back(1 / std::pow(base, static_cast<double>(n) / static_cast<double>(rotary_dim)));
  }
  return angles;
}

/// The powers of a base by which the last angle is divided by `factor`, and the first by 1.
inline std::vector<double> stretched_powers(Index rotary_dim, double base, double factor) {
  const auto width = static_cast<double>(rotary_dim);
  if (rotary_dim <= 2) return inverse_powers(rotary_dim, base);
  return inverse_powers(rotary_dim, base * std::pow(factor, width / (width - 2)));
}

/// What part of angle n, which is θ, is kept where the rest is divided by the factor.
inline double kept_part(const RopeScalingConfig& scaling, Index rotary_dim, double base, Index n,
                        double theta) {
  const auto width = static_cast<double>(rotary_dim);
  const auto length = static_cast<double>(scaling.original_length);
  if (scaling.kind == RopeScaling::linear) return 0;
  if (scaling.kind == RopeScaling::yarn) {
    // The pair, a fraction of one, that turns `turns` times within the original length.
    const auto pair_of = [&](double turns) {
      return width * std::log(length / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
    };
    double low = pair_of(scaling.beta_fast), high = pair_of(scaling.beta_slow);
    if (scaling.truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0), high = std::min(high, width - 1);
    if (high == low) high += 0.001;  // the published code's way around a ramp of no width
    return 1 - std::clamp((static_cast<double>(n) - low) / (high - low), 0.0, 1.0);
  }
  if (scaling.kind == RopeScaling::llama3) {
    const double turns = length * theta / (2 * std::numbers::pi);
    return std::clamp(
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor),
        0.0, 1.0);
  }
  return 1;
}

}  // namespace detail

/// The angle by which a token further turns each pair, [rotary_dim / 2], wavelengths not rounded.
/// `length`: of the context, where `scaling` depends on it; 0: what it says itself.
inline std::vector<double> rotary_angles(Index rotary_dim, double base,
                                         const RopeScalingConfig& scaling, Index length = 0) {
  if (length == 0) length = scaling.length > 0 ? scaling.length : scaling.original_length;
  const bool beyond = length > scaling.original_length;
  const double factor = scaling.factor;
  switch (scaling.kind) {
    case RopeScaling::table:
      return scaling.angles;
    case RopeScaling::ntk:
      return detail::stretched_powers(rotary_dim, base, factor);
    case RopeScaling::dynamic: {
      const double longer =
          static_cast<double>(length) / static_cast<double>(scaling.original_length);
      return detail::stretched_powers(rotary_dim, base,
                                      beyond ? factor * longer - (factor - 1) : 1);
    }
    case RopeScaling::longrope: {
      std::vector<double> angles = detail::inverse_powers(rotary_dim, base);
      const std::vector<double>& table = beyond ? scaling.long_factor : scaling.short_factor;
      for (std::size_t n = 0; n < angles.size(); ++n) angles[n] /= table[n];
      return angles;
    }
    default:
      break;
  }
  std::vector<double> angles = detail::inverse_powers(rotary_dim, base);
  if (scaling.closed && rotary_dim > 2) {
    const auto last = static_cast<double>(rotary_dim / 2 - 1);
    for (std::size_t n = 0; n < angles.size(); ++n) {
      angles[n] = std::pow(base, -static_cast<double>(n) / last);
    }
  }
  for (std::size_t n = 0; n < angles.size(); ++n) {
    const double kept =
        detail::kept_part(scaling, rotary_dim, base, static_cast<Index>(n), angles[n]);
    angles[n] = angles[n] / factor * (1 - kept) + angles[n] * kept;
  }
  return angles;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
