#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/product/matmul.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The maps from a latent c [r] that all heads share to their keys and values, k_h = W_kh c [K] and
/// v_h = W_vh c [V], packed for both ways of using them.
template <class S>
struct LatentHeads {
  std::vector<PackedMatrix<S>> keys;     // H of [K, r]
  std::vector<PackedMatrix<S>> queries;  // H of [r, K], the transposes
  std::vector<PackedMatrix<S>> values;   // H of [V, r]

  LatentHeads() = default;
  /// `weight` [H, K + V, r]: the rows of a head's keys, then those of its values.
  LatentHeads(In<S, 3> weight, Index key_width) {
    for (Index h = 0; h < weight.extent(0); ++h) {
      const auto of_keys = weight[h].slice(axis::row, 0, key_width);
      keys.emplace_back(of_keys);
      queries.emplace_back(detail::transposed(of_keys));
      values.emplace_back(weight[h].slice(axis::row, key_width, weight.extent(1) - key_width));
    }
  }
  Index size() const { return static_cast<Index>(keys.size()); }
  Index rank() const { return keys[0].cols(); }
  Index head_k() const { return keys[0].rows(); }
  Index head_v() const { return values[0].rows(); }
};

namespace detail {

/// Whether the keys and values of a segment's queries cost less when they are expanded from the
/// latents. A pair of tokens costs 2 r products a head in the latents and K + V when expanded, the
/// expansion r (K + V) a cached token. The length of the past has no say.
template <class S>
bool expands_latents(const LatentHeads<S>& heads, const Segment& segment, Algorithm algorithm) {
  if (segment.form != Form::parallel) return false;
  if (algorithm != Algorithm::automatic) return algorithm == Algorithm::chunked;
  const Index rank = heads.rank(), width = heads.head_k() + heads.head_v();
  return segment.count * (2 * rank - width) > rank * width;
}

/// Every head of the segments that `chosen(segment)` tells on its own, with keys and values of its
/// own.
template <class S>
void attend_expanded(const View<const S, 3>& q, const CacheView<const S, 4>& cache,
                     const View<const Index, 1>& past, const LatentHeads<S>& heads,
                     const AnyScore<S>& score, const View<S, 3>& o, const Call& call,
                     auto&& chosen) {
  const Index rank = heads.rank(), K = heads.head_k(), V = heads.head_v();
  const Index shared = q.extent(axis::channel) - K;
  const auto cached = [&](const Segment& segment) {  // [1, P + T, r + shared]
    return cache.slice(axis::slot, 0, past[segment.row] + segment.count).at(axis::row, segment.row);
  };
  const auto attend_head = [&](const View<const S, 3>& entries, const Segment& segment, Index h,
                               const Call& worker) {
    const Index count = entries.extent(1);
    auto scratch = worker.scratch<S>();
    auto keys = scratch(1, 1, count, K + shared);                   // [1, 1, P + T, K + shared]
    auto values = scratch(1, 1, count, V);                          // [1, 1, P + T, V]
    const auto latents = entries[0].slice(axis::channel, 0, rank);  // [P + T, r]
    const auto index = static_cast<std::size_t>(h);
    matmul<S>(latents, heads.keys[index], keys[0][0].slice(axis::channel, 0, K), worker);
    matmul<S>(latents, heads.values[index], values[0][0], worker);
    copy(entries[0].slice(axis::channel, rank, shared), keys[0][0].slice(axis::channel, K, shared));
    const Segment alone{0, 0, segment.count, Form::parallel};
    const auto of_head = [&](const auto& view) {
      return view.slice(axis::time, segment.first, segment.count).slice(axis::head, h, 1);
    };
    attention<S>(of_head(q), keys, values, past.slice(axis::row, segment.row, 1), Causal{},
                 score.from_head(h), of_head(o), worker.with(Segments(&alone, 1)));
  };
  const auto work_of = [&](const Segment& segment) {
    if (!chosen(segment)) return SegmentWork{};
    const Index products = (past[segment.row] + segment.count) * rank * (K + V);  // of the maps
    return SegmentWork{heads.size(), std::clamp<Index>(products, 1, attention_task_products)};
  };
  if (cache.is_native()) {
    return for_each_unit(
        call, attention_task_products, work_of, [&](const Unit& unit, const Call& worker) {
          attend_head(cached(unit.segment).native(), unit.segment, unit.item, worker);
        });
  }
  for (const Segment& segment : call.segments()) {
    if (!chosen(segment)) continue;
    auto scratch = call.scratch<S>();
    auto loaded = scratch(1, past[segment.row] + segment.count, rank + shared);
    load_entries<S>(cached(segment), loaded);  // once for all heads
    for_each_unit(call.with(Segments(&segment, 1)), attention_task_products, work_of,
                  [&](const Unit& unit, const Call& worker) {
                    attend_head(loaded, segment, unit.item, worker);
                  });
  }
}

/// All heads on the cache as it lies: q_h · W_kh c = (W_khᵀ q_h) · c, and W_vh moves behind the
/// sum.
template <class S>
void attend_absorbed(const View<const S, 3>& q, const CacheView<const S, 4>& cache,
                     const View<const Index, 1>& past, const LatentHeads<S>& heads,
                     const AnyScore<S>& score, const View<S, 3>& o, const Call& call) {
  const Index T = q.extent(axis::time), H = heads.size();
  const Index rank = heads.rank(), K = heads.head_k(), shared = q.extent(axis::channel) - K;
  auto scratch = call.scratch<S>();
  auto queries = scratch(T, H, rank + shared);  // [T, H, r + shared]
  auto sums = scratch(T, H, rank);              // [T, H, r]
  const auto for_each_head = [&](auto&& body) {
    call.parallel_for(
        H, [&](Index h, const Call& worker) { body(h, static_cast<std::size_t>(h), worker); });
  };
  for_each_head([&](Index h, std::size_t index, const Call& worker) {
    const View<const S, 2> from = q.at(axis::head, h);
    const View<S, 2> to = queries.at(axis::head, h);
    matmul<S>(from.slice(axis::channel, 0, K), heads.queries[index],
              to.slice(axis::channel, 0, rank), worker);
    copy(from.slice(axis::channel, K, shared), to.slice(axis::channel, rank, shared));
  });
  attention<S>(queries, cache, cache.slice(axis::channel, 0, rank), past, Causal{}, score, sums,
               call);
  for_each_head([&](Index h, std::size_t index, const Call& worker) {
    matmul<S>(sums.at(axis::head, h), heads.values[index], o.at(axis::head, h), worker);
  });
}

/// Calls `body(q, o, call)` for the segments that `chosen(segment)` tells, as if there were no
/// others: their tokens lie behind each other, gathered where others lie between.
template <class S>
void for_chosen_segments(const View<const S, 3>& q, const View<S, 3>& o, const Call& call,
                         auto&& chosen, auto&& body) {
  auto segments = call.scratch<Segment>();
  Segment* const own = segments(std::ssize(call.segments())).data();
  std::size_t n = 0;
  Index first = 0, tokens = 0;
  bool connected = true;
  const auto for_each_chosen = [&](auto&& each) {
    for (const Segment& segment : call.segments()) {
      if (chosen(segment)) each(segment);
    }
  };
  for_each_chosen([&](const Segment& segment) {
    if (n == 0) first = segment.first;
    connected &= segment.first == first + tokens;
    own[n] = segment, own[n++].first = tokens;
    tokens += segment.count;
  });
  if (n == 0) return;
  const Call of_own = call.with(Segments(own, n));
  if (connected) {
    return body(q.slice(axis::time, first, tokens), o.slice(axis::time, first, tokens), of_own);
  }
  auto scratch = call.scratch<S>();
  const auto own_q = scratch(tokens, q.extent(axis::head), q.extent(axis::channel));
  const auto own_o = scratch(tokens, o.extent(axis::head), o.extent(axis::channel));
  const auto for_each_part = [&](auto&& each) {
    Index done = 0;
    for_each_chosen([&](const Segment& segment) { each(segment, done), done += segment.count; });
  };
  for_each_part([&](const Segment& segment, Index at) {
    copy(q.slice(axis::time, segment.first, segment.count),
         own_q.slice(axis::time, at, segment.count));
  });
  body(View<const S, 3>(own_q), own_o, of_own);
  for_each_part([&](const Segment& segment, Index at) {
    copy(own_o.slice(axis::time, at, segment.count),
         o.slice(axis::time, segment.first, segment.count));
  });
}

}  // namespace detail

