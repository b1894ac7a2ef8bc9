// Own layers that take indices beside x, or whose outputs have another width than their inputs.
// No register's width changes it: once is enough.

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <sstream>

#include "seqmix/blocks/language_model.hpp"
#include "seqmix/io/verify.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/safetensors_builder.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using Catch::Matchers::ContainsSubstring;
using seqmix::Call;
using seqmix::NamedView;
using seqmix::Parameter;
using seqmix::Segment;
using seqmix::SideRole;
using seqmix::test::error_of;

/// y_t = gain_t x_t + Σ_{s <= t} E[token_s].
struct EmbedConfig {
  Index d_model = 0, vocabulary = 0;
  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("vocabulary", self.vocabulary);
  }
};
struct EmbedDefinition {
  using Scalar = double;
  using Config = EmbedConfig;
  static constexpr seqmix::Traits traits{.name = "embed"};
  struct Weights {
    Parameter<double, 2> table;
    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("table", self.table, {c.vocabulary, c.d_model});
    }
  };
  struct State {
    Tensor<double, 2> sum;  // [B, D]
    static void visit(auto& self, auto&& tensor) { tensor("sum", self.sum); }
  };
  struct Side {
    View<double, 2> gain;        // [T, 1]
    View<const Index, 2> token;  // [T, 1]
    static void visit(auto& self, const Config& c, auto&& side) {
      side("gain", self.gain, 1, SideRole::input);
      side("token", self.token, 1, SideRole::input, c.vocabulary);
    }
  };
  Config c;
  Weights w;
  State make_state(Index batch, Index, seqmix::Memory memory) const {
    return {.sum = {{batch, c.d_model}, memory}};
  }
  void run(View<const double, 2> x, State& state, const Side& side, View<double, 2> y,
           const Call& call) const {
    for (const Segment& segment : call.segments()) {
      for (Index t = segment.first; t < segment.first + segment.count; ++t) {
        for (Index d = 0; d < c.d_model; ++d) {
          state.sum(segment.row, d) += w.table(side.token(t, 0), d);
          y(t, d) = side.gain(t, 0) * x(t, d) + state.sum(segment.row, d);
        }
      }
    }
  }
};

/// The same that gives the gain itself, for stacks.
struct GainDefinition {
  using Scalar = double;
  using Config = EmbedConfig;
  static constexpr seqmix::Traits traits{.name = "gain"};
  using State = seqmix::NoState;
  struct Weights {
    static void visit(auto&, const Config&, auto&&) {}
  };
  struct Side {
    View<double, 2> gain;  // [T, 1]
    static void visit(auto& self, const Config&, auto&& side) {
      side("gain", self.gain, 1, SideRole::output);
    }
  };
  Config c;
  Weights w;
  State make_state(Index, Index, seqmix::Memory) const { return {}; }
  void run(View<const double, 2> x, State&, const Side& side, View<double, 2> y,
           const Call&) const {
    for (Index t = 0; t < x.extent(0); ++t) side.gain(t, 0) = 2;
    copy(x, y);
  }
};

/// y = W x.
struct MapConfig {
  Index d_in = 0, d_out = 0;
  static void visit(auto& self, auto&& field) {
    field("d_in", self.d_in), field("d_out", self.d_out);
  }
};
struct MapDefinition {
  using Scalar = double;
  using Config = MapConfig;
  static constexpr seqmix::Traits traits{.name = "map"};
  using State = seqmix::NoState;
  struct Weights {
    seqmix::Projection<double> map;
    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("map.weight", self.map.weight, {c.d_out, c.d_in});
    }
  };
  Config c;
  Weights w;
  State make_state(Index, Index, seqmix::Memory) const { return {}; }
  void run(View<const double, 2> x, State&, View<double, 2> y, const Call& call) const {
    project(x, {{w.map, y}}, call);
  }
};

