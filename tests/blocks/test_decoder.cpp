#include <catch2/catch_test_macros.hpp>
#include <random>

#include "seqmix/blocks/decoder.hpp"
#include "seqmix/blocks/language_model.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

namespace {

using AttentionBlock =
    DecoderDefinition<AttentionDefinition<double>, FeedForwardDefinition<double>>;
using LinearBlock = DecoderDefinition<GatedLinearAttentionDefinition<double>>;

AttentionBlock::Config attention_block() {
  AttentionBlock::Config config;
  config.d_model = 12;
  config.mixer = {.d_model = 12,
                  .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6},
                  .positions = {.rotary_dim = 6}};
  config.channel = {.d_model = 12, .d_ff = 20};
  return config;
}
LinearBlock::Config linear_block() {
  LinearBlock::Config config;
  config.d_model = 12;
  config.mixer = {.d_model = 12, .n_heads = 2, .head_k = 4, .head_v = 6, .gate_rank = 3};
  return config;
}

LanguageModel<double> small_model(bool attention_last = false) {
  LanguageModel<double>::Parts parts;
  parts.embedding = random_tensor<double, 2>({17, 12}, 1);
  parts.blocks = {
      Mixer<AttentionBlock>(attention_block(),
                            random_weights<AttentionBlock::Weights>(attention_block(), 10)),
      Mixer<LinearBlock>(linear_block(), random_weights<LinearBlock::Weights>(linear_block(), 50))};
  if (attention_last) std::swap(parts.blocks[0], parts.blocks[1]);
  parts.norm = random_tensor<double, 1>({12}, 2);
  parts.head.weight = Parameter<double, 2>(random_tensor<double, 2>({17, 12}, 3));
  return LanguageModel<double>(std::move(parts));
}

Tensor<Index, 2> random_tokens(Index B, Index T) {
  std::mt19937 random(5);
  Tensor<Index, 2> tokens({B, T});
  for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = static_cast<Index>(random() % 17);
  return tokens;
}

}  // namespace

TEST_CASE("a decoder block is its parts put together by hand") {
  const auto config = attention_block();
  const auto weights = random_weights<AttentionBlock::Weights>(config, 1);
  const Mixer<AttentionBlock> block(config, weights);
  const Attention<double> mixer(config.mixer, weights.mixer);
  const FeedForward<double> channel(config.channel, weights.channel);
  const auto x = random_tensor<double, 3>({2, 80, 12}, 7);
  Context context;
  Tensor<double, 3> normed(x.shape()), mixed(x.shape()), u(x.shape()), expected(x.shape());
  const auto add = [](auto a, auto b) { return a + b; };
  const Call call(context, {});
  rms_norm<double, 3>(x, weights.mixer_norm, config.norm_eps, normed, call);
  mixer.forward(normed, mixed, context);
  elementwise(call, add, u.view(), x.view(), mixed.view());
  rms_norm<double, 3>(u, weights.channel_norm, config.norm_eps, normed, call);
  channel.forward(normed, mixed, context);
  elementwise(call, add, expected.view(), u.view(), mixed.view());

  Tensor<double, 3> y(x.shape());
  block.forward(x, y, context);
  CHECK(relative_error(y.view(), expected.view()) < 1e-15);
}

TEST_CASE("a decoder block obeys the law and steps without allocation") {
  const auto run = []<class Block>(const Mixer<Block>& block) {
    const Index T = 150;
    const auto x = random_tensor<double, 3>({2, T, 12}, 8);
    Context context;
    Tensor<double, 3> expected(x.shape()), y(x.shape());
    block.forward(x, expected, context);
    auto state = block.make_state(2, T);
    block.prefill(x.view().slice<1>(0, 70), state, y.view().slice<1>(0, 70), context);
    block.prepare(context, 2, 2);
    const auto before = support::allocations();
    for (Index t = 70; t < T; ++t) block.step(x.view().at<1>(t), state, y.view().at<1>(t), context);
    CHECK(support::allocations() == before);
    CHECK(relative_error(y.view(), expected.view()) < 1e-12);
    // y may be x.
    auto both = x;
    block.forward(both, both, context);
    CHECK(support::same_bits(both.view(), expected.view()));
  };
  run(Mixer<AttentionBlock>(attention_block(),
                            random_weights<AttentionBlock::Weights>(attention_block(), 1)));
  run(Mixer<LinearBlock>(linear_block(), random_weights<LinearBlock::Weights>(linear_block(), 2)));
}

