#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <numbers>
#include <string>
#include <type_traits>
#include <utility>

#include "seqmix/kernels/memory/feature_map.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

double dot(const View<const double, 1>& a, const View<const double, 1>& b) {
  double sum = 0;
  for (Index i = 0; i < a.extent(0); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

TEST_CASE("pointwise features are the functions they are named after", "[feature_map]") {
  const auto x = random_tensor<double, 3>({6, 2, 19}, 1);
  Context context;
  const auto check = [&](FeatureMap map, auto&& f) {
    Tensor<double, 3> features(x.shape()), expected(x.shape());
    pointwise_features(map, x, features.view(), TestCall(context));
    for (Index i = 0; i < x.size(); ++i) expected.data()[i] = f(x.data()[i]);
    CHECK(relative_error(features.view(), expected.view()) < 1e-15);
  };
  check(FeatureMap::identity, [](double v) { return v; });
  check(FeatureMap::relu, [](double v) { return std::max(v, 0.0); });
  check(FeatureMap::elu_plus_one, [](double v) { return v > 0 ? v + 1 : std::exp(v); });

  Tensor<double, 3> features(x.shape());
  pointwise_features(FeatureMap::softmax, x, features.view(), TestCall(context));
  double sum = 0;
  for (Index i = 0; i < 19; ++i) sum += features(5, 1, i);
  CHECK(std::abs(sum - 1) < 1e-15);
}

TEST_CASE("features refuse heads that are not contiguous or do not fit", "[feature_map]") {
  const Tensor<double, 3> x({3, 2, 4});
  Tensor<double, 3> features({3, 2, 4}), wide({3, 2, 8});
  Context context;
  const auto error = [&](const View<const double, 3>& from, const View<double, 3>& to) {
    try {
      pointwise_features<double>(FeatureMap::relu, from, to, TestCall(context));
    } catch (const ShapeError& thrown) {
      return std::string(thrown.what());
    }
    return std::string();
  };
  const auto every_second = [&](const auto& view) {
    const Shape<3> strides{16, 8, 2};
    return std::remove_cvref_t<decltype(view)>(view.data(), features.shape(), strides);
  };
  const std::string rule =
      "relu features of [3, 2, 4] have shape [3, 2, 4], expected contiguous heads and "
      "[3, 2, 4]";
  CHECK(error(x, features.view()).empty());
  CHECK(error(x, every_second(wide.view())) == rule);
  CHECK(error(every_second(std::as_const(wide).view()), features.view()) == rule);
  CHECK(error(x, wide.view()) ==
        "relu features of [3, 2, 4] have shape [3, 2, 8], expected contiguous heads and "
        "[3, 2, 4]");
  // A width of one has no stride.
  const auto column = [](const auto& view) { return view.slice(axis::channel, 3, 1); };
  CHECK(error(column(every_second(std::as_const(wide).view())), column(every_second(wide.view())))
            .empty());
}

TEST_CASE("a product of taylor features is the polynomial", "[feature_map]") {
  for (const Index K : {1, 2, 5, 16, 17}) {
    const auto q = random_tensor<double, 3>({3, 2, K}, 1);
    const auto k = random_tensor<double, 3>({3, 2, K}, 2);
    Tensor<double, 3> a({3, 2, taylor_width(K)}), b(a.shape());
    Context context;
    taylor_features(q, a.view(), TestCall(context));
    taylor_features(k, b.view(), TestCall(context));
    for (Index t = 0; t < 3; ++t) {
      for (Index h = 0; h < 2; ++h) {
        const double s = dot(q.view()[t][h], k.view()[t][h]) / std::sqrt(double(K));
        const double expected = 1 + s + s * s / 2;
        CHECK(std::abs(dot(a.view()[t][h], b.view()[t][h]) - expected) < 1e-13);
      }
    }
  }
}

TEST_CASE("a product of cosformer features falls with the cosine of the distance",
          "[feature_map]") {
  const Index T = 9, K = 5;
  const auto q = random_tensor<double, 4>({2, T, 1, K}, 1);
  const auto k = random_tensor<double, 4>({2, T, 1, K}, 2);
  Tensor<double, 4> a({2, T, 1, 2 * K}), b(a.shape()), p(q.shape()), r(q.shape());
  Tensor<Index, 1> past({2});
  past[1] = 40;
  support::ThreadExecutor executor(2);
  Context context(executor);
  const TestCall call(context, 2, T);
  cosformer_features(flat(q), past, 100.0, flat(a), call);
  cosformer_features(flat(k), past, 100.0, flat(b), call);
  pointwise_features(FeatureMap::relu, flat(q), flat(p), call);
  pointwise_features(FeatureMap::relu, flat(k), flat(r), call);
  for (Index row = 0; row < 2; ++row) {
    for (Index i = 0; i < T; ++i) {
      for (Index j = 0; j <= i; ++j) {
        const double weight = std::cos(std::numbers::pi / 2 * double(i - j) / 100);
        const double expected = weight * dot(p.view()[row][i][0], r.view()[row][j][0]);
        CHECK(std::abs(dot(a.view()[row][i][0], b.view()[row][j][0]) - expected) < 1e-14);
      }
    }
  }
}

TEST_CASE("favor keys times the decays since are the exponentials of one maximum",
          "[feature_map]") {
  const Index T = 40, K = 5, F = 19;
  for (const double epsilon : {0.0, 1e-3}) {
    const Index width = F + (epsilon > 0 ? 1 : 0);
    for (const double size : {1.0, 30.0}) {
      auto k = random_tensor<double, 4>({2, T, 2, K}, 1);
      for (Index i = 0; i < k.size(); ++i) k.data()[i] *= size;
      const auto projected = random_tensor<double, 4>({2, T, 2, width}, 2);
      // Both rows at once, or each of them in pieces.
      const auto run = [&](Context& context, Index pieces) {
        Tensor<double, 4> features = projected;
        Tensor<double, 3> decay({2, T, 2});
        Tensor<double, 2> maximum({2, 2});
        fill(maximum.view(), -1e30);
        const Index count = T / pieces;
        if (pieces == 1) {
          favor_keys(flat(k), flat(features), maximum.view(), flat(decay), epsilon,
                     TestCall(context, 2, T));
          return std::tuple(features, decay, maximum);
        }
        for (Index row = 0; row < 2; ++row) {
          for (Index first = 0; first < T; first += count) {
            const auto part = [&](auto& x) {
              return x.view()[row].slice(axis::time, first, count);
            };
            favor_keys(part(k), part(features), maximum.view(), part(decay), epsilon,
                       TestCall(context, {{row, 0, count, Form::parallel}}));
          }
        }
        return std::tuple(features, decay, maximum);
      };
      Context serial;
      support::ThreadExecutor executor(3);
      Context context(executor);
      const auto [features, decay, maximum] = run(serial, 1);
      CHECK(same_bits(std::get<0>(run(context, 4)).view(), features.view()));
      CHECK(same_bits(std::get<1>(run(context, 4)).view(), decay.view()));
      Tensor<double, 4> decays({2, T, 2, F + 1});
      favor_decays<double>(flat(decay), flat(decays), TestCall(context));
      for (Index h = 0; h < 2; ++h) {
        double rest = 0, most = -1e30;  // the log of the decay from t on
        for (Index t = T - 1; t >= 0; --t) {
          double square = 0;
          for (Index i = 0; i < K; ++i) square += k(1, t, h, i) * k(1, t, h, i);
          for (Index f = 0; f < F; ++f) {
            const double score = projected(1, t, h, f) / std::pow(double(K), 0.25);
            const double norm = square / std::sqrt(double(K)) / 2;
            const double exponent = score - norm - maximum(1, h);
            most = std::max(most, epsilon > 0 ? score : score - norm);
            CHECK(features(1, t, h, f) <= 1);
            CHECK(std::abs(features(1, t, h, f) * std::exp(rest) - std::exp(exponent)) < 1e-12);
            CHECK(decays(1, t, h, f) == decay(1, t, h));
          }
          if (epsilon > 0) CHECK(features(1, t, h, F) == epsilon);
          CHECK(decays(1, t, h, F) == 0);
          rest += decay(1, t, h);
        }
        CHECK(std::abs(maximum(1, h) - most) < 1e-12 * std::abs(most));
      }
    }
  }
}

TEST_CASE("features that follow a row have the same bits in any company", "[feature_map]") {
  const Index rows = 4, T = 1 + 65 + 7, H = 2, K = 5, F = 19;
  // Row 2 is in none.
  const Segment segments[] = {
      {3, 0, 1, Form::recurrent}, {0, 1, 65, Form::parallel}, {1, 66, 7, Form::recurrent}};
  const auto x = random_tensor<float, 3>({T, H, K}, 1);
  const auto projected = random_tensor<float, 3>({T, H, F}, 2);
  const auto before = random_tensor<float, 2>({rows, H}, 3);
  Tensor<Index, 1> past({rows});
  for (Index row = 0; row < rows; ++row) past[row] = 7 * row;
  struct Result {
    Tensor<float, 3> cosformer, favor;
    Tensor<float, 2> decay, maximum;
  };
  const auto fresh = [&] {
    return Result{Tensor<float, 3>({T, H, 2 * K}), projected, Tensor<float, 2>({T, H}), before};
  };
  Result alone = fresh();
  Context context;
  for (const auto& [row, first, count, form] : segments) {
    const auto part = [from = first, tokens = count](auto& numbers) {
      return numbers.view().slice(axis::time, from, tokens);
    };
    const TestCall call(context, {{row, 0, count, form}});
    cosformer_features(part(x), past, 100.0, part(alone.cosformer), call);
    favor_keys(part(x), part(alone.favor), alone.maximum.view(), part(alone.decay), 0, call);
  }
  for (const Index workers : {1, 3}) {
    support::ThreadExecutor executor(workers);
    Context threads(executor);
    const Call call(threads, segments);
    Result mixed = fresh();
    cosformer_features(x, past, 100.0, mixed.cosformer.view(), call);
    favor_keys(x, mixed.favor.view(), mixed.maximum.view(), mixed.decay.view(), 0, call);
    CHECK(same_bits(mixed.cosformer.view(), alone.cosformer.view()));
    CHECK(same_bits(mixed.favor.view(), alone.favor.view()));
    CHECK(same_bits(mixed.decay.view(), alone.decay.view()));
    CHECK(same_bits(mixed.maximum.view(), alone.maximum.view()));
    CHECK(same_bits(std::as_const(mixed.maximum)[2], before[2]));
  }
}

TEST_CASE("favor queries are exponentials, with an epsilon and their sum where there is one",
          "[feature_map]") {
  const Index K = 5, F = 19;
  Context context;
  const auto q = random_tensor<double, 4>({2, 3, 2, K}, 1);
  for (const double epsilon : {0.0, 1e-3}) {
    const auto projected = random_tensor<double, 4>({2, 3, 2, F + (epsilon > 0 ? 1 : 0)}, 2);
    Tensor<double, 4> features = projected;
    favor_queries(flat(q), flat(features), epsilon, TestCall(context));
    double square = 0, most = -1e30, sum = 0;
    for (Index i = 0; i < K; ++i) square += q(1, 2, 1, i) * q(1, 2, 1, i);
    const double norm = epsilon > 0 ? square / std::sqrt(double(K)) / 2 : 0;
    const auto score = [&](Index f) { return projected(1, 2, 1, f) / std::pow(double(K), 0.25); };
    for (Index f = 0; f < F; ++f) most = std::max(most, score(f));
    for (Index f = 0; f < F; ++f) {
      sum += features(1, 2, 1, f);
      CHECK(std::abs(features(1, 2, 1, f) - std::exp(score(f) - norm - most) - epsilon) < 1e-14);
    }
    if (epsilon > 0) CHECK(std::abs(features(1, 2, 1, F) - sum) < 1e-13);
  }
}
