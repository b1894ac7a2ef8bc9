#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "seqmix/blocks/block.hpp"
#include "seqmix/blocks/language_model.hpp"
#include "seqmix/layers/attention/attention.hpp"
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
using support::relative_error;
using support::same_bits;
using test::error_of;

using Model = LanguageModel<double>;

constexpr Index V = 19, D = 12;  // V: no multiple of a panel

Parameter<double, 2> table(unsigned seed) { return random_tensor<double, 2>({V, D}, seed); }

AnyMixer<double> decoder(const AnyMixer<double>& mixer) {
  return Block<double>(
      {.branches = {{.before = {.kind = NormKind::rms, .weight = random_tensor<double, 1>({D}, 4)},
                     .parts = {{.name = "mixer", .mixer = mixer}}}}});
}
AnyMixer<double> block() {
  using Layer = GatedLinearAttention<double>;
  const Layer::Config config{.d_model = D, .n_heads = 2, .head_k = 4, .head_v = 6, .gate_rank = 3};
  return decoder(Layer(config, random_weights<Layer::Weights>(config, 1)));
}
AnyMixer<double> attention_block() {
  using Layer = Attention<double>;
  const Layer::Config config{.d_model = D,
                             .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6},
                             .positions = {.rotary_dim = 6}};
  return decoder(Layer(config, random_weights<Layer::Weights>(config, 10)));
}
Model::Parts parts_with(const Parameter<double, 2>& embedding, const Parameter<double, 2>& head) {
  Model::Parts parts;
  parts.embedding = embedding;
  parts.blocks = {block()};
  parts.norm = {.kind = NormKind::rms, .weight = random_tensor<double, 1>({D}, 2)};
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
  CHECK(shape_error([](auto& parts) { parts.norm.weight = random_tensor<double, 1>({V}, 1); }) ==
        "language model: norm: weight has shape [19], expected [12]");
  CHECK(shape_error([](auto& parts) {
          parts.positions = random_tensor<double, 2>({5, V}, 1);
        }) == "language model: positions has shape [5, 19], expected [5, 12]");
  CHECK_THAT(shape_error([](auto& parts) {
               parts.embedding = {}, parts.norm.weight = random_tensor<double, 1>({V}, 1);
               parts.head.weight = Parameter<double, 2>(random_tensor<double, 2>({D, V}, 1));
             }),
             ContainsSubstring("block, block 0, has d_model 12, expected 19"));
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const double wrong : {infinity, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    Model::Parts parts = parts_with(table(1), table(2));
    parts.norm.eps = wrong;
    CHECK_THAT(error_of<ConfigError>([&] { Model{parts}; }), ContainsSubstring("norm: eps"));
    parts = parts_with(table(1), table(2));
    parts.logit_cap = wrong;
    CHECK_THAT(error_of<ConfigError>([&] { Model{parts}; }), ContainsSubstring("logit_cap"));
    if (wrong == -1.0) continue;
    parts = parts_with(table(1), table(2));
    parts.embedding_scale = wrong;
    CHECK_THAT(error_of<ConfigError>([&] { Model{parts}; }), ContainsSubstring("embedding_scale"));
    parts = parts_with(table(1), table(2));
    parts.logit_multiplier = wrong;
    CHECK_THAT(error_of<ConfigError>([&] { Model{parts}; }), ContainsSubstring("logit_multiplier"));
  }
}

namespace {

Tensor<Index, 2> some_tokens(Index B, Index T) {
  Tensor<Index, 2> tokens({B, T});
  for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = (i * i + 3 * i) % V;
  return tokens;
}
/// A model of a block that takes any number of tokens and one that ends, with all a head may have.
Model::Parts two_blocks() {
  Model::Parts parts = parts_with(table(1), table(2));
  parts.blocks = {block(), attention_block()};
  return parts;
}

}  // namespace

