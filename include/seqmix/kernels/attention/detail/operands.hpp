#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/detail/policies.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

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
/// Products that are worth a task of the parallel form.
inline constexpr Index attention_task_products = Index{1} << 17;

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

/// The keys or the values of one row and group, by position.
template <class S>
struct Entries {
  CacheView<const S, 2> cache;  // [rows, K], position p in slot p mod rows, or none
  View<const S, 2> fresh;       // [T, K], of the positions from `past` on, or no data
  Index past;

  /// The rows of a tile: where they lie, or collected in `to` [attention_tile, K].
  CacheView<const S, 2> stored(Span tile, const View<S, 2>& to) const {
    const Index cached =
        fresh.data() == nullptr ? tile.end : std::clamp(past, tile.begin, tile.end);
    if (cached == tile.begin) return fresh.slice(axis::row, tile.begin - past, tile.size());
    const Index rows = cache.extent(0), slot = tile.begin % rows;
    if (cached == tile.end && slot + tile.size() <= rows) {
      return cache.slice(axis::row, slot, tile.size());
    }
    for (Index position = tile.begin; position < tile.end; ++position) {
      const View<S, 1> row = to[position - tile.begin];
      position < cached ? load_entries<S>(cache[position % rows], row)
                        : copy(fresh[position - past], row);
    }
    return to.slice(axis::row, 0, tile.size());
  }
  /// The rows of a tile that lie behind each other, from its first on, to fetch them ahead.
  CacheView<const S, 2> cached(Span tile) const {
    if (fresh.data() != nullptr && tile.begin >= past) {
      return fresh.slice(axis::row, tile.begin - past, tile.size());
    }
    const Index rows = cache.extent(0), slot = tile.begin % rows;
    return cache.slice(axis::row, slot, std::min(tile.size(), rows - slot));
  }
  /// The same as numbers of S.
  View<const S, 2> of(Span tile, const View<S, 2>& to) const {
    const CacheView<const S, 2> rows = stored(tile, to);
    if (rows.is_native()) return rows.native();
    const View<S, 2> numbers = to.slice(axis::row, 0, tile.size());
    load_entries<S>(rows, numbers);
    return numbers;
  }
};

/// The queries of one segment: tokens [first, first + count) of the call, at positions from `past`
/// on. With them their row has `positions`.
struct SegmentQueries {
  Index row, first, count, past, positions;

  HeadOfRow of_head(Index head) const { return {row, head, positions, first - past}; }
};

/// What both forms read, and where they write.
template <class S>
struct AttentionOperands {
  View<const S, 3> q;            // [T, H, K]
  CacheView<const S, 4> keys;    // [B, G, capacity, K], or none: then segments see themselves alone
  CacheView<const S, 4> values;  // [B, G, capacity, V], or none; of their own number of heads
  View<const Index, 1> past;     // [B], or none
  View<S, 3> o;                  // [T, H, V]
  View<S, 2> log_sum_exp;        // [T, H], or no data
  Policies<S> policies;
  // Keys and values of this call where the caches, then rings, do not have them.
  View<const S, 3> fresh_keys = {};    // [T, G, K], or no data
  View<const S, 3> fresh_values = {};  // [T, G, V], or no data
  // Without caches: the positions whose tokens are queries.
  Span asking = {0, std::numeric_limits<Index>::max()};

  bool has_caches() const { return keys.extent(axis::head) > 0; }
  Index heads() const { return q.extent(axis::head); }
  Index key_heads() const {
    return has_caches() ? keys.extent(axis::head) : fresh_keys.extent(axis::head);
  }
  Index value_heads() const {
    return has_caches() ? values.extent(axis::head) : fresh_values.extent(axis::head);
  }
  /// Sets of query heads that share their keys and their values. Set g reads the g-th heads,
  /// counted around where there are fewer.
  Index groups() const { return std::max(key_heads(), value_heads()); }
  Index heads_per_group() const { return heads() / groups(); }
  Index head_k() const { return q.extent(axis::channel); }
  Index head_v() const { return o.extent(axis::channel); }

