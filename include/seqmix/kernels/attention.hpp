#pragma once

#include <algorithm>
#include <utility>

#include "seqmix/kernels/attention_parallel.hpp"
#include "seqmix/kernels/attention_recurrent.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <Form form, class S>
void attend(const AttentionCall<S>& call, Context& context) {
  if (context.packed()) {
    return context.for_each_piece(
        [&](const Piece& piece) { attend<form>(call.of(piece), context); });
  }
  call.check();
  if (call.batch() * call.tokens() * call.heads() == 0) return;
  if constexpr (form == Form::parallel) {
    attend_in_parallel(call, context);
  } else {
    for (Index t = 0; t < call.tokens(); ++t) attend_one(call, t, context);
  }
}

/// `attend` where the keys and values of the call are not in the caches, which are rings, yet: then
/// they are put there.
template <Form form, class S>
void attend_to_rings(AttentionCall<S> call, const CacheView<S, 4>& keys,
                     const CacheView<S, 4>& values, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      attend_to_rings<form>(call.of(piece), keys.template slice<0>(piece.row, 1),
                            values.template slice<0>(piece.row, 1), context);
    });
  }
  const View<const S, 4> k = call.fresh_keys, v = call.fresh_values;
  auto scratch = context.scratch<S>();
  const auto as_stored = [&](const View<const S, 4>& x, Storage storage) -> View<const S, 4> {
    if (storage == Storage::native) return x;
    auto rounded = scratch(x.extent(0), x.extent(1), x.extent(2), x.extent(3));
    round_entries<S>(x, storage, rounded, context);
    return rounded;
  };
  call.fresh_keys = as_stored(k, keys.storage()),
  call.fresh_values = as_stored(v, values.storage());
  attend<form>(call, context);
  const Index T = call.tokens();
  for (Index b = 0; b < call.batch(); ++b) {
    const auto put = [&](const View<const S, 4>& from, const CacheView<S, 4>& ring) {
      const Index rows = ring.extent(2);
      for (Index t = std::max<Index>(T - rows, 0); t < T; ++t) {
        store_entries<S>(from[b][t], ring[b].template at<1>((call.past[b] + t) % rows));
      }
    };
    put(k, keys), put(v, values);
  }
}

}  // namespace detail

/// o = Σ softmax(score(scale q · k)) v over the visible keys, softmax online: no T x T numbers
/// exist.
///
///   q [B, T, H, K], o [B, T, H, V]; keys [B, G, capacity, K], values [B, G, capacity, V]
///
/// Row b has past[b] entries from before this call, and its T new ones are already in the caches
/// behind them: token t is at position past[b] + t. Query head h reads head h / (H / G). A query
/// that sees no key gives zeros. log_sum_exp [B, T, H], if given, gets log Σ exp(score) (-infinity
/// then). The last dimensions are contiguous, and o overlaps no input. Shapes that do not fit are a
/// `ShapeError`, tokens that do not fit in the caches a `CapacityError`. To the policies each of
/// packed documents is row 0. Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Dao et al. 2022,
/// arXiv:2205.14135.
template <Form form, class S, class Mask = Causal, class Score = PlainScore>
void attention(In<S, 4> q, CacheIn<S, 4> keys, CacheIn<S, 4> values, In<Index, 1> past, Mask mask,
               Score score, View<S, 4> o, Context& context, Out<S, 3> log_sum_exp = {}) {
  const detail::PoliciesOf<S, Mask, Score> policies(std::move(mask), std::move(score));
  detail::attend<form, S>({q, keys, values, past, o, log_sum_exp, policies}, context);
}

/// The same where the caches are rings of the last positions, [B, G, rows, K or V] with position p
/// in slot p mod rows, and the new entries are k [B, T, G, K] and v [B, T, G, V]: they are put into
/// the rings when every query has seen what they overwrite. `mask` hides all positions that lie
/// `rows` or more before a query.
template <Form form, class S, class Mask, class Score>
void ring_attention(In<S, 4> q, In<S, 4> k, In<S, 4> v, In<Index, 1> past, Mask mask, Score score,
                    CacheOut<S, 4> keys, CacheOut<S, 4> values, View<S, 4> o, Context& context,
                    Out<S, 3> log_sum_exp = {}) {
  const detail::PoliciesOf<S, Mask, Score> policies(std::move(mask), std::move(score));
  detail::attend_to_rings<form, S>({q, keys, values, past, o, log_sum_exp, policies, k, v}, keys,
                                   values, context);
}

/// Writes the heads x [B, T, G, K] of the first positions of the stream to a cache of them alone,
/// [B, G, count, K]; later ones go nowhere.
template <class S>
void append_leading(In<S, 4> x, In<Index, 1> past, const CacheView<S, 4>& cache, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      append_leading<S>(x.template slice<1>(piece.first, piece.count),
                        past.template slice<0>(piece.row, 1), cache.template slice<0>(piece.row, 1),
                        context);
    });
  }
  for (Index b = 0; b < x.extent(0); ++b) {
    const Index count = std::min(x.extent(1), cache.extent(2) - past[b]);
    for (Index t = 0; t < count; ++t) {
      store_entries<S>(x[b][t], cache[b].template at<1>(past[b] + t));
    }
  }
}

/// Makes o [B, T, H, V] and log_sum_exp [B, T, H] of one part of the keys those of both parts; of
/// the other one nothing is left.
template <class S>
void merge_attention(Out<S, 4> other_o, Out<S, 3> other_log_sum_exp, View<S, 4> o,
                     Out<S, 3> log_sum_exp) {
  for (Index b = 0; b < o.extent(0); ++b) {
    for (Index t = 0; t < o.extent(1); ++t) {
      for (Index h = 0; h < o.extent(2); ++h) {
        S sum = 1, other_sum = 1;  // the weights of a part are already divided by theirs
        const detail::PartialSoftmax<S> whole{o[b][t][h], log_sum_exp(b, t, h), sum};
        whole.merge({other_o[b][t][h], other_log_sum_exp(b, t, h), other_sum});
        log_sum_exp(b, t, h) = whole.finish();
      }
    }
  }
}

/// Heads [B, T, G, K] as attention reads them, [B, G, T, K].
template <class T>
View<T, 4> heads_first(const View<T, 4>& x) {
  return {x.data(),
          {x.extent(0), x.extent(2), x.extent(1), x.extent(3)},
          {x.stride(0), x.stride(2), x.stride(1), x.stride(3)}};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
