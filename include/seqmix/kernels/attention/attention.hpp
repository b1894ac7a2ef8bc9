#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "seqmix/core/compiled.hpp"
#include "seqmix/kernels/attention/detail/parallel.hpp"
#include "seqmix/kernels/attention/detail/recurrent.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <class S>
void attend(const AttentionOperands<S>& operands, const Call& call) {
  operands.check(call);
  if (call.tokens() * operands.heads() == 0) return;
  attend_in_parallel(operands, call);
  attend_by_recurrence(operands, call);
}

/// `attend` where the keys and values of the call are not in the caches, which are rings, yet: then
/// they are put there.
template <class S>
void attend_to_rings(AttentionOperands<S> operands, const CacheView<S, 4>& keys,
                     const CacheView<S, 4>& values, const Call& call) {
  const View<const S, 3> k = operands.fresh_keys, v = operands.fresh_values;
  auto scratch = call.scratch<S>();
  const auto as_stored = [&](const View<const S, 3>& x, Storage storage) -> View<const S, 3> {
    if (storage == Storage::native) return x;
    auto rounded = scratch(x.extent(0), x.extent(1), x.extent(2));
    round_entries<S>(x, storage, rounded, call);
    return rounded;
  };
  operands.fresh_keys = as_stored(k, keys.storage());
  operands.fresh_values = as_stored(v, values.storage());
  attend(operands, call);
  for (const auto& [row, first, count, form] : call.segments()) {
    const auto put = [&, at = row, begin = first, tokens = count](const View<const S, 3>& from,
                                                                  const CacheView<S, 4>& ring) {
      const Index rows = ring.extent(axis::slot), past = operands.past[at];
      for (Index t = std::max<Index>(tokens - rows, 0); t < tokens; ++t) {
        store_entries<S>(from[begin + t], ring.at(axis::slot, (past + t) % rows).at(axis::row, at));
      }
    };
    put(k, keys), put(v, values);
  }
}

/// Every `step`-th index of an axis from `first` on.
template <NamedAxis Axis, class T, Index Rank>
View<T, Rank> every(Axis, const View<T, Rank>& view, Index first, Index step, Index count) {
  constexpr Index axis = Axis::template of<Rank>;
  auto shape = view.shape(), strides = view.strides();
  shape[axis] = count, strides[axis] *= step;
  return {view.data() + first * view.stride(axis), shape, strides};
}
/// The same of a cache.
template <NamedAxis Axis, class T>
CacheView<T, 4> every(Axis axis, const CacheView<T, 4>& cache, Index first, Index step,
                      Index count) {
  return cache.window([&](const auto& view) { return every(axis, view, first, step, count); });
}
/// One number for all rows of a state.
inline View<const Index, 1> for_all_rows(const Index& number, Index rows) {
  return {&number, {rows}, {0}};
}

}  // namespace detail

/// o = Σ softmax(score(scale q · k)) v over the visible keys, softmax online: no T x T numbers
/// exist.
///
///   q [T, H, K], o [T, H, V]; keys [B, G, capacity, K], values [B, G, capacity, V]
///
/// Row b has past[b] entries from before this call, and the new ones of its segment are already in
/// the caches behind them: token t of a segment is at position past[row] + t. Query head h reads
/// head h / (H / G). A query that sees no key gives zeros. log_sum_exp [T, H], if given, gets
/// log Σ exp(score) (-infinity then). The last dimensions are contiguous, and o overlaps no input.
/// Shapes that do not fit are a `ShapeError`, tokens that do not fit in the caches a
/// `CapacityError`. Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Dao et al. 2022,
/// arXiv:2205.14135.
template <class S, class Mask = Causal, class Score = PlainScore>
void attention(In<S, 3> q, CacheIn<S, 4> keys, CacheIn<S, 4> values, In<Index, 1> past, Mask mask,
               Score score, View<S, 3> o, const Call& call, Out<S, 2> log_sum_exp = {}) {
  const detail::PoliciesOf<S, Mask, Score> policies(std::move(mask), std::move(score));
  detail::attend<S>({q, keys, values, past, o, log_sum_exp, policies}, call);
}