seqmix::Mixer<EmbedDefinition> embed_layer(Index vocabulary = 7) {
  return {{.d_model = 4, .vocabulary = vocabulary}, {random_tensor<double, 2>({vocabulary, 4}, 1)}};
}
seqmix::Mixer<MapDefinition> map_layer() {
  return {
      {.d_in = 3, .d_out = 5},
      {.map = {.weight = Parameter<double, 2>(random_tensor<double, 2>({5, 3}, 2)), .bias = {}}}};
}

/// x [2, T, 4] with its side values, and y by hand.
struct EmbedCase {
  Index T = 9;
  Tensor<double, 3> x = random_tensor<double, 3>({2, T, 4}, 3), y{x.shape()};
  Tensor<double, 3> gain = random_tensor<double, 3>({2, T, 1}, 4);
  Tensor<Index, 3> token{{2, T, 1}};

  explicit EmbedCase(const seqmix::Mixer<EmbedDefinition>& layer) {
    for (Index b = 0; b < 2; ++b) {
      for (Index t = 0; t < T; ++t) token(b, t, 0) = (3 * t + 5 * b) % 7;
      for (Index d = 0; d < 4; ++d) {
        double sum = 0;
        for (Index t = 0; t < T; ++t) {
          sum += layer.weights().table(token(b, t, 0), d);
          y(b, t, d) = gain(b, t, 0) * x(b, t, d) + sum;
        }
      }
    }
  }
};

}  // namespace

TEST_CASE("indices go through all verbs") {
  const auto layer = embed_layer();
  const seqmix::AnyMixer<double> erased(layer);
  EmbedCase test(layer);
  const auto flat = [](auto& numbers) { return numbers.view().merge(seqmix::axis::row); };
  const EmbedDefinition::Side all{flat(test.gain), flat(test.token)};
  const View<const Index, 2> ids = flat(test.token);
  const NamedView<double> named[] = {{"token", ids}, {"gain", flat(test.gain)}};
  Context context = poisoned();
  const auto matches = [&](auto&& verb) {
    auto y = unwritten<double>(test.y.shape());
    verb(y);
    CHECK(relative_error(y.view(), test.y.view()) < 1e-14);
  };
  matches([&](auto& y) { layer.forward(test.x, y, context, all); });
  matches([&](auto& y) { erased.forward(test.x, y, context, named); });
  matches([&](auto& y) {
    auto state = layer.make_state(2);
    layer.prefill(test.x, state, y, context, all);
  });
  const Segment segments[] = {{1, 0, test.T}, {0, test.T, test.T}};
  matches([&](auto& y) {
    seqmix::AnyState state = erased.make_state(2);
    erased.advance(flat(test.x), segments, state, flat(y), context, named);
  });
  Tensor<Index, 1> cu_seqlens({3});
  cu_seqlens[1] = test.T, cu_seqlens[2] = 2 * test.T;
  matches(
      [&](auto& y) { layer.forward_documents(flat(test.x), cu_seqlens, flat(y), context, all); });
  matches([&](auto& y) {  // by steps
    auto state = layer.make_state(2);
    layer.prepare(context, 2, 2);
    for (Index t = 0; t < test.T; ++t) {
      const EmbedDefinition::Side side{test.gain.view().at<1>(t), test.token.view().at<1>(t)};
      const auto before = allocations();
      layer.step(test.x.view().at<1>(t), state, y.view().template at<1>(t), context, side);
      CHECK(allocations() == before);
    }
  });

  const auto descriptions = erased.sides();
  CHECK(descriptions[0].kind == seqmix::SideKind::numbers);
  CHECK(descriptions[1].kind == seqmix::SideKind::indices);
  CHECK(descriptions[1].bound == 7);
}

