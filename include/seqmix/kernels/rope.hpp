#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/core/context.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which numbers of a head form the pair n of `pairs` that turns by one angle: (n, n + pairs) or
/// (2n, 2n + 1).
enum class RotaryLayout { half_split, interleaved };

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

  /// Writes the cos and sin of position · θ_n, [pairs] each.
  void write_anchor(Index position, double* cos, double* sin) const {
    for (const double angle : angles_) {
      *cos++ = std::cos(static_cast<double>(position) * angle);
      *sin++ = std::sin(static_cast<double>(position) * angle);
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
  std::vector<double> angles_;     // [pairs]
  std::vector<double> cos_, sin_;  // [anchor_interval, pairs]
};

/// Turns pair n of the first `rotary_dim` numbers of each head of x [B, T, H, K] by position · θ_n,
/// in place; token t of row b is at position past[b] + t. Su et al. 2021, arXiv:2104.09864, eq. 34.
template <class S>
void rope(View<S, 4> x, const RotaryFrequencies& frequencies, In<Index, 1> past,
          RotaryLayout layout, Context& context) {
  const Index B = x.extent(0), T = x.extent(1), H = x.extent(2), pairs = frequencies.pairs();
  if (past.extent(0) != B || x.extent(3) < 2 * pairs || (x.extent(3) > 1 && x.stride(3) != 1)) {
    throw ShapeError("rope: got x " + x.shape().text() + " and past " + past.shape().text() +
                     ", expected contiguous heads of at least " + std::to_string(2 * pairs) +
                     " numbers and one past a row");
  }
  if (x.empty() || pairs == 0) return;
  using Batch = simd::Batch<S>;
  const Index interval = RotaryFrequencies::anchor_interval;
  const Index tasks_per_row = ceil_div(T, interval);
  context.parallel_for(B * tasks_per_row, [&](Index task, Context& worker) {
    const Index b = task / tasks_per_row, begin = task % tasks_per_row * interval;
    auto wide = worker.scratch<double>();
    auto anchor = wide(2, pairs), angle = wide(2, pairs);  // cos, then sin
    auto scratch = worker.scratch<S>();
    auto turn = scratch(2, pairs), halves = scratch(2, pairs);
    const S *const cos = &turn(0, 0), *const sin = &turn(1, 0);
    for (Index t = begin; t < std::min(T, begin + interval); ++t) {
      const Index position = past[b] + t, offset = position % interval;
      if (t == begin || offset == 0) {
        frequencies.write_anchor(position - offset, &anchor(0, 0), &anchor(1, 0));
      }
      frequencies.write(&anchor(0, 0), &anchor(1, 0), offset, &angle(0, 0), &angle(1, 0));
      copy(angle, turn);
      for (Index h = 0; h < H; ++h) {
        S* const head = &x(b, t, h, 0);
        S *low = head, *high = head + pairs;
        if (layout == RotaryLayout::interleaved) {
          low = &halves(0, 0), high = &halves(1, 0);
          for (Index n = 0; n < pairs; ++n) low[n] = head[2 * n], high[n] = head[2 * n + 1];
        }
        simd::for_each_block<S>(pairs, [&](Index n, auto lane_count) {
          const Batch a = simd::load<S>(low + n, lane_count);
          const Batch c = simd::load<S>(high + n, lane_count);
          const Batch cosine = simd::load<S>(cos + n, lane_count);
          const Batch sine = simd::load<S>(sin + n, lane_count);
          simd::store<S>(low + n, simd::fnma<S>(c, sine, a * cosine), lane_count);
          simd::store<S>(high + n, simd::fma<S>(c, cosine, a * sine), lane_count);
        });
        if (layout == RotaryLayout::interleaved) {
          for (Index n = 0; n < pairs; ++n) head[2 * n] = low[n], head[2 * n + 1] = high[n];
        }
      }
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
