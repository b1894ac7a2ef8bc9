// Identities between channel mixers.

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/channel/switch_mixture_of_experts.hpp"
#include "support/compare.hpp"
#include "support/forward.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::forward;
using support::random_tensor;
using support::random_weights;
using support::relative_error;
using support::same_bits;

namespace {

using Definition = MixtureOfExpertsDefinition<double>;

Parameter<double, 1> constant(Index size, double value) {
  Tensor<double, 1> numbers({size});
  fill(numbers.view(), value);
  return Parameter<double, 1>(numbers);
}

MixtureOfExpertsConfig config_of(Router router, Index n_experts, Index k) {
  return {.d_model = 10,
          .d_ff = 14,
          .n_experts = n_experts,
          .n_experts_per_token = k,
          .router = router};
}

}  // namespace

TEST_CASE("a token that uses every expert gets the dense mixture, whatever the router") {
  const Index E = 5, D = 10;
  const auto x = random_tensor<double, 3>({2, 9, D}, 6);
  for (const Router router : {Router::mixtral, Router::softmax_then_top_k, Router::deepseek_v3}) {
    for (const bool normalize : {false, true}) {
      auto config = config_of(router, E, E);
      config.normalize_top_k = normalize && router != Router::mixtral;  // which always does
      if (router == Router::deepseek_v3) config.routed_scaling = 2.5;
      const auto weights = random_weights<Definition::Weights>(config, 5);
      const auto gate = weights.gate.weight.to_tensor();
      Tensor<double, 3> expected(x.shape());
      for (Index e = 0; e < E; ++e) {
        FeedForwardDefinition<double>::Weights plain;
        const auto& expert = weights.experts[static_cast<std::size_t>(e)];
        plain.gate_proj = expert.w1, plain.up_proj = expert.w3, plain.down_proj = expert.w2;
        const auto y = forward(FeedForward<double>({.d_model = D, .d_ff = 14}, plain), x);
        for (Index b = 0; b < 2; ++b) {
          for (Index t = 0; t < 9; ++t) {
            double sum = 0, score = 0;
            for (Index other = 0; other < E; ++other) {
              double logit = 0;
              for (Index d = 0; d < D; ++d) logit += gate(other, d) * x(b, t, d);
              const double value =
                  router == Router::deepseek_v3 ? 1 / (1 + std::exp(-logit)) : std::exp(logit);
              sum += value;
              if (other == e) score = value;
            }
            const bool shares = router != Router::deepseek_v3 || normalize;
            const double p = config.routed_scaling * score / (shares ? sum : 1);
            for (Index d = 0; d < D; ++d) expected(b, t, d) += p * y(b, t, d);
          }
        }
      }
      CAPTURE(static_cast<int>(router), normalize);
      const auto y = forward(MixtureOfExperts<double>(config, weights), x);
      CHECK(relative_error(y.view(), expected.view()) < 1e-14);
    }
  }
}

TEST_CASE("softmax over all experts, normalized over the chosen, is softmax over the chosen") {
  const auto x = random_tensor<double, 3>({1, 40, 10}, 6);
  auto config = config_of(Router::mixtral, 7, 3);
  const auto weights = random_weights<Definition::Weights>(config, 8);
  const auto a = forward(MixtureOfExperts<double>(config, weights), x);
  config.router = Router::softmax_then_top_k, config.normalize_top_k = true;
  const auto b = forward(MixtureOfExperts<double>(config, weights), x);
  CHECK(relative_error(a.view(), b.view()) < 1e-14);
  config.normalize_top_k = false;
  const auto c = forward(MixtureOfExperts<double>(config, weights), x);
  CHECK(relative_error(a.view(), c.view()) > 1e-2);
}

