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

/// As `attention` for the heads whose pattern is strided; the others' o stays as it is. The tokens
/// of one residue modulo the stride are a dense causal sequence of their own, and run as one: they
/// are views on the same cache, and distances that `score` sees count in strides. Child et al.
/// 2019, arXiv:1904.10509, section 4.3.
template <class S>
void strided_attention(In<S, 3> q, CacheIn<S, 4> keys, CacheIn<S, 4> values, In<Index, 1> past,
                       const SparsePatterns& patterns, const AnyScore<S>& score, View<S, 3> o,
                       const Call& call) {
  const Index H = q.extent(axis::head), stride = patterns.span;
  const Index of_keys = keys.extent(axis::head), of_values = values.extent(axis::head);
  const Index heads_per_group = H / std::max<Index>(std::max(of_keys, of_values), 1);
  const Index width = q.extent(axis::channel) + o.extent(axis::channel);
  const auto residues = [&](const Segment& segment) { return std::min(stride, segment.count); };
  const auto work_of = [&](const Segment& segment) {
    const Index keys_of_query = past[segment.row] / stride + 1;
    const Index products = ceil_div(segment.count, stride) * keys_of_query * width;
    return SegmentWork{residues(segment),
                       std::clamp<Index>(products, 1, detail::attention_task_products)};
  };
  for (Index h = 0; h < H; ++h) {
    if (patterns.of(h) != SparsePattern::strided) continue;
    const auto attend = [&](const Unit& unit, const Call& worker) {
      const Index position = past[unit.row()] + unit.item, before = position / stride;
      const Segment residue{unit.row(), 0, ceil_div(unit.tokens() - unit.item, stride),
                            unit.segment.form};
      const auto entries = [&](const CacheView<const S, 4>& cache) {
        return detail::every(
            axis::slot, cache.slice(axis::head, h / heads_per_group % cache.extent(axis::head), 1),
            position % stride, stride, before + residue.count);
      };
      const auto tokens = [&](const auto& view) {
        return detail::every(axis::time, unit.tokens_of(view).slice(axis::head, h, 1), unit.item,
                             stride, residue.count);
      };
      attention<S>(tokens(q), entries(keys), entries(values),
                   detail::for_all_rows(before, keys.extent(axis::row)), Causal{},
                   score.from_head(h), tokens(o), worker.with(Segments(&residue, 1)));
    };
    for_each_unit(call, detail::attention_task_products, work_of, attend);
  }
}

/// The same as `self_attention`: tokens of one residue see all of it.
template <class S>
void strided_self_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, const SparsePatterns& patterns,
                            const AnyScore<S>& score, View<S, 3> o, const Call& call) {
  const Index H = q.extent(axis::head), stride = patterns.span;
  const Index of_keys = k.extent(axis::head), of_values = v.extent(axis::head);
  const Index heads_per_group = H / std::max<Index>(std::max(of_keys, of_values), 1);
  const Index width = q.extent(axis::channel) + o.extent(axis::channel);
  const auto work_of = [&](const Segment& segment) {
    const Index tokens = ceil_div(segment.count, stride);
    return SegmentWork{
        std::min(stride, segment.count),
        std::clamp<Index>(tokens * tokens * width, 1, detail::attention_task_products)};
  };
  for (Index h = 0; h < H; ++h) {
    if (patterns.of(h) != SparsePattern::strided) continue;
    const auto attend = [&](const Unit& unit, const Call& worker) {
      const detail::Stream residue(unit.segment, 0, stride, unit.item);
      const auto tokens = [&](const auto& view, Index head) {
        return residue.tokens(view.slice(axis::head, head, 1));
      };
      const Index g = h / heads_per_group;
      self_attention<S>(tokens(q, h), tokens(k, g % of_keys), tokens(v, g % of_values),
                        Band::everything(), score.from_head(h), tokens(o, h),
                        worker.with(Segments(&residue.segment, 1)));
    };
    for_each_unit(call, detail::attention_task_products, work_of, attend);
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
