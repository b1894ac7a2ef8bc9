// Identities between the layers of softmax attention.

#include "seqmix/layers/attention/attention.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "seqmix/layers/attention/cross_attention.hpp"
#include "support/compare.hpp"
#include "support/forward.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::forward;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

namespace {

using Weights = AttentionWeights<double>;

const AttentionConfig grouped{.d_model = 12,
                              .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6},
                              .positions = {.rotary_dim = 6}};

double difference(const Tensor<double, 3>& a, const Tensor<double, 3>& b) {
  return relative_error(a.view(), b.view());
}

AttentionConfig windowed(Index window, Index dilation = 1, Index n_sinks = 0) {
  AttentionConfig config = grouped;
  config.sees = {.window = window, .dilation = dilation, .n_sinks = n_sinks};
  return config;
}

/// W x by hand.
Tensor<double, 3> product(const Tensor<double, 2>& w, const Tensor<double, 3>& x) {
  Tensor<double, 3> y({x.extent(0), x.extent(1), w.extent(0)});
  for (Index b = 0; b < x.extent(0); ++b) {
    for (Index t = 0; t < x.extent(1); ++t) {
      for (Index i = 0; i < w.extent(0); ++i) {
        for (Index j = 0; j < w.extent(1); ++j) y(b, t, i) += w(i, j) * x(b, t, j);
      }
    }
  }
  return y;
}

}  // namespace

TEST_CASE("a window as long as the sequence is full attention") {
  const auto weights = random_weights<Weights>(grouped, 1);
  const auto x = random_tensor<double, 3>({2, 90, 12}, 2);
  const auto full = forward(Attention<double>(grouped, weights), x);
  for (const auto& config : {windowed(90), windowed(200), windowed(86, 1, 4), windowed(2, 1, 88)}) {
    INFO("window " << config.sees.window << " sinks " << config.sees.n_sinks);
    CHECK(difference(forward(SlidingWindowAttention<double>(config, weights), x), full) < 1e-14);
  }
  const auto shorter = forward(SlidingWindowAttention<double>(windowed(89), weights), x);
  CHECK(difference(shorter, full) > 1e-6);
}

TEST_CASE("a window of one key gives its value") {
  const auto weights = random_weights<Weights>(grouped, 3);
  const auto x = random_tensor<double, 3>({1, 70, 12}, 4);
  const auto v = product(weights.v_proj.weight.to_tensor(), x);  // [B, T, G K]
  Tensor<double, 3> o({1, 70, 24});
  for (Index t = 0; t < 70; ++t) {
    for (Index i = 0; i < 24; ++i) o(0, t, i) = v(0, t, i / 12 * 6 + i % 6);
  }
  const auto expected = product(weights.o_proj.weight.to_tensor(), o);
  const auto y = forward(SlidingWindowAttention<double>(windowed(1), weights), x);
  CHECK(difference(y, expected) < 1e-14);
}

TEST_CASE("a dilated window is windows over every so many tokens") {
  const Index step = 3, T = 120;
  AttentionConfig plain = grouped;
  plain.positions.rotary_dim = 0;
  auto dilated = windowed(7, step), narrow = windowed(7);
  dilated.positions.rotary_dim = narrow.positions.rotary_dim = 0;
  const auto weights = random_weights<Weights>(plain, 5);
  const auto x = random_tensor<double, 3>({1, T, 12}, 6);
  const auto y = forward(SlidingWindowAttention<double>(dilated, weights), x);
  for (Index first = 0; first < step; ++first) {
    Tensor<double, 3> part({1, T / step, 12}), expected({1, T / step, 12});
    for (Index t = 0; t < T / step; ++t) {
      copy(x[0][first + t * step], part[0][t]), copy(y[0][first + t * step], expected[0][t]);
    }
    CHECK(difference(forward(SlidingWindowAttention<double>(narrow, weights), part), expected) <
          1e-14);
  }
}

TEST_CASE("spans by head that are all alike are those of the layer") {
  const auto weights = random_weights<Weights>(grouped, 5);
  const auto x = random_tensor<double, 3>({2, 90, 12}, 6);
  const auto with = [&](const SeesConfig& sees) {
    AttentionConfig config = grouped;
    config.sees = sees;
    return forward(Attention<double>(config, weights), x);
  };
  const auto full = forward(Attention<double>(grouped, weights), x);
  CHECK(difference(with({.windows = {17, 17}}), with({.window = 17})) == 0);
  CHECK(difference(with({.windows = {17, 18}}), with({.window = 17})) > 1e-6);
  CHECK(difference(with({.windows = {5, 9}, .n_sinks = 90, .sinks_in_place = true}), full) < 1e-14);
  CHECK(difference(with({.segments = {90}, .segment_dilations = {1}}), full) == 0);
  CHECK(difference(with({.segments = {20}, .segment_dilations = {1}}), with({.chunk = 20})) == 0);
  // What two branches show counts twice, and so as often as anything else.
  CHECK(difference(with({.segments = {20, 20}, .segment_dilations = {1, 1}}), with({.chunk = 20})) <
        1e-14);
}

