#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/expect.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a token's scores become experts and their weights. `mixtral`: the k largest, softmax over
/// these. `softmax_then_top_k`: softmax over all, then the k largest. `deepseek_v3`: the k largest
/// of sigmoid plus a bias inside the best groups, weighted by the sigmoids.
enum class Router { mixtral, softmax_then_top_k, deepseek_v3 };
constexpr std::array<std::string_view, 3> names_of(Router) {
  return {"mixtral", "softmax_then_top_k", "deepseek_v3"};
}

/// Which experts the tokens of a call go to, and the same pairs sorted by expert.
///
/// A pair is one choice of one token. `pair_row` lists the rows of the choices grouped by expert
/// (in ascending order inside each); `place(row, choice)` is where a choice stands in that list. A
/// choice of expert -1 is dropped: it has no pair, and its place is -1.
struct Routes {
  View<Index, 2> expert;    // [rows, k]
  View<Index, 2> place;     // [rows, k]
  View<Index, 1> pair_row;  // [rows * k]
  View<Index, 1> first;     // [E + 1]: expert e has the pairs [first[e], first[e + 1])

  /// The pairs that are not dropped.
  Index pairs() const { return first[first.extent(0) - 1]; }
};

namespace detail {

/// Whether score a of expert i comes before score b of expert j: NaN is last, ties by number.
template <class S>
bool scores_before(S a, Index i, S b, Index j) {
  if (a != a || b != b) return a == a || (b != b && i < j);
  return a > b || (a == b && i < j);
}

}  // namespace detail

/// Fills `expert` with the k largest of each row of scores [rows, E], largest first; a tie goes to
/// the lower expert and NaN counts as the smallest, so that k different experts are always chosen.
template <class S>
void top_k(In<S, 2> scores, View<Index, 2> expert) {
  const Index rows = expert.extent(0), k = expert.extent(1), n_experts = scores.extent(1);
  if (scores.extent(0) != rows || k > n_experts) {
    throw ShapeError("top_k: scores have shape " + scores.shape().text() + ", expected [" +
                     std::to_string(rows) + ", at least " + std::to_string(k) + "]");
  }
  for (Index row = 0; row < rows; ++row) {
    // The best so far, in order; a later expert passes only those that it beats.
    Index chosen = 0;
    for (Index e = 0; e < n_experts; ++e) {
      Index place = chosen;
      for (; place > 0; --place) {
        const Index other = expert(row, place - 1);
        if (!detail::scores_before(scores(row, e), e, scores(row, other), other)) break;
      }
      if (place == k) continue;
      chosen = std::min(chosen + 1, k);
      for (Index i = chosen - 1; i > place; --i) expert(row, i) = expert(row, i - 1);
      expert(row, place) = e;
    }
  }
}

/// Leaves the `kept` best of `groups` runs of experts in scores [rows, E]: all others become
/// -infinity. A group is as good as the sum of its two largest scores; ties go to the lower group.
template <class S>
void keep_groups(View<S, 2> scores, Index groups, Index kept, const Call& call) {
  const Index rows = scores.extent(0), size = groups < 1 ? 0 : scores.extent(1) / groups;
  if (groups < 1 || kept < 1 || kept > groups || size * groups != scores.extent(1) || size < 2) {
    throw ShapeError("keep_groups: scores have shape " + scores.shape().text() + ", expected " +
                     std::to_string(groups) + " equal groups of at least 2 experts, of which " +
                     std::to_string(kept) + " are kept");
  }
  auto scratch = call.scratch<S>();
  auto indices = call.scratch<Index>();
  const auto sums = scratch(rows, groups);
  const auto best = indices(rows, kept), two = indices(rows, Index{2});
  for (Index group = 0; group < groups; ++group) {
    const View<S, 2> members = scores.slice(axis::channel, group * size, size);
    top_k<S>(members, two);
    for (Index row = 0; row < rows; ++row) {
      sums(row, group) = members(row, two(row, 0)) + members(row, two(row, 1));
    }
  }
  top_k<S>(sums, best);
  for (Index row = 0; row < rows; ++row) {
    for (Index group = 0; group < groups; ++group) {
      bool keep = false;
      for (Index i = 0; i < kept; ++i) keep |= best(row, i) == group;
      if (keep) continue;
      fill(scores[row].slice(axis::channel, group * size, size),
           -std::numeric_limits<S>::infinity());
    }
  }
}

/// weight(row, choice) = scores(row, expert(row, choice)).
template <class S>
void gather_scores(In<S, 2> scores, In<Index, 2> expert, View<S, 2> weight) {
  const Expect expect{"gather_scores"};
  expect.shape("scores", scores, {weight.extent(0), scores.extent(1)});
  expect.shape("expert", expert, weight.shape());
  for (Index row = 0; row < weight.extent(0); ++row) {
    for (Index i = 0; i < weight.extent(1); ++i) weight(row, i) = scores(row, expert(row, i));
  }
}

/// Makes each row of weights add up to `total`; `least` is added to its sum.
template <class S>
void normalize_weights(View<S, 2> weight, double total, double least) {
  for (Index row = 0; row < weight.extent(0); ++row) {
    S sum = static_cast<S>(least);
    for (Index i = 0; i < weight.extent(1); ++i) sum += weight(row, i);
    for (Index i = 0; i < weight.extent(1); ++i) {
      weight(row, i) = weight(row, i) / sum * static_cast<S>(total);
    }
  }
}

