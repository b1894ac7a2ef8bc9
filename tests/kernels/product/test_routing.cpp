#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "seqmix/kernels/product/routing.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using support::same_bits;
using support::TestCall;
using test::error_of;

namespace {

/// All experts of one row, best first: a stable sort keeps ties in order.
template <class S>
std::vector<Index> sorted_experts(const View<const S, 1>& scores) {
  std::vector<Index> order(static_cast<std::size_t>(scores.extent(0)));
  std::iota(order.begin(), order.end(), Index{0});
  std::ranges::stable_sort(order, [&](Index i, Index j) {
    if (std::isnan(scores[i])) return false;
    return std::isnan(scores[j]) || scores[i] > scores[j];
  });
  return order;
}

/// Owns what `Routes` looks at.
struct Routing {
  Tensor<Index, 2> expert, place;
  Tensor<Index, 1> pair_row, first;

  Routing(Index rows, Index k, Index n_experts)
      : expert({rows, k}), place({rows, k}), pair_row({rows * k}), first({n_experts + 1}) {
    fill(place.view(), -7), fill(pair_row.view(), -7), fill(first.view(), -7);
  }
  Routes routes() { return {expert, place, pair_row, first}; }
};

/// k different experts a row, drawn from `allowed`.
Routing random_routing(Index rows, Index k, Index n_experts, std::vector<Index> allowed,
                       unsigned seed) {
  Routing routing(rows, k, n_experts);
  std::mt19937 random(seed);
  for (Index row = 0; row < rows; ++row) {
    std::ranges::shuffle(allowed, random);
    for (Index choice = 0; choice < k; ++choice) {
      routing.expert(row, choice) = allowed[static_cast<std::size_t>(choice)];
    }
  }
  group_by_expert(n_experts, routing.routes());
  return routing;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("top_k is the head of a stable sort, whatever the scores", "[routing]",
                        support::TestScalars) {
  using S = TestType;
  constexpr S nan = std::numeric_limits<S>::quiet_NaN(),
              infinity = std::numeric_limits<S>::infinity();
  const S special[] = {nan, infinity, -infinity, S(0), S(-0.0), S(1), S(1), S(2), S(-1), -nan};
  std::mt19937 random(1);
  for (const Index n_experts : {1, 2, 5, 8, 17}) {
    // Rows of every mixture: numbers, few values with many ties, NaN, infinities.
    Tensor<S, 2> wide({60, n_experts + 2});
    for (Index row = 0; row < 60; ++row) {
      for (Index e = 0; e < n_experts + 2; ++e) {
        wide(row, e) = row < 10 ? static_cast<S>(random()) / S(7) : special[random() % 10];
      }
    }
    for (Index e = 0; e < n_experts + 2; ++e) {
      wide(57, e) = S(3), wide(58, e) = -infinity, wide(59, e) = nan;
    }
    const auto scores = wide.view().template slice<1>(1, n_experts);
    for (Index k = 1; k <= n_experts; ++k) {
      Tensor<Index, 2> expert({60, k});
      fill(expert.view(), -7);
      top_k<S>(scores, expert);
      Index wrong = 0;
      for (Index row = 0; row < 60; ++row) {
        const auto order = sorted_experts<S>(scores[row]);
        for (Index choice = 0; choice < k; ++choice) {
          wrong += expert(row, choice) == order[static_cast<std::size_t>(choice)] ? 0 : 1;
        }
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("ties go to the lower expert and NaN is the last resort", "[routing]") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(),
                   infinity = std::numeric_limits<double>::infinity();
  const auto chosen = [](std::vector<double> scores, Index k) {
    Tensor<Index, 2> expert({1, k});
    top_k<double>(View<const double, 2>(scores.data(), {1, static_cast<Index>(scores.size())}),
                  expert);
    return support::numbers_of(expert[0]);
  };
  CHECK(chosen({1, 3, 2, 3}, 3) == std::vector<Index>{1, 3, 2});
  CHECK(chosen({-0.0, 0.0}, 1) == std::vector<Index>{0});
  CHECK(chosen({nan, -infinity, nan, 1}, 4) == std::vector<Index>{3, 1, 0, 2});
  CHECK(chosen({-infinity, -infinity, -infinity}, 2) == std::vector<Index>{0, 1});
  CHECK(chosen({nan, nan, nan}, 2) == std::vector<Index>{0, 1});
  CHECK(chosen({nan, infinity, infinity}, 2) == std::vector<Index>{1, 2});
}

TEST_CASE("top_k names scores that do not fit", "[routing]") {
  Tensor<float, 2> scores({3, 4});
  const auto error = [&](Index rows, Index k) {
    Tensor<Index, 2> expert({rows, k});
    return error_of<ShapeError>([&] { top_k<float>(scores, expert); });
  };
  CHECK(error(3, 4) == "");
  CHECK_THAT(error(3, 5),
             ContainsSubstring("top_k: scores have shape [3, 4], expected [3, at least 5]"));
  CHECK_THAT(error(2, 1),
             ContainsSubstring("top_k: scores have shape [3, 4], expected [2, at least 1]"));
  scores = Tensor<float, 2>({0, 4});
  CHECK(error(0, 2) == "");
}

TEST_CASE("pairs are grouped by expert in order of rows, and empty experts have none",
          "[routing]") {
  struct Case {
    Index rows, k, n_experts;
    std::vector<Index> allowed;
  };
  for (const Case& one :
       {Case{13, 2, 5, {0, 1, 2, 3, 4}}, Case{13, 2, 6, {1, 4}}, Case{9, 1, 4, {3}},
        Case{9, 1, 4, {0}}, Case{7, 3, 3, {0, 1, 2}}, Case{1, 1, 1, {0}}, Case{0, 2, 4, {0, 1}}}) {
    INFO("rows " << one.rows << " k " << one.k << " experts " << one.n_experts);
    Routing routing = random_routing(one.rows, one.k, one.n_experts, one.allowed, 3);
    const Routes routes = routing.routes();
    CHECK(routes.first[0] == 0);
    CHECK(routes.first[one.n_experts] == one.rows * one.k);
    std::vector<int> used(static_cast<std::size_t>(one.rows * one.k), 0);
    for (Index row = 0; row < one.rows; ++row) {
      for (Index choice = 0; choice < one.k; ++choice) {
        const Index place = routes.place(row, choice), e = routes.expert(row, choice);
        REQUIRE(place >= routes.first[e]);
        REQUIRE(place < routes.first[e + 1]);
        CHECK(routes.pair_row[place] == row);
        ++used[static_cast<std::size_t>(place)];
      }
    }
    CHECK(std::ranges::all_of(used, [](int times) { return times == 1; }));
    for (Index e = 0; e < one.n_experts; ++e) {
      Index chosen = 0;
      for (Index i = 0; i < one.rows * one.k; ++i) chosen += routing.expert.data()[i] == e ? 1 : 0;
      CHECK(routes.first[e + 1] - routes.first[e] == chosen);
      for (Index i = routes.first[e] + 1; i < routes.first[e + 1]; ++i) {
        CHECK(routes.pair_row[i - 1] < routes.pair_row[i]);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("gathered and combined rows come back", "[routing]", support::TestScalars) {
  using S = TestType;
  constexpr Index lanes = simd::lanes<S>;
  for (const Index width : {Index{1}, lanes - 1, lanes, lanes + 1, 3 * lanes + 5}) {
    if (width == 0) continue;
    for (const Index k : {1, 2, 4}) {
      INFO("width " << width << " k " << k);
      const Index rows = 14;
      // Experts 0 and 3 stay empty.
      Routing routing = random_routing(rows, k, 7, {1, 2, 4, 5}, 5);
      const Routes routes = routing.routes();
      const auto wide = random_tensor<S, 2>({rows + 1, width + 3}, 6);
      const auto x = wide.view().slice(axis::time, 1, rows).slice(axis::channel, 2, width);
      Context context;
      Tensor<S, 2> pairs({rows * k, width});
      fill(pairs.view(), std::numeric_limits<S>::quiet_NaN());
      gather_rows<S>(x, routes, pairs.view(), TestCall(context));
      for (Index pair = 0; pair < rows * k; ++pair) {
        const Index row = routes.pair_row[pair];
        CHECK(same_bits(std::as_const(pairs)[pair], x[row]));
      }

      // Powers of two that add up to 1 lose no bit.
      Tensor<S, 2> weight({rows, k});
      fill(weight.view(), S(1) / static_cast<S>(k));
      Tensor<S, 2> guarded({rows, width + 2});
      fill(guarded.view(), S(42));
      const auto y = guarded.view().slice(axis::channel, 1, width);
      combine_rows<S>(pairs, weight, routes, y, TestCall(context));
      CHECK(same_bits(y, x));
      for (Index row = 0; row < rows; ++row) {
        CHECK(guarded(row, 0) == 42);
        CHECK(guarded(row, width + 1) == 42);
      }

      // Any weights, and pairs that experts have changed.
      weight = random_tensor<S, 2>({rows, k}, 7);
      pairs = random_tensor<S, 2>({rows * k, width}, 8);
      Tensor<double, 2> expected({rows, width});
      for (Index row = 0; row < rows; ++row) {
        for (Index i = 0; i < width; ++i) {
          long double sum = 0;
          for (Index choice = 0; choice < k; ++choice) {
            sum +=
                static_cast<long double>(weight(row, choice)) * pairs(routes.place(row, choice), i);
          }
          expected(row, i) = static_cast<double>(sum);
        }
      }
      combine_rows<S>(pairs, weight, routes, y, TestCall(context));
      CHECK(support::relative_error(y, expected.view()) <=
            4 * static_cast<double>(std::numeric_limits<S>::epsilon()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a row's NaN reaches no other row", "[routing]", support::TestScalars) {
  using S = TestType;
  Context context;
  const Index rows = 6, width = 2 * simd::lanes<S> + 1;
  Routing routing = random_routing(rows, 2, 4, {0, 1, 3}, 9);
  auto x = random_tensor<S, 2>({rows, width}, 10);
  const auto healthy = x;
  fill(x.view()[2], std::numeric_limits<S>::quiet_NaN());
  Tensor<S, 2> pairs({rows * 2, width}), weight({rows, 2});
  fill(weight.view(), S(0.5));
  Tensor<S, 2> y({rows, width});
  gather_rows<S>(x, routing.routes(), pairs.view(), TestCall(context));
  combine_rows<S>(pairs, weight, routing.routes(), y.view(), TestCall(context));
  for (Index row = 0; row < rows; ++row) {
    if (row == 2) {
      CHECK(std::isnan(y(row, width - 1)));
    } else {
      CHECK(same_bits(std::as_const(y)[row], healthy[row]));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("threads change no bit of gathering and combining", "[routing]",
                        support::TestScalars) {
  using S = TestType;
  const Index rows = 45, k = 3, width = 1031;
  Routing routing = random_routing(rows, k, 6, {0, 1, 2, 4, 5}, 11);
  const auto x = random_tensor<S, 2>({rows, width}, 12);
  const auto weight = random_tensor<S, 2>({rows, k}, 13);
  const auto run = [&](Context& context) {
    Tensor<S, 2> pairs({rows * k, width});
    Tensor<S, 2> y(x.shape());
    gather_rows<S>(x, routing.routes(), pairs.view(), TestCall(context));
    combine_rows<S>(pairs, weight, routing.routes(), y.view(), TestCall(context));
    return y;
  };
  Context serial;
  const auto expected = run(serial);
  for (const Index workers : {1, 2, 3}) {
    support::ThreadExecutor executor(workers);
    Context context(executor);
    CHECK(same_bits(run(context).view(), expected.view()));
  }
}

TEST_CASE("the best groups are kept, by the sum of their two best", "[routing]") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(),
                   infinity = std::numeric_limits<double>::infinity();
  Context context = support::poisoned();
  const auto kept = [&](std::vector<double> scores, Index groups, Index count) {
    View<double, 2> view(scores.data(), {1, static_cast<Index>(scores.size())});
    keep_groups(view, groups, count, TestCall(context));
    std::vector<Index> result;
    for (std::size_t e = 0; e < scores.size(); ++e) {
      if (scores[e] != -infinity) result.push_back(static_cast<Index>(e));
    }
    return result;
  };
  // Sums of two: 5, 6, 4; the largest score alone would name the last group.
  CHECK(kept({3, 2, 0, 3, 3, 0, 9, -5, -6}, 3, 1) == std::vector<Index>{3, 4, 5});
  CHECK(kept({3, 2, 0, 3, 3, 0, 9, -5, -6}, 3, 2) == std::vector<Index>{0, 1, 2, 3, 4, 5});
  CHECK(kept({1, 2, 2, 1, 0, 3}, 3, 2) == std::vector<Index>{0, 1, 2, 3});
  CHECK(kept({nan, 2, 0, 0, -9, -9}, 3, 2) == std::vector<Index>{2, 3, 4, 5});
  CHECK(kept({1, 2, 3, 4}, 2, 2) == std::vector<Index>{0, 1, 2, 3});
  CHECK(kept({1, 3, 2}, 1, 1) == std::vector<Index>{0, 1, 2});
  Tensor<double, 2> scores({2, 6});
  CHECK_THROWS_AS(keep_groups(scores.view(), 0, 0, TestCall(context)), ShapeError);
  CHECK_THROWS_AS(keep_groups(scores.view(), 1, 0, TestCall(context)), ShapeError);
  CHECK_THROWS_AS(keep_groups(scores.view(), 1, 2, TestCall(context)), ShapeError);
  CHECK_THROWS_AS(keep_groups(scores.view(), 4, 1, TestCall(context)), ShapeError);
  CHECK_THROWS_AS(keep_groups(scores.view(), 3, 4, TestCall(context)), ShapeError);
  CHECK_THROWS_AS(keep_groups(scores.view(), 6, 1, TestCall(context)), ShapeError);
}

TEST_CASE("an expert takes the first tokens of each stream, and the count goes on", "[routing]") {
  Context context;
  Tensor<Index, 1> expert({10});
  Tensor<Index, 2> counts({2, 3});
  const auto drop = [&](Index capacity, std::vector<Index> choices) {
    std::ranges::copy(choices, expert.data());
    drop_above_capacity(capacity, expert.view(), counts.view(), TestCall(context, 2, 5));
    return support::numbers_of(expert.view());
  };
  CHECK(drop(2, {0, 0, 1, 0, 1, 2, 2, 2, 2, 0}) ==
        std::vector<Index>{0, 0, 1, -1, 1, 2, 2, -1, -1, 0});
  CHECK(support::numbers_of(counts.view()) == std::vector<Index>{3, 2, 0, 1, 0, 4});
  CHECK(drop(3, {0, 1, 1, 2, 2, 2, 0, 0, 0, 1}) ==
        std::vector<Index>{-1, 1, -1, 2, 2, -1, 0, 0, -1, 1});
  CHECK(drop(0, {0, 1, 1, 2, 2, 2, 0, 0, 0, 1}) ==
        std::vector<Index>{0, 1, 1, 2, 2, 2, 0, 0, 0, 1});
  CHECK_THROWS_AS(drop_above_capacity(1, expert.view(), counts.view(), TestCall(context, 2, 4)),
                  ShapeError);
}

TEST_CASE("experts count the tokens of the rows that segments name", "[routing]") {
  Context context;
  Tensor<Index, 1> expert({6});
  std::ranges::copy(std::vector<Index>{1, 0, 0, 1, 0, 0}, expert.data());
  Tensor<Index, 2> counts({4, 2});
  counts(2, 0) = 1;
  const TestCall call(
      context, {{3, 0, 1, Form::recurrent}, {0, 1, 3, Form::parallel}, {2, 4, 2, Form::parallel}});
  drop_above_capacity(2, expert.view(), counts.view(), call);
  CHECK(support::numbers_of(expert.view()) == std::vector<Index>{1, 0, 0, 1, 0, -1});
  CHECK(support::numbers_of(counts.view()) == std::vector<Index>{2, 1, 0, 0, 3, 0, 0, 1});
}

TEST_CASE("dropped choices have no pair and add nothing", "[routing]") {
  Routing routing(4, 2, 3);
  const std::vector<Index> chosen{0, -1, -1, -1, 2, 0, -1, 2};
  std::ranges::copy(chosen, routing.expert.data());
  const Routes routes = routing.routes();
  group_by_expert(3, routes);
  CHECK(routes.pairs() == 4);
  CHECK(support::numbers_of(routes.first) == std::vector<Index>{0, 2, 2, 4});
  CHECK(support::numbers_of(routes.place) == std::vector<Index>{0, -1, -1, -1, 2, 1, -1, 3});
  const auto x = random_tensor<double, 2>({4, 5}, 1);
  Tensor<double, 2> pairs({4, 5}), weight({4, 2});
  fill(weight.view(), 0.5), fill(weight.view()[1], std::numeric_limits<double>::quiet_NaN());
  Tensor<double, 2> y(x.shape());
  fill(y.view(), std::numeric_limits<double>::quiet_NaN());
  Context context;
  gather_rows<double>(x, routes, pairs.view(), TestCall(context));
  combine_rows<double>(pairs, weight, routes, y.view(), TestCall(context));
  for (Index d = 0; d < 5; ++d) {
    CHECK(y(0, d) == x(0, d) / 2);
    CHECK(y(1, d) == 0);
    CHECK(y(2, d) == x(2, d));
    CHECK(y(3, d) == x(3, d) / 2);
  }
}

TEST_CASE("routing kernels name what does not fit", "[routing]") {
  Context context;
  Routing routing(4, 2, 3);
  fill(routing.expert.view(), 1);
  const Routes routes = routing.routes();
  CHECK_THAT(error_of<ShapeError>([&] { group_by_expert(4, routes); }),
             ContainsSubstring("group_by_expert: first has shape [4], expected [5]"));
  routing.expert(2, 1) = 3;
  CHECK_THAT(error_of<ShapeError>([&] { group_by_expert(3, routes); }),
             ContainsSubstring("expert 3 of 3"));
  routing.expert(2, 1) = -2;
  CHECK_THAT(error_of<ShapeError>([&] { group_by_expert(3, routes); }),
             ContainsSubstring("expert -2 of 3"));
  routing.expert(2, 1) = 1;
  group_by_expert(3, routes);
  Tensor<float, 2> x({4, 5}), longer({6, 5}), pairs({8, 5}), fewer({7, 5}), weight({4, 2}),
      wrong({4, 1});
  CHECK(error_of<ShapeError>(
            [&] { gather_rows<float>(x, routes, pairs.view(), TestCall(context)); }) == "");
  CHECK_THAT(
      error_of<ShapeError>([&] { gather_rows<float>(x, routes, fewer.view(), TestCall(context)); }),
      ContainsSubstring("gather_rows: pairs"));
  CHECK_THAT(error_of<ShapeError>(
                 [&] { gather_rows<float>(longer, routes, pairs.view(), TestCall(context)); }),
             ContainsSubstring("gather_rows: expert"));
  CHECK_THAT(error_of<ShapeError>(
                 [&] { combine_rows<float>(fewer, weight, routes, x.view(), TestCall(context)); }),
             ContainsSubstring("combine_rows: pairs"));
  CHECK_THAT(error_of<ShapeError>(
                 [&] { combine_rows<float>(pairs, wrong, routes, x.view(), TestCall(context)); }),
             ContainsSubstring("combine_rows: weight"));
  CHECK_THAT(error_of<ShapeError>([&] {
               combine_rows<float>(pairs, weight, routes, longer.view(), TestCall(context));
             }),
             ContainsSubstring("combine_rows: weight"));
}
