#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "reference/twin.hpp"
#include "seqmix/io/registry.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/layer_case.hpp"
#include "support/random.hpp"
#include "support/random_weights.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;
using test::error_of;
using test::TemporaryFolder;

/// The smallest layer there is, y = w ⊙ x.
struct ScaleConfig {
  Index d_model = 0;
  Index groups = 1;
  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("groups", self.groups);
  }
  void check() const { require(d_model % groups == 0, "groups must divide d_model"); }
};
template <class S>
struct ScaleDefinition {
  using Scalar = S;
  using Config = ScaleConfig;
  using State = NoState;
  static constexpr Traits traits{.name = "scale", .title = "Scale"};
  struct Weights {
    Parameter<Scalar, 1> scale;
    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("scale.weight", self.scale, {c.d_model}, init::ones);
    }
  };
  Config c;
  Weights w;
  State make_state(Index, Index, Memory) const { return {}; }
  void run(View<const Scalar, 2> x, State&, View<Scalar, 2> y, const Call&) const {
    for (Index t = 0; t < x.extent(0); ++t) {
      for (Index d = 0; d < c.d_model; ++d) y(t, d) = w.scale[d] * x(t, d);
    }
  }
};
template <class S>
using Scale = Mixer<ScaleDefinition<S>>;

/// A layer whose shapes divide by a size of its config.
struct SplitDefinition : ScaleDefinition<float> {
  static constexpr Traits traits{.name = "split"};
  struct Weights {
    Parameter<float, 2> scale;
    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("scale.weight", self.scale, {c.groups, c.d_model / c.groups});
    }
  };
};

template <Index Rank>
StoredTensor random_stored(const std::string& name, Shape<Rank> shape) {
  return stored_tensor(name, support::random_tensor<float, Rank>(shape, 1).view());
}

/// Calls `body(layer, config)` with each config that the conformance suite runs.
void for_each_config(auto&& body) {
  for (const reference::Twin& twin : reference::twins()) {
    for (const std::string& config : twin.configs) {
      INFO(twin.layer << " " << config);
      body(twin.layer, parse_json(config, twin.layer));
    }
  }
}

std::vector<StoredTensor> list_of(const StoredTensors& tensors) {
  std::vector<StoredTensor> list;
  for (const std::string& name : tensors.names()) list.push_back(tensors.entry(name));
  return list;
}

TEST_CASE("an unknown layer is told the known ones") {
  const auto& registry = support::registry<float>();
  REQUIRE(registry.names().size() > 1);
  std::string list;
  for (const std::string& name : registry.names()) list += (list.empty() ? "" : ", ") + name;
  const std::string expected = "no layer is called \"atention\"; there are " + list;
  CHECK_THAT(list, ContainsSubstring("attention, "));
  const MemoryTensors none({});
  CHECK(error_of<ConfigError>([&] { registry.make("atention", Json::object(), none); }) ==
        expected);
  CHECK(error_of<ConfigError>([&] { registry.traits("atention"); }) == expected);
  CHECK(error_of<ConfigError>([&] {
          registry.visit_parameters("atention", Json::object(),
                                    [](const auto&, const auto&, const auto&) {});
        }) == expected);
  for (const std::string& name : registry.names()) {
    CHECK_FALSE(registry.traits(name).title.empty());
    CHECK_FALSE(registry.traits(name).header().empty());
  }
}

TEMPLATE_TEST_CASE("a config and its weights make each layer", "", float, double) {
  const auto& registry = support::registry<TestType>();
  for_each_config([&](const std::string& name, const Json& config) {
    const auto weights = support::random_layer_weights(registry, name, config);
    const auto mixer = registry.make(name, config, weights, "");
    CHECK(mixer.name() == name);
    CHECK(mixer.d_model() == config.at("d_model").template get<Index>());
    Index count = 0;
    for (const std::string& weight : weights.names()) {
      Index numbers = 1;
      for (const Index extent : weights.entry(weight).shape) numbers *= extent;
      count += numbers;
    }
    CHECK(mixer.parameters() == count);
  });
}

