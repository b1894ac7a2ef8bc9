#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>

#include "seqmix/core/call.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/positions/position_rule.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/kernels/positions/rotary_sections.hpp"
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

/// The cos and sin of positions, which cost little where one is near the last of its axis.
class RotaryTurns {
 public:
  /// `anchors` [axes, 2, pairs] is scratch.
  RotaryTurns(const RotaryFrequencies& frequencies, double* anchors)
      : frequencies_(frequencies), anchors_(anchors) {
    anchored_.fill(1);  // no multiple of the interval
  }

  /// Writes the cos, then the sin of a position, [2, pairs].
  void write(Index axis, Index position, double* turn) {
    const Index pairs = frequencies_.pairs();
    double *const cos = turn, *const sin = turn + pairs;
    if (!frequencies_.wavelengths().empty()) {
      return frequencies_.write_periodic(position, cos, sin);
    }
    const Index anchor = position & -RotaryFrequencies::anchor_interval;
    double* const anchor_cos = anchors_ + 2 * axis * pairs;
    double* const anchor_sin = anchor_cos + pairs;
    Index& anchored = anchored_[static_cast<std::size_t>(axis)];
    if (anchor != anchored) {
      frequencies_.write_anchor(anchor, anchor_cos, anchor_sin);
      anchored = anchor;
    }
    frequencies_.write(anchor_cos, anchor_sin, position - anchor, cos, sin);
  }

 private:
  const RotaryFrequencies& frequencies_;
  double* anchors_;
  std::array<Index, RotarySections::most_axes> anchored_;
};

/// Turns all heads of x; on each axis token t of a unit is at `position_of(unit, t, axis)`.
template <class S>
void turn_tokens(const View<S, 3>& x, const RotaryFrequencies& frequencies, RotaryLayout layout,
                 const Call& call, const RotarySections& sections, Index axes, auto&& position_of) {
  const Index H = x.extent(axis::head), pairs = frequencies.pairs();
  const Index interval = RotaryFrequencies::anchor_interval;
  const auto work_of = [&](const Segment& segment) {
    const Index turned = 2 * pairs * H * std::min(segment.count, interval);
    return SegmentWork{ceil_div(segment.count, interval),
                       std::min(turned + pairs * numbers_per_angle, numbers_per_task)};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    const Index first = unit.segment.first, begin = unit.item * interval;
    auto wide = worker.scratch<double>();
    const auto rows = wide(2 * axes + (axes > 1 ? 4 : 2), pairs);  // cos, then sin of each
    RotaryTurns turns(frequencies, &rows(0, 0));
    const auto exact = rows.template slice<0>(2 * axes, 2);
    auto scratch = worker.scratch<S>();
    const auto narrow = scratch(4, pairs);
    const auto turn = narrow.template slice<0>(0, 2), halves = narrow.template slice<0>(2, 2);
    for (Index t = begin; t < std::min(unit.tokens(), begin + interval); ++t) {
      turns.write(0, position_of(unit, t, 0), &exact(0, 0));
      for (Index axis = 1; axis < axes; ++axis) {
        const auto other = rows.template slice<0>(2 * axes + 2, 2);
        turns.write(axis, position_of(unit, t, axis), &other(0, 0));
        for (Index n = 0; n < pairs; ++n) {
          if (sections.axis_of(n) == axis) exact(0, n) = other(0, n), exact(1, n) = other(1, n);
        }
      }
      copy(exact, turn);
      for (Index h = 0; h < H; ++h) turn_head<S>(&x(first + t, h, 0), layout, turn, halves);
    }
  });
}

template <class S>
void check_turned(std::string_view kernel, const View<S, 3>& x, Index pairs, const Call& call) {
  const Index T = call.tokens();
  if (x.extent(axis::time) == T && x.extent(axis::channel) >= 2 * pairs &&
      (x.extent(axis::channel) <= 1 || x.stride(axis::channel) == 1)) {
    return;
  }
  throw ShapeError(std::string(kernel) + ": got x " + x.shape().text() + ", expected " +
                   std::to_string(T) + " tokens of contiguous heads of at least " +
                   std::to_string(2 * pairs) + " numbers");
}

}  // namespace detail

/// Turns pair n of the first `rotary_dim` numbers of each head of x [T, H, K] by position · θ_n, in
/// place; token t of a segment is at position rule(past[row] + t), where `past` [B] may be none:
/// zeros. Su et al. 2021, arXiv:2104.09864, eq. 34.
template <class S>
void rope(View<S, 3> x, const RotaryFrequencies& frequencies, In<Index, 1> past,
          RotaryLayout layout, const Call& call, const PositionRule& rule = {}) {
  detail::check_turned("rope", x, frequencies.pairs(), call);
  for (const Segment& segment : call.segments()) {
    if (past.data() == nullptr || segment.row < past.extent(0)) continue;
    throw ShapeError("rope: got past " + past.shape().text() + ", expected one for row " +
                     std::to_string(segment.row));
  }
  if (x.empty() || frequencies.pairs() == 0) return;
  detail::turn_tokens<S>(x, frequencies, layout, call, {}, 1,
                         [&](const Unit& unit, Index t, Index /*axis*/) {
                           return rule((past.data() == nullptr ? 0 : past[unit.row()]) + t);
                         });
}

/// Turns these pairs of a token by one angle, `angle_of(position)`.
template <class S>
void rope_by_one_angle(View<S, 3> x, Index pairs, In<Index, 1> past, RotaryLayout layout,
                       const Call& call, auto&& angle_of) {
  detail::check_turned("rope_by_one_angle", x, pairs, call);
  const Index H = x.extent(axis::head);
  if (x.empty() || pairs == 0) return;
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{segment.count, 2 * pairs * H + detail::numbers_per_angle};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    auto scratch = worker.scratch<S>();
    const auto rows = scratch(4, pairs);
    const auto turn = rows.template slice<0>(0, 2), halves = rows.template slice<0>(2, 2);
    const double angle = angle_of((past.data() == nullptr ? 0 : past[unit.row()]) + unit.item);
    fill(turn[0], static_cast<S>(std::cos(angle))), fill(turn[1], static_cast<S>(std::sin(angle)));
    for (Index h = 0; h < H; ++h) {
      detail::turn_head<S>(&x(unit.segment.first + unit.item, h, 0), layout, turn, halves);
    }
  });
}

/// As `rope` where positions are given, [T, 1] over all tokens of the call, or [T, axes]:
/// `sections` says which of several axes turns a pair.
template <class S>
void rope_at(View<S, 3> x, const RotaryFrequencies& frequencies, In<Index, 2> positions,
             RotaryLayout layout, const Call& call, const RotarySections& sections = {},
             const PositionRule& rule = {}) {
  const Index pairs = frequencies.pairs(), axes = positions.extent(axis::channel);
  detail::check_turned("rope_at", x, pairs, call);
  if (positions.extent(axis::time) != call.tokens() || (axes != 1 && axes != sections.axes())) {
    throw ShapeError("rope_at: got positions " + positions.shape().text() + ", expected " +
                     std::to_string(call.tokens()) + " tokens of 1 or " +
                     std::to_string(sections.axes()) + " axes");
  }
  if (axes > 1 && sections.pairs() != pairs) {
    throw ShapeError("rope_at: got sections of " + std::to_string(sections.pairs()) +
                     " pairs, expected " + std::to_string(pairs));
  }
  if (x.empty() || pairs == 0) return;
  detail::turn_tokens<S>(x, frequencies, layout, call, sections, axes,
                         [&](const Unit& unit, Index t, Index axis) {
                           return rule(positions(unit.segment.first + t, axis));
                         });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
