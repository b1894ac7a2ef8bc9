#pragma once

#include <algorithm>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/detail/residues.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/kernels/attention/selection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Calls `body(head, group, residue, worker)` for each strided head and residue of positions
/// modulo the stride. `keys_of(count, past)`: how many keys a query sees of a residue of so many
/// tokens; a pair costs `width` products.
void for_each_residue(const SparsePatterns& patterns, Index H, Index groups,
                      const View<const Index, 1>& past, Index width, const Call& call,
                      auto&& keys_of, auto&& body) {
  const Index stride = patterns.span, heads_per_group = H / std::max<Index>(groups, 1);
  const auto before = [&](Index row) { return past.data() == nullptr ? 0 : past[row]; };
  const auto work_of = [&](const Segment& segment) {
    const Index tokens = ceil_div(segment.count, stride);
    const Index products = tokens * keys_of(tokens, before(segment.row) / stride) * width;
    return SegmentWork{std::min(stride, segment.count),
                       std::clamp<Index>(products, 1, attention_task_products)};
  };
  for (Index h = 0; h < H; ++h) {
    if (patterns.of(h) != SparsePattern::strided) continue;
    for_each_unit(call, attention_task_products, work_of,
                  [&](const Unit& unit, const Call& worker) {
                    body(h, h / heads_per_group,
                         Stream(unit.segment, before(unit.row()), stride, unit.item), worker);
                  });
  }
}

}  // namespace detail

/// As `attention` for the heads whose pattern is strided; the others' o stays as it is. The tokens
/// of one residue modulo the stride are a dense causal sequence of their own, and run as one: they
/// are views on the same cache, and distances that `score` sees count in strides. Child et al.
/// 2019, arXiv:1904.10509, section 4.3.
template <class S>
void strided_attention(In<S, 3> q, CacheIn<S, 4> keys, CacheIn<S, 4> values, In<Index, 1> past,
                       const SparsePatterns& patterns, const AnyScore<S>& score, View<S, 3> o,
                       const Call& call) {
  const Index groups = std::max(keys.extent(axis::head), values.extent(axis::head));
  const auto keys_of = [](Index /*count*/, Index before) { return before + 1; };
  const auto attend = [&](Index h, Index group, const detail::Stream& residue, const Call& worker) {
    const auto entries = [&](const CacheView<const S, 4>& cache) {
      return detail::every(axis::slot, cache.slice(axis::head, group % cache.extent(axis::head), 1),
                           residue.remainder, residue.dilation,
                           residue.past + residue.segment.count);
    };
    const auto tokens = [&](const auto& view) {
      return residue.tokens(view.slice(axis::head, h, 1));
    };
    attention<S>(tokens(q), entries(keys), entries(values),
                 detail::for_all_rows(residue.past, keys.extent(axis::row)), Causal{},
                 score.from_head(h), tokens(o), worker.with(Segments(&residue.segment, 1)));
  };
  detail::for_each_residue(patterns, q.extent(axis::head), groups, past,
                           q.extent(axis::channel) + o.extent(axis::channel), call, keys_of,
                           attend);
}

/// The same as `self_attention`: tokens of one residue see all of it.
template <class S>
void strided_self_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, const SparsePatterns& patterns,
                            const AnyScore<S>& score, View<S, 3> o, const Call& call) {
  const Index groups = std::max(k.extent(axis::head), v.extent(axis::head));
  const auto keys_of = [](Index count, Index /*before*/) { return count; };
  const auto attend = [&](Index h, Index group, const detail::Stream& residue, const Call& worker) {
    const auto tokens = [&](const auto& view, Index head) {
      return residue.tokens(view.slice(axis::head, head % view.extent(axis::head), 1));
    };
    self_attention<S>(tokens(q, h), tokens(k, group), tokens(v, group), Band::everything(),
                      score.from_head(h), tokens(o, h), worker.with(Segments(&residue.segment, 1)));
  };
  detail::for_each_residue(patterns, q.extent(axis::head), groups, {},
                           q.extent(axis::channel) + o.extent(axis::channel), call, keys_of,
                           attend);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
