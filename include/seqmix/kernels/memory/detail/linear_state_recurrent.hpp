#pragma once

#include <algorithm>

#include "seqmix/kernels/memory/detail/linear_state_unit.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

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
  /// s = a s + kᵀ v, by rows.
  SEQMIX_ALWAYS_INLINE void decay_and_write(const S* a, const S* k, const S* v) {
    const Batch v0 = simd::load(v), v1 = simd::load(v + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch factor = simd::broadcast(a[r]), key = simd::broadcast(k[r]);
      s_[r][0] = simd::fma<S>(key, v0, factor * s_[r][0]);
      s_[r][1] = simd::fma<S>(key, v1, factor * s_[r][1]);
    }
  }
  /// The same where `a` are factors of columns.
  SEQMIX_ALWAYS_INLINE void decay_columns_and_write(const S* a, const S* k, const S* v) {
    const Batch v0 = simd::load(v), v1 = simd::load(v + lanes);
    const Batch a0 = simd::load(a), a1 = simd::load(a + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch key = simd::broadcast(k[r]);
      s_[r][0] = simd::fma<S>(key, v0, a0 * s_[r][0]);
      s_[r][1] = simd::fma<S>(key, v1, a1 * s_[r][1]);
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
            state.slice(axis::row, row, rows).slice(axis::channel, column, columns);
        pack_padded<S>(rest, padded, tile_columns);
        advance(padded, tile_columns, row, column);
        unpack_padded<S>(padded, tile_columns, rest);
      }
    }
  }
}

/// Packed rows of a block of tokens of one head: q, k of `key_stride` numbers, v and o of
/// `value_stride`, a, the factors, of that of what they scale.
template <class S>
struct PackedRows {
  Index tokens, key_stride, value_stride;
  S *q, *k, *a, *v, *o;
};

/// The literal recurrence on the state [K, V] of one head, tile by tile.
template <bool by_column, class S>
void recur(const PackedRows<S>& rows, bool reads_before, const View<S, 2>& state) {
  const Index key_stride = rows.key_stride, value_stride = rows.value_stride;
  std::fill_n(rows.o, rows.tokens * value_stride, S(0));
  for_each_tile(state, [&](S* place, Index stride, Index row, Index column) {
    StateTile<S> tile(place, stride);
    for (Index t = 0; t < rows.tokens; ++t) {
      const S* const query = rows.q + t * key_stride + row;
      S* const o = rows.o + t * value_stride + column;
      if (reads_before) tile.read(query, o);
      const S* const key = rows.k + t * key_stride + row;
      const S* const value = rows.v + t * value_stride + column;
      if constexpr (by_column) {
        tile.decay_columns_and_write(rows.a + t * value_stride + column, key, value);
      } else {
        tile.decay_and_write(rows.a + t * key_stride + row, key, value);
      }
      if (!reads_before) tile.read(query, o);
    }
    tile.store(place, stride);
  });
}

/// The literal recurrence over blocks of time.
template <class S, class Decay>
void linear_state_recurrent(const LinearStateUnit<S, Decay>& unit, const Call& call) {
  const Index T = unit.tokens(), block = std::min(T, packed_tokens);
  const Index key_stride = round_up(unit.keys(), std::max(state_tile_rows<S>, simd::lanes<S>));
  const Index value_stride = round_up(unit.values(), state_tile_columns<S>);
  const Index factor_stride = by_value<Decay> ? value_stride : key_stride;
  auto scratch = call.scratch<S>();
  PackedRows<S> rows{.tokens = block,
                     .key_stride = key_stride,
                     .value_stride = value_stride,
                     .q = scratch(block, key_stride).data(),
                     .k = scratch(block, key_stride).data(),
                     .a = scratch(block, factor_stride).data(),
                     .v = scratch(block, value_stride).data(),
                     .o = scratch(block, value_stride).data()};

  for (Index first = 0; first < T; first += block) {
    rows.tokens = std::min(block, T - first);
    pack_padded<S>(unit.q.slice(axis::time, first, rows.tokens), rows.q, key_stride);
    pack_padded<S>(unit.k.slice(axis::time, first, rows.tokens), rows.k, key_stride);
    for (Index h = 0; h < unit.heads(); ++h) {
      const auto of_head = [&](const auto& view) {
        return view.at(axis::head, h).slice(axis::time, first, rows.tokens);
      };
      unit.write_factors(h, first, rows.tokens, rows.a, factor_stride);
      pack_padded<S>(of_head(unit.v), rows.v, value_stride);
      recur<by_value<Decay>, S>(rows, reads_before<Decay>, unit.state[h]);
      const S* const bonus = unit.bonus(h);
      for (Index t = 0; bonus != nullptr && t < rows.tokens; ++t) {
        add_own_share<S>(unit.keys(), value_stride, rows.q + t * key_stride, bonus,
                         rows.k + t * key_stride, rows.v + t * value_stride,
                         rows.o + t * value_stride);
      }
      unpack_padded<S>(rows.o, value_stride, of_head(unit.o),
                       [&](const simd::Batch<S>& x) { return x * simd::broadcast(unit.scale); });
    }
  }
}

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
