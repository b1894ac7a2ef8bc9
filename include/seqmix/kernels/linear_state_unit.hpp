#pragma once

#include <algorithm>

#include "seqmix/kernels/state_decay.hpp"

// What the forms of `linear_state` share: units of work.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Heads of one group that share its packed queries and keys, and their products.
inline constexpr Index shared_heads = 8;
/// Where there are fewer units of work than this, value columns are split into panels of so many;
/// one unit alone into two from `lone_columns` on.
inline constexpr Index enough_units = 8;
inline constexpr Index panel_columns = 128, lone_columns = 64;
/// Numbers of the state that one task updates at least, over its tokens.
inline constexpr Index updates_per_task = Index{1} << 17;

/// The piece of the state that the recurrence holds in registers: about half of them.
template <class S>
inline constexpr Index state_tile_rows = sizeof(simd::Batch<S>) >= 64 ? 8 : 4;
template <class S>
inline constexpr Index state_tile_columns = 2 * simd::lanes<S>;

/// The operands of one unit of work: heads of one group in one batch row, V of their value columns.
template <class S>
struct StateRows {
  View<const S, 2> q, k;  // [T, K]
  View<const S, 3> v;     // [T, heads, V]
  View<S, 3> state;       // [heads, K, V]
  View<S, 3> o;           // [T, heads, V]
  S scale;

  Index heads() const { return v.extent(1); }
  Index tokens() const { return q.extent(0); }
  Index keys() const { return q.extent(1); }
  Index values() const { return v.extent(2); }
};

/// The same with how their state forgets.
template <class S, class Decay>
struct LinearStateUnit : StateRows<S> {
  const Decay& decay;
  Index batch_row, first_head;

  /// The factors of `count` tokens of head h of the unit, in rows of `stride` numbers.
  void write_factors(Index h, Index first, Index count, S* rows, Index stride) const {
    decay.write_factors(batch_row, first_head + h, first, count, rows, stride);
  }
  /// [K], or null where a token's own share has none.
  const S* bonus(Index h) const {
    if constexpr (requires { decay.bonus; }) {
      return decay.bonus.data() + (first_head + h) * decay.bonus.stride(0);
    } else {
      return nullptr;
    }
  }
};

/// What one task does of a state [B, H, K, V]: `heads` heads of one group from `head` on, and their
/// value columns [column, column + width).
struct StateUnit {
  Index row, group, head, heads, column, width;

  /// Of v or o, [B, T, H, V].
  auto values_of(const auto& view) const {
    return view[row].template slice<1>(head, heads).template slice<2>(column, width);
  }
  auto state_of(const auto& state) const {
    return state[row].template slice<0>(head, heads).template slice<2>(column, width);
  }
};

/// Calls `body(unit, worker)` for all units of a state that T tokens of G groups pass through. A
/// unit has all value columns of its heads, or a panel of a multiple of `panel` of them where there
/// are few units. How a state is cut is a matter of its shape alone.
///
/// Columns do not see each other, so a lone head feeds several threads without a cut in time, which
/// would cost one more pass over the state: a cut in columns costs packing q and k once more.
void for_each_state_unit(const Shape<4>& state, Index G, Index T, Index panel, Context& context,
                         auto&& body) {
  const Index B = state[0], K = state[2], V = state[3], per_group = state[1] / G;
  const Index heads = std::min(per_group, shared_heads);
  const Index blocks = ceil_div(per_group, heads);
  const bool lone = B * G * blocks == 1 && V >= lone_columns && T * K * V >= 2 * updates_per_task;
  const Index panels =
      std::clamp<Index>(V / panel_columns, lone ? 2 : 1, ceil_div(enough_units, B * G * blocks));
  const Index columns = round_up(ceil_div(V, panels), panel);
  const Index units = B * G * blocks * panels;
  const Index updates = std::max<Index>(T * K * columns * heads, 1);
  const Index units_per_task = std::max<Index>(updates_per_task / updates, 1);
  context.parallel_for(ceil_div(units, units_per_task), [&](Index task, Context& worker) {
    const Index end = std::min(units, (task + 1) * units_per_task);
    for (Index i = task * units_per_task; i < end; ++i) {
      const Index column = i % panels * columns, block = i / panels % blocks;
      const Index group = i / (panels * blocks) % G, row = i / (panels * blocks * G);
      const StateUnit unit{row,
                           group,
                           group * per_group + block * heads,
                           std::min(heads, per_group - block * heads),
                           column,
                           std::min(columns, V - column)};
      if (unit.width > 0) body(unit, worker);
    }
  });
}

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