TEST_CASE("indices that a layer cannot have are refused before anything is written") {
  const auto layer = embed_layer();
  const seqmix::AnyMixer<double> erased(layer);
  EmbedCase test(layer);
  Context context;
  auto state = layer.make_state(2);
  const auto text = [&](Index id) {
    test.token(1, 2, 0) = id;
    const EmbedDefinition::Side side{test.gain.view().merge(seqmix::axis::row),
                                     test.token.view().merge(seqmix::axis::row)};
    auto y = test.y;
    const auto error =
        error_of<seqmix::ShapeError>([&] { layer.prefill(test.x, state, y, context, side); });
    CHECK(state.sum(0, 0) == 0);
    return error;
  };
  CHECK_THAT(text(7), ContainsSubstring("side value token of token 11 is 7, expected 0 to 6"));
  CHECK_THAT(text(-1), ContainsSubstring("is -1"));
  const auto missing = [&](std::span<const NamedView<double>> sides) {
    return error_of<seqmix::ShapeError>([&] { erased.forward(test.x, test.y, context, sides); });
  };
  const auto gain = test.gain.view().merge(seqmix::axis::row);
  const NamedView<double> without[] = {{"gain", gain}},
                          of_numbers[] = {{"gain", gain}, {"token", gain}};
  CHECK_THAT(missing(without), ContainsSubstring("side value token has shape [0, 0]"));
  CHECK_THAT(missing(of_numbers),
             ContainsSubstring("side value token is numbers, expected indices"));
}

TEST_CASE("a language model gives blocks its tokens") {
  const auto embed = embed_layer();
  const seqmix::Mixer<GainDefinition> gain({.d_model = 4, .vocabulary = 7}, {});
  const auto model_of = [&](std::vector<seqmix::AnyMixer<double>> blocks) {
    return seqmix::LanguageModel<double>(
        {.embedding = random_tensor<double, 2>({7, 4}, 5),
         .blocks = std::move(blocks),
         .norm = {.kind = seqmix::NormKind::rms, .weight = random_tensor<double, 1>({4}, 6)},
         .head = {.weight = Parameter<double, 2>(random_tensor<double, 2>({7, 4}, 7)),
                  .bias = {}}});
  };
  const auto model = model_of({gain, embed});
  Tensor<Index, 2> tokens({2, 5});
  for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = (3 * i + 1) % 7;
  Tensor<double, 3> whole({2, 5, 7}), stepped({2, 5, 7}), twice({2, 5, 7});
  Context context = poisoned();
  model.forward(tokens, whole, context);
  auto state = model.make_state(2, 5);
  for (Index t = 0; t < 5; ++t) {
    model.step(tokens.view().at<1>(t), state, stepped.view().at<1>(t), context);
  }
  CHECK(relative_error(stepped.view(), whole.view()) < 1e-14);
  model_of({gain, embed, embed}).forward(tokens, twice, context);
  CHECK(relative_error(twice.view(), whole.view()) > 1e-3);

  CHECK_THAT(error_of<seqmix::ConfigError>([&] { model_of({embed}); }),
             ContainsSubstring("takes gain of width 1, which no block before it gives"));
  CHECK_THAT(error_of<seqmix::ConfigError>([&] {
               model_of({gain, embed_layer(6)});
             }),
             ContainsSubstring("takes token of width 1 below 6, expected width 1 below 7"));
  CHECK_THAT(error_of<seqmix::ShapeError>([&] { model_of({map_layer()}); }),
             ContainsSubstring("map, block 0, has d_model 3, expected 4"));
}