TEST_CASE("a language model scores and steps alike") {
  const Model model(two_blocks());
  const Index B = 2, T = 90;
  const auto tokens = some_tokens(B, T);
  Context context;
  Tensor<double, 3> expected({B, T, V}), logits({B, T, V});
  model.forward(tokens, expected, context);
  auto state = model.make_state(B, T);
  model.prefill(tokens.view().slice<1>(0, 33), state, logits.view().slice<1>(0, 33), context);
  for (Index t = 33; t < T; ++t) {
    model.step(tokens.view().at<1>(t), state, logits.view().at<1>(t), context);
  }
  CHECK(relative_error(logits.view(), expected.view()) < 1e-12);
  CHECK(state.used_bytes() > 0);
  CHECK(state.reserved_bytes() == state.used_bytes());
  CHECK(model.parameters() > V * D * 2);

  Tensor<Index, 2> outside({1, 1});
  outside(0, 0) = V;
  Tensor<double, 3> one({1, 1, V});
  CHECK_THROWS_AS(model.forward(outside, one, context), ShapeError);
  CHECK_THROWS_AS(model.forward(tokens, one, context), ShapeError);
  Model::State none;
  CHECK_THROWS_AS(model.prefill(tokens, none, logits, context), ShapeError);
}

TEST_CASE("a language model whose later block refuses has changed no block") {
  const Model model(two_blocks());
  const auto tokens = some_tokens(2, 12);
  const auto first = tokens.view().slice<1>(0, 6), later = tokens.view().slice<1>(6, 6);
  Context context;
  Tensor<double, 3> expected({2, 12, V}), logits({2, 6, V});
  model.forward(tokens, expected, context);
  auto state = model.make_state(2, 6);
  model.prefill(first, state, logits, context);
  CHECK_THROWS_AS(model.prefill(later, state, logits, context), CapacityError);
  Tensor<double, 2> one({2, V});
  CHECK_THROWS_AS(model.step(later.at<1>(0), state, one, context), CapacityError);
  const View<double, 3> same_row(logits.data(), {2, 6, V}, {0, V, 1});
  CHECK_THROWS_AS(model.prefill(later, state, same_row, context), ShapeError);

  auto larger = model.make_state(2, 12);
  for (const Index row : {0, 1}) larger.members().copy_row(state.members(), row, row);
  model.prefill(later, larger, logits, context);
  CHECK(relative_error(logits.view(), expected.view().slice<1>(6, 6)) < 1e-12);
}

TEST_CASE("norms around one, of LayerNorm and none are those of other weights") {
  Model::Parts plain = two_blocks(), around_one = plain, none = plain;
  Tensor<double, 1> less = plain.norm.weight.to_tensor();
  for (Index d = 0; d < D; ++d) less[d] -= 1;
  around_one.norm.kind = NormKind::rms_around_one, around_one.norm.weight = std::move(less);
  CHECK(relative_error(logits_of(Model(around_one)).view(), logits_of(Model(plain)).view()) <
        1e-14);
  none.norm = {};
  CHECK(relative_error(logits_of(Model(none)).view(), logits_of(Model(plain)).view()) > 1e-3);
  Model::Parts layer = plain;
  layer.norm.kind = NormKind::layer, layer.norm.bias = random_tensor<double, 1>({D}, 9);
  CHECK(relative_error(logits_of(Model(layer)).view(), logits_of(Model(plain)).view()) > 1e-3);
}

TEST_CASE("a head has a bias, a multiplier and a cap, in this order") {
  Model::Parts plain = two_blocks(), all = plain;
  all.head.bias = random_tensor<double, 1>({V}, 3);
  all.logit_multiplier = 0.25, all.logit_cap = 2;
  Tensor<double, 3> expected = logits_of(Model(plain));
  for (Index i = 0; i < expected.size(); ++i) {
    double& logit = expected.data()[i];
    logit = 2 * std::tanh((logit + all.head.bias[i % V]) * 0.25 / 2);
  }
  CHECK(relative_error(logits_of(Model(all)).view(), expected.view()) < 1e-13);
}