TEST_CASE("a size that is not positive is named, whichever it is") {
  const auto& registry = support::registry<float>();
  Index sizes = 0;
  for_each_config([&](const std::string& name, const Json& given) {
    const Json legal = registry.complete_config(name, given);
    const auto weights = support::random_layer_weights(registry, name, legal);
    const auto error = [&](const std::string& place, const Json& value) {
      Json config = legal;
      config[Json::json_pointer(place)] = value;
      const std::string text =
          error_of<ConfigError>([&] { registry.make(name, config, weights, ""); });
      CHECK(text == error_of<ConfigError>([&] {
              registry.visit_parameters(name, config, [](const auto&, const auto&, const auto&) {});
            }));
      return text;
    };
    const Json places = legal.flatten();
    for (const auto& [place, value] : places.items()) {
      std::string field = place.substr(1);
      std::ranges::replace(field, '/', '.');
      const std::string who = name + ": " + field;
      if (error(place, 0.5) != who + ": got 0.5, expected an integer") continue;
      ++sizes;
      const bool zero_is_legal = error(place, -1) == who + " is -1, expected at least 0";
      const std::string rule = zero_is_legal ? ", expected at least 0" : ", expected at least 1";
      for (const Index size : {Index{-1}, Index{-7}, std::numeric_limits<Index>::min()}) {
        CHECK(error(place, size) == who + " is " + std::to_string(size) + rule);
      }
      if (!zero_is_legal) CHECK(error(place, 0) == who + " is 0" + rule);
    }
    // A size without a default must be given, whatever else is.
    Json without = legal;
    without.erase("d_model");
    for (const Json& config : {without, Json::object()}) {
      CHECK(error_of<ConfigError>([&] { registry.make(name, config, weights, ""); }) ==
            name + ": d_model is 0, expected at least 1");
    }
  });
  CHECK(sizes > 50);
}

TEST_CASE("a rule that a config breaks is named with its layer") {
  struct Case {
    std::string layer, config, rule;
  };
  const auto& registry = support::registry<float>();
  const MemoryTensors none({});
  for (const Case& one : {
           Case{"attention", R"({"head_dim": 4, "n_heads": 3, "n_kv_heads": 2})",
                "n_heads must be a multiple of n_kv_heads"},
           Case{"attention", R"({"head_dim": 4, "n_heads": 2, "n_kv_heads": 4})",
                "n_heads must be a multiple of n_kv_heads"},
           Case{"attention", R"({"head_dim": 4, "rotary_dim": 3})", "rotary_dim must be even"},
           Case{"attention", R"({"head_dim": 4, "rotary_dim": 6})",
                "rotary_dim must not exceed heads.head_dim"},
           Case{"attention", R"({"head_dim": 4, "rope_theta": 0})",
                "rope_theta is 0, expected positive and finite in float"},
           Case{"attention", R"({"n_head": 4})", "unknown key \"n_head\""},
           Case{"attention", R"({"n_heads": 4.0})", "n_heads: got 4.0, expected an integer"},
           Case{"feed_forward", R"({"activation": "swish"})",
                "activation: got \"swish\", expected one of silu, gelu"},
           Case{"feed_forward", R"({"bias": 1})", "bias: got 1, expected true or false"},
           Case{"gated_linear_attention", R"({"head_k": 2, "head_v": 2, "gate_normalizer": 0})",
                "gate_normalizer is 0, expected positive and finite in float"},
           Case{"hyena", R"({"order": 1})", "order must be at least 2"},
           Case{"mamba2", R"({"n_heads": 4, "n_groups": 3})",
                "n_heads must be a multiple of n_groups"},
           Case{"mamba2", R"({"n_heads": 4, "head_dim": 3, "norm_groups": 5})",
                "n_heads * head_dim must be a multiple of norm_groups"},
           Case{"mamba2", R"({"n_heads": 4, "dt_min": 2, "dt_max": 1})",
                "dt_min must not exceed dt_max; dt_min is 2, dt_max is 1"},
           Case{"mamba2", R"({"n_heads": 4, "dt_min": -1})",
                "dt_min is -1, expected at least 0 and finite in float"},
           Case{"mixture_of_experts", R"({"d_ff": 2, "n_experts": 4, "n_experts_per_token": 5})",
                "n_experts_per_token must not exceed n_experts"},
       }) {
    Json config = parse_json(one.config, one.layer);
    config["d_model"] = 4;
    CHECK_THAT(error_of<ConfigError>([&] { registry.make(one.layer, config, none); }),
               StartsWith(one.layer + ": ") && ContainsSubstring(one.rule));
  }
  CHECK(error_of<ConfigError>([&] { registry.make("attention", Json::array(), none); }) ==
        "attention: got an array, expected an object");
}