/// o_h = Σ softmax(score(q_h · k_h + qr_h · kr)) v_h over the keys up to the query's own, where
/// keys and values are maps of the cached latents c.
///
///   q [T, H, K + shared], each head q_h then qr_h; o [T, H, V]
///   cache [B, 1, capacity, r + shared], each entry c then kr, which all heads share
///
/// Token t of a segment is at position past[row] + t, and its entry is in the cache already. Each
/// segment by its own length: recurrent ones and short parallel ones absorb the maps into queries
/// and outputs, long ones expand the cache once a head. `call.algorithm()` forces the parallel
/// form: chunked expands, recurrent absorbs. DeepSeek-AI 2024, arXiv:2405.04434, eq. 9-19.
template <class S>
void latent_attention(In<S, 3> q, CacheIn<S, 4> cache, In<Index, 1> past,
                      const LatentHeads<S>& heads, std::type_identity_t<AnyScore<S>> score,
                      View<S, 3> o, const Call& call) {
  const Index T = call.tokens(), H = heads.size(), B = cache.extent(axis::row);
  const Index capacity = cache.extent(axis::slot);
  const Index shared = q.extent(axis::channel) - (H == 0 ? 0 : heads.head_k());
  const Expect expect{"latent_attention"};
  expect.shape("q", q, {T, H, heads.head_k() + std::max<Index>(shared, 0)});
  if (T * H == 0) return;
  expect.shape("o", o, {T, H, heads.head_v()});
  expect.shape("cache", cache, {B, 1, capacity, heads.rank() + shared});
  expect.shape("past", past, {B});
  for (const auto& [row, first, count, form] : call.segments()) {
    if (past[row] >= 0 && past[row] <= capacity - count) continue;
    throw CapacityError("latent_attention: " + std::to_string(count) + " tokens after " +
                        std::to_string(past[row]) + " do not fit in a cache of " +
                        std::to_string(capacity));
  }
  const auto expands = [&](const Segment& segment) {
    return detail::expands_latents(heads, segment, call.algorithm());
  };
  const auto absorbs = [&](const Segment& segment) { return !expands(segment); };
  detail::for_chosen_segments<S>(q, o, call, absorbs, [&](auto own_q, auto own_o, const Call& own) {
    detail::attend_absorbed<S>(own_q, cache, past, heads, score, own_o, own);
  });
  detail::attend_expanded<S>(q, cache, past, heads, score, o, call, expands);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
