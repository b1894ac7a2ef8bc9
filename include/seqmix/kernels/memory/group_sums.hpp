#pragma once

#include <algorithm>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/core/view.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/product/detail/row_products.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

// Sums of outer products of keys and values, kᵀ v [K, V], over groups of tokens.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Columns of values that a unit of work has: rows of sums so long are streams that the processor
/// follows.
inline constexpr Index group_sum_columns = 512;
/// Tokens whose keys are turned into rows at a time.
inline constexpr Index group_sum_tokens = 64;

/// sum [K, C] += Σ_t k_tᵀ v_t of k [T, K], v [T, C]: each number one chain of fma over ascending t.
template <class S>
void add_outer_products(const View<const S, 2>& k, const View<const S, 2>& v, const View<S, 2>& sum,
                        const Call& worker) {
  const Index T = k.extent(0), K = k.extent(1);
  auto scratch = worker.scratch<S>();
  auto rows = scratch(K, group_sum_tokens);  // [K, t]
  for (Index first = 0; first < T; first += group_sum_tokens) {
    const Index count = std::min(group_sum_tokens, T - first);
    for (Index t = 0; t < count; ++t) {
      for (Index i = 0; i < K; ++i) rows(i, t) = k(first + t, i);
    }
    add_rows<S>(rows.slice(axis::channel, 0, count), v.slice(axis::row, first, count), {}, sum);
  }
}

/// to += scale sum, then sum = 0.
template <class S>
void close_group(const View<S, 2>& sum, S scale, const View<S, 2>& to) {
  using Batch = simd::Batch<S>;
  for (Index row = 0; row < sum.extent(0); ++row) {
    const auto add = [scale](const Batch& total, const Batch& more) {
      return simd::flush_subnormal<S>(simd::fma<S>(more, Batch(scale), total));
    };
    simd::map<S>(sum.extent(1), &to(row, 0), add, &to(row, 0), &sum(row, 0));
    fill(sum[row], S(0));
  }
}

template <class S>
void check_group_sums(const Expect& expect, const View<const S, 2>& q, const View<const S, 2>& k,
                      const View<const S, 2>& v, const View<S, 2>& o) {
  const Index T = o.extent(0);
  expect.rows("q", q, {T, q.extent(1)}), expect.rows("k", k, {T, q.extent(1)});
  expect.rows("v", v, {T, o.extent(1)}), expect.rows("o", o, {T, o.extent(1)});
}

/// Calls `body(unit, panel, worker)` for each segment and panel of columns, to which `panel(view)`
/// narrows a view [T, V] or [K, V]. A token costs K products a column.
template <class S>
void for_each_column_panel(Index K, Index V, const Call& call, auto&& body) {
  constexpr Index width = group_sum_columns;
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{ceil_div(V, width), segment.count * K * std::min(V, width)};
  };
  for_each_unit(call, Index{1} << 17, work_of, [&](const Unit& unit, const Call& worker) {
    const Index first = unit.item * width;
    const auto panel = [first, count = std::min(width, V - first)](const auto& view) {
      return view.slice(axis::channel, first, count);
    };
    body(unit, panel, worker);
  });
}

}  // namespace detail

/// Linear attention to the groups before: what a token reads is of groups that ended before its
/// own, the first of which begins at position 0.
///
///   M_j = M_{j-1} + scale Σ_{t in group j} k_tᵀ v_t,   o_t += q_t M_{j-1} for t in group j
///
/// q, k [T, K]; v, o [T, V]; token t of a segment is at position past[row] + t. `memory` [B, K, V]
/// is M of the groups that ended, `open` [B, K, V] the sum of the one that did not: their rows the
/// segments read, then advance. The bits depend on nothing but the tokens: any cut gives the same
/// ones. Hua et al. 2022, arXiv:2202.10447, section 3.2, eq. 8.
template <class S>
void add_earlier_groups(In<S, 2> q, In<S, 2> k, In<S, 2> v, In<Index, 1> past, Index group,
                        double scale, Out<S, 3> memory, Out<S, 3> open, View<S, 2> o,
                        const Call& call) {
  const Index K = q.extent(1), V = o.extent(1), B = memory.extent(0);
  const Expect expect{"add_earlier_groups"};
  require(group > 0, "add_earlier_groups: group must be positive");
  detail::check_group_sums<S>(expect, q, k, v, o);
  expect.rows("memory", memory, {B, K, V}), expect.rows("open", open, {B, K, V});
  expect.shape("past", past, {B});
  if (o.empty()) return;
  detail::for_each_column_panel<S>(
      K, V, call, [&](const Unit& unit, auto panel, const Call& worker) {
        const auto ended = panel(memory[unit.row()]), sum = panel(open[unit.row()]);  // [K, C]
        for (Index t = 0, count = 0; t < unit.tokens(); t += count) {
          const Index within = (past[unit.row()] + t) % group;
          count = std::min(group - within, unit.tokens() - t);
          const auto tokens = [&, at = t, n = count](const auto& view) {
            return unit.tokens_of(view).slice(axis::time, at, n);
          };
          detail::add_rows<S>(tokens(q), View<const S, 2>(ended), {}, panel(tokens(o)));
          detail::add_outer_products<S>(tokens(k), panel(tokens(v)), sum, worker);
          if (within + count == group) detail::close_group(sum, static_cast<S>(scale), ended);
        }
      });
}

/// Linear attention in both directions, to a token's own group, or with group 0 to all tokens:
///
///   o_t += q_t Σ_j k_jᵀ v_j / n,   j in the group of t, n all tokens of its segment
///
/// Shapes as in `add_earlier_groups`; each segment is a sequence of its own.
template <class S>
void add_own_groups(In<S, 2> q, In<S, 2> k, In<S, 2> v, Index group, View<S, 2> o,
                    const Call& call) {
  const Index K = q.extent(1), V = o.extent(1);
  require(group >= 0, "add_own_groups: group must not be negative");
  detail::check_group_sums<S>(Expect{"add_own_groups"}, q, k, v, o);
  if (o.empty()) return;
  detail::for_each_column_panel<S>(
      K, V, call, [&](const Unit& unit, auto panel, const Call& worker) {
        const Index T = unit.tokens(), size = group > 0 ? group : T;
        const Index columns = panel(o).extent(axis::channel);
        auto scratch = worker.scratch<S>();
        auto sum = scratch(K, columns);   // [K, C]
        auto mean = scratch(K, columns);  // [K, C], over all tokens
        fill(sum, S(0));
        for (Index t = 0; t < T; t += size) {
          const auto tokens = [&, at = t](const auto& view) {
            return unit.tokens_of(view).slice(axis::time, at, std::min(size, T - at));
          };
          fill(mean, S(0));
          detail::add_outer_products<S>(tokens(k), panel(tokens(v)), sum, worker);
          detail::close_group(sum, S(1) / static_cast<S>(T), mean);
          detail::add_rows<S>(tokens(q), View<const S, 2>(mean), {}, panel(tokens(o)));
        }
      });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
