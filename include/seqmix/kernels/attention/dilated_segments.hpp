#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/block_masks.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/detail/residues.hpp"
#include "seqmix/kernels/attention/rings.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Branches of attention over segments of the stream, of which branch i takes every
/// `dilations[i]`-th token. `lengths[i]` is a multiple of it. With dilation r the heads are cut in
/// r runs of ⌈H / r⌉, the last of which may be shorter or missing, and run o takes the tokens o, o
/// + r,
/// ... of a segment: there each of its queries sees the keys of the same run. A token that a branch
/// leaves out has nothing of it.
struct DilatedSegments {
  std::span<const Index> lengths, dilations;

  Index size() const { return static_cast<Index>(lengths.size()); }
  Index dilation(Index branch) const { return dilations[static_cast<std::size_t>(branch)]; }
  /// What a query sees of the tokens that its run takes.
  Chunks mask(Index branch, bool causal) const {
    const Index length = lengths[static_cast<std::size_t>(branch)];
    return {.size = length / dilation(branch), .causal = causal};
  }
};

namespace detail {

/// Calls `body(heads, groups)` for pieces of the query heads `run`: whole groups, or heads of one.
void for_each_run_of_heads(Span run, Index heads_per_group, auto&& body) {
  const Index R = heads_per_group;
  for (Index head = run.begin, end = head; head < run.end; head = end) {
    const Index whole = head % R == 0 ? run.end / R * R : 0;
    end = whole > head ? whole : std::min(run.end, (head / R + 1) * R);
    body(Span{head, end}, Span{head / R, ceil_div(end, R)});
  }
}

/// Some heads, and the groups that they read, of what attention reads and writes.
template <class S>
AttentionOperands<S> of_heads(AttentionOperands<S> operands, Span heads, Span groups,
                              const Policies<S>& policies) {
  const auto keep = [](auto& view, Span span) {
    if (view.extent(axis::head) > 0) view = view.slice(axis::head, span.begin, span.size());
  };
  const bool has_caches = operands.has_caches();
  if (has_caches) keep(operands.keys, groups), keep(operands.values, groups);
  keep(operands.q, heads), keep(operands.o, heads), keep(operands.log_sum_exp, heads);
  keep(operands.fresh_keys, groups), keep(operands.fresh_values, groups);
  return {operands.q,     operands.keys,       operands.values,
          operands.past,  operands.o,          operands.log_sum_exp,
          policies,       operands.fresh_keys, operands.fresh_values,
          operands.asking};
}

/// The same of the tokens of a stream.
template <class S>
AttentionOperands<S> of_stream(const AttentionOperands<S>& operands, const Stream& stream) {
  const bool has_caches = operands.has_caches();
  const Index rows = operands.keys.extent(axis::row);
  return {stream.tokens(operands.q),
          has_caches ? stream.slots(operands.keys) : operands.keys,
          has_caches ? stream.slots(operands.values) : operands.values,
          has_caches ? for_all_rows(stream.past, rows) : operands.past,
          stream.tokens(operands.o),
          stream.tokens(operands.log_sum_exp),
          operands.policies,
          stream.tokens(operands.fresh_keys),
          stream.tokens(operands.fresh_values)};
}

/// Begins sums over branches: nothing but the logits of sinks.
template <class S>
void begin_with_sinks(const AnyScore<S>& score, const View<S, 3>& o, const View<S, 2>& total) {
  const ScoreOf<S, AnyScore<S>> policy(score);
  fill(o, S(0));
  for (Index t = 0; t < o.extent(axis::time); ++t) {
    for (Index h = 0; h < o.extent(axis::head); ++h) {
      total(t, h) = static_cast<S>(policy.sink({0, h, 0, 0}));
    }
  }
}

/// `attend` in all branches. A first branch of all tokens, which takes sinks in, needs no merge.
template <class S>
void attend_to_segments(const AttentionOperands<S>& operands, const DilatedSegments& branches,
                        const AnyScore<S>& score, bool causal, const Call& call) {
  const Index T = call.tokens(), H = operands.heads();
  auto scratch = call.scratch<S>();
  AttentionOperands<S> branch = operands;
  branch.o = scratch(T, H, operands.head_v());  // [T, H, V]
  branch.log_sum_exp = scratch(T, H);           // [T, H]
  const bool leads = branches.dilation(0) == 1;
  if (leads) {
    const PoliciesOf<S, Chunks, AnyScore<S>> policies(branches.mask(0, causal), score);
    attend<S>(of_heads<S>(operands, {0, H}, {0, operands.groups()}, policies), call);
  } else {
    begin_with_sinks<S>(score, operands.o, operands.log_sum_exp);
  }
  for (Index i = leads ? 1 : 0; i < branches.size(); ++i) {
    const Index dilation = branches.dilation(i), heads_per_run = ceil_div(H, dilation);
    for (Index run = 0; run * heads_per_run < H; ++run) {
      const Span of_run{run * heads_per_run, std::min(H, (run + 1) * heads_per_run)};
      for_each_run_of_heads(of_run, operands.heads_per_group(), [&](Span heads, Span groups) {
        const PoliciesOf<S, Chunks, AnyScore<S>> policies(
            branches.mask(i, causal), score.from_head(heads.begin).without_sinks());
        const AttentionOperands<S> part = of_heads<S>(branch, heads, groups, policies);
        const AttentionOperands<S> whole = of_heads<S>(operands, heads, groups, policies);
        if (dilation == 1) {
          attend<S>(part, call);
          return merge_attention<S>(part.o, part.log_sum_exp, whole.o, whole.log_sum_exp);
        }
        for (const Segment& segment : call.segments()) {
          const Index before = operands.has_caches() ? operands.past[segment.row] : 0;
          const Index first = (run + dilation - before % dilation) % dilation;
          if (first >= segment.count) continue;
          const Stream stream(segment, before, dilation, first);
          const AttentionOperands<S> seen = of_stream<S>(part, stream);
          attend<S>(seen, call.with(Segments(&stream.segment, 1)));
          merge_attention<S>(seen.o, seen.log_sum_exp, stream.tokens(whole.o),
                             stream.tokens(whole.log_sum_exp));
        }
      });
    }
  }
}

}  // namespace detail