TEST_CASE("a block checks its parts' configs and names their weights") {
  auto config = attention_block();
  config.mixer.d_model = 13;
  CHECK_THROWS_AS(Mixer<AttentionBlock>(config, {}), ConfigError);
  config = attention_block();
  config.mixer.heads.n_kv_heads = 3;
  CHECK_THROWS_AS(Mixer<AttentionBlock>(config, {}), ConfigError);
  config = attention_block();
  auto weights = random_weights<AttentionBlock::Weights>(config, 1);
  weights.channel.up_proj.weight = Parameter<double, 2>(Tensor<double, 2>({3, 12}));
  try {
    const Mixer<AttentionBlock> block(config, weights);
    FAIL("a misshapen weight was accepted");
  } catch (const ShapeError& error) {
    CHECK(std::string(error.what()).find("channel.up_proj.weight") != std::string::npos);
  }
}

TEST_CASE("a language model scores and steps alike") {
  const LanguageModel<double> model = small_model();
  const Index B = 2, T = 90;
  const auto tokens = random_tokens(B, T);
  Context context;
  Tensor<double, 3> expected({B, T, 17}), logits({B, T, 17});
  model.forward(tokens, expected, context);
  auto state = model.make_state(B, T);
  model.prefill(tokens.view().slice<1>(0, 33), state, logits.view().slice<1>(0, 33), context);
  for (Index t = 33; t < T; ++t) {
    model.step(tokens.view().at<1>(t), state, logits.view().at<1>(t), context);
  }
  CHECK(relative_error(logits.view(), expected.view()) < 1e-12);
  CHECK(state.used_bytes() > 0);
  CHECK(state.reserved_bytes() == state.used_bytes());
  CHECK(model.parameters() > 17 * 12 * 2);

  Tensor<Index, 2> outside({1, 1});
  outside(0, 0) = 17;
  Tensor<double, 3> one({1, 1, 17});
  CHECK_THROWS_AS(model.forward(outside, one, context), ShapeError);
  CHECK_THROWS_AS(model.forward(tokens, one, context), ShapeError);
  LanguageModel<double>::State none;
  CHECK_THROWS_AS(model.prefill(tokens, none, logits, context), ShapeError);
}

TEST_CASE("a language model whose later block refuses has changed no block") {
  const auto model = small_model(true);  // a block that takes any number of tokens, one that ends
  const auto tokens = random_tokens(2, 12);
  const auto first = tokens.view().slice<1>(0, 6), later = tokens.view().slice<1>(6, 6);
  Context context;
  Tensor<double, 3> expected({2, 12, 17}), logits({2, 6, 17});
  model.forward(tokens, expected, context);
  auto state = model.make_state(2, 6);
  model.prefill(first, state, logits, context);
  CHECK_THROWS_AS(model.prefill(later, state, logits, context), CapacityError);
  Tensor<double, 2> one({2, 17});
  CHECK_THROWS_AS(model.step(later.at<1>(0), state, one, context), CapacityError);
  const View<double, 3> same_row(logits.data(), {2, 6, 17}, {0, 17, 1});
  CHECK_THROWS_AS(model.prefill(later, state, same_row, context), ShapeError);

  auto larger = model.make_state(2, 12);
  for (std::size_t l = 0; l < 2; ++l) {
    for (const Index row : {0, 1}) {
      larger.blocks[l].members().copy_row(state.blocks[l].members(), row, row);
    }
  }
  model.prefill(later, larger, logits, context);
  CHECK(relative_error(logits.view(), expected.view().slice<1>(6, 6)) < 1e-12);
}