/// The same where nothing is remembered: the keys and values of a segment are its own, k [T, G, K]
/// and v [T, G, V], before a query and behind it, and its first token is at position 0. Tokens
/// whose positions are not in `asking` ask nothing: their o stays as it is. By the parallel form,
/// whatever that of a segment.
template <class S, class Mask, class Score>
void self_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, Mask mask, Score score, View<S, 3> o,
                    const Call& call, Out<S, 2> log_sum_exp = {},
                    Span asking = {0, std::numeric_limits<Index>::max()}) {
  const detail::PoliciesOf<S, Mask, Score> policies(std::move(mask), std::move(score));
  detail::attend<S>({q, {}, {}, {}, o, log_sum_exp, policies, k, v, asking}, call);
}

/// As `attention` where the caches are rings of the last positions, [B, G, rows, K or V] with
/// position p in slot p mod rows, and the new entries are k [T, G, K] and v [T, G, V]: they are put
/// into the rings when every query has seen what they overwrite. `mask` hides all positions that
/// lie `rows` or more before a query.
template <class S, class Mask, class Score>
void ring_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, In<Index, 1> past, Mask mask, Score score,
                    CacheOut<S, 4> keys, CacheOut<S, 4> values, View<S, 3> o, const Call& call,
                    Out<S, 2> log_sum_exp = {}) {
  const detail::PoliciesOf<S, Mask, Score> policies(std::move(mask), std::move(score));
  detail::attend_to_rings<S>({q, keys, values, past, o, log_sum_exp, policies, k, v}, keys, values,
                             call);
}

/// Writes the heads x [T, G, K] of the first positions of a stream to a cache of them alone,
/// [B, G, count, K]; later ones go nowhere.
template <class S>
void append_leading(In<S, 3> x, In<Index, 1> past, CacheOut<S, 4> cache, const Call& call) {
  for (const Segment& segment : call.segments()) {
    const Index before = past[segment.row];
    const Index count = std::min(segment.count, cache.extent(axis::slot) - before);
    for (Index t = 0; t < count; ++t) {
      store_entries<S>(x[segment.first + t],
                       cache.at(axis::slot, before + t).at(axis::row, segment.row));
    }
  }
}

/// Makes o [T, H, V] and log_sum_exp [T, H] of one part of the keys those of both parts; of the
/// other one nothing is left.
template <class S>
void merge_attention(Out<S, 3> other_o, Out<S, 2> other_log_sum_exp, View<S, 3> o,
                     Out<S, 2> log_sum_exp) {
  for (Index t = 0; t < o.extent(axis::time); ++t) {
    for (Index h = 0; h < o.extent(axis::head); ++h) {
      S sum = 1, other_sum = 1;  // the weights of a part are already divided by theirs
      const detail::PartialSoftmax<S> whole{o[t][h], log_sum_exp(t, h), sum};
      whole.merge({other_o[t][h], other_log_sum_exp(t, h), other_sum});
      log_sum_exp(t, h) = whole.finish();
    }
  }
}

/// Heads [B, T, G, K] as caches have them, [B, G, T, K].
template <class T>
View<T, 4> heads_first(const View<T, 4>& x) {
  return {x.data(),
          {x.extent(0), x.extent(2), x.extent(1), x.extent(3)},
          {x.stride(0), x.stride(2), x.stride(1), x.stride(3)}};
}

#define SEQMIX_ATTEND(S) void detail::attend(const detail::AttentionOperands<S>&, const Call&)
SEQMIX_COMPILE(SEQMIX_ATTEND);
#undef SEQMIX_ATTEND

SEQMIX_END_NAMESPACE
}  // namespace seqmix
