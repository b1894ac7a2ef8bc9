#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/memory.hpp"
#include "seqmix/core/view.hpp"
#include "seqmix/simd/convert.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"
#include "seqmix/simd/reduce.hpp"

// Products of a few rows of numbers with many that lie in memory as they are: nothing is packed.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Bytes that are fetched from memory, bit by bit, while others are computed with.
class Ahead {
 public:
  Ahead() = default;
  /// Rows that lie behind each other without a gap; of others nothing.
  template <class S>
  explicit Ahead(const CacheView<const S, 2>& rows) {
    const Index row_bytes = rows.extent(1) * number_size<S>(rows.storage());
    if (rows.bytes().stride(0) != row_bytes) return;
    next_ = rows.bytes().data();
    end_ = next_ + rows.extent(0) * row_bytes;
    near_ = rows.extent(0) * row_bytes <= near_bytes;
  }
  /// Fetches the next `bytes`, or what is left of them.
  template <Index bytes>
  SEQMIX_ALWAYS_INLINE void fetch() {
    if (next_ == end_) return;
#pragma GCC unroll 16
    for (Index byte = 0; byte < bytes; byte += alignment) {
      near_ ? __builtin_prefetch(next_ + byte, 0, 3) : __builtin_prefetch(next_ + byte, 0, 2);
    }
    next_ += std::min(bytes, end_ - next_);
  }

 private:
  /// What the L1 cache has room for beside what is computed with; more goes to the L2 cache.
  static constexpr Index near_bytes = Index{1} << 14;

  const std::byte *next_ = nullptr, *end_ = nullptr;
  bool near_ = false;
};

/// Queries that are multiplied with a row, or add up rows, at a time.
template <class S>
inline constexpr Index queries_at_once = std::min<Index>(4, simd::lanes<S>);

/// Calls `body(first, count)` for blocks of [0, rows), `count` a constant: `Most`, then less.
template <Index Most>
SEQMIX_ALWAYS_INLINE void for_each_block_of_rows(Index rows, auto&& body, Index row = 0) {
  for (; row + Most <= rows; row += Most) body(row, std::integral_constant<Index, Most>{});
  if constexpr (Most > 1) for_each_block_of_rows<Most / 2>(rows, body, row);
}

/// products(r, j) = q_r · row_j for `Queries` rows of q and the keys from `row` on, of which there
/// are so many that each product is a lane. Keys beyond the last are read as the last one.
template <class S, Index Queries, class Number>
SEQMIX_ALWAYS_INLINE void dot_block(const View<const S, 2>& q, const View<const Number, 2>& rows,
                                    Index row, Ahead& ahead_of_all, const View<S, 2>& products) {
  constexpr Index lanes = simd::lanes<S>, keys = lanes / Queries;
  constexpr Index step_bytes = keys * lanes * static_cast<Index>(sizeof(Number));
  const S* const query = q.data();
  const Index q_row = q.stride(0);
  const Index last = std::min(keys, rows.extent(0) - row) - 1, stride = rows.stride(0);
  const Number* key[keys];
#pragma GCC unroll 16
  for (Index j = 0; j < keys; ++j) key[j] = rows.data() + (row + std::min(j, last)) * stride;
  Ahead ahead = ahead_of_all;
  simd::Batch<S> sum[lanes];
#pragma GCC unroll 16
  for (Index i = 0; i < lanes; ++i) sum[i] = simd::broadcast(S(0));
  simd::for_each_block<S>(q.extent(1), [&](Index k, auto lane_count) {
    ahead.fetch<step_bytes>();
    simd::Batch<S> factor[Queries];
#pragma GCC unroll 16
    for (Index r = 0; r < Queries; ++r) {
      factor[r] = simd::load<S>(query + r * q_row + k, lane_count);
    }
#pragma GCC unroll 16
    for (Index j = 0; j < keys; ++j) {
      const simd::Batch<S> numbers = simd::load_as<S>(key[j] + k, lane_count);
#pragma GCC unroll 16
      for (Index r = 0; r < Queries; ++r) {
        sum[r * keys + j] = simd::fma<S>(factor[r], numbers, sum[r * keys + j]);
      }
    }
  });
  ahead_of_all = ahead;
  S sums[lanes];
  simd::store<S>(sums, simd::reduce_add_each<S>(sum));
#pragma GCC unroll 16
  for (Index r = 0; r < Queries; ++r) {
    std::memcpy(&products(r, row), sums + r * keys, keys * sizeof(S));
  }
}