TEST_CASE("a weight that is missing, misshapen or left over is named") {
  const auto& registry = support::registry<float>();
  for_each_config([&](const std::string& layer, const Json& config) {
    const auto weights = list_of(support::random_layer_weights(registry, layer, config));
    const auto error = [&](const std::vector<StoredTensor>& tensors) {
      return error_of<CheckpointError>(
          [&] { registry.make(layer, config, MemoryTensors(tensors, "the file"), ""); });
    };
    REQUIRE(error(weights).empty());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const std::string quoted = "the file: tensor \"" + weights[i].name + "\"";
      auto tensors = weights;
      tensors.erase(tensors.begin() + static_cast<std::ptrdiff_t>(i));
      CHECK(error(tensors) == quoted + " is missing");

      // One row more, and the same numbers with one axis more.
      tensors = weights;
      const auto rows = static_cast<std::size_t>(++tensors[i].shape[0]);
      const std::vector<std::byte> longer(static_cast<std::size_t>(weights[i].bytes.size()) /
                                          (rows - 1) * rows);
      tensors[i].bytes = StoredBytes(longer);
      CHECK_THAT(error(tensors),
                 ContainsSubstring(quoted + ": wrong shape; got [" + std::to_string(rows)));
      tensors = weights;
      tensors[i].shape.push_back(1);
      CHECK_THAT(error(tensors), ContainsSubstring(quoted + ": wrong shape"));
    }
    auto tensors = weights;
    tensors.push_back(random_stored<2>("q_proj.wieght", {2, 3}));
    CHECK(error(tensors) == "the file: unexpected tensor \"q_proj.wieght\" [2, 3]");
  });
}

TEST_CASE("tensors in memory have names of their own and sizes that fit") {
  const MemoryTensors tensors({random_stored<2>("b", {2, 3}), random_stored<1>("a", {4})}, "here");
  CHECK(tensors.source() == "here");
  CHECK(tensors.names() == std::vector<std::string>{"a", "b"});
  CHECK(tensors.contains("a"));
  CHECK_FALSE(tensors.contains("c"));
  CHECK(tensors.parameter<double, 2>("b", {2, 3}).shape() == Shape<2>{2, 3});
  CHECK_THAT(error_of<CheckpointError>([&] {
               tensors.parameter<double, 2>("b", {3, 2});
             }),
             ContainsSubstring("here: tensor \"b\": wrong shape; got [2, 3], expected [3, 2]"));
  CHECK(error_of<CheckpointError>([&] { tensors.entry("c"); }) == "here: tensor \"c\" is missing");
  CHECK(error_of<CheckpointError>([&] { tensors.expect_no_others({"b"}); }) ==
        "here: unexpected tensor \"a\" [4]");
  CHECK(error_of<CheckpointError>([] {
          MemoryTensors({random_stored<1>("a", {4}), random_stored<1>("b", {4}),
                         random_stored<2>("a", {2, 3})},
                        "here");
        }) == "here: two tensors are called \"a\"");
  CHECK_THAT(error_of<CheckpointError>([] {
               auto tensor = random_stored<1>("a", {4});
               tensor.shape = {5};
               MemoryTensors({tensor}, "here");
             }),
             ContainsSubstring("here: tensor \"a\": size does not fit the shape; got 16 bytes"));
  CHECK_THAT(error_of<CheckpointError>([] {
               auto tensor = random_stored<1>("a", {4});
               tensor.shape = {Index{1} << 40, Index{1} << 40};
               MemoryTensors({tensor}, "here");
             }),
             ContainsSubstring("shape overflows"));
}