TEST_CASE("padding changes nothing before it") {
  BidirectionalAttentionConfig config, masked;
  static_cast<AttentionConfig&>(config) = static_cast<AttentionConfig&>(masked) = grouped;
  masked.sees.key_mask = true;
  const auto weights = random_weights<Weights>(grouped, 5);
  auto x = random_tensor<double, 3>({1, 150, 12}, 6);
  const Index length = 71;
  Tensor<double, 3> shorter({1, length, 12});
  copy(x.view().slice<1>(0, length), shorter.view());
  const auto alone = forward(BidirectionalAttention<double>(config, weights), shorter);
  fill(x.view().slice<1>(length, 150 - length), std::numeric_limits<double>::quiet_NaN());
  Tensor<Index, 2> marks({150, 1});
  for (Index t = 0; t < length; ++t) marks(t, 0) = 1;
  Tensor<double, 3> y(x.shape());
  Context context;
  const BidirectionalAttention<double> layer(masked, weights);
  BidirectionalAttentionDefinition<double>::Side side;
  side.key_mask = marks.view();
  layer.forward(x, y.view(), context, side);
  CHECK(relative_error(y.view().slice<1>(0, length), alone.view()) < 1e-14);
}

TEST_CASE("normalised queries do not see the scale of their weights") {
  for (const QkNorm norm : {QkNorm::head, QkNorm::projection}) {
    AttentionConfig config = grouped;
    config.heads.qk_norm = norm, config.heads.qk_norm_eps = 0;
    auto weights = random_weights<Weights>(config, 7);
    const auto x = random_tensor<double, 3>({1, 40, 12}, 8);
    const auto y = forward(Attention<double>(config, weights), x);
    auto scaled = weights.q_proj.weight.to_tensor();
    for (Index i = 0; i < scaled.size(); ++i) scaled.data()[i] *= 37;
    weights.q_proj.weight = Parameter<double, 2>(std::move(scaled));
    CHECK(difference(forward(Attention<double>(config, weights), x), y) < 1e-13);
  }
}

TEST_CASE("a cap far above the scores is none") {
  const auto weights = random_weights<Weights>(grouped, 9);
  const auto x = random_tensor<double, 3>({1, 80, 12}, 10);
  AttentionConfig capped = grouped;
  capped.scores.soft_cap = 1e6;
  const auto plain = forward(Attention<double>(grouped, weights), x);
  CHECK(difference(forward(Attention<double>(capped, weights), x), plain) < 1e-10);
  capped.scores.soft_cap = 1;
  CHECK(difference(forward(Attention<double>(capped, weights), x), plain) > 1e-4);
}

TEST_CASE("the last token of a sequence sees in both directions what it sees behind itself") {
  for (const bool alibi : {false, true}) {
    AttentionConfig config = grouped;
    if (alibi) config.bias.kind = DistanceBiasKind::alibi;
    const auto weights = random_weights<Weights>(config, 11);
    const auto x = random_tensor<double, 3>({2, 75, 12}, 12);
    const auto both = forward(BidirectionalAttention<double>({config}, weights), x);
    const auto causal = forward(Attention<double>(config, weights), x);
    CHECK(relative_error(both.view().slice<1>(74, 1), causal.view().slice<1>(74, 1)) < 1e-14);
    CHECK(relative_error(both.view().slice<1>(30, 1), causal.view().slice<1>(30, 1)) > 1e-3);
  }
}

TEST_CASE("cross attention to its own input is bidirectional attention") {
  AttentionConfig config = grouped;
  config.positions.rotary_dim = 0;
  const auto weights = random_weights<Weights>(config, 13);
  const CrossAttention<double> cross({.d_model = 12, .d_source = 12, .heads = config.heads},
                                     {weights, weights});
  const auto x = random_tensor<double, 3>({2, 75, 12}, 14);
  Tensor<double, 3> y(x.shape());
  Context context;
  cross.forward(x, x, y, context);
  CHECK(difference(y, forward(BidirectionalAttention<double>({config}, weights), x)) < 1e-14);
}

TEST_CASE("slopes of linear biases are published ones") {
  CHECK(alibi_slopes(8)[0] == 0.5);
  CHECK(alibi_slopes(8)[7] == 1.0 / 256);
  const auto twelve = alibi_slopes(12);
  CHECK(twelve[7] == 1.0 / 256);
  CHECK(twelve[8] == std::exp2(-0.5));
  CHECK(twelve[11] == std::exp2(-3.5));
}

TEST_CASE("a config of attention says what is wrong with it") {
  const auto text = [](auto config) {
    try {
      check_config("attention", config);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto mentions = [&](const auto& config, std::string_view part) {
    INFO(text(config));
    CHECK(text(config).find(part) != std::string::npos);
  };
  CHECK(text(windowed(3)).empty());
  mentions(windowed(0, 1, 3),
           "n_sinks is 3, which counts only where window, windows or chunk is positive");
  mentions(windowed(3, 0), "dilation is 0");
  mentions(windowed(3, 2, 1), "n_sinks needs a dilation of 1");
  AttentionConfig config = grouped;
  config.positions.rotary_dim = 3;
  mentions(config, "rotary_dim must be even");
  config = grouped;
  config.heads.n_kv_heads = 3;
  mentions(config, "n_heads must be a multiple");
  config = grouped;
  config.positions.rope_scaling.kind = RopeScaling::yarn;
  mentions(config, "rope_original_length");
}
