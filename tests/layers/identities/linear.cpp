// Identities between the layers of the outer-product family.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "seqmix/layers/linear/linear_attention.hpp"
#include "seqmix/layers/linear/mlstm.hpp"
#include "seqmix/layers/linear/retention.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/forward.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::flat;
using support::forward;
using support::random_tensor;
using support::random_weights;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

Tensor<double, 1> constants(Index size, double value) {
  Tensor<double, 1> result({size});
  fill(result.view(), value);
  return result;
}

/// Queries, keys, values and a zero state of a kernel.
struct Problem {
  Index B = 2, T = 200, H = 3, K = 9, V = 14;
  Tensor<double, 4> q = random_tensor<double, 4>({B, T, H, K}, 1);
  Tensor<double, 4> k = random_tensor<double, 4>({B, T, H, K}, 2);
  Tensor<double, 4> v = random_tensor<double, 4>({B, T, H, V}, 3);

  template <class Decay>
  Tensor<double, 4> run(const Decay& decay, Algorithm algorithm) const {
    Tensor<double, 4> state({B, H, K, V}), o({B, T, H, V});
    Context context;
    context.set_algorithm(algorithm);
    linear_state(flat(q), flat(k), flat(v), decay, 1, state.view(), flat(o),
                 TestCall(context, B, T));
    return o;
  }
  /// o_i = Σ_{j<=i} weight(h, i - j) (q_i · k_j) v_j.
  Tensor<double, 4> quadratic(auto&& weight) const {
    Tensor<double, 4> o({B, T, H, V});
    for (Index b = 0; b < B; ++b) {
      for (Index h = 0; h < H; ++h) {
        for (Index i = 0; i < T; ++i) {
          for (Index j = 0; j <= i; ++j) {
            double score = 0;
            for (Index c = 0; c < K; ++c) score += q(b, i, h, c) * k(b, j, h, c);
            for (Index c = 0; c < V; ++c) o(b, i, h, c) += weight(h, i - j) * score * v(b, j, h, c);
          }
        }
      }
    }
    return o;
  }
};

constexpr Algorithm algorithms[] = {Algorithm::recurrent, Algorithm::chunked};

}  // namespace

TEST_CASE("the recurrent and the chunkwise form of retention are its parallel form") {
  const Problem p;
  Tensor<double, 1> factors({p.H});
  for (Index h = 0; h < p.H; ++h) factors[h] = 1 - std::exp2(-5 - static_cast<double>(h));
  const auto expected = p.quadratic(
      [&](Index h, Index distance) { return std::pow(factors[h], static_cast<double>(distance)); });
  for (const Algorithm algorithm : algorithms) {
    const auto o = p.run(ConstantDecay<double>{factors}, algorithm);
    CHECK(relative_error(o.view(), expected.view()) < 1e-13);
  }
}