TEMPLATE_TEST_CASE("a layer file makes its layer, by type or by name", "", float, double) {
  using S = TestType;
  const TemporaryFolder folder;
  const auto path = folder.path() / "scale.safetensors";
  const StoredTensor scale = random_stored<1>("weights.scale.weight", {4});
  const std::map<std::string, std::string> metadata{
      {"layer", "scale"}, {"config", R"({"d_model": 4, "groups": 2})"}, {"source", "a test"}};
  // What is not under the prefix is the business of whoever wrote it.
  save_safetensors(path, {scale, random_stored<3>("x", {1, 2, 4})}, metadata);

  Registry<S> registry;
  CHECK(registry.names().empty());
  registry.template add<ScaleDefinition<S>>();
  CHECK(registry.names() == std::vector<std::string>{"scale"});
  CHECK(registry.traits("scale").title == "Scale");
  std::map<std::string, std::vector<Index>> parameters;
  registry.visit_parameters("scale", parse_json(metadata.at("config"), "config"),
                            [&](const std::string& name, const std::vector<Index>& shape,
                                const Initializer&) { parameters[name] = shape; });
  CHECK(parameters == std::map<std::string, std::vector<Index>>{{"scale.weight", {4}}});

  const auto typed = load_layer<Scale<S>>(path);
  CHECK(typed.config().groups == 2);
  const auto any = registry.load(Safetensors::open(path));
  const auto x = support::random_tensor<S, 3>({2, 3, 4}, 2);
  Tensor<S, 3> y(x.shape()), z(x.shape());
  Context context;
  typed.forward(x, y, context);
  any.forward(x, z, context);
  CHECK(support::same_bits(y.view(), z.view()));
  const auto expected = scale.template parameter<S, 1>({4});
  CHECK(y(1, 2, 3) == expected[3] * x(1, 2, 3));

  const auto errors_of = [&]<class Expected>(Expected*, const std::vector<StoredTensor>& tensors,
                                             const std::map<std::string, std::string>& with) {
    save_safetensors(path, tensors, with);
    const std::string text = error_of<Expected>([&] { load_layer<Scale<S>>(path); });
    CHECK(error_of<Expected>([&] { registry.load(Safetensors::open(path)); }) == text);
    return text;
  };
  constexpr CheckpointError* checkpoint = nullptr;
  constexpr ConfigError* config = nullptr;
  const auto with = [&](const std::string& key, const std::string& value) {
    auto changed = metadata;
    changed[key] = value;
    return changed;
  };
  const auto without = [&](const std::string& key) {
    auto changed = metadata;
    changed.erase(key);
    return changed;
  };
  CHECK_THAT(errors_of(checkpoint, {scale}, without("layer")),
             ContainsSubstring("scale.safetensors: metadata \"layer\" is missing"));
  CHECK_THAT(errors_of(checkpoint, {scale}, without("config")),
             ContainsSubstring("scale.safetensors: metadata \"config\" is missing"));
  CHECK_THAT(errors_of(checkpoint, {scale}, with("config", "{\"d_model\": 4")),
             ContainsSubstring("scale.safetensors: config: not valid JSON"));
  CHECK(errors_of(config, {scale}, with("config", R"({"d_model": 4, "groups": 0})")) ==
        "scale: groups is 0, expected at least 1");
  CHECK(errors_of(config, {scale}, with("config", R"({"d_model": 4, "groups": 3})")) ==
        "scale: groups must divide d_model; d_model is 4, groups is 3");
  CHECK_THAT(
      errors_of(checkpoint, {scale}, with("config", R"({"d_model": 5})")),
      ContainsSubstring("tensor \"weights.scale.weight\": wrong shape; got [4], expected [5]"));
  CHECK_THAT(errors_of(checkpoint, {random_stored<1>("scale.weight", {4})}, metadata),
             ContainsSubstring("tensor \"weights.scale.weight\" is missing"));
  CHECK_THAT(errors_of(checkpoint, {scale, random_stored<1>("weights.bias", {4})}, metadata),
             ContainsSubstring("unexpected tensor \"weights.bias\" [4]"));

  // Another layer: the type refuses it, the registry says what it knows.
  save_safetensors(path, {scale}, with("layer", "shift"));
  CHECK_THAT(error_of<CheckpointError>([&] { load_layer<Scale<S>>(path); }),
             ContainsSubstring("holds the layer \"shift\", expected \"scale\""));
  CHECK(error_of<ConfigError>([&] { registry.load(Safetensors::open(path)); }) ==
        "no layer is called \"shift\"; there are scale");
}

TEST_CASE("a config is checked before weights are looked up by shapes that divide by it") {
  const MemoryTensors tensors({random_stored<2>("scale.weight", {2, 2})});
  const auto load = [&](ScaleConfig config) {
    UsedNames used;
    return load_weights<SplitDefinition>(
        config, tensors, [](const std::string& name) { return name; }, used);
  };
  CHECK(load({.d_model = 4, .groups = 2}).scale.shape() == Shape<2>{2, 2});
  CHECK(error_of<ConfigError>([&] { load({.d_model = 4, .groups = 0}); }) ==
        "split: groups is 0, expected at least 1");
  CHECK_THAT(error_of<ConfigError>([&] { load({.d_model = 4, .groups = 3}); }),
             ContainsSubstring("split: groups must divide d_model"));
}

