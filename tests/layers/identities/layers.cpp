// Identities between layers: they catch what both forms of a layer get wrong together.

#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "support/compare.hpp"
#include "support/forward.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::forward;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

namespace {

/// The rows of each head repeated `times` times.
Parameter<double, 2> repeated_heads(const Tensor<double, 2>& weight, Index heads, Index times) {
  const Index width = weight.extent(0) / heads;
  Tensor<double, 2> result({weight.extent(0) * times, weight.extent(1)});
  for (Index h = 0; h < heads * times; ++h) {
    copy(weight.view().slice<0>(h / times * width, width),
         result.view().slice<0>(h * width, width));
  }
  return result;
}

}  // namespace

TEST_CASE("grouped-query attention is multi-head attention with repeated key and value heads") {
  AttentionConfig grouped{.d_model = 12, .heads = {.n_heads = 6, .n_kv_heads = 2, .head_dim = 4}};
  grouped.positions.rotary_dim = 4;
  using Definition = AttentionDefinition<double>;
  auto weights = random_weights<Definition::Weights>(grouped, 1);
  auto multi = grouped;
  multi.heads.n_kv_heads = 6;
  auto repeated = weights;
  repeated.k_proj.weight = repeated_heads(weights.k_proj.weight.to_tensor(), 2, 3);
  repeated.v_proj.weight = repeated_heads(weights.v_proj.weight.to_tensor(), 2, 3);
  const auto x = random_tensor<double, 3>({2, 70, 12}, 2);
  const auto a = forward(Attention<double>(grouped, weights), x);
  const auto b = forward(Attention<double>(multi, repeated), x);
  CHECK(relative_error(a.view(), b.view()) < 1e-14);
}

TEST_CASE("attention without positions does not see the order of the past") {
  const AttentionConfig config{.d_model = 8,
                               .heads = {.n_heads = 2, .n_kv_heads = 1, .head_dim = 4}};
  const Attention<double> layer(config,
                                random_weights<AttentionDefinition<double>::Weights>(config, 3));
  const auto x = random_tensor<double, 3>({1, 20, 8}, 4);
  auto turned = x;
  for (Index t = 0; t < 19; ++t) copy(x.view()[0][18 - t], turned.view()[0][t]);
  const auto a = forward(layer, x), b = forward(layer, turned);
  CHECK(relative_error(a.view()[0].slice<0>(19, 1), b.view()[0].slice<0>(19, 1)) < 1e-14);
  CHECK(relative_error(a.view()[0].slice<0>(5, 1), b.view()[0].slice<0>(5, 1)) > 1e-3);
}

TEST_CASE("one expert is the feed-forward layer") {
  const MixtureOfExpertsConfig config{
      .d_model = 10, .d_ff = 14, .n_experts = 1, .n_experts_per_token = 1};
  const auto weights = random_weights<MixtureOfExpertsDefinition<double>::Weights>(config, 5);
  FeedForwardDefinition<double>::Weights plain;
  plain.gate_proj = weights.experts[0].w1;
  plain.up_proj = weights.experts[0].w3;
  plain.down_proj = weights.experts[0].w2;
  const auto x = random_tensor<double, 3>({2, 9, 10}, 6);
  const auto a = forward(MixtureOfExperts<double>(config, weights), x);
  const auto b = forward(FeedForward<double>({.d_model = 10, .d_ff = 14}, plain), x);
  CHECK(relative_error(a.view(), b.view()) < 1e-15);
}

TEST_CASE("all experts behind a zero router are their mean") {
  const MixtureOfExpertsConfig config{
      .d_model = 6, .d_ff = 7, .n_experts = 3, .n_experts_per_token = 3};
  auto weights = random_weights<MixtureOfExpertsDefinition<double>::Weights>(config, 7);
  weights.gate.weight = Parameter<double, 2>(Tensor<double, 2>({3, 6}));
  const auto x = random_tensor<double, 3>({1, 11, 6}, 8);
  Tensor<double, 3> mean(x.shape());
  for (const auto& expert : weights.experts) {
    FeedForwardDefinition<double>::Weights plain;
    plain.gate_proj = expert.w1, plain.up_proj = expert.w3, plain.down_proj = expert.w2;
    const auto y = forward(FeedForward<double>({.d_model = 6, .d_ff = 7}, plain), x);
    for (Index i = 0; i < y.size(); ++i) mean.data()[i] += y.data()[i] / 3;
  }
  const auto a = forward(MixtureOfExperts<double>(config, weights), x);
  CHECK(relative_error(a.view(), mean.view()) < 1e-14);
}

TEST_CASE("gated linear attention with open gates is linear attention in its quadratic form") {
  const GatedLinearAttentionConfig config{
      .d_model = 8, .n_heads = 2, .head_k = 3, .head_v = 5, .gate_rank = 2};
  auto weights = random_weights<GatedLinearAttentionDefinition<double>::Weights>(config, 9);
  // A gate of log σ(1e3) = 0 forgets nothing.
  Tensor<double, 1> open({6});
  fill(open.view(), 1e3);
  weights.gk_up.bias = open;
  weights.gk_up.weight = Parameter<double, 2>(Tensor<double, 2>({6, 2}));
  const Index T = 90;
  const auto x = random_tensor<double, 3>({1, T, 8}, 10);
  const auto y = forward(GatedLinearAttention<double>(config, weights), x);

  const auto product = [](const Tensor<double, 2>& w, const View<const double, 1>& in) {
    std::vector<double> out(static_cast<std::size_t>(w.extent(0)));
    for (Index i = 0; i < w.extent(0); ++i) {
      for (Index j = 0; j < w.extent(1); ++j) out[static_cast<std::size_t>(i)] += w(i, j) * in[j];
    }
    return out;
  };
  const auto rows = [&](const Projection<double>& projection) {
    std::vector<std::vector<double>> result;
    for (Index t = 0; t < T; ++t) {
      result.push_back(product(projection.weight.to_tensor(), x.view()[0][t]));
    }
    return result;
  };
  const auto q = rows(weights.q_proj), k = rows(weights.k_proj), v = rows(weights.v_proj);
  const auto gate = rows(weights.g_proj);
  Tensor<double, 3> expected(x.shape());
  for (std::size_t t = 0; t < static_cast<std::size_t>(T); ++t) {
    Tensor<double, 1> o({10});
    for (std::size_t h = 0; h < 2; ++h) {
      for (std::size_t s = 0; s <= t; ++s) {
        double score = 0;
        for (std::size_t i = 0; i < 3; ++i) score += q[t][h * 3 + i] * k[s][h * 3 + i];
        for (std::size_t j = 0; j < 5; ++j) {
          o[static_cast<Index>(h * 5 + j)] += score / std::sqrt(3.0) * v[s][h * 5 + j];
        }
      }
      double square = 0;
      for (std::size_t j = 0; j < 5; ++j) {
        square += std::pow(o[static_cast<Index>(h * 5 + j)], 2) / 5;
      }
      for (std::size_t j = 0; j < 5; ++j) {
        const double g = gate[t][h * 5 + j];
        o[static_cast<Index>(h * 5 + j)] *= weights.g_norm[static_cast<Index>(j)] /
                                            std::sqrt(square + config.norm_eps) * g /
                                            (1 + std::exp(-g));
      }
    }
    const auto out = product(weights.o_proj.weight.to_tensor(), o.view());
    for (Index d = 0; d < 8; ++d) {
      expected(0, static_cast<Index>(t), d) = out[static_cast<std::size_t>(d)];
    }
  }
  CHECK(relative_error(y.view(), expected.view()) < 1e-12);
}