TEST_CASE("retention in float keeps the accuracy of the recurrence where heads forget slowly") {
  // Positive numbers, so that no sum cancels and errors of the decay show.
  const std::vector<double> kept{1 - 0x1p-5, 1 - 0x1p-9, 1 - 0x1p-12, 1 - 0x1p-14, 0.999, 0.3};
  const Index T = 32768, H = static_cast<Index>(kept.size()), K = 4, V = 8;
  const auto positive = [](Tensor<float, 4> x) {
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::abs(x.data()[i]);
    return x;
  };
  const auto q = positive(random_tensor<float, 4>({1, T, H, K}, 1));
  const auto k = positive(random_tensor<float, 4>({1, T, H, K}, 2));
  const auto v = positive(random_tensor<float, 4>({1, T, H, V}, 3));
  Tensor<float, 1> factors({H});
  for (Index h = 0; h < H; ++h) factors[h] = static_cast<float>(kept[static_cast<std::size_t>(h)]);

  Tensor<double, 4> truth({1, H, K, V}), expected({1, T, H, V});
  Tensor<float, 4> literal({1, H, K, V}), sums({1, T, H, V});
  for (Index t = 0; t < T; ++t) {
    for (Index h = 0; h < H; ++h) {
      for (Index i = 0; i < K; ++i) {
        const float factor = factors[h], key = k(0, t, h, i), query = q(0, t, h, i);
        for (Index j = 0; j < V; ++j) {
          const float value = v(0, t, h, j);
          double& exact = truth(0, h, i, j);
          float& rounded = literal(0, h, i, j);
          exact = double(factor) * exact + double(key) * double(value);
          rounded = factor * rounded + key * value;
          expected(0, t, h, j) += double(query) * exact;
          sums(0, t, h, j) += query * rounded;
        }
      }
    }
  }
  const auto holds = [&](const auto& got, const auto& twin, const auto& exact) {
    const double slack = 4 * double(std::numeric_limits<float>::epsilon());
    for (Index h = 0; h < H; ++h) {
      INFO("head " << h);
      const double limit = 2 * relative_error(twin(h), exact(h)) + slack;
      CHECK(relative_error(got(h), exact(h)) <= limit);
    }
  };
  for (const Algorithm algorithm : algorithms) {
    INFO("algorithm " << static_cast<int>(algorithm));
    Tensor<float, 4> state({1, H, K, V}), o({1, T, H, V});
    Context context;
    context.set_algorithm(algorithm);
    linear_state(flat(q), flat(k), flat(v), ConstantDecay<float>{factors}, 1, state.view(), flat(o),
                 TestCall(context, 1, T));
    const auto head_of = [](const auto& tensor) {
      return [&tensor](Index h) { return tensor.view().template slice<2>(h, 1); };
    };
    const auto state_of = [](const auto& tensor) {
      return [&tensor](Index h) { return tensor.view().template slice<1>(h, 1); };
    };
    holds(head_of(o), head_of(sums), head_of(expected));
    holds(state_of(state), state_of(literal), state_of(truth));
    // The end alone, where the error of a decay has added up.
    const auto end_of = [](const auto& tensor) {
      return [&tensor](Index h) {
        return tensor.view().template slice<2>(h, 1).template slice<1>(T - 1000, 1000);
      };
    };
    holds(end_of(o), end_of(sums), end_of(expected));
  }
}

TEST_CASE("gated linear attention with constant gates is retention without rotation") {
  const GatedLinearAttentionConfig gated{
      .d_model = 12, .n_heads = 3, .head_k = 4, .head_v = 6, .gate_rank = 2};
  const RetentionConfig fixed{.d_model = 12, .n_heads = 3, .head_k = 4, .head_v = 6};
  auto weights = random_weights<GatedLinearAttentionDefinition<double>::Weights>(gated, 1);
  Tensor<double, 1> bias({12});
  for (Index i = 0; i < 12; ++i) {
    const double factor = 1 - std::exp2(-5 - static_cast<double>(i / 4));
    const double gate = std::pow(factor, gated.gate_normalizer);
    bias[i] = std::log(gate) - std::log1p(-gate);
  }
  weights.gk_up.weight = Parameter<double, 2>(Tensor<double, 2>({12, 2}));
  weights.gk_up.bias = bias;
  RetentionDefinition<double>::Weights same;
  same.q_proj = weights.q_proj, same.k_proj = weights.k_proj, same.v_proj = weights.v_proj;
  same.g_proj = weights.g_proj, same.o_proj = weights.o_proj, same.g_norm = weights.g_norm;
  const auto x = random_tensor<double, 3>({2, 150, 12}, 2);
  const auto a = forward(GatedLinearAttention<double>(gated, weights), x);
  const auto b = forward(Retention<double>(fixed, same), x);
  CHECK(relative_error(a.view(), b.view()) < 1e-13);
}

TEST_CASE("what divides the outputs of retention leaves eps alone of its norm") {
  RetentionConfig config{.d_model = 12, .n_heads = 3, .head_k = 4, .head_v = 6, .rotary_dim = 4};
  const auto weights = random_weights<RetentionDefinition<double>::Weights>(config, 1);
  const auto x = random_tensor<double, 3>({2, 150, 12}, 2);
  const auto y = [&](double eps, ScoreNorm score_norm) {
    config.norm_eps = eps, config.score_norm = score_norm;
    return forward(Retention<double>(config, weights), x);
  };
  for (const ScoreNorm score_norm : {ScoreNorm::decay, ScoreNorm::scores}) {
    INFO(to_string(score_norm));
    CHECK(relative_error(y(0, score_norm).view(), y(0, ScoreNorm::none).view()) < 1e-13);
    CHECK(relative_error(y(1e-2, score_norm).view(), y(1e-2, ScoreNorm::none).view()) > 1e-3);
  }
}

