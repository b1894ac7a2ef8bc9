#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <utility>
#include <vector>

#include "seqmix/kernels/positions/rope_scaling.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The angle by which a token further turns each pair, and all that is derived from it once.
///
/// A position is anchor + offset with the anchor a multiple of `anchor_interval`. The cos and sin
/// of the offsets are kept here, those of an anchor are computed when a call reaches it, and the
/// two are combined in double: precise at any position, without a table that grows with it.
class RotaryFrequencies {
 public:
  static constexpr Index anchor_interval = 16;

  RotaryFrequencies() = default;
  /// θ_n = base^(-2n / rotary_dim).
  RotaryFrequencies(Index rotary_dim, double base)
      : RotaryFrequencies(inverse_powers(rotary_dim, base)) {}
  /// The same for a longer context.
  RotaryFrequencies(Index rotary_dim, double base, const RopeScalingConfig& scaling)
      : RotaryFrequencies(scaled(rotary_dim, base, scaling)) {
    amplitude_ = scaling.amplitude();
  }
  /// Angles of the caller's choice, one a pair.
  explicit RotaryFrequencies(std::vector<double> angles)
      : angles_(std::move(angles)),
        cos_(angles_.size() * static_cast<std::size_t>(anchor_interval)),
        sin_(cos_.size()) {
    for (Index offset = 0; offset < anchor_interval; ++offset) {
      const auto first = static_cast<std::size_t>(offset * pairs());
      write_anchor(offset, cos_.data() + first, sin_.data() + first);
    }
  }

  Index pairs() const { return static_cast<Index>(angles_.size()); }
  Index rotary_dim() const { return 2 * pairs(); }

  /// θ_n, [pairs].
  const std::vector<double>& angles() const { return angles_; }

  /// Writes the cos and sin of position · θ_n times the amplitude, [pairs] each.
  void write_anchor(Index position, double* cos, double* sin) const {
    for (const double angle : angles_) {
      *cos++ = amplitude_ * std::cos(static_cast<double>(position) * angle);
      *sin++ = amplitude_ * std::sin(static_cast<double>(position) * angle);
    }
  }
  /// The same for the position that lies `offset` < anchor_interval tokens after an anchor.
  void write(const double* anchor_cos, const double* anchor_sin, Index offset, double* cos,
             double* sin) const {
    using Batch = simd::Batch<double>;
    const double* const offset_cos = cos_.data() + offset * pairs();
    const double* const offset_sin = sin_.data() + offset * pairs();
    const auto cos_of_sum = [](const Batch& c, const Batch& s, const Batch& dc, const Batch& ds) {
      return simd::fnma<double>(s, ds, c * dc);
    };
    const auto sin_of_sum = [](const Batch& c, const Batch& s, const Batch& dc, const Batch& ds) {
      return simd::fma<double>(c, ds, s * dc);
    };
    simd::map<double>(pairs(), cos, cos_of_sum, anchor_cos, anchor_sin, offset_cos, offset_sin);
    simd::map<double>(pairs(), sin, sin_of_sum, anchor_cos, anchor_sin, offset_cos, offset_sin);
  }

 private:
  static std::vector<double> inverse_powers(Index rotary_dim, double base) {
    require(rotary_dim >= 0 && rotary_dim % 2 == 0, "rotary_dim must be even and not negative");
    require(base > 0, "the base of the rotary frequencies must be positive");
    std::vector<double> angles;
    for (Index n = 0; n < rotary_dim; n += 2) {
      angles.push_back(1 /
                       std::pow(base, static_cast<double>(n) / static_cast<double>(rotary_dim)));
    }
    return angles;
  }
  static std::vector<double> scaled(Index rotary_dim, double base,
                                    const RopeScalingConfig& scaling) {
    const auto width = static_cast<double>(rotary_dim);
    if (scaling.kind == RopeScaling::ntk && rotary_dim > 2) {
      return inverse_powers(rotary_dim, base * std::pow(scaling.factor, width / (width - 2)));
    }
    std::vector<double> angles = inverse_powers(rotary_dim, base);
    const auto length = static_cast<double>(scaling.original_length);
    // The pair, a fraction of one, that turns `turns` times within the original length.
    const auto pair_of = [&](double turns) {
      return width * std::log(length / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
    };
    for (std::size_t n = 0; n < angles.size(); ++n) {
      double kept = 1;  // the part of the angle that is not divided
      if (scaling.kind == RopeScaling::linear) kept = 0;
      if (scaling.kind == RopeScaling::yarn) {
        const double low = std::max(std::floor(pair_of(scaling.beta_fast)), 0.0);
        double high = std::min(std::ceil(pair_of(scaling.beta_slow)), width - 1);
        if (high == low) high += 0.001;  // the published code's way around a ramp of no width
        kept = 1 - std::clamp((static_cast<double>(n) - low) / (high - low), 0.0, 1.0);
      }
      if (scaling.kind == RopeScaling::llama3) {
        const double turns = length * angles[n] / (2 * std::numbers::pi);
        kept = std::clamp((turns - scaling.low_freq_factor) /
                              (scaling.high_freq_factor - scaling.low_freq_factor),
                          0.0, 1.0);
      }
      angles[n] = angles[n] / scaling.factor * (1 - kept) + angles[n] * kept;
    }
    return angles;
  }

  std::vector<double> angles_;     // [pairs]
  double amplitude_ = 1;           // of cos and sin; the tables below have 1
  std::vector<double> cos_, sin_;  // [anchor_interval, pairs]
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