TEST_CASE("no memory is taken by a config's word before the tensors are looked up") {
  const MemoryTensors tensors({random_stored<1>("scale.weight", {4})});
  UsedNames used;
  support::forget_peak();
  const auto before = support::allocated_bytes();
  const std::string error = error_of<CheckpointError>([&] {
    load_weights<Scale<float>>(
        {.d_model = largest_size}, tensors, [](const std::string& name) { return name; }, used);
  });
  CHECK(support::peak_bytes() - before < 10'000);
  CHECK_THAT(error, ContainsSubstring("wrong shape; got [4], expected [1073741824]"));
}

TEST_CASE("a field that several parts of a layer have is listed once") {
  const std::string error = error_of<ConfigError>([] {
    support::registry<float>().complete_config("jamba_block", parse_json(R"({"d_modle": 4})", ""));
  });
  const std::string list = error.substr(error.find("one of: ") + 8) + ",";
  std::set<std::string> fields;
  Index count = 0;
  for (std::size_t at = 0, end = 0; (end = list.find(',', at)) != list.npos;
       at = end + 2, ++count) {
    fields.insert(list.substr(at, end - at));
  }
  CHECK(fields.contains("d_model"));
  CHECK(count > 5);
  CHECK(static_cast<Index>(fields.size()) == count);
}

TEST_CASE("a config that no layer can have is refused with the rule and the values") {
  struct Refused {
    const char *layer, *field;
    seqmix::Json value;
    const char* text;
  };
  const Refused list[] = {
      {"attention", "n_kv_heads", 3,
       "n_heads must be a multiple of n_kv_heads; n_heads is 4, n_kv_"},
      {"attention", "rotary_dim", 5, "rotary_dim must be even; rotary_dim is 5"},
      {"attention", "rotary_dim", 20, "positions.rotary_dim must not exceed heads.head_dim"},
      {"attention", "rope_factor", 0.5, "rope_factor is 0.5, expected at least 1 and finite"},
      {"attention", "soft_cap", -1.0, "soft_cap is -1, expected 0, or positive and finite"},
      {"sliding_window_attention", "window", 0, "sees.window"},
      {"sliding_window_attention", "n_kv_heads", 3, "n_heads must be a multiple of n_kv_heads"},
      {"multi_head_latent_attention", "rotary_dim", 3, "rotary_dim must be even"},
      {"longformer_attention", "window", 7, "window must be even; window is 7"},
      {"big_bird_attention", "n_heads", 5, "d_model must be a multiple of n_heads; d_model is 16"},
      {"gated_attention_unit", "normaliser_length", 0,
       "normaliser_length is 0, expected at least 1"},
      {"gated_attention_unit", "num_buckets", 1, "num_buckets must be at least 2 a direction"},
      {"gated_delta_net", "n_key_heads", 3, "n_heads must be a multiple of n_key_heads"},
      {"mixed_chunk_attention", "rotary_dim", 32, "rotary_dim must not exceed head_k"},
      {"retention", "rotary_dim", 3, "rotary_dim must be even"},
      {"mamba2", "n_groups", 5, "n_heads must be a multiple of n_groups"},
      {"rg_lru", "n_heads", 5, "lru_width must be a multiple of n_heads"},
      {"s4d", "state_size", 7, "state_size must be even"},
      {"rwkv6", "head_dim", 7, "d_model must be a multiple of head_dim"},
      {"hyena", "order", 1, "order must be at least 2; order is 1"},
      {"mixture_of_experts", "n_experts_per_token", 9,
       "n_experts_per_token must not exceed n_experts; n_experts is 4, n_experts_per_token is 9"},
  };
  for (const auto& [layer, field, value, text] : list) {
    bool found = false;
    for_each_config([&, layer = layer, field = field, value = value, text = text](
                        const std::string& name, const seqmix::Json& config) {
      if (name != layer || found) return;
      found = true;
      seqmix::Json changed = config;
      changed[field] = value;
      INFO(name << " " << field);
      try {
        support::registry<float>().complete_config(name, changed);
        FAIL("accepted");
      } catch (const seqmix::ConfigError& error) {
        CHECK_THAT(error.what(), Catch::Matchers::ContainsSubstring(name) &&
                                     Catch::Matchers::ContainsSubstring(text));
      }
    });
    CHECK(found);
  }
}

}  // namespace
}  // namespace seqmix
