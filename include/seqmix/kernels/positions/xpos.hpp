#pragma once

#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <vector>

#include "seqmix/core/error.hpp"
#include "seqmix/core/view.hpp"
#include "seqmix/kernels/positions/rotary.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What xPos multiplies the pairs of queries and keys by beside turning them: ζ_n^(i / base) of a
/// query at i and ζ_n^(-j / base) of a key at j, ζ_n = (2n / d + 0.4) / 1.4, so that a score loses
/// ζ_n^((i - j) / base). Sun et al. 2022, arXiv:2212.10554, section 3.2.
///
/// The factors of a key alone leave float after some 10⁴ tokens. Both sides count from a common
/// centre, which scores do not see, and keys are kept without their factor: `xpos_attention`.
class XPosDecay {
 public:
  static constexpr Index run = 64;  // distances that one power is computed for

  XPosDecay() = default;
  /// `base`: tokens of a power of ζ; 512 in the paper.
  XPosDecay(Index rotary_dim, double base) {
    require(base > 0, "the tokens of a power of xPos must be positive");
    const auto width = static_cast<double>(rotary_dim);
    for (Index n = 0; n < rotary_dim; n += 2) {
      logs_.push_back(std::log((static_cast<double>(n) / width + 0.4) / 1.4) / base);
      for (Index r = 0; r < run; ++r) {
        near_.push_back(std::exp(static_cast<double>(r) * logs_.back()));
      }
    }
  }

  Index pairs() const { return std::ssize(logs_); }

  /// Writes ζ_n^((first + r) / base) for r < count <= run, [count, pairs]; 0 where that is no
  /// normal number.
  template <class S>
  void write(Index first, Index count, View<S, 2> factors) const {
    for (Index n = 0; n < pairs(); ++n) {
      const double far = std::exp(static_cast<double>(first) * logs_[static_cast<std::size_t>(n)]);
      const double* near = &near_[static_cast<std::size_t>(n * run)];
      for (Index r = 0; r < count; ++r) {
        const auto factor = static_cast<S>(far * near[r]);
        factors(r, n) = factor < std::numeric_limits<S>::min() ? S(0) : factor;
      }
    }
  }

 private:
  std::vector<double> logs_;  // [pairs]
  std::vector<double> near_;  // [pairs, run]
};

/// Multiplies pair n of the first numbers of a head by factors[n].
template <class S>
void scale_pairs(const S* factors, Index pairs, RotaryLayout layout, S* head) {
  const Index apart = layout == RotaryLayout::interleaved ? 1 : pairs;
  const Index next = layout == RotaryLayout::interleaved ? 2 : 1;
  for (Index n = 0; n < pairs; ++n) {
    head[n * next] *= factors[n], head[n * next + apart] *= factors[n];
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
