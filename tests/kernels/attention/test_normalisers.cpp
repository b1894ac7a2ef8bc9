#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/normalisers.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

using Pair = PairWeight::Kind;
using Row = RowNormaliser::Kind;

/// One normaliser, and its weights of scores [n] in double; `own` is that of the query's own key.
struct Member {
  std::string name;
  std::optional<PairWeight> pair = {};
  std::optional<RowNormaliser> row = {};

  template <class S>
  ComposedScore<S> score(double scale) const {
    typename ComposedScore<S>::Maps maps;
    if (pair) maps.push_back(ComposedScore<S>::map(*pair));
    return {scale, std::move(maps), {}, row};
  }
  std::vector<double> weights(Index head, std::vector<double> scores, std::size_t own) const {
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    if (pair) {
      for (double& s : scores) {
        const double positive = pair->factor * std::max(s, 0.0);
        s = pair->kind == Pair::sigmoid ? sigmoid(s + pair->shift)
            : pair->kind == Pair::relu  ? std::max(s, 0.0)
            : pair->kind == Pair::laplace
                ? std::erfc((std::sqrt(0.5) - pair->factor * s) * std::sqrt(2 * std::numbers::pi)) /
                      2
                : positive * positive;
      }
      return scores;
    }
    if (row->kind == Row::sparsemax || row->kind == Row::entmax15) {
      const bool squared = row->kind == Row::entmax15;
      const auto weight = [&](double s, double threshold) {
        const double above = std::max((squared ? s / 2 : s) - threshold, 0.0);
        return squared ? above * above : above;
      };
      double low = -100, high = 100;
      for (int i = 0; i < 200; ++i) {
        const double middle = (low + high) / 2;
        double sum = 0;
        for (const double s : scores) sum += weight(s, middle);
        (sum > 1 ? low : high) = middle;
      }
      for (double& s : scores) s = weight(s, low);
      return scores;
    }
    if (row->kind == Row::layer_norm) {
      double mean = 0, square = 0;
      for (const double s : scores) mean += s / static_cast<double>(scores.size());
      for (const double s : scores) {
        square += (s - mean) * (s - mean) / static_cast<double>(scores.size());
      }
      const auto h = static_cast<std::size_t>(head);
      for (double& s : scores) {
        s = row->gains[h] * (s - mean) / (std::sqrt(square) + row->eps) + row->biases[h];
      }
      return scores;
    }
    double left = 1, sum = 0;
    for (std::size_t j = own + 1; j-- > 0;) {  // causal here
      const double broken = j == own && row->own_key != OwnKey::seen ? 0 : sigmoid(scores[j]);
      scores[j] = left * broken, left *= 1 - broken, sum += scores[j];
    }
    if (row->own_key == OwnKey::remainder) scores[own] = left;
    for (double& s : scores) s /= row->kind == Row::geometric ? std::max(sum, 1e-12) : 1;
    return scores;
  }
};

std::vector<Member> members() {
  const auto pair = [](std::string name, PairWeight weight) {
    return Member{std::move(name), weight, {}};
  };
  const auto row = [](std::string name, RowNormaliser normaliser) {
    return Member{std::move(name), {}, std::move(normaliser)};
  };
  return {pair("sigmoid", {Pair::sigmoid, -0.5}),
          pair("relu", {Pair::relu}),
          pair("relu_squared", {Pair::relu_squared, 0, 0.25}),
          pair("laplace", {Pair::laplace, 0, 0.25}),
          row("layer_norm", {Row::layer_norm, OwnKey::seen, {1, 0.5, -2, 3}, {0, 1, 0.5, 0}, 0.01}),
          row("sparsemax", {Row::sparsemax}),
          row("entmax15", {Row::entmax15}),
          row("stick_breaking", {Row::stick_breaking}),
          row("stick_breaking, remainder", {Row::stick_breaking, OwnKey::remainder}),
          row("geometric, own key hidden", {Row::geometric, OwnKey::hidden})};
}

/// T tokens of four heads that share two key heads, `past` tokens behind the start.
template <class S>
struct Case {
  Index T, past, K, V, window;
  Tensor<S, 3> q;
  Tensor<S, 4> keys, values;  // what the caches give back
  Cache<S, 4> key_cache, value_cache;
  double scale = 0.8;

  Case(Index tokens, Index before, Index k, Index v, Storage storage = Storage::native,
       Index width = Band::unlimited)
      : T(tokens),
        past(before),
        K(k),
        V(v),
        window(width),
        q(random_tensor<S, 3>({T, 4, K}, 1)),
        keys(random_tensor<S, 4>({1, 2, past + T, K}, 2)),
        values(random_tensor<S, 4>({1, 2, past + T, V}, 3)),
        key_cache(keys.shape(), {}, storage),
        value_cache(values.shape(), {}, storage) {
    store_entries<S>(keys, key_cache.view()), store_entries<S>(values, value_cache.view());
    load_entries<S>(key_cache.view(), keys.view()),
        load_entries<S>(value_cache.view(), values.view());
  }

