#pragma once

#include <limits>
#include <utility>

#include "seqmix/core/compiled.hpp"
#include "seqmix/kernels/attention/detail/parallel.hpp"
#include "seqmix/kernels/attention/detail/recurrent.hpp"
#include "seqmix/kernels/attention/detail/whole_rows.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <class S>
void attend(const AttentionOperands<S>& operands, const Call& call) {
  operands.check(call);
  if (call.tokens() * operands.heads() == 0) return;
  if (operands.policies.scores.weighting() == Weighting::by_row) {
    return attend_by_rows(operands, call);
  }
  attend_in_parallel(operands, call);
  attend_by_recurrence(operands, call);
}

}  // namespace detail

/// o = Σ softmax(score(scale q · k)) v over the visible keys, softmax online: no T x T numbers
/// exist. A score may have other weights than softmax's.
///
///   q [T, H, K], o [T, H, V]; keys [B, G, capacity, K], values [B, G, capacity, V]
///
/// Row b has past[b] entries from before this call, and the new ones of its segment are already in
/// the caches behind them: token t of a segment is at position past[row] + t. Query head h reads
/// head h / (H / G); where there are fewer heads of keys than of values, or the other way round, G
/// is the larger number, and of the fewer ones it reads that modulo their number. A query that sees
/// no key gives zeros. log_sum_exp [T, H], if given, gets log Σ exp(score) (-infinity then). The
/// last dimensions are contiguous, and o overlaps no input. Shapes that do not fit are a
/// `ShapeError`, tokens that do not fit in the caches a `CapacityError`. Vaswani et al. 2017,
/// arXiv:1706.03762, eq. 1; Dao et al. 2022, arXiv:2205.14135.
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

#define SEQMIX_ATTEND(S) void detail::attend(const detail::AttentionOperands<S>&, const Call&)
SEQMIX_COMPILE(SEQMIX_ATTEND);
#undef SEQMIX_ATTEND

SEQMIX_END_NAMESPACE
}  // namespace seqmix