/// `ring_attention` in branches, whose softmaxes are merged: o = Σ_i exp(l_i) o_i / Σ_i exp(l_i)
/// with l_i = log Σ exp(score) of branch i. What several branches show counts as often. The rows
/// of the rings are a multiple of each dilation. Ding et al. 2023, arXiv:2307.02486, section 3.
template <class S>
void dilated_segment_ring_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, In<Index, 1> past,
                                    const DilatedSegments& branches, const AnyScore<S>& score,
                                    CacheOut<S, 4> keys, CacheOut<S, 4> values, View<S, 3> o,
                                    const Call& call) {
  auto scratch = call.scratch<S>();
  auto total = scratch(q.extent(axis::time), q.extent(axis::head));  // [T, H]
  const detail::PoliciesOf<S, Chunks, AnyScore<S>> policies(Chunks{}, score);
  detail::attend_to_segments<S>({q, keys, values, past, o, total, policies,
                                 detail::as_stored<S>(k, keys.storage(), scratch, call),
                                 detail::as_stored<S>(v, values.storage(), scratch, call)},
                                branches, score, true, call);
  append_to_ring<S>(k, past, keys, call);
  append_to_ring<S>(v, past, values, call);
}

/// The same as `self_attention`.
template <class S>
void dilated_segment_self_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v,
                                    const DilatedSegments& branches, const AnyScore<S>& score,
                                    View<S, 3> o, const Call& call) {
  auto scratch = call.scratch<S>();
  auto total = scratch(q.extent(axis::time), q.extent(axis::head));  // [T, H]
  const detail::PoliciesOf<S, Chunks, AnyScore<S>> policies(Chunks{}, score);
  detail::attend_to_segments<S>({q, {}, {}, {}, o, total, policies, k, v}, branches, score, false,
                                call);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