TEST_CASE("learned positions are added by each row's own, and end a stream") {
  Model::Parts parts = two_blocks();
  parts.positions = random_tensor<double, 2>({40, D}, 8);
  const Model model(parts);
  CHECK(model.position_limit().tokens == 40);
  CHECK(model.parameters() == Model(two_blocks()).parameters() + 40 * D);
  const auto tokens = some_tokens(2, 40);
  Context context;
  Tensor<double, 3> expected({2, 40, V}), logits({2, 40, V});
  model.forward(tokens, expected, context);
  auto state = model.make_state(2, 50);
  model.prefill(tokens.view().slice<1>(0, 17), state, logits.view().slice<1>(0, 17), context);
  auto fork = state;
  for (Index t = 17; t < 40; ++t) {
    model.step(tokens.view().at<1>(t), state, logits.view().at<1>(t), context);
  }
  CHECK(relative_error(logits.view(), expected.view()) < 1e-12);

  // Rows of different ages.
  const auto row = tokens.view()[1];
  Tensor<double, 2> out({5, V});
  const Segment segment{1, 0, 5};
  model.advance(row.slice<0>(17, 5), {&segment, 1}, fork, out, context);
  CHECK(relative_error(out.view(), expected.view()[1].slice<0>(17, 5)) < 1e-12);
  model.prefill(tokens.view().slice<1>(0, 18), fork, logits.view().slice<1>(0, 18), context);
  Tensor<double, 2> one({2, V});
  const std::string limit = "exceed the 40 positions of positions";
  CHECK_THAT(error_of<CapacityError>([&] { model.step(row.slice<0>(0, 2), state, one, context); }),
             ContainsSubstring("language model: 1 tokens after 40 " + limit));
  Tensor<double, 3> longer({1, 41, V});
  CHECK_THAT(error_of<CapacityError>([&] { model.forward(some_tokens(1, 41), longer, context); }),
             ContainsSubstring(limit));
}

TEST_CASE("logits are asked of all tokens, of the last ones, or of a list") {
  const Model model(two_blocks());
  const Index B = 3, T = 20;
  const auto tokens = some_tokens(B, T);
  Context context;
  Tensor<double, 3> all({B, T, V}), last({B, 1, V}), listed({1, 4, V});
  model.forward(tokens, all, context);
  Tensor<Index, 1> list({4});
  list[0] = 45, list[1] = 3, list[2] = 3, list[3] = 59;
  const auto check_listed = [&] {
    for (Index i = 0; i < 4; ++i) {
      CHECK(same_bits(listed.view()[0][i], all.view()[list[i] / T][list[i] % T]));
    }
  };
  model.forward(tokens, last, context, LogitsOf::last());
  CHECK(same_bits(last.view(), all.view().slice<1>(T - 1, 1)));
  model.forward(tokens, listed, context, LogitsOf::tokens(list));
  check_listed();
  auto state = model.make_state(B, T);
  model.prefill(tokens, state, listed, context, LogitsOf::tokens(list));
  check_listed();

  // Segments, one of which has no token.
  auto other = model.make_state(B, T);
  const Segment segments[] = {{2, 0, 7}, {1, 7, 0}, {0, 7, T}};
  Tensor<Index, 1> flat({T + 7});
  for (Index t = 0; t < 7; ++t) flat[t] = tokens(2, t);
  for (Index t = 0; t < T; ++t) flat[7 + t] = tokens(0, t);
  Tensor<double, 2> ends({2, V});
  model.advance(flat, segments, other, ends, context, LogitsOf::last());
  CHECK(same_bits(ends.view()[0], all.view()[2][6]));
  CHECK(same_bits(ends.view()[1], all.view()[0][T - 1]));

  list[2] = B * T;
  CHECK_THAT(
      error_of<ShapeError>([&] { model.forward(tokens, listed, context, LogitsOf::tokens(list)); }),
      ContainsSubstring("logits are asked of token 60 of 60"));
  CHECK_THAT(error_of<ShapeError>([&] { model.forward(tokens, all, context, LogitsOf::last()); }),
             ContainsSubstring("logits have shape [3, 20, 19], expected [3, 1, 19]"));
}

}  // namespace seqmix