TEST_CASE("the memory of HGRN2 is that of gated linear attention, given factors for logs") {
  const Problem p;
  auto log = random_tensor<double, 4>({p.B, p.T, p.H, p.K}, 4), factors = log;
  for (Index i = 0; i < log.size(); ++i) {
    log.data()[i] = -std::abs(log.data()[i]);
    factors.data()[i] = std::exp(log.data()[i]);
  }
  for (const Algorithm algorithm : algorithms) {
    const auto a = p.run(VectorFactors<double>{flat(factors)}, algorithm);
    const auto b = p.run(VectorDecay<double>{flat(log)}, algorithm);
    CHECK(relative_error(a.view(), b.view()) < 1e-14);
  }
}

TEST_CASE("a memory whose factors are one forgets nothing") {
  const Problem p;
  const Tensor<double, 1> ones = constants(p.H, 1);
  Tensor<double, 4> all_ones(p.q.shape());
  fill(all_ones.view(), 1);
  const auto expected = p.quadratic([](Index, Index) { return 1.0; });
  CHECK(same_bits(p.run(ConstantDecay<double>{ones}, Algorithm::recurrent).view(),
                  p.run(NoDecay{}, Algorithm::recurrent).view()));
  for (const Algorithm algorithm : algorithms) {
    const auto none = p.run(NoDecay{}, algorithm);
    CHECK(relative_error(none.view(), expected.view()) < 1e-13);
    const auto vector = p.run(VectorFactors<double>{flat(all_ones)}, algorithm);
    CHECK(relative_error(vector.view(), none.view()) < 1e-14);
  }
}

TEST_CASE("normalised linear attention to values that are all the same is that value") {
  for (const FeatureMap map : {FeatureMap::elu_plus_one, FeatureMap::relu, FeatureMap::softmax,
                               FeatureMap::taylor, FeatureMap::cosformer, FeatureMap::favor}) {
    INFO(to_string(map));
    LinearAttentionConfig config{.d_model = 10,
                                 .n_heads = 2,
                                 .head_k = 13,
                                 .head_v = 5,
                                 .feature_map = map,
                                 .eps = 0,
                                 .bias = true};
    if (map == FeatureMap::favor) config.n_features = 17;
    if (map == FeatureMap::cosformer) config.max_length = 200;
    const bool may_vanish = map == FeatureMap::relu || map == FeatureMap::cosformer;
    if (may_vanish) config.eps = 1e-30;  // lost in a sum of products
    auto weights = random_weights<LinearAttentionDefinition<double>::Weights>(config, 7);
    weights.v_proj.weight = Parameter<double, 2>(Tensor<double, 2>({10, 10}));
    const auto y = forward(LinearAttention<double>(config, weights),
                           random_tensor<double, 3>({1, 130, 10}, 8));
    const auto out = weights.o_proj.weight.to_tensor();
    for (Index t = 0; t < 130; ++t) {
      for (Index d = 0; d < 10; ++d) {
        double expected = weights.o_proj.bias[d];
        for (Index i = 0; i < 10; ++i) expected += out(d, i) * weights.v_proj.bias[i];
        CHECK(std::abs(y(0, t, d) - expected) < 1e-12);
      }
    }
  }
}

TEST_CASE("favor with an epsilon beside which its features are nothing is a mean of the values") {
  LinearAttentionConfig config{.d_model = 10,
                               .n_heads = 2,
                               .head_k = 3,
                               .head_v = 5,
                               .feature_map = FeatureMap::favor,
                               .n_features = 7,
                               .eps = 0,
                               .kernel_eps = 1e9,
                               .out_bias = true};
  const auto weights = random_weights<LinearAttentionDefinition<double>::Weights>(config, 7);
  const auto x = random_tensor<double, 3>({1, 130, 10}, 8);
  const auto y = forward(LinearAttention<double>(config, weights), x);
  // The weights are linear: the mean of the values is the value of the mean.
  Tensor<double, 3> mean(x.shape());
  for (Index d = 0; d < 10; ++d) {
    double sum = 0;
    for (Index t = 0; t < 130; ++t) mean(0, t, d) = (sum += x(0, t, d)) / double(t + 1);
  }
  const auto value = weights.v_proj.weight.to_tensor(), out = weights.o_proj.weight.to_tensor();
  for (Index t = 0; t < 130; ++t) {
    for (Index d = 0; d < 10; ++d) {
      double expected = weights.o_proj.bias[d];
      for (Index i = 0; i < 10; ++i) {
        for (Index j = 0; j < 10; ++j) expected += out(d, i) * value(i, j) * mean(0, t, j);
      }
      CHECK(std::abs(y(0, t, d) - expected) < 1e-8);
    }
  }
}

