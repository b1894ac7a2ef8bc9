#pragma once

#include <algorithm>
#include <vector>

#include "seqmix/kernels/attention.hpp"
#include "seqmix/kernels/matmul.hpp"

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
      const auto of_keys = weight[h].template slice<0>(0, key_width);
      keys.emplace_back(of_keys);
      queries.emplace_back(detail::transposed(of_keys));
      values.emplace_back(weight[h].template slice<0>(key_width, weight.extent(1) - key_width));
    }
  }
  Index size() const { return static_cast<Index>(keys.size()); }
  Index rank() const { return keys[0].cols(); }
  Index head_k() const { return keys[0].rows(); }
  Index head_v() const { return values[0].rows(); }
};

namespace detail {

/// Whether the keys and values of `tokens` queries cost less when they are expanded from the
/// latents. A pair of tokens costs 2 r products a head in the latents and K + V when expanded, the
/// expansion r (K + V) a cached token. The length of the past, which the rows of a batch need not
/// share, has no say, so that a row's bits do not depend on its neighbours.
template <class S>
bool expands_latents(const LatentHeads<S>& heads, Index tokens, Algorithm algorithm) {
  if (algorithm != Algorithm::automatic) return algorithm == Algorithm::chunked;
  const Index rank = heads.rank(), width = heads.head_k() + heads.head_v();
  return tokens * (2 * rank - width) > rank * width;
}

/// Every head on its own, with keys and values of its own.
template <class S>
void attend_expanded(const View<const S, 4>& q, const CacheView<const S, 4>& cache,
                     const View<const Index, 1>& past, const LatentHeads<S>& heads, double scale,
                     const View<S, 4>& o, Context& context) {
  const Index H = heads.size(), T = q.extent(1), rank = heads.rank(), K = heads.head_k();
  const Index rotary = q.extent(3) - K;
  auto numbers = context.scratch<S>();
  const View<const S, 4> latents_of_all = [&]() -> View<const S, 4> {
    if (cache.is_native()) return cache.native();
    Index longest = 0;
    for (Index b = 0; b < q.extent(0); ++b) longest = std::max(longest, past[b] + T);
    auto loaded = numbers(q.extent(0), 1, longest, rank + rotary);
    for (Index b = 0; b < q.extent(0); ++b) {
      const auto valid = [&](const auto& view) {
        return view.template slice<0>(b, 1).template slice<2>(0, past[b] + T);
      };
      load_entries<S>(cache.window(valid), valid(loaded));
    }
    return loaded;
  }();
  context.parallel_for(q.extent(0) * H, [&](Index task, Context& worker) {
    const Index b = task / H, h = task % H, count = past[b] + T;
    auto scratch = worker.scratch<S>();
    auto keys = scratch(1, 1, count, K + rotary);        // [1, 1, P + T, K + rotary]
    auto values = scratch(1, 1, count, heads.head_v());  // [1, 1, P + T, V]
    const auto entries = latents_of_all[b].template slice<1>(0, count);  // [1, P + T, r + rotary]
    const auto latents = entries.template slice<2>(0, rank);
    const auto index = static_cast<std::size_t>(h);
    matmul<S>(latents, heads.keys[index], keys[0].template slice<2>(0, K), worker);
    matmul<S>(latents, heads.values[index], values[0], worker);
    copy(entries.template slice<2>(rank, rotary), keys[0].template slice<2>(K, rotary));
    attention<Form::parallel, S>(q.template slice<0>(b, 1).template slice<2>(h, 1), keys, values,
                                 past.template slice<0>(b, 1), Causal{}, PlainScore{scale},
                                 o.template slice<0>(b, 1).template slice<2>(h, 1), worker);
  });
}

/// All heads on the cache as it lies: q_h · W_kh c = (W_khᵀ q_h) · c, and W_vh moves behind the
/// sum.
template <Form form, class S>
void attend_absorbed(const View<const S, 4>& q, const CacheView<const S, 4>& cache,
                     const View<const Index, 1>& past, const LatentHeads<S>& heads, double scale,
                     const View<S, 4>& o, Context& context) {
  const Index B = q.extent(0), T = q.extent(1), H = heads.size();
  const Index rank = heads.rank(), K = heads.head_k(), rotary = q.extent(3) - K;
  auto scratch = context.scratch<S>();
  auto queries = scratch(B, T, H, rank + rotary);  // [B, T, H, r + rotary]
  auto sums = scratch(B, T, H, rank);              // [B, T, H, r]
  const auto for_each_head = [&](auto&& body) {
    context.parallel_for(
        H, [&](Index h, Context& worker) { body(h, static_cast<std::size_t>(h), worker); });
  };
  for_each_head([&](Index h, std::size_t index, Context& worker) {
    const View<const S, 3> from = q.template at<2>(h);
    const View<S, 3> to = queries.template at<2>(h);
    matmul<S>(from.template slice<2>(0, K), heads.queries[index], to.template slice<2>(0, rank),
              worker);
    copy(from.template slice<2>(K, rotary), to.template slice<2>(rank, rotary));
  });
  attention<form, S>(queries, cache, cache.template slice<3>(0, rank), past, Causal{},
                     PlainScore{scale}, sums, context);
  for_each_head([&](Index h, std::size_t index, Context& worker) {
    matmul<S>(sums.template at<2>(h), heads.values[index], o.template at<2>(h), worker);
  });
}

}  // namespace detail