  /// Tokens [first, first + count).
  void run(const Member& member, Form form, Context& context, Index first, Index count,
           View<S, 3> o) {
    const ComposedScore<S> score = member.template score<S>(scale);
    Tensor<Index, 1> before({1});
    before(0) = past + first;
    attention(View<const S, 3>(q.view().slice(axis::time, first, count)), key_cache.view(),
              value_cache.view(), before, Band::window(window), AnyScore<S>(score),
              o.slice(axis::time, first, count), TestCall(context, {{0, 0, count, form}}));
  }
  Tensor<S, 3> run(const Member& member, Form form, Context& context) {
    Tensor<S, 3> o({T, 4, V});
    run(member, form, context, 0, T, o.view());
    return o;
  }
  Tensor<double, 3> expected(const Member& member) const {
    Tensor<double, 3> o({T, 4, V});
    for (Index t = 0; t < T; ++t) {
      for (Index h = 0; h < 4; ++h) {
        const Index i = past + t, first = std::max<Index>(i - window + 1, 0);
        std::vector<double> scores;
        for (Index j = first; j <= i; ++j) {
          double product = 0;
          for (Index e = 0; e < K; ++e) {
            product += static_cast<double>(q(t, h, e)) * static_cast<double>(keys(0, h / 2, j, e));
          }
          scores.push_back(scale * product);
        }
        const auto weights = member.weights(h, scores, scores.size() - 1);
        for (Index j = first; j <= i; ++j) {
          for (Index e = 0; e < V; ++e) {
            o(t, h, e) += weights[static_cast<std::size_t>(j - first)] *
                          static_cast<double>(values(0, h / 2, j, e));
          }
        }
      }
    }
    return o;
  }
};

template <class S>
constexpr double tolerance = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());

}  // namespace

TEMPLATE_LIST_TEST_CASE("weights that are no softmax are their formulas, in both forms",
                        "[attention]", support::TestScalars) {
  using S = TestType;
  auto context = support::poisoned();
  for (const Member& member : members()) {
    const auto check = [&](Case<S> c) {
      INFO(member.name << " T " << c.T << " past " << c.past << " window " << c.window);
      const auto expected = c.expected(member);
      for (const Form form : {Form::parallel, Form::recurrent}) {
        CHECK(support::relative_error(c.run(member, form, context).view(), expected.view()) <=
              tolerance<S>);
      }
    };
    check({2, 0, 5, 3});
    check({70, 0, 8, 8});
    check({65, 63, 1, 70});
    check({3, 1100, 7, 5});  // spans of keys that are merged
    check({130, 40, 6, 9, Storage::bf16});
    check({20, 70, 16, 16, Storage::int8});
    check({130, 90, 6, 9, Storage::native, 37});
  }
}

TEMPLATE_LIST_TEST_CASE("weights that are no softmax depend on no other query, cut or thread",
                        "[attention]", support::TestScalars) {
  using S = TestType;
  auto context = support::poisoned();
  for (const Member& member : members()) {
    INFO(member.name);
    Case<S> c(150, 30, 9, 6);
    const auto whole = c.run(member, Form::parallel, context);
    Tensor<S, 3> o({150, 4, 6});
    for (Index first = 0; first < 150; first += 64) {
      c.run(member, Form::parallel, context, first, std::min<Index>(64, 150 - first), o.view());
    }
    CHECK(same_bits(o.view(), whole.view()));
    support::ThreadExecutor executor(3);
    Context threaded(executor);
    CHECK(same_bits(c.run(member, Form::parallel, threaded).view(), whole.view()));
    CHECK(same_bits(c.run(member, Form::recurrent, threaded).view(),
                    c.run(member, Form::recurrent, context).view()));
  }
}

TEMPLATE_LIST_TEST_CASE("hidden entries stay unseen by weights that are no softmax", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  auto context = support::poisoned();
  for (const Member& member : members()) {
    INFO(member.name);
    Case<S> c(40, 60, 5, 4, Storage::native, 20);
    const auto expected = c.expected(member);
    const auto nothing = std::numeric_limits<S>::quiet_NaN();
    for (Index j = 0; j < 41; ++j) {  // out of every window
      Tensor<S, 3> key({1, 2, 5}), value({1, 2, 4});
      fill(key.view(), nothing), fill(value.view(), nothing);
      store_entries<S>(key, c.key_cache.view().at(axis::slot, j));
      store_entries<S>(value, c.value_cache.view().at(axis::slot, j));
    }
    for (const Form form : {Form::parallel, Form::recurrent}) {
      CHECK(support::relative_error(c.run(member, form, context).view(), expected.view()) <=
            tolerance<S>);
    }
  }
}

TEST_CASE("weights on matrix units are those in fp32 to the error of their numbers",
          "[attention]") {
  Context context;
  context.set_precision(Precision::bf16x3);
  for (const Member& member : members()) {
    INFO(member.name);
    Case<float> c(130, 77, 64, 72);
    const auto o = c.run(member, Form::parallel, context);
    CHECK(support::relative_error(o.view(), c.expected(member).view()) <= 1e-3);
  }
}

TEMPLATE_LIST_TEST_CASE("a NaN among the scores of a query fills its own weights", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  for (const Member& member : members()) {
    INFO(member.name);
    Context context;
    Case<S> c(30, 0, 5, 4);
    const auto before = c.run(member, Form::parallel, context);
    c.q(11, 2, 3) = std::numeric_limits<S>::quiet_NaN();
    const auto after = c.run(member, Form::parallel, context);
    for (Index t = 0; t < 30; ++t) {
      for (Index h = 0; h < 4; ++h) {
        if (t == 11 && h == 2) CHECK(std::isnan(after(t, h, 0)));
        if (t != 11 || h != 2) CHECK(after(t, h, 0) == before(t, h, 0));
      }
    }
  }
}

TEST_CASE("weights that are no softmax have no log-sum-exp", "[attention]") {
  Context context;
  Case<double> c(3, 0, 2, 2);
  const ComposedScore<double> score = members()[0].score<double>(1);
  Tensor<Index, 1> before({1});
  Tensor<double, 3> o({3, 4, 2});
  Tensor<double, 2> sums({3, 4});
  CHECK_THROWS_AS(
      attention(c.q.view(), c.key_cache.view(), c.value_cache.view(), before, Causal{},
                AnyScore<double>(score), o.view(), TestCall(context, 1, 3), sums.view()),
      ConfigError);
}