TEST_CASE("an epsilon is favor's, and a bias of the output is not asked for twice") {
  LinearAttentionConfig config{.d_model = 10, .n_heads = 2, .head_k = 3, .head_v = 5};
  config.kernel_eps = 1e-4;
  CHECK_THROWS_AS(check_config("linear_attention", config), ConfigError);
  config.feature_map = FeatureMap::favor, config.n_features = 7;
  CHECK_NOTHROW(check_config("linear_attention", config));
  for (const double eps : {-1e-4, std::numeric_limits<double>::quiet_NaN()}) {
    config.kernel_eps = eps;
    CHECK_THROWS_AS(check_config("linear_attention", config), ConfigError);
  }
  config.kernel_eps = 0, config.bias = config.out_bias = true;
  CHECK_THROWS_AS(check_config("linear_attention", config), ConfigError);
}

TEST_CASE("an mLSTM whose gates are open is linear attention with a denominator of at least one") {
  const Index H = 2, K = 4, V = 6, D = 12, T = 90;
  const MlstmConfig config{
      .d_model = D, .n_heads = H, .head_k = K, .head_v = V, .gate_cap = 1e6, .eps = 0};
  auto weights = random_weights<MlstmDefinition<double>::Weights>(config, 11);
  for (auto* gate : {&weights.igate, &weights.fgate}) {
    gate->weight = Parameter<double, 2>(Tensor<double, 2>({H, D}));
  }
  weights.igate.bias = constants(H, 0);    // exp(0) = 1
  weights.fgate.bias = constants(H, 1e3);  // σ = 1
  const auto x = random_tensor<double, 3>({1, T, D}, 12);
  const auto y = forward(Mlstm<double>(config, weights), x);

  const auto heads = [&](const Projection<double>& projection, Index width) {
    const auto w = projection.weight.to_tensor();
    Tensor<double, 4> result({1, T, H, width});
    for (Index t = 0; t < T; ++t) {
      for (Index i = 0; i < H * width; ++i) {
        for (Index d = 0; d < D; ++d) result(0, t, i / width, i % width) += w(i, d) * x(0, t, d);
      }
    }
    return result;
  };
  const auto q = heads(weights.q, K), k = heads(weights.k, K), v = heads(weights.v, V);
  const auto gate = heads(weights.ogate, V);
  Tensor<double, 3> expected(x.shape());
  const auto out = weights.out_proj.weight.to_tensor();
  for (Index t = 0; t < T; ++t) {
    for (Index h = 0; h < H; ++h) {
      double sum = 0, mean = 0, square = 0;
      Tensor<double, 1> o({V});
      for (Index s = 0; s <= t; ++s) {
        double score = 0;
        for (Index i = 0; i < K; ++i) score += q(0, t, h, i) * k(0, s, h, i) / 2;  // K^{-1/2}
        sum += score;
        for (Index j = 0; j < V; ++j) o[j] += score * v(0, s, h, j);
      }
      for (Index j = 0; j < V; ++j) o[j] /= std::max(std::abs(sum), 1.0), mean += o[j] / V;
      for (Index j = 0; j < V; ++j) o[j] -= mean, square += o[j] * o[j] / V;
      for (Index j = 0; j < V; ++j) {
        const double value = o[j] / std::sqrt(square + config.norm_eps) * weights.norm[h * V + j] /
                             (1 + std::exp(-gate(0, t, h, j)));
        for (Index d = 0; d < D; ++d) expected(0, t, d) += out(d, h * V + j) * value;
      }
    }
  }
  CHECK(relative_error(y.view(), expected.view()) < 1e-12);
}