/// o_h = Σ softmax(scale (q_h · k_h + qr_h · kr)) v_h over the keys up to the query's own, where
/// keys and values are maps of the cached latents c.
///
///   q [B, T, H, K + rotary], each head q_h then qr_h; o [B, T, H, V]
///   cache [B, 1, capacity, r + rotary], each entry c then kr, which all heads share
///
/// Token t of row b is at position past[b] + t, and its entry is in the cache already. The
/// recurrent form and short calls of the parallel one absorb the maps into queries and outputs;
/// long calls expand the cache once a head. `context.algorithm()` forces the parallel form: chunked
/// expands, recurrent absorbs. DeepSeek-AI 2024, arXiv:2405.04434, eq. 9-19.
template <Form form, class S>
void latent_attention(In<S, 4> q, CacheIn<S, 4> cache, In<Index, 1> past,
                      const LatentHeads<S>& heads, double scale, View<S, 4> o, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      latent_attention<form, S>(q.template slice<1>(piece.first, piece.count),
                                cache.template slice<0>(piece.row, 1),
                                past.template slice<0>(piece.row, 1), heads, scale,
                                o.template slice<1>(piece.first, piece.count), context);
    });
  }
  const Index B = o.extent(0), T = o.extent(1), H = heads.size();
  const Index rotary = q.extent(3) - (H == 0 ? 0 : heads.head_k());
  const auto expect = [](std::string_view what, const auto& view, const auto& shape) {
    if (view.shape() == shape) return;
    throw ShapeError("latent_attention: " + std::string(what) + " has shape " +
                     view.shape().text() + ", expected " + shape.text());
  };
  expect("q", q, Shape<4>{B, T, H, std::max(q.extent(3), rotary)});
  if (B * T * H == 0) return;
  expect("o", o, Shape<4>{B, T, H, heads.head_v()});
  expect("cache", cache, Shape<4>{B, 1, cache.extent(2), heads.rank() + rotary});
  expect("past", past, Shape<1>{B});
  for (Index b = 0; b < B; ++b) {
    if (past[b] >= 0 && past[b] <= cache.extent(2) - T) continue;
    throw CapacityError("latent_attention: " + std::to_string(T) + " tokens after " +
                        std::to_string(past[b]) + " do not fit in a cache of " +
                        std::to_string(cache.extent(2)));
  }
  if (form == Form::parallel && detail::expands_latents(heads, T, context.algorithm())) {
    detail::attend_expanded<S>(q, cache, past, heads, scale, o, context);
  } else {
    detail::attend_absorbed<form, S>(q, cache, past, heads, scale, o, context);
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
