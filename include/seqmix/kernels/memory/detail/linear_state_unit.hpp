#pragma once

#include <algorithm>

#include "seqmix/kernels/memory/decay.hpp"
#include "seqmix/kernels/memory/detail/state_units.hpp"

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
/// The piece of the state that the recurrence holds in registers: about half of them.
template <class S>
inline constexpr Index state_tile_rows = sizeof(simd::Batch<S>) >= 64 ? 8 : 4;
template <class S>
inline constexpr Index state_tile_columns = 2 * simd::lanes<S>;

/// The operands of one unit of work: heads of one group in one segment, V of their value columns.
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
  Index first_token, first_head, first_column;

  /// The factors of `count` tokens of head h of the unit, in rows of `stride` numbers.
  void write_factors(Index h, Index first, Index count, S* rows, Index stride) const {
    factors().write_factors(first_head + h, first_token + first, count, rows, stride);
  }
  /// The log decays or factors by channel of head h, [T, K], or by value column, [T, V].
  View<const S, 2> decays(Index h) const requires(Decay::by_channel || by_value<Decay>) {
    return factors().of_head(first_head + h).slice(axis::time, first_token, this->tokens());
  }
  /// [K], or null where a token's own share has none.
  const S* bonus(Index h) const {
    if constexpr (requires { decay.bonus; }) {
      return decay.bonus.data() + (first_head + h) * decay.bonus.stride(0);
    } else {
      return nullptr;
    }
  }

 private:
  /// What the factors come from.
  decltype(auto) factors() const {
    if constexpr (by_value<Decay>) {
      return decay.of_columns(first_column, this->values());
    } else {
      return (decay);
    }
  }
};

/// A unit has all value columns of its heads, or a panel of a multiple of `panel` of them where
/// there are few units: a cut in columns costs packing q and k once more.
inline StateCut cut_by_groups(const Call& call, const Segment& segment, const Shape<4>& state,
                              Index G, Index panel) {
  const Index K = state[2], V = state[3], per_group = state[1] / G;
  const Index heads = std::min(per_group, shared_heads);
  const Index units = G * ceil_div(per_group, heads);
  const bool lone = call.segments().size() == 1 && units == 1 && V >= lone_columns &&
                    segment.count * K * V >= 2 * updates_per_task;
  const Index wanted = ceil_div(share_of(call, segment, enough_units), units);
  const Index panels =
      std::clamp<Index>(V / panel_columns, lone ? 2 : 1, std::max<Index>(wanted, lone ? 2 : 1));
  return {G, per_group, heads, round_up(ceil_div(V, panels), panel), panels};
}

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