  /// Whether the parallel form takes these queries, of which there are some.
  bool in_parallel(const Segment& segment) const {
    return has_caches() ? segment.form == Form::parallel : queries_of(segment).count > 0;
  }
  SegmentQueries queries_of(const Segment& segment) const {
    const auto [row, first, count, form] = segment;
    if (has_caches()) return {row, first, count, past[row], past[row] + count};
    const Index begin = std::min(asking.begin, count), end = std::min(asking.end, count);
    return {row, first + begin, end - begin, begin, count};
  }
  Entries<S> keys_of(const SegmentQueries& of, Index group) const {
    return entries(keys, fresh_keys, of, group % key_heads());
  }
  Entries<S> values_of(const SegmentQueries& of, Index group) const {
    return entries(values, fresh_values, of, group % value_heads());
  }

  /// The positions of the keys that some of the tokens and heads of a segment may see.
  Span reach(const SegmentQueries& of, Span of_heads, Span of_tokens) const {
    const Span queries{of.past + of_tokens.begin, of.past + of_tokens.end};
    Span whole{std::numeric_limits<Index>::max(), 0};
    for (Index head = of_heads.begin; head < of_heads.end; ++head) {
      const Span seen = policies.mask.reach(of.of_head(head), queries);
      whole = {std::min(whole.begin, seen.begin), std::max(whole.end, seen.end)};
    }
    if (!has_caches()) whole.end = std::min(whole.end, of.positions);
    return {std::min(whole.begin, whole.end), whole.end};
  }

  void check(const Call& call) const {
    const Index T = call.tokens(), H = heads(), of_keys = key_heads(), of_values = value_heads();
    const Index B = keys.extent(axis::row), capacity = keys.extent(axis::slot);
    const auto share = [](Index many, Index few) { return few > 0 && many % few == 0; };
    if (!share(H, groups()) || !share(groups(), of_keys) || !share(groups(), of_values)) {
      throw ShapeError("attention: " + std::to_string(H) + " query heads cannot share " +
                       std::to_string(of_keys) + " key heads and " + std::to_string(of_values) +
                       " value heads");
    }
    const Expect expect{"attention"};
    expect.rows("q", q, {T, H, head_k()});
    if (has_caches()) {
      expect.rows("keys", keys, {B, of_keys, capacity, head_k()});
      expect.rows("values", values, {B, of_values, capacity, head_v()});
      expect.shape("past", past, {B});
    }
    const bool fresh = fresh_keys.data() != nullptr;
    if (fresh) {
      expect.rows("k", fresh_keys, {T, of_keys, head_k()});
      expect.rows("v", fresh_values, {T, of_values, head_v()});
    }
    expect.rows("o", o, {T, H, head_v()});
    if (log_sum_exp.data() != nullptr) {
      expect.shape("log_sum_exp", log_sum_exp, {T, H});
      require(policies.scores.weighting() == Weighting::softmax,
              "attention: log_sum_exp needs softmax");
    }
    if (!has_caches() || H == 0) return;
    for (const Segment& segment : call.segments()) {
      const SegmentQueries of = queries_of(segment);
      if (of.past >= 0 && (fresh || reach(of, {0, H}, {0, of.count}).end <= capacity)) continue;
      throw CapacityError("attention: " + std::to_string(of.count) + " tokens after " +
                          std::to_string(of.past) + " do not fit in a cache of " +
                          std::to_string(capacity));
    }
  }

 private:
  Entries<S> entries(const CacheView<const S, 4>& cache, const View<const S, 3>& fresh,
                     const SegmentQueries& of, Index head) const {
    const auto of_token = [&](Index position) {  // and those behind it
      return fresh.slice(axis::time, of.first + position - of.past, of.positions - position)
          .at(axis::head, head);
    };
    if (!has_caches()) return {{}, of_token(0), 0};
    const auto cached = cache.at(axis::head, head).at(axis::row, of.row);
    if (fresh.data() == nullptr) return {cached, {}, of.past};
    return {cached, of_token(of.past), of.past};
  }
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