/// Drops the choices of each stream that come when their expert has had `capacity` of its tokens.
///
/// expert: [T], the choices of new tokens. counts: [B, E], how many tokens of the stream have
/// chosen each expert so far, dropped ones included; those of the segments' rows go on. A capacity
/// of 0 drops nothing.
inline void drop_above_capacity(Index capacity, View<Index, 1> expert, View<Index, 2> counts,
                                const Call& call) {
  Expect{"drop_above_capacity"}.shape("expert", expert, {call.tokens()});
  for (const Segment& segment : call.segments()) {
    for (Index t = segment.first; t < segment.first + segment.count; ++t) {
      Index& count = counts(segment.row, expert[t]);
      if (capacity > 0 && count >= capacity) expert[t] = -1;
      ++count;
    }
  }
}

/// Sorts the choices of `routes.expert` by expert, in order of rows: a counting sort.
inline void group_by_expert(Index n_experts, const Routes& routes) {
  const Index rows = routes.expert.extent(0), k = routes.expert.extent(1);
  const Expect expect{"group_by_expert"};
  expect.shape("place", routes.place, routes.expert.shape());
  expect.shape("pair_row", routes.pair_row, {rows * k});
  expect.shape("first", routes.first, {n_experts + 1});
  fill(routes.first, 0);
  for (Index row = 0; row < rows; ++row) {
    for (Index choice = 0; choice < k; ++choice) {
      const Index e = routes.expert(row, choice);
      if (e < -1 || e >= n_experts) {
        throw ShapeError("group_by_expert: expert " + std::to_string(e) + " of " +
                         std::to_string(n_experts));
      }
      if (e >= 0) ++routes.first[e + 1];
    }
  }
  for (Index e = 0; e < n_experts; ++e) routes.first[e + 1] += routes.first[e];
  for (Index row = 0; row < rows; ++row) {
    for (Index choice = 0; choice < k; ++choice) {
      const Index e = routes.expert(row, choice);
      const Index place = e < 0 ? -1 : routes.first[e]++;
      routes.place(row, choice) = place;
      if (place >= 0) routes.pair_row[place] = row;
    }
  }
  // Every start has moved to the start of the next expert: shift them back.
  for (Index e = n_experts; e > 0; --e) routes.first[e] = routes.first[e - 1];
  routes.first[0] = 0;
}

/// Calls `body(expert, first, count)` for each expert that has pairs, [first, first + count).
inline void for_each_expert(const Routes& routes, std::invocable<Index, Index, Index> auto&& body) {
  for (Index e = 0; e + 1 < routes.first.extent(0); ++e) {
    const Index first = routes.first[e], count = routes.first[e + 1] - first;
    if (count > 0) body(e, first, count);
  }
}

/// pairs[i] = x[pair_row[i]]: the rows of each expert become one contiguous panel.
template <class S>
void gather_rows(In<S, 2> x, const Routes& routes, View<S, 2> pairs, const Call& call) {
  const Index width = x.extent(axis::channel);
  const Expect expect{"gather_rows"};
  expect.shape("pairs", pairs, {routes.pairs(), width});
  expect.shape("expert", routes.expert, {x.extent(0), routes.expert.extent(1)});
  if (pairs.empty()) return;
  const Index rows_per_task = std::max<Index>(numbers_per_task / width, 1);
  call.parallel_for(ceil_div(pairs.extent(0), rows_per_task), [&](Index task, const Call&) {
    const Index end = std::min(pairs.extent(0), (task + 1) * rows_per_task);
    for (Index pair = task * rows_per_task; pair < end; ++pair) {
      std::copy_n(&x(routes.pair_row[pair], 0), width, &pairs(pair, 0));
    }
  });
}

/// y[row] = Σ over choices that are not dropped, in their order, of
/// weight(row, choice) pairs[place(row, choice)].
template <class S>
void combine_rows(In<S, 2> pairs, In<S, 2> weight, const Routes& routes, View<S, 2> y,
                  const Call& call) {
  const Index width = y.extent(axis::channel), k = weight.extent(1), rows = weight.extent(0);
  const Expect expect{"combine_rows"};
  expect.shape("pairs", pairs, {routes.pairs(), width});
  expect.shape("weight", weight, routes.place.shape());
  expect.shape("weight", weight, {y.extent(0), k});
  if (y.empty()) return;
  const Index rows_per_task = std::max<Index>(numbers_per_task / width, 1);
  call.parallel_for(ceil_div(rows, rows_per_task), [&](Index task, const Call&) {
    const Index end = std::min(rows, (task + 1) * rows_per_task);
    for (Index row = task * rows_per_task; row < end; ++row) {
      S* const to = &y(row, 0);
      bool written = false;
      for (Index choice = 0; choice < k; ++choice) {
        if (routes.place(row, choice) < 0) continue;
        const S* from = &pairs(routes.place(row, choice), 0);
        const simd::Batch<S> factor(weight(row, choice));
        if (!std::exchange(written, true)) {
          simd::map<S>(
              width, to, [factor](auto v) { return factor * v; }, from);
        } else {
          simd::map<S>(
              width, to, [factor](auto v, auto sum) { return simd::fma(factor, v, sum); }, from,
              to);
        }
      }
      if (!written) std::fill_n(to, width, S(0));
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
