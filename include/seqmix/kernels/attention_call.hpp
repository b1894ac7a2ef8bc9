#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/context.hpp"
#include "seqmix/kernels/cache.hpp"
#include "seqmix/kernels/matmul.hpp"
#include "seqmix/kernels/softmax.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Positions [begin, end), counted from the start of the stream.
struct Span {
  Index begin = 0, end = 0;
  Index size() const { return end - begin; }
};

/// How many pairs of a span of queries and a span of keys see each other. A policy that does not
/// know may answer `partial`.
enum class Visibility { none, partial, all };

/// A register of (query, key) pairs. Their positions are origin + query and origin + key with an
/// origin near the keys: whole numbers in S, so that policies compare and subtract them in
/// registers. In float, distances above 2^24 are rounded.
template <class S>
struct Pairs {
  Index origin;
  simd::Batch<S> query, key;
};

/// A query sees the keys up to its own.
///
/// A mask is any type with these three members. It sees positions only, never how they are tiled.
/// It may have a fourth, `Span reach(Span queries) const`, outside of which it hides every key: the
/// tiles there are not even looked at. And a fifth, `narrowed(Span queries, Span keys) const`: a
/// mask of its own type that agrees with it on these positions and may be cheaper to ask.
struct Causal {
  /// The mask of one batch row and query head.
  Causal of(Index /*row*/, Index /*head*/) const { return *this; }
  Visibility visibility(Span queries, Span keys) const {
    if (keys.begin >= queries.end) return Visibility::none;
    return keys.end <= queries.begin + 1 ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    return pairs.key <= pairs.query;
  }
};

/// scale · q · k, nothing more.
///
/// A score is any type with these members. It maps scaled products before the mask is applied, so
/// that a cap or a bias never makes a hidden key visible.
struct PlainScore {
  double scale = 1;

  /// The score of one batch row and query head.
  PlainScore of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& /*pairs*/) const {
    return products;
  }
};

namespace detail {

/// Keys of a tile. Tiles begin at multiples of it, wherever a call begins, so that the tiling of a
/// query's keys (and with it every bit of its result) depends on positions alone.
inline constexpr Index attention_tile = 64;
/// Keys that the recurrent form hands to one task.
inline constexpr Index attention_span = 512;
/// Such tasks that are in flight before their results are merged.
inline constexpr Index attention_wave = 32;
/// Queries (of all heads that share a key) of one task of the parallel form: the most that leave so
/// many tasks, which fit in the L2 cache, or the fewest that are worth the keys they read.
inline constexpr Index parallel_tasks = 8, most_queries = 2048, least_queries = 384;
/// Heads at most in one task of the parallel form.
inline constexpr Index attention_heads = 8;
/// Numbers of the cache that are worth a task of the recurrent form: the first keys of a task are
/// waited for, since nobody fetched them ahead for its worker.
inline constexpr Index attention_task_numbers = Index{1} << 17;

template <class S>
inline constexpr S minus_infinity = -std::numeric_limits<S>::infinity();

/// first, first + 1, ...
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> counting_from(Index first) {
  constexpr auto steps = [] {
    std::array<S, static_cast<std::size_t>(simd::lanes<S>)> numbers{};
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<S>(i);
    return numbers;
  }();
  return simd::load<S>(steps.data()) + simd::broadcast(static_cast<S>(first));
}

template <class S>
bool all_finite(const View<const S, 2>& rows) {
  // They stay zero unless a number is infinite or NaN. Four, since a chain would wait for itself.
  simd::Batch<S> zero[4] = {simd::Batch<S>(S(0)), simd::Batch<S>(S(0)), simd::Batch<S>(S(0)),
                            simd::Batch<S>(S(0))};
  const Index height = rows.extent(0);
  for (Index row = 0; row < height; row += 4) {
    simd::for_each_block<S>(rows.extent(1), [&](Index first, auto lane_count) {
#pragma GCC unroll 4
      for (Index i = 0; i < 4; ++i) {
        const S* const from = rows.data() + std::min(row + i, height - 1) * rows.stride(0) + first;
        zero[i] = simd::fma<S>(simd::load<S>(from, lane_count), simd::broadcast(S(0)), zero[i]);
      }
    });
  }
  return simd::reduce_add((zero[0] + zero[1]) + (zero[2] + zero[3])) == 0;
}

/// The mask, or a cheaper one that is the same for these positions.
template <class Mask>
Mask narrowed(const Mask& mask, Span queries, Span keys) {
  if constexpr (requires { mask.narrowed(queries, keys); }) {
    return mask.narrowed(queries, keys);
  } else {
    return mask;
  }
}

/// What a policy becomes for one row and head.
template <class Policy>
using OfHead = decltype(std::declval<const Policy&>().of(Index{}, Index{}));

/// The keys or the values of one row and group, by position.
template <class S>
struct Entries {
  CacheView<const S, 2> cache;  // [rows, K], position p in slot p mod rows
  View<const S, 2> fresh;       // [T, K], of the positions from `past` on, or no data
  Index past;

