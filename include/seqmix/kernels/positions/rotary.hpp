#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include "seqmix/core/call.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which numbers of a head form the pair n of `pairs` that turns by one angle: (n, n + pairs) or
/// (2n, 2n + 1).
enum class RotaryLayout { half_split, interleaved };

namespace detail {

/// What an angle of an anchor costs in turned numbers.
inline constexpr Index numbers_per_angle = 64;

/// Turns the pairs of one head by the angles whose cos and sin are `turn` [2, pairs]; `halves`
/// [2, pairs] is scratch.
template <class S>
void turn_head(S* head, RotaryLayout layout, const View<const S, 2>& turn,
               const View<S, 2>& halves) {
  using Batch = simd::Batch<S>;
  const Index pairs = turn.extent(1);
  const S *const cos = &turn(0, 0), *const sin = &turn(1, 0);
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

}  // namespace detail

/// Turns pair n of the first `rotary_dim` numbers of each head of x [T, H, K] by position · θ_n, in
/// place; token t of a segment is at position min(past[row] + t, last), where `past` [B] may be
/// none: zeros. Su et al. 2021, arXiv:2104.09864, eq. 34.
template <class S>
void rope(View<S, 3> x, const RotaryFrequencies& frequencies, In<Index, 1> past,
          RotaryLayout layout, const Call& call, Index last = std::numeric_limits<Index>::max()) {
  const Index T = call.tokens(), H = x.extent(axis::head), pairs = frequencies.pairs();
  if (x.extent(axis::time) != T || x.extent(axis::channel) < 2 * pairs ||
      (x.extent(axis::channel) > 1 && x.stride(axis::channel) != 1)) {
    throw ShapeError("rope: got x " + x.shape().text() + ", expected " + std::to_string(T) +
                     " tokens of contiguous heads of at least " + std::to_string(2 * pairs) +
                     " numbers");
  }
  for (const Segment& segment : call.segments()) {
    if (past.data() == nullptr || segment.row < past.extent(0)) continue;
    throw ShapeError("rope: got past " + past.shape().text() + ", expected one for row " +
                     std::to_string(segment.row));
  }
  if (x.empty() || pairs == 0) return;
  const Index interval = RotaryFrequencies::anchor_interval;
  const auto work_of = [&](const Segment& segment) {
    const Index turned = 2 * pairs * H * std::min(segment.count, interval);
    return SegmentWork{ceil_div(segment.count, interval),
                       std::min(turned + pairs * detail::numbers_per_angle, numbers_per_task)};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    const Index first = unit.segment.first, begin = unit.item * interval;
    const Index before = past.data() == nullptr ? 0 : past[unit.row()];
    auto wide = worker.scratch<double>();
    auto anchor = wide(2, pairs), angle = wide(2, pairs);  // cos, then sin
    auto scratch = worker.scratch<S>();
    auto turn = scratch(2, pairs), halves = scratch(2, pairs);
    for (Index t = begin; t < std::min(unit.tokens(), begin + interval); ++t) {
      const Index position = std::min(before + t, last), offset = position % interval;
      if (t == begin || offset == 0) {
        frequencies.write_anchor(position - offset, &anchor(0, 0), &anchor(1, 0));
      }
      frequencies.write(&anchor(0, 0), &anchor(1, 0), offset, &angle(0, 0), &angle(1, 0));
      copy(angle, turn);
      for (Index h = 0; h < H; ++h) {
        detail::turn_head<S>(&x(first + t, h, 0), layout, turn, halves);
      }
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
