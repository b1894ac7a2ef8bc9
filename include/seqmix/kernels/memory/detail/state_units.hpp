#pragma once

#include <algorithm>

#include "seqmix/core/call.hpp"

// How the states [B, H, K, V] of linear recurrences are cut into work.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Numbers of the state that one task updates at least, over its tokens.
inline constexpr Index updates_per_task = Index{1} << 17;

/// How one segment's row of a state is cut: each group of heads into blocks of `heads`, their V
/// value columns into panels of `columns`. Heads and columns share no sum, so that no cut changes a
/// bit. Columns do not see each other, so a lone head feeds several threads without a cut in time,
/// which would cost one more pass over the state.
struct StateCut {
  Index groups, per_group, heads, columns, panels;

  Index blocks() const { return ceil_div(per_group, heads); }
  Index units() const { return groups * blocks() * panels; }
};

/// What one unit of work does of a state: `heads` heads of one group from `head` on of a segment's
/// row, and their value columns [column, column + width).
struct StateUnit {
  const Segment& segment;
  Index group, head, heads, column, width;

  Index tokens() const { return segment.count; }
  /// The segment's tokens of activations [T, ...].
  auto tokens_of(const auto& view) const {
    return view.slice(axis::time, segment.first, segment.count);
  }
  /// Of v or o, [T, H, V]: [segment's tokens, heads, width].
  auto values_of(const auto& view) const {
    return tokens_of(view).slice(axis::head, head, heads).slice(axis::channel, column, width);
  }
  /// Of a state [B, H, K, V]: [heads, K, width].
  auto state_of(const auto& state) const {
    return state.slice(axis::head, head, heads)
        .slice(axis::channel, column, width)
        .at(axis::row, segment.row);
  }
};

/// Calls `body(unit, worker)` for all units of a state [B, H, K, V] of which a call advances rows;
/// `cut_of(segment)` says how one of them is cut.
template <class S>
void for_each_state_unit(const View<S, 4>& state, const Call& call, auto&& cut_of, auto&& body) {
  const Index K = state.extent(2), V = state.extent(3);
  const auto work_of = [&](const Segment& segment) {
    const StateCut cut = cut_of(segment);
    return SegmentWork{cut.units(),
                       std::max<Index>(segment.count * K * cut.columns * cut.heads, 1)};
  };
  for_each_unit(call, updates_per_task, work_of, [&](const Unit& at, const Call& worker) {
    const StateCut cut = cut_of(at.segment);
    const Index column = at.item % cut.panels * cut.columns;
    const Index block = at.item / cut.panels % cut.blocks();
    const Index group = at.item / (cut.panels * cut.blocks());
    const StateUnit unit{at.segment,
                         group,
                         group * cut.per_group + block * cut.heads,
                         std::min(cut.heads, cut.per_group - block * cut.heads),
                         column,
                         std::min(cut.columns, V - column)};
    if (unit.width > 0) body(unit, worker);
  });
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