TEST_CASE("outputs may be wider than inputs") {
  const auto layer = map_layer();
  const seqmix::AnyMixer<double> erased(layer);
  CHECK(erased.d_in() == 3);
  CHECK(erased.d_out() == 5);
  CHECK_THAT(error_of<seqmix::Error>([&] { erased.d_model(); }),
             ContainsSubstring("map has no d_model: x has the width 3, y 5"));
  const auto x = random_tensor<double, 3>({2, 6, 3}, 8);
  const auto w = random_tensor<double, 2>({5, 3}, 2);
  Tensor<double, 3> expected({2, 6, 5}), y(expected.shape());
  for (Index b = 0; b < 2; ++b) {
    for (Index t = 0; t < 6; ++t) {
      for (Index o = 0; o < 5; ++o) {
        for (Index i = 0; i < 3; ++i) expected(b, t, o) += w(o, i) * x(b, t, i);
      }
    }
  }
  Context context = poisoned();
  erased.forward(x, y, context);
  CHECK(relative_error(y.view(), expected.view()) < 1e-14);
  auto state = layer.make_state(2);
  for (Index t = 0; t < 6; ++t) {
    layer.step(x.view().at<1>(t), state, y.view().at<1>(t), context);
  }
  CHECK(relative_error(y.view(), expected.view()) < 1e-14);

  // Rows that do not lie behind each other are gathered.
  Tensor<double, 3> wide_x({2, 8, 3}), wide_y({2, 7, 5});
  copy(x.view(), wide_x.view().slice<1>(1, 6));
  layer.prepare(context, 2, 12);
  layer.prefill(wide_x.view().slice<1>(1, 6), state, wide_y.view().slice<1>(0, 6), context);
  CHECK(relative_error(wide_y.view().slice<1>(0, 6), expected.view()) < 1e-14);

  Tensor<double, 3> narrow({2, 6, 3});
  CHECK_THAT(error_of<seqmix::ShapeError>([&] { layer.forward(x, narrow, context); }),
             ContainsSubstring("y has shape [2, 6, 3], expected [B, T, 5]"));
  CHECK_THAT(error_of<seqmix::ShapeError>([&] { layer.forward(expected, y, context); }),
             ContainsSubstring("x has shape [2, 6, 5], expected [B, T, 3]"));
}

TEST_CASE("verify checks layers with indices and with two widths") {
  seqmix::Registry<double> registry;
  registry.add<EmbedDefinition>();
  registry.add<MapDefinition>();
  const seqmix::test::TemporaryFolder folder;
  const std::string path = (folder.path() / "own.safetensors").string();
  const auto verified = [&](std::vector<seqmix::StoredTensor> tensors, const char* layer,
                            const char* config) {
    save_safetensors(
        path, std::move(tensors),
        {{"layer", layer}, {"config", config}, {"precision", "float64"}, {"source", "by hand"}});
    std::ostringstream out, errors;
    seqmix::verify_main(std::vector<std::string>{path}, registry, out, errors);
    return out.str() + errors.str();
  };
  const auto embed = embed_layer();
  EmbedCase test(embed);
  const auto embed_file = [&](auto&& token) {
    return verified(
        {seqmix::stored_tensor("x", test.x.view()), seqmix::stored_tensor("y", test.y.view()),
         seqmix::stored_tensor("in.gain", test.gain.view()),
         seqmix::stored_tensor("in.token", token.view()),
         seqmix::stored_tensor("weights.table", random_tensor<double, 2>({7, 4}, 1).view())},
        "embed", R"({"d_model": 4, "vocabulary": 7})");
  };
  CHECK_THAT(embed_file(test.token), ContainsSubstring("ok "));
  test.token(0, 8, 0) = (test.token(0, 8, 0) + 1) % 7;
  CHECK_THAT(embed_file(test.token), ContainsSubstring("first differs at token 8"));
  test.token(0, 8, 0) = 7;
  CHECK_THAT(embed_file(test.token), ContainsSubstring("side value token of token 8 is 7"));
  CHECK_THAT(embed_file(test.gain), ContainsSubstring("in.token"));

  const auto x = random_tensor<double, 3>({2, 6, 3}, 8);
  Tensor<double, 3> y({2, 6, 5});
  Context context;
  map_layer().forward(x, y, context);
  const auto w = random_tensor<double, 2>({5, 3}, 2);
  CHECK_THAT(verified({seqmix::stored_tensor("x", x.view()), seqmix::stored_tensor("y", y.view()),
                       seqmix::stored_tensor("weights.map.weight", w.view())},
                      "map", R"({"d_in": 3, "d_out": 5})"),
             ContainsSubstring("ok "));
}
