#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <numbers>
#include <utility>
#include <vector>

#include "seqmix/kernels/positions/rotary_angles.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The angle by which a token further turns each pair, and all that is derived from it once.
///
/// A position is anchor + offset with the anchor a multiple of `anchor_interval`. The cos and sin
/// of the offsets are kept here, those of an anchor are computed when a call reaches it, and the
/// two are combined in double: precise at any position, without a table that grows with it. Pairs
/// whose wavelength is a whole number of tokens have the same bits one wavelength further, which
/// costs a cos and sin of each position.
class RotaryFrequencies {
 public:
  static constexpr Index anchor_interval = 16;

  RotaryFrequencies() = default;
  /// θ_n = base^(-2n / rotary_dim).
  RotaryFrequencies(Index rotary_dim, double base)
      : RotaryFrequencies(detail::inverse_powers(rotary_dim, base)) {}
  /// The same as `scaling` changes it; `length` as in `rotary_angles`.
  RotaryFrequencies(Index rotary_dim, double base, const RopeScalingConfig& scaling,
                    Index length = 0)
      : RotaryFrequencies(rotary_angles(rotary_dim, base, scaling, length), scaling.amplitude()) {
    if (scaling.resonance) round_wavelengths();
  }
  /// Angles of the caller's choice, one a pair, and what cos and sin are multiplied by.
  explicit RotaryFrequencies(std::vector<double> angles, double amplitude = 1)
      : angles_(std::move(angles)),
        cos_(angles_.size() * static_cast<std::size_t>(anchor_interval)),
        sin_(cos_.size()) {
    for (Index offset = 0; offset < anchor_interval; ++offset) {
      const auto first = static_cast<std::size_t>(offset * pairs());
      write_anchor(offset, cos_.data() + first, sin_.data() + first);
    }
    amplitude_ = amplitude;
  }
  /// The same by a rule, angle(n) of pair n.
  template <std::invocable<Index> Angle>
  RotaryFrequencies(Index rotary_dim, Angle&& angle, double amplitude = 1)
      : RotaryFrequencies(by_rule(rotary_dim, angle), amplitude) {}

  Index pairs() const { return static_cast<Index>(angles_.size()); }
  Index rotary_dim() const { return 2 * pairs(); }

  /// θ_n, [pairs].
  const std::vector<double>& angles() const { return angles_; }
  /// The wavelengths, [pairs], where all are whole; empty otherwise.
  const std::vector<double>& wavelengths() const { return wavelengths_; }

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
  /// The same where wavelengths are whole, from within the first one.
  void write_periodic(Index position, double* cos, double* sin) const {
    for (std::size_t n = 0; n < angles_.size(); ++n) {
      const double turned = std::fmod(static_cast<double>(position), wavelengths_[n]) * angles_[n];
      cos[n] = amplitude_ * std::cos(turned), sin[n] = amplitude_ * std::sin(turned);
    }
  }

 private:
  /// Rounds wavelengths 2π / θ_n to whole tokens, halves to even. Wang et al. 2024,
  /// arXiv:2403.00071, eq. 6.
  void round_wavelengths() {
    for (double& angle : angles_) {
      const double wavelength = std::nearbyint(2 * std::numbers::pi / angle);
      require(
          wavelength >= 1 && std::isfinite(wavelength),
          "rope_resonance needs angles that are positive and whose wavelengths round to a token "
          "at least");
      angle = 2 * std::numbers::pi / wavelength;
      wavelengths_.push_back(wavelength);
    }
  }

  static std::vector<double> by_rule(Index rotary_dim, auto&& angle) {
    require(rotary_dim >= 0 && rotary_dim % 2 == 0, "rotary_dim must be even and not negative");
    std::vector<double> angles;
    for (Index n = 0; n < rotary_dim / 2; ++n) angles.push_back(angle(n));
    return angles;
  }

  std::vector<double> angles_;       // [pairs]
  std::vector<double> wavelengths_;  // [pairs] or empty
  double amplitude_ = 1;             // of cos and sin; the tables below have 1
  std::vector<double> cos_, sin_;    // [anchor_interval, pairs]
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