/// products [R, size] = q rowsᵀ, while `ahead` is fetched.
template <class S, class Number>
__attribute__((noinline)) void dot_rows(const View<const S, 2>& q,
                                        const View<const Number, 2>& rows, Ahead ahead,
                                        const View<S, 2>& products) {
  constexpr Index lanes = simd::lanes<S>;
  Ahead nothing;
  for (Index row = 0; row < rows.extent(0); row += lanes) {
    const Index end = std::min(rows.extent(0), row + lanes);
    for_each_block_of_rows<queries_at_once<S>>(q.extent(0), [&](Index r, auto count) {
      for (Index first = row; first < end; first += lanes / count) {
        dot_block<S, count>(q.slice(axis::row, r, count), rows, first, r == 0 ? ahead : nothing,
                            products.slice(axis::row, r, count));
      }
    });
  }
}

/// o_r += Σ_j p(r, j) row_j for `Queries` rows of o and `Registers` registers of columns.
template <class S, Index Queries, Index Registers, class Number>
SEQMIX_ALWAYS_INLINE void add_block(const View<const S, 2>& p, const View<const Number, 2>& rows,
                                    Index column, auto lane_count, Ahead& ahead_of_all,
                                    const View<S, 2>& o) {
  constexpr Index lanes = simd::lanes<S>;
  constexpr Index step_bytes = Registers * lanes * static_cast<Index>(sizeof(Number));
  const S* const weights = p.data();
  const Index p_row = p.stride(0), o_row = o.stride(0), stride = rows.stride(0);
  S* const to = o.data() + column;
  simd::Batch<S> sum[Queries][Registers];
#pragma GCC unroll 16
  for (Index r = 0; r < Queries; ++r) {
#pragma GCC unroll 16
    for (Index i = 0; i < Registers; ++i) {
      sum[r][i] = simd::load<S>(to + r * o_row + i * lanes, lane_count);
    }
  }
  const Number* from = rows.data() + column;
  Ahead ahead = ahead_of_all;
  for (Index j = 0; j < rows.extent(0); ++j, from += stride) {
    ahead.fetch<step_bytes>();
    simd::Batch<S> value[Registers];
#pragma GCC unroll 16
    for (Index i = 0; i < Registers; ++i) {
      value[i] = simd::load_as<S>(from + i * lanes, lane_count);
    }
#pragma GCC unroll 16
    for (Index r = 0; r < Queries; ++r) {
      const simd::Batch<S> weight = simd::broadcast(weights[r * p_row + j]);
#pragma GCC unroll 16
      for (Index i = 0; i < Registers; ++i) sum[r][i] = simd::fma<S>(weight, value[i], sum[r][i]);
    }
  }
  ahead_of_all = ahead;
#pragma GCC unroll 16
  for (Index r = 0; r < Queries; ++r) {
#pragma GCC unroll 16
    for (Index i = 0; i < Registers; ++i) {
      simd::store<S>(to + r * o_row + i * lanes, sum[r][i], lane_count);
    }
  }
}

/// o [R, V] += p rows, while `ahead` is fetched.
template <class S, class Number>
__attribute__((noinline)) void add_rows(const View<const S, 2>& p,
                                        const View<const Number, 2>& rows, Ahead ahead,
                                        const View<S, 2>& o) {
  constexpr Index lanes = simd::lanes<S>;
  constexpr std::integral_constant<Index, 4> wide;  // registers of columns
  constexpr std::integral_constant<Index, 1> narrow;
  Ahead nothing;
  const auto add = [&](auto registers, Index column, auto lane_count) {
    for_each_block_of_rows<queries_at_once<S>>(o.extent(0), [&](Index r, auto queries) {
      add_block<S, queries, registers>(p.slice(axis::row, r, queries), rows, column, lane_count,
                                       r == 0 ? ahead : nothing, o.slice(axis::row, r, queries));
    });
  };
  const Index width = o.extent(1);
  Index column = 0;
  for (; column + wide * lanes <= width; column += wide * lanes) {
    add(wide, column, simd::Full<S>{});
  }
  for (; column < width; column += lanes) add(narrow, column, std::min(lanes, width - column));
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