  /// The rows of a tile: where they lie, or collected in `to` [attention_tile, K].
  CacheView<const S, 2> stored(Span tile, const View<S, 2>& to) const {
    const Index cached =
        fresh.data() == nullptr ? tile.end : std::clamp(past, tile.begin, tile.end);
    if (cached == tile.begin) return fresh.template slice<0>(tile.begin - past, tile.size());
    const Index rows = cache.extent(0), slot = tile.begin % rows;
    if (cached == tile.end && slot + tile.size() <= rows) {
      return cache.template slice<0>(slot, tile.size());
    }
    for (Index position = tile.begin; position < tile.end; ++position) {
      const View<S, 1> row = to[position - tile.begin];
      position < cached ? load_entries<S>(cache[position % rows], row)
                        : copy(fresh[position - past], row);
    }
    return to.template slice<0>(0, tile.size());
  }
  /// The rows of a tile that lie behind each other in the cache, from its first on.
  CacheView<const S, 2> cached(Span tile) const {
    const Index rows = cache.extent(0), slot = tile.begin % rows;
    return cache.template slice<0>(slot, std::min(tile.size(), rows - slot));
  }
  /// The same as numbers of S.
  View<const S, 2> of(Span tile, const View<S, 2>& to) const {
    const CacheView<const S, 2> rows = stored(tile, to);
    if (rows.is_native()) return rows.native();
    const View<S, 2> numbers = to.template slice<0>(0, tile.size());
    load_entries<S>(rows, numbers);
    return numbers;
  }
};

/// What both forms read, and where they write.
template <class S>
struct AttentionCall {
  View<const S, 4> q;            // [B, T, H, K]
  CacheView<const S, 4> keys;    // [B, G, capacity, K]
  CacheView<const S, 4> values;  // [B, G, capacity, V]
  View<const Index, 1> past;     // [B]
  View<S, 4> o;                  // [B, T, H, V]
  View<S, 3> log_sum_exp;        // [B, T, H], or no data
  // Keys and values of this call where the caches, then rings, do not have them.
  View<const S, 4> fresh_keys = {};    // [B, T, G, K], or no data
  View<const S, 4> fresh_values = {};  // [B, T, G, V], or no data

  Index batch() const { return q.extent(0); }
  Index tokens() const { return q.extent(1); }
  Index heads() const { return q.extent(2); }
  Index groups() const { return keys.extent(1); }
  Index heads_per_group() const { return heads() / groups(); }
  Index head_k() const { return q.extent(3); }
  Index head_v() const { return o.extent(3); }

  Entries<S> keys_of(Index b, Index group) const { return entries(keys, fresh_keys, b, group); }
  Entries<S> values_of(Index b, Index group) const {
    return entries(values, fresh_values, b, group);
  }

  /// The positions of the keys that some of the tokens and heads of row b may see.
  template <class Mask>
  Span reach(const Mask& mask, Index b, Span of_heads, Span tokens) const {
    if constexpr (requires { mask.of(b, Index{}).reach(Span{}); }) {
      Span whole{std::numeric_limits<Index>::max(), 0};
      for (Index head = of_heads.begin; head < of_heads.end; ++head) {
        const Span seen = mask.of(b, head).reach({past[b] + tokens.begin, past[b] + tokens.end});
        whole = {std::min(whole.begin, seen.begin), std::max(whole.end, seen.end)};
      }
      return {std::min(whole.begin, whole.end), whole.end};
    } else {
      return {0, past[b] + this->tokens()};
    }
  }

  template <class Mask>
  void check(const Mask& mask) const {
    const auto expect = [](std::string_view what, const auto& view, const auto& shape) {
      if (view.shape() != shape) {
        throw ShapeError("attention: " + std::string(what) + " has shape " + view.shape().text() +
                         ", expected " + shape.text());
      }
      if constexpr (std::remove_cvref_t<decltype(view)>::rank == 4) {
        if (view.extent(3) > 1 && view.stride(3) != 1) {
          throw ShapeError("attention: the last dimension of " + std::string(what) +
                           " has stride " + std::to_string(view.stride(3)) + ", expected 1");
        }
      }
    };
    const Index B = batch(), T = tokens(), H = heads(), G = groups(), capacity = keys.extent(2);
    if (G <= 0 || H % G != 0) {
      throw ShapeError("attention: " + std::to_string(H) + " query heads cannot share " +
                       std::to_string(G) + " key heads");
    }
    expect("q", q, q.shape());
    expect("keys", keys, Shape<4>{B, G, capacity, head_k()});
    expect("values", values, Shape<4>{B, G, capacity, head_v()});
    const bool cached = fresh_keys.data() == nullptr;
    if (!cached) {
      expect("k", fresh_keys, Shape<4>{B, T, G, head_k()});
      expect("v", fresh_values, Shape<4>{B, T, G, head_v()});
    }
    expect("past", past, Shape<1>{B});
    expect("o", o, Shape<4>{B, T, H, head_v()});
    if (log_sum_exp.data() != nullptr) expect("log_sum_exp", log_sum_exp, Shape<3>{B, T, H});
    for (Index b = 0; b < B; ++b) {
      if (T == 0 || H == 0 || (!cached && past[b] >= 0)) continue;
      if (past[b] < 0 || reach(mask, b, {0, H}, {0, T}).end > capacity) {
        throw CapacityError("attention: " + std::to_string(T) + " tokens after " +
                            std::to_string(past[b]) + " do not fit in a cache of " +
                            std::to_string(capacity));
      }
    }
  }

 private:
  Entries<S> entries(const CacheView<const S, 4>& cache, const View<const S, 4>& fresh, Index b,
                     Index group) const {
    if (fresh.data() == nullptr) return {cache[b][group], {}, past[b]};
    return {cache[b][group], fresh[b].template at<1>(group), past[b]};
  }
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
