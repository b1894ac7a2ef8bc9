#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include "seqmix/kernels/rows.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which experts a batch of token rows goes to, and the same pairs sorted by expert.
///
/// A pair is one choice of one token. `pair_row` lists the rows of the choices grouped by expert
/// (in ascending order inside each); `place(row, choice)` is where a choice stands in that list.
struct Routes {
  View<Index, 2> expert;    // [rows, k]
  View<Index, 2> place;     // [rows, k]
  View<Index, 1> pair_row;  // [rows * k]
  View<Index, 1> first;     // [E + 1]: expert e has the pairs [first[e], first[e + 1])
};

/// Fills `expert` with the k largest of each row of scores [rows, E], largest first; a tie goes to
/// the lower expert and NaN counts as the smallest, so that k different experts are always chosen.
template <class S>
void top_k(In<S, 2> scores, View<Index, 2> expert) {
  const Index rows = expert.extent(0), k = expert.extent(1), n_experts = scores.extent(1);
  if (scores.extent(0) != rows || k > n_experts) {
    throw ShapeError("top_k: scores have shape " + scores.shape().text() + ", expected [" +
                     std::to_string(rows) + ", at least " + std::to_string(k) + "]");
  }
  const auto before = [](S a, Index i, S b, Index j) {
    if (a != a || b != b) return a == a || (b != b && i < j);
    return a > b || (a == b && i < j);
  };
  for (Index row = 0; row < rows; ++row) {
    for (Index choice = 0; choice < k; ++choice) {
      Index best = -1;
      for (Index e = 0; e < n_experts; ++e) {
        bool taken = false;
        for (Index earlier = 0; earlier < choice; ++earlier) taken |= expert(row, earlier) == e;
        if (taken) continue;
        if (best < 0 || before(scores(row, e), e, scores(row, best), best)) best = e;
      }
      expert(row, choice) = best;
    }
  }
}

/// Sorts the choices of `routes.expert` by expert, in order of rows: a counting sort.
inline void group_by_expert(Index n_experts, const Routes& routes) {
  const Index rows = routes.expert.extent(0), k = routes.expert.extent(1);
  fill(routes.first, 0);
  for (Index row = 0; row < rows; ++row) {
    for (Index choice = 0; choice < k; ++choice) ++routes.first[routes.expert(row, choice) + 1];
  }
  for (Index e = 0; e < n_experts; ++e) routes.first[e + 1] += routes.first[e];
  for (Index row = 0; row < rows; ++row) {
    for (Index choice = 0; choice < k; ++choice) {
      const Index place = routes.first[routes.expert(row, choice)]++;
      routes.place(row, choice) = place;
      routes.pair_row[place] = row;
    }
  }
  // Every start has moved to the start of the next expert: shift them back.
  for (Index e = n_experts; e > 0; --e) routes.first[e] = routes.first[e - 1];
  routes.first[0] = 0;
}

/// pairs[i] = x[pair_row[i]]: the rows of each expert become one contiguous panel.
template <class S>
void gather_rows(In<S, 3> x, const Routes& routes, View<S, 2> pairs, Context& context) {
  const Index width = x.extent(2), rows_per_task = std::max<Index>(numbers_per_task / width, 1);
  context.parallel_for(ceil_div(pairs.extent(0), rows_per_task), [&](Index task, Context&) {
    const Index end = std::min(pairs.extent(0), (task + 1) * rows_per_task);
    for (Index pair = task * rows_per_task; pair < end; ++pair) {
      const S* from = detail::row_address(x, routes.pair_row[pair]);
      std::copy_n(from, width, &pairs(pair, 0));
    }
  });
}

/// y[row] = Σ over choices, in their order, of weight(row, choice) pairs[place(row, choice)].
template <class S>
void combine_rows(In<S, 2> pairs, In<S, 2> weight, const Routes& routes, View<S, 3> y,
                  Context& context) {
  const Index width = y.extent(2), k = weight.extent(1), rows = weight.extent(0);
  const Index rows_per_task = std::max<Index>(numbers_per_task / width, 1);
  context.parallel_for(ceil_div(rows, rows_per_task), [&](Index task, Context&) {
    const Index end = std::min(rows, (task + 1) * rows_per_task);
    for (Index row = task * rows_per_task; row < end; ++row) {
      S* to = detail::row_address(y, row);
      for (Index choice = 0; choice < k; ++choice) {
        const S* from = &pairs(routes.place(row, choice), 0);
        const simd::Batch<S> factor(weight(row, choice));
        if (choice == 0) {
          simd::map<S>(
              width, to, [factor](auto v) { return factor * v; }, from);
        } else {
          simd::map<S>(
              width, to, [factor](auto v, auto sum) { return simd::fma(factor, v, sum); }, from,
              to);
        }
      }
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