TEST_CASE("one group is no group, and a constant correction changes nothing") {
  const auto x = random_tensor<double, 3>({1, 60, 10}, 9);
  auto config = config_of(Router::deepseek_v3, 12, 3);
  config.normalize_top_k = true;
  auto weights = random_weights<Definition::Weights>(config, 10);
  const auto plain = forward(MixtureOfExperts<double>(config, weights), x);
  auto grouped = config;
  grouped.n_group = grouped.topk_group = 4;
  CHECK(same_bits(forward(MixtureOfExperts<double>(grouped, weights), x).view(), plain.view()));
  grouped.topk_group = 1;
  CHECK(relative_error(forward(MixtureOfExperts<double>(grouped, weights), x).view(),
                       plain.view()) > 1e-2);

  weights.correction_bias = constant(12, 0);
  const auto without = forward(MixtureOfExperts<double>(config, weights), x);
  weights.correction_bias = constant(12, -0.75);
  CHECK(same_bits(forward(MixtureOfExperts<double>(config, weights), x).view(), without.view()));
  CHECK(relative_error(plain.view(), without.view()) > 1e-2);
}

TEST_CASE("a shared expert beside silent ones is the feed-forward layer") {
  auto config = config_of(Router::softmax_then_top_k, 3, 2);
  config.d_shared = 17;
  auto weights = random_weights<Definition::Weights>(config, 11);
  for (auto& expert : weights.experts) {
    expert.w2.weight = Parameter<double, 2>(Tensor<double, 2>({10, 14}));
  }
  FeedForwardDefinition<double>::Weights plain;
  plain.gate_proj = weights.shared_gate_proj, plain.up_proj = weights.shared_up_proj;
  plain.down_proj = weights.shared_down_proj;
  const auto x = random_tensor<double, 3>({2, 9, 10}, 12);
  const auto a = forward(MixtureOfExperts<double>(config, weights), x);
  const auto b = forward(FeedForward<double>({.d_model = 10, .d_ff = 17}, plain), x);
  CHECK(relative_error(a.view(), b.view()) < 1e-15);
}

TEST_CASE("a capacity of the whole stream drops nothing, and a smaller one the last tokens") {
  using Switch = SwitchMixtureOfExpertsDefinition<double>;
  const Index T = 50;
  SwitchMixtureOfExpertsConfig config{.d_model = 8, .d_ff = 12, .n_experts = 3, .capacity = 0};
  const auto weights = random_weights<Switch::Weights>(config, 13);
  const auto x = random_tensor<double, 3>({2, T, 8}, 14);
  const auto all = forward(SwitchMixtureOfExperts<double>(config, weights), x);
  config.capacity = T;
  CHECK(same_bits(forward(SwitchMixtureOfExperts<double>(config, weights), x).view(), all.view()));
  config.capacity = 4;
  const auto few = forward(SwitchMixtureOfExperts<double>(config, weights), x);
  for (Index b = 0; b < 2; ++b) {
    Index kept = 0;
    for (Index t = 0; t < T; ++t) {
      const bool dropped = few(b, t, 0) == 0 && few(b, t, 1) == 0;
      kept += dropped ? 0 : 1;
      if (!dropped) CHECK(same_bits(few.view()[b][t], all.view()[b][t]));
      if (t < 4) CHECK_FALSE(dropped);
    }
    CHECK(kept <= 12);
    CHECK(kept >= 4);
  }
}

TEST_CASE("mixtures that make no sense are refused with a reason") {
  const auto refuse = [](auto change) {
    auto config = config_of(Router::deepseek_v3, 12, 3);
    change(config);
    CHECK_THROWS_AS(check_config("mixture_of_experts", config), ConfigError);
  };
  refuse([](auto& c) { c.n_experts_per_token = 13; });
  refuse([](auto& c) { c.n_group = 5; });
  refuse([](auto& c) { c.n_group = 12; });
  refuse([](auto& c) { c.topk_group = 2; });
  refuse([](auto& c) { c.n_group = 6; });  // one group has 2 experts, a token wants 3
  refuse([](auto& c) { c.shared_gate = true; });
  refuse([](auto& c) { c.router = Router::mixtral, c.routed_scaling = 2; });
}
