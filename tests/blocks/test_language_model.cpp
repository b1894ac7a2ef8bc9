#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <limits>
#include <string>
#include <utility>

#include "seqmix/blocks/decoder.hpp"
#include "seqmix/blocks/language_model.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using support::random_weights;
using support::same_bits;
using test::error_of;

using Block = DecoderDefinition<GatedLinearAttentionDefinition<double>>;
using Model = LanguageModel<double>;

constexpr Index V = 19, D = 12;  // V: no multiple of a panel

Parameter<double, 2> table(unsigned seed) { return random_tensor<double, 2>({V, D}, seed); }

AnyMixer<double> block() {
  Block::Config config;
  config.d_model = D;
  config.mixer = {.d_model = D, .n_heads = 2, .head_k = 4, .head_v = 6, .gate_rank = 3};
  return Mixer<Block>(config, random_weights<Block::Weights>(config, 1));
}
Model::Parts parts_with(const Parameter<double, 2>& embedding, const Parameter<double, 2>& head) {
  Model::Parts parts;
  parts.embedding = embedding;
  parts.blocks = {block()};
  parts.norm = random_tensor<double, 1>({D}, 2);
  parts.head.weight = head;
  return parts;
}
Tensor<double, 3> logits_of(const Model& model) {
  Tensor<Index, 2> tokens({1, V});
  for (Index t = 0; t < V; ++t) tokens(0, t) = t;
  Tensor<double, 3> logits({1, V, V});
  Context context;
  model.forward(tokens, logits, context);
  return logits;
}

}  // namespace

TEST_CASE("a tied head is one parameter, and gives the logits of one that is there twice") {
  const Parameter<double, 2> shared = table(1), copy = table(1);
  const Model twice(parts_with(copy, shared));
  const Model tied(parts_with(shared, shared));
  const Model without(parts_with({}, shared));
  const auto expected = logits_of(twice);
  CHECK(same_bits(logits_of(tied).view(), expected.view()));
  CHECK(same_bits(logits_of(without).view(), expected.view()));
  CHECK(twice.parameters() == 2 * V * D + D + block().parameters());
  CHECK(tied.parameters() == V * D + D + block().parameters());
  CHECK(without.parameters() == tied.parameters());
}

TEST_CASE("the embedding of a tied model is stored as its head is") {
  for (const Storage storage : {Storage::native, Storage::bf16, Storage::f16, Storage::int8}) {
    Model::Parts tied = parts_with({}, table(1)), untied = tied;
    tied.head.weight.pack(storage), untied.head.weight.pack(storage);
    untied.embedding = untied.head.weight.to_tensor();
    CHECK(same_bits(logits_of(Model(tied)).view(), logits_of(Model(untied)).view()));
  }
}

TEST_CASE("the scale of an embedding is applied at look-up") {
  Model::Parts scaled = parts_with(table(1), table(2)), larger = scaled;
  scaled.embedding_scale = 3.46875;
  Tensor<double, 2> numbers = larger.embedding.to_tensor();
  for (Index i = 0; i < numbers.size(); ++i) numbers.data()[i] *= 3.46875;
  larger.embedding = std::move(numbers);
  CHECK(same_bits(logits_of(Model(scaled)).view(), logits_of(Model(larger)).view()));
}

TEST_CASE("parameters that blocks share are counted once") {
  Model::Parts parts = parts_with(table(1), table(2));
  const Index one = Model(parts).parameters();
  parts.blocks.push_back(parts.blocks[0]);
  CHECK(Model(parts).parameters() == one);
  parts.blocks.push_back(block());
  CHECK(Model(parts).parameters() == one + block().parameters());
  parts.head.bias = random_tensor<double, 1>({V}, 3);
  CHECK(Model(parts).parameters() == one + block().parameters() + V);

  // Within one layer: handles that are copies.
  FeedForwardConfig config{.d_model = D, .d_ff = D, .gated = false, .bias = true};
  auto weights = random_weights<FeedForwardDefinition<double>::Weights>(config, 1);
  CHECK(count_parameters(weights, config) == 2 * (D * D + D));
  weights.down_proj = weights.up_proj;
  CHECK(count_parameters(weights, config) == D * D + D);
}

TEST_CASE("a language model names the part that does not fit") {
  const auto shape_error = [](const auto& change) {
    Model::Parts parts = parts_with(table(1), table(2));
    change(parts);
    return error_of<ShapeError>([&] { Model(std::move(parts)); });
  };
  CHECK(shape_error([](auto& parts) {
          parts.embedding = random_tensor<double, 2>({V, D + 1}, 1);
        }) == "language model: embedding has shape [19, 13], expected [19, 12]");
  CHECK(shape_error([](auto& parts) { parts.head = {}; }) ==
        "language model: head.weight is missing");
  CHECK(shape_error([](auto& parts) { parts.head.bias = random_tensor<double, 1>({D}, 1); }) ==
        "language model: head.bias has shape [12], expected [19]");
  CHECK(shape_error([](auto& parts) { parts.norm = random_tensor<double, 1>({V}, 1); }) ==
        "language model: norm has shape [19], expected [12]");
  CHECK_THAT(shape_error([](auto& parts) {
               parts.embedding = {}, parts.norm = random_tensor<double, 1>({V}, 1);
               parts.head.weight = Parameter<double, 2>(random_tensor<double, 2>({D, V}, 1));
             }),
             ContainsSubstring("decoder, block 0, has d_model 12, expected 19"));
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const double wrong : {infinity, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    Model::Parts parts = parts_with(table(1), table(2));
    parts.norm_eps = wrong;
    CHECK_THAT(error_of<ConfigError>([&] { Model{parts}; }), ContainsSubstring("norm_eps"));
    parts = parts_with(table(1), table(2));
    parts.logit_cap = wrong;
    CHECK_THAT(error_of<ConfigError>([&] { Model{parts}; }), ContainsSubstring("logit_cap"));
    if (wrong == -1.0) continue;
    parts = parts_with(table(1), table(2));
    parts.embedding_scale = wrong;
    CHECK_THAT(error_of<ConfigError>([&] { Model{parts}; }), ContainsSubstring("embedding_scale"));
  }
}

}  // namespace seqmix
