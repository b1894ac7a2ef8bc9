#pragma once

#include <algorithm>
#include <array>

#include "seqmix/kernels/state_decay.hpp"

// What the forms of `linear_state` share: units of work and tiles of the state.

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

/// One unit of work: heads of one group in one batch row, V of their value columns.
template <class S, class Decay>
struct LinearStateUnit {
  View<const S, 2> q, k;  // [T, K]
  View<const S, 3> v;     // [T, heads, V]
  const Decay& decay;
  Index batch_row, first_head;
  S scale;
  View<S, 3> state;  // [heads, K, V]
  View<S, 3> o;      // [T, heads, V]

  Index heads() const { return v.extent(1); }
  Index tokens() const { return q.extent(0); }
  Index keys() const { return q.extent(1); }
  Index values() const { return v.extent(2); }
  /// The length of a row of packed keys, of packed values, and of a row of factors.
  Index key_stride() const {
    return round_up(keys(), std::max(state_tile_rows<S>, simd::lanes<S>));
  }
  Index value_stride() const { return round_up(values(), state_tile_columns<S>); }
  Index factor_stride() const { return Decay::by_channel ? key_stride() : simd::lanes<S>; }
};

/// A tile of the state in registers.
template <class S>
class StateTile {
 public:
  static constexpr Index rows = state_tile_rows<S>, columns = state_tile_columns<S>;

  SEQMIX_ALWAYS_INLINE StateTile(const S* state, Index stride) {
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      s_[r][0] = simd::load(state + r * stride), s_[r][1] = simd::load(state + r * stride + lanes);
    }
  }
  SEQMIX_ALWAYS_INLINE void store(S* state, Index stride) const {
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      simd::store<S>(state + r * stride, simd::flush_subnormal<S>(s_[r][0]));
      simd::store<S>(state + r * stride + lanes, simd::flush_subnormal<S>(s_[r][1]));
    }
  }
  /// s = a s, by rows.
  template <bool by_row>
  SEQMIX_ALWAYS_INLINE void decay(const S* a) {
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch factor = simd::broadcast(a[by_row ? r : 0]);
      s_[r][0] = s_[r][0] * factor, s_[r][1] = s_[r][1] * factor;
    }
  }
  /// s = a s by a factor that is split in two, rounded once where the first is 0 or 1.
  SEQMIX_ALWAYS_INLINE void decay(const std::array<S, 2>& a) {
    const Batch whole = simd::broadcast(a[0]), rest = simd::broadcast(a[1]);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      s_[r][0] = simd::fma<S>(rest, s_[r][0], whole * s_[r][0]);
      s_[r][1] = simd::fma<S>(rest, s_[r][1], whole * s_[r][1]);
    }
  }
  /// s += kᵀ v.
  SEQMIX_ALWAYS_INLINE void write(const S* k, const S* v) {
    const Batch v0 = simd::load(v), v1 = simd::load(v + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch key = simd::broadcast(k[r]);
      s_[r][0] = simd::fma<S>(key, v0, s_[r][0]), s_[r][1] = simd::fma<S>(key, v1, s_[r][1]);
    }
  }
  /// s = a s + kᵀ v: where a is one, the bits of `write`.
  template <bool by_row>
  SEQMIX_ALWAYS_INLINE void decay_and_write(const S* a, const S* k, const S* v) {
    const Batch v0 = simd::load(v), v1 = simd::load(v + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch factor = simd::broadcast(a[by_row ? r : 0]), key = simd::broadcast(k[r]);
      s_[r][0] = simd::fma<S>(key, v0, factor * s_[r][0]);
      s_[r][1] = simd::fma<S>(key, v1, factor * s_[r][1]);
    }
  }
  /// o += q s.
  SEQMIX_ALWAYS_INLINE void read(const S* q, S* o) const {
    Batch o0 = simd::load(o), o1 = simd::load(o + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch query = simd::broadcast(q[r]);
      o0 = simd::fma<S>(query, s_[r][0], o0), o1 = simd::fma<S>(query, s_[r][1], o1);
    }
    simd::store<S>(o, o0), simd::store<S>(o + lanes, o1);
  }

 private:
  using Batch = simd::Batch<S>;
  static constexpr Index lanes = simd::lanes<S>;
  Batch s_[rows][2];
};

/// Calls `advance(place, stride, row, column)` for the place of each tile of `state` [K, V]. A tile
/// that the edge cuts is padded with zeros elsewhere.
template <class S>
void for_each_tile(const View<S, 2>& state, auto&& advance) {
  constexpr Index tile_rows = StateTile<S>::rows, tile_columns = StateTile<S>::columns;
  const Index K = state.extent(0), V = state.extent(1);
  for (Index row = 0; row < K; row += tile_rows) {
    for (Index column = 0; column < V; column += tile_columns) {
      const Index rows = std::min(tile_rows, K - row), columns = std::min(tile_columns, V - column);
      if (rows == tile_rows && columns == tile_columns) {
        S* const place = state.data() + row * state.stride(0) + column;
        advance(place, state.stride(0), row, column);
      } else {
        alignas(alignment) S padded[tile_rows * tile_columns] = {};
        const View<S, 2> rest =
            state.template slice<0>(row, rows).template slice<1>(column, columns);
        pack_padded<S>(rest, padded, tile_columns);
        advance(padded, tile_columns, row, column);
        unpack_padded<S>(padded, tile_columns, rest, [](const simd::Batch<S>& x) { return x; });
      }
    }
  }
}

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
