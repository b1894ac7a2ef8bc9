// What configs may say: every field has its values, none is ignored, and no word of a config makes
// memory. None of it depends on the SIMD width.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cctype>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/blocks/stack.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/conv/hyena.hpp"
#include "seqmix/layers/linear/linear_attention.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/layer_case.hpp"
#include "support/random.hpp"
#include "support/random_weights.hpp"
#include "support/verbs.hpp"

namespace support {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;
using seqmix::CapacityError;
using seqmix::ConfigError;
using seqmix::Error;
using seqmix::Json;
using seqmix::Shape;
using seqmix::ShapeError;
using seqmix::test::error_of;

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Calls `body(twin, config)` with each config of the suite, complete, and of one that leaves
/// fields out the defaults of these.
void for_each_config(auto&& body) {
  const char* const only = std::getenv("SEQMIX_LAYER");
  for (const reference::Twin& twin : reference::twins()) {
    if (only != nullptr && twin.layer != only) continue;
    for (const std::string& config : twin.configs) {
      body(twin,
           registry<float>().complete_config(twin.layer, seqmix::parse_json(config, twin.layer)));
    }
  }
}
/// A field of a config or of a part: its name behind those of its parts and its place.
struct Field {
  std::string name;
  Json::json_pointer at;
  Json value;

  std::string key() const { return at.back(); }
  /// The same, but of a number in a list the list's.
  std::string list_or_key() const {
    const bool in_list = std::isdigit(static_cast<unsigned char>(key().front())) != 0;
    return in_list ? at.parent_pointer().back() : key();
  }
  /// "layers.4.mixer", empty in a config without parts.
  std::string part() const {
    return name.substr(0, name.size() - std::min(name.size(), key().size() + 1));
  }
};
std::vector<Field> fields_of(const Json& config) {
  std::vector<Field> result;
  const Json places = config.flatten();
  for (const auto& [place, value] : places.items()) {
    std::string name = place.substr(1);
    std::ranges::replace(name, '/', '.');
    result.push_back({name, Json::json_pointer(place), value});
  }
  return result;
}
bool is_floating(const Json& value) { return value.is_number_float() || value == "Infinity"; }

/// The text of an infinity as a config has it.
Json number(double value) {
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

template <class S>
Tensor<S, 3> output_of(const reference::Twin& twin, const Json& config) {
  const LayerCase<S> layer(twin, config.dump());
  Context context;
  return forward<S>(layer, layer.random_input(2, 19, 3), context);
}
bool is_finite(const auto& y) {
  return std::all_of(y.data(), y.data() + y.size(), [](auto v) { return std::isfinite(v); });
}

TEST_CASE("a floating field of any value is refused by its name, or the layer stays finite") {
  int refused = 0, accepted = 0;
  for_each_config([&](const reference::Twin& twin, const Json& legal) {
    for (const Field& field : fields_of(legal)) {
      if (!is_floating(field.value)) continue;
      for (const double one : {-infinity, infinity, -1.0, 0.0, 1e-300, 1e300}) {
        Json config = legal;
        config[field.at] = number(one);
        INFO(twin.layer << " " << config);
        try {
          registry<float>().complete_config(twin.layer, config);
        } catch (const ConfigError& error) {
          ++refused;
          CHECK_THAT(error.what(), ContainsSubstring(twin.layer + ": " + field.part()) &&
                                       ContainsSubstring(field.key()));
          continue;
        }
        ++accepted;
        CHECK(is_finite(output_of<float>(twin, config)));
      }
      Json config = legal;
      config[field.at] = std::numeric_limits<double>::quiet_NaN();
      CHECK_THAT(
          error_of<ConfigError>([&] { registry<float>().complete_config(twin.layer, config); }),
          ContainsSubstring(twin.layer + ": " + field.name + " is NaN, expected"));
    }
  });
  CHECK(refused > 100);
  CHECK(accepted > 50);
}

TEST_CASE("a floating field is refused or makes another output") {
  int changed = 0;
  for_each_config([&](const reference::Twin& twin, const Json& legal) {
    // Where the ramp of yarn ends is rounded to whole pairs, and the first pair turns by one angle
    // whatever the base. What published configs name beside what they use may stand: the base where
    // nothing turns, or a table does, the other table of longrope, and the eps of a denominator
    // where there is none.
    const auto may_be_ignored = [&](const Field& field) {
      const std::string key = field.key();
      const Json& around = legal[field.at.parent_pointer()];
      return key.starts_with("rope_beta") || (key == "rope_theta" && around["rotary_dim"] <= 2) ||
             (key == "rope_theta" && around.value("rope_scaling", "none") == "table") ||
             field.part().ends_with("rope_short_factor") ||
             (key == "eps" && twin.layer == "linear_attention" && around["normalize"] == false);
    };
    const auto before = output_of<double>(twin, legal);
    for (const Field& field : fields_of(legal)) {
      if (!is_floating(field.value) || may_be_ignored(field)) continue;
      Json config = legal;
      config[field.at] = field.value == "Infinity" ? 0.003 : 2 * field.value.get<double>() + 0.7;
      INFO(twin.layer << " " << config);
      try {
        registry<float>().complete_config(twin.layer, config);
      } catch (const ConfigError&) {
        continue;
      }
      ++changed;
      CHECK_FALSE(same_bits(output_of<double>(twin, config).view(), before.view()));
    }
  });
  CHECK(changed > 50);
}

TEST_CASE("a field that nothing reads is refused with what it needs") {
  struct Case {
    std::string layer, config, text;
  };
  const std::string heads = R"("n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "rotary_dim": 4)";
  for (const Case& one : {
           Case{"attention", heads + R"(, "rope_factor": 4)",
                "rope_factor is 4, which counts only where rope_scaling is not none"},
           Case{"attention", heads + R"(, "rope_scaling": "linear", "rope_length": 64)",
                "rope_length is 64, which counts only where rope_scaling is dynamic or longrope"},
           Case{"attention", heads + R"(, "rope_angles": [1, 0.5])",
                "rope_angles is [1, 0.5], which counts only where rope_scaling is table"},
           Case{"attention", heads + R"(, "rope_scaling": "ntk", "rope_closed": true)",
                "rope_closed is true, which counts only where rope_scaling is none or linear"},
           Case{"attention", heads + R"(, "rope_scaling": "linear", "rope_original_length": 64)",
                "rope_original_length is 64, which counts only where rope_scaling is yarn or"},
           Case{"attention", heads + R"(, "rope_scaling": "ntk", "rope_beta_fast": 8)",
                "rope_beta_fast is 8, which counts only where rope_scaling is yarn"},
           Case{"attention", heads + R"(, "rope_attention_factor": 1.5)",
                "rope_attention_factor is 1.5, which counts only where rope_scaling is yarn"},
           Case{"attention", heads + R"(, "rope_high_freq_factor": 8)",
                "rope_high_freq_factor is 8, which counts only where rope_scaling is llama3"},
           Case{"attention", heads + R"(, "qk_norm_eps": 1e-5)",
                "qk_norm_eps is 1e-05, which counts only where qk_norm is not none"},
           Case{"attention", R"("head_dim": 4, "rope_interleaved": true)",
                "rope_interleaved is true, which counts only where rotary_dim is positive"},
           Case{"attention", R"("head_dim": 4, "rope_scaling": "linear", "rope_factor": 2)",
                "rope_scaling needs rotary positions: rotary_dim"},
           Case{"multi_head_latent_attention",
                R"("kv_rank": 4, "nope_dim": 4, "rotary_dim": 2, "head_v": 4,
                   "mscale_all_dim": 1)",
                "mscale_all_dim is 1, which counts only where rope_factor exceeds 1"},
           Case{"big_bird_attention", R"("n_blocks": 9)",
                "n_blocks is 9, which counts only where n_random is positive"},
           Case{"block_sparse_attention", heads + R"(, "pattern": "local", "block": 8)",
                "block is 8, which counts only where a pattern is fixed, big_bird, stripes or "
                "layout"},
           Case{"block_sparse_attention", heads + R"(, "pattern": "big_bird,dense", "span": 8)",
                "span is 8, which counts only where a pattern is local, strided, row or "
                "fixed"},
           Case{"block_sparse_attention", heads + R"(, "pattern": "strided", "prefix": 8)",
                "prefix is 8, which counts only where a pattern is local"},
           Case{"block_sparse_attention", heads + R"(, "n_verticals": 8)",
                "n_verticals is 8, which counts only where a pattern is fixed"},
           Case{"block_sparse_attention", heads + R"(, "pattern": "local", "n_global": 2)",
                "n_global is 2, which counts only where a pattern is big_bird"},
           Case{"block_sparse_attention", heads + R"(, "pattern": "big_bird", "seed": 2)",
                "seed is 2, which counts only where n_random is positive"},
           Case{"attention", heads + R"(, "windows": [4, 0])",
                "sees.windows.1 is 0, expected at least 1"},
           Case{"attention", heads + R"(, "windows": [4, 3, 2, 1, 1])",
                "sees.windows needs a size for each equal share of heads.n_heads"},
           Case{"attention", heads + R"(, "windows": [4], "chunk": 4)",
                "window, windows, chunk, prefix and segments exclude each other"},
           Case{"attention", heads + R"(, "windows": [4], "n_sinks": 4)",
                "n_sinks needs sinks_in_place beside windows or chunk"},
           Case{"attention", heads + R"(, "segments": [6, 9], "segment_dilations": [1, 2])",
                "segments must be multiples of their segment_dilations"},
           Case{"attention", heads + R"(, "segments": [6])",
                "segments needs as many segment_dilations"},
           Case{"attention", heads + R"(, "chunk": 6, "chunk_shift": 6)",
                "chunk_shift needs a larger chunk; chunk is 6, chunk_shift is 6"},
           Case{"attention", heads + R"(, "key_mask": true)", "needs bidirectional attention"},
           Case{"bidirectional_attention",
                heads + R"(, "segments": [6], "segment_dilations": [1], "key_mask": true)",
                "key_mask needs segments to be empty"},
           Case{"bidirectional_block_sparse_attention", heads + R"(, "pattern": "fixed")",
                "patterns fixed and big_bird need causal attention"},
           Case{"block_sparse_attention", heads + R"(, "pattern": "row", "stripe_stride": 8)",
                "stripe_stride is 8, which counts only where a pattern is stripes"},
           Case{"sliding_window_attention",
                R"("head_dim": 4, "window": 8, "n_sinks": 2, "max_rollback": 3)",
                "store.max_rollback needs sees.n_sinks to be 0; sees.n_sinks is 2"},
           Case{"mamba", R"("d_inner": 8, "dt_rank": 1, "norm_eps": 1e-5)",
                "norm_eps is 1e-05, which counts only where norm is not none"},
           Case{"mamba2", R"("n_heads": 2, "rms_norm": false, "norm_before_gate": true)",
                "norm_before_gate is true, which counts only where rms_norm is true"},
           Case{"mamba2", R"("n_heads": 2, "rms_norm": false, "norm_eps": 1e-6)",
                "norm_eps is 1e-06, which counts only where rms_norm is true"},
           Case{"retention", R"("head_k": 4, "head_v": 4, "rope_theta": 100)",
                "rope_theta is 100, which counts only where rotary_dim is positive"},
           Case{"linear_attention", R"("head_k": 4, "head_v": 4, "n_features": 8)",
                "n_features is 8, which counts only where feature_map is favor"},
           Case{"linear_attention", R"("head_k": 4, "head_v": 4, "max_length": 8)",
                "max_length is 8, which counts only where feature_map is cosformer"},
           Case{"linear_attention", R"("head_k": 4, "head_v": 4, "norm_eps": 1e-6)",
                "norm_eps is 1e-06, which counts only where output_norm is true"},
           Case{"mixture_of_experts", R"("d_ff": 4, "normalize_top_k": true)",
                "normalize_top_k is true, which counts only where router is not mixtral"},
           Case{"mixture_of_experts",
                R"("d_ff": 4, "router": "softmax_then_top_k", "routed_scaling": 2)",
                "routed_scaling is 2, which counts only where router is deepseek_v3"},
       }) {
    const Json config = seqmix::parse_json(R"({"d_model": 8, )" + one.config + "}", one.layer);
    CHECK_THAT(error_of<ConfigError>([&] { registry<float>().complete_config(one.layer, config); }),
               StartsWith(one.layer + ": ") && ContainsSubstring(one.text));
  }
}

TEST_CASE("a field that no part reads is refused, flat and nested") {
  Json config = seqmix::parse_json(
      R"({"d_model": 8, "norm_eps": 1e-3, "d_inner": 8, "dt_rank": 1, "n_heads": 2,
          "n_kv_heads": 1, "head_dim": 4, "d_ff": 4, "n_experts": 2})",
      "jamba_block");
  const auto complete = [&] { return registry<float>().complete_config("jamba_block", config); };
  const auto error = [&] { return error_of<ConfigError>(complete); };
  // In a flat config the parts share a field: Mamba without norms does not read norm_eps, the block
  // does.
  Json nested = complete();
  CHECK(nested["layers.0"]["norm_eps"] == 1e-3);
  CHECK(nested["layers.0"]["mixer"]["norm_eps"] == 1e-6);
  config["qk_norm_eps"] = 1e-3;
  CHECK(
      error() ==
      "jamba_block: layers.4.mixer.heads.qk_norm_eps is 0.001, which counts only where qk_norm is "
      "not none");
  config = nested;
  CHECK(complete() == nested);
  config["layers.0"]["mixer"]["norm_eps"] = 1e-3;
  CHECK(error() ==
        "jamba_block: layers.0.mixer.norm_eps is 0.001, which counts only where norm is not none");
}

TEST_CASE("a block whose parts have their own norm_eps is its twin") {
  int blocks = 0;
  for_each_config([&](const reference::Twin& twin, const Json& legal) {
    Json config = legal;
    for (auto& [key, part] : config.items()) {
      if (!part.is_object() || !part.contains("mixer")) continue;
      part["norm_eps"] = 1e-2;
      if (part["mixer"].contains("norm_eps")) part["mixer"]["norm_eps"] = 0.3;
    }
    if (config == legal) return;
    ++blocks;
    INFO(twin.layer << " " << config);
    CHECK(registry<double>().complete_config(twin.layer, config) == config);
    const LayerCase<double> layer(twin, config.dump());
    const auto x = layer.random_input(2, 19, 3);
    Context context;
    const auto y = forward<double>(layer, x, context);
    CHECK(relative_error<double, double>(numbers_of(y.view()), layer.truth(x).y.numbers) < 1e-12);
  });
  CHECK(blocks == 4);
}

TEST_CASE("fields that need each other are refused with both") {
  struct Case {
    std::string layer, config, text;
  };
  for (const Case& one : {
           Case{"attention",
                R"("head_dim": 4, "rotary_dim": 4, "rope_scaling": "yarn", "rope_theta": 1,
                   "rope_original_length": 64)",
                "rope_scaling yarn needs a rope_theta above 1; rope_theta is 1"},
           Case{"linear_attention", R"("head_k": 4, "head_v": 4, "feature_map": "relu", "eps": 0)",
                "eps must be positive where all features may be 0: relu, cosformer; eps is 0"},
           Case{"attention", R"("head_dim": 4, "n_heads": 3, "difference": true)",
                "merge.kind difference needs pairs of heads: an even heads.n_heads; heads.n_heads "
                "is 3"},
           Case{"attention",
                R"("head_dim": 4, "n_heads": 4, "n_kv_heads": 4, "n_key_heads": 1,
                   "n_value_heads": 2)",
                "n_key_heads and n_value_heads exclude each other"},
           Case{"attention", R"("head_dim": 4, "values_are_keys": true, "value_dim": 3)",
                "values_are_keys needs value_dim, n_key_heads and n_value_heads to be 0"},
           Case{"attention", R"("head_dim": 4, "values_are_keys": true, "head_conv_kernel": 3)",
                "values_are_keys needs conv_kernel to be 0"},
           Case{"bidirectional_attention", R"("head_dim": 4, "head_conv_kernel": 3)",
                "heads.conv_kernel needs causal attention; heads.conv_kernel is 3"},
           Case{"sliding_window_attention",
                R"("head_dim": 4, "window": 8, "head_conv_kernel": 3, "max_rollback": 3)",
                "store.max_rollback needs heads.conv_kernel to be 0"},
           Case{"sliding_window_attention", R"("head_dim": 4, "window": 536870912, "dilation": 4)",
                "the tokens that sees.window, sees.windows, sees.dilation, sees.chunk, "
                "sees.chunks_back, sees.segments, positions.remap_window and store.max_rollback "
                "keep must not exceed 2^30; "
                "positions.remap_window is 0, sees.window is 536870912, sees.dilation is 4"},
           Case{"cross_attention",
                R"("d_source": 4, "head_dim": 4, "temperature": "logarithmic",
                   "temperature_length": 9)",
                "scores.temperature needs positions, which cross attention has none of"},
           Case{"cross_attention",
                R"("d_source": 4, "head_dim": 4, "qk_norm": "head", "qk_norm_rotated": true)",
                "heads.qk_norm_rotated needs positions"},
           Case{"multi_head_latent_attention",
                R"("kv_rank": 4, "nope_dim": 4, "rotary_dim": 4, "head_v": 4, "rope_xpos": 512)",
                "positions.rope_xpos needs keys of each head; positions.rope_xpos is 512"},
           Case{"multi_head_latent_attention",
                R"("kv_rank": 4, "nope_dim": 4, "rotary_dim": 4, "shared_dim": 2, "head_v": 4)",
                "must not exceed shared_dim"},
           Case{"block_sparse_attention",
                R"("head_dim": 4, "pattern": "fixed", "block": 1, "span": 1073741824,
                   "n_verticals": 1073741824, "vertical_blocks": 1073741824)",
                "n_verticals groups of vertical_blocks blocks must fit in span"},
           Case{"block_sparse_attention", R"("head_dim": 4, "pattern": "dense,local")",
                "pattern must not have more names than there are heads, heads.n_heads; "
                "heads.n_heads "
                "is 1"},
           Case{"block_sparse_attention", R"("head_dim": 4, "pattern": "dense,locl")",
                "pattern: got \"locl\", expected one of dense, local"},
       }) {
    const Json config = seqmix::parse_json(R"({"d_model": 8, )" + one.config + "}", one.layer);
    CHECK_THAT(error_of<ConfigError>([&] { registry<float>().complete_config(one.layer, config); }),
               StartsWith(one.layer + ": ") && ContainsSubstring(one.text));
  }
}

TEST_CASE("a size of any value is refused by its name, and makes no memory") {
  constexpr Index most = std::numeric_limits<Index>::max();
  const seqmix::MemoryTensors none({}, "the file");
  for_each_config([&](const reference::Twin& twin, const Json& legal) {
    for (const Field& field : fields_of(legal)) {
      if (!field.value.is_number_integer()) continue;
      for (const Index size : {Index{0}, Index{-1}, Index{10'000'000}, seqmix::largest_size,
                               Index{1} << 31, Index{1} << 62, most}) {
        Json config = legal;
        config[field.at] = size;
        INFO(twin.layer << " " << config);
        forget_peak();
        const std::int64_t before = allocated_bytes();
        const std::string text =
            error_of<Error>([&] { registry<float>().make(twin.layer, config, none); });
        CHECK(peak_bytes() - before < 1'000'000);
        const bool is_size = field.name != "seed";
        if (is_size && size > seqmix::largest_size) {
          CHECK(text == twin.layer + ": " + field.name + " is " + std::to_string(size) +
                            ", expected at most 1073741824");
        } else {
          CHECK_THAT(text,
                     ContainsSubstring(field.list_or_key()) || ContainsSubstring("is missing"));
        }
      }
    }
  });
}

TEST_CASE("all sizes at their largest make products that fit") {
  const seqmix::MemoryTensors none({}, "the file");
  for_each_config([&](const reference::Twin& twin, const Json& legal) {
    Json config = legal;
    for (const Field& field : fields_of(legal)) {
      if (field.value.is_number_integer() && field.value != 0) {
        config[field.at] = seqmix::largest_size;
      }
    }
    INFO(twin.layer << " " << config);
    CHECK_FALSE(error_of<Error>([&] { registry<float>().make(twin.layer, config, none); }).empty());
    int visited = 0;
    const auto check = [&](const std::string&, const std::vector<Index>& shape,
                           const seqmix::Initializer&) {
      for (const Index extent : shape) CHECK(extent > 0);
      if (++visited == 100) throw ShapeError("experts and hidden layers go on like this");
    };
    CHECK_NOTHROW(
        error_of<Error>([&] { registry<float>().visit_parameters(twin.layer, config, check); }));
  });
}

TEST_CASE("parts that a config asks for are made as their tensors are found") {
  struct Case {
    std::string layer, config, first, missing;
    std::vector<Index> shape;
  };
  for (const Case& one : {
           Case{"mixture_of_experts",
                R"({"d_model": 1, "d_ff": 1, "n_experts": 20000, "n_experts_per_token": 1})",
                "gate.weight",
                "experts.0.w1.weight",
                {20000, 1}},
           Case{"switch_mixture_of_experts",
                R"({"d_model": 1, "d_ff": 1, "n_experts": 20000})",
                "router.classifier.weight",
                "experts.0.wi.weight",
                {20000, 1}},
       }) {
    Tensor<float, 1> numbers({one.shape[0]});
    auto tensor = seqmix::stored_tensor(one.first, numbers.view());
    tensor.shape = one.shape;
    const seqmix::MemoryTensors tensors({tensor}, "the file");
    const Json config = seqmix::parse_json(one.config, one.layer);
    forget_peak();
    const std::int64_t before = allocated_bytes();
    CHECK(error_of<Error>([&] { registry<float>().make(one.layer, config, tensors, ""); }) ==
          "the file: tensor \"" + one.missing + "\" is missing");
    CHECK(peak_bytes() - before < 1'000'000);
  }

  // The hidden layers of Hyena's filters: those of a smaller network, and no more.
  const Json small = seqmix::parse_json(
      R"({"d_model": 4, "max_length": 8, "filter_width": 4, "filter_embedding": 3,
          "filter_inner_layers": 2})",
      "hyena");
  const auto weights = random_layer_weights(registry<float>(), "hyena", small);
  Json large = small;
  large["filter_inner_layers"] = 10'000'000;
  forget_peak();
  const std::int64_t before = allocated_bytes();
  CHECK(error_of<Error>([&] { registry<float>().make("hyena", large, weights, ""); }) ==
        weights.source() + ": tensor \"filter_fn.implicit_filter.6.bias\" is missing");
  CHECK(peak_bytes() - before < 1'000'000);
}

TEST_CASE("weights with too few or too many parts are refused by name") {
  using namespace seqmix;
  MixtureOfExpertsConfig config{.d_model = 4, .d_ff = 6, .n_experts = 3};
  using Experts = MixtureOfExpertsDefinition<double>;
  auto weights = random_weights<Experts::Weights>(config, 1);
  CHECK(count_parameters(std::as_const(weights), config) == 3 * 4 + 3 * 3 * 24);
  const auto error = [&] {
    return error_of<ShapeError>([&] { MixtureOfExperts<double>(config, weights); });
  };
  CHECK(error().empty());
  weights.experts.emplace_back();
  CHECK(error() == "experts: the weights have 4 parts, expected 3");
  weights.experts.resize(2);
  CHECK(error() == "mixture_of_experts: weight experts.2.w1.weight is missing, expected [6, 4]");
  // What is not there can be listed all the same.
  const Experts::Weights nothing{};
  Index listed = 0;
  Experts::Weights::visit(nothing, std::as_const(config),
                          [&]<class P>(const Name&, const P&, Shape<P::rank> shape, auto...) {
                            listed += shape.size();
                          });
  CHECK(listed == 3 * 4 + 3 * 3 * 24);

  HyenaConfig filters{.d_model = 3, .max_length = 5, .filter_width = 4};
  auto network = random_weights<HyenaDefinition<double>::Weights>(filters, 2);
  network.filter_layers.pop_back();
  CHECK(error_of<ShapeError>([&] { Hyena<double>(filters, network); }) ==
        "hyena: weight filter_fn.implicit_filter.4.weight is missing, expected [4, 4]");
}

/// A layer whose `Weights::visit` forgets a projection.
struct ForgetfulDefinition {
  using Scalar = float;
  struct Config {
    Index d_model = 0;
    static void visit(auto& self, auto&& field) { field("d_model", self.d_model); }
  };
  using State = seqmix::NoState;
  static constexpr seqmix::Traits traits{.name = "forgetful"};
  struct Weights {
    seqmix::Projection<float> named, forgotten;
    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("named.weight", self.named.weight, {c.d_model, c.d_model});
    }
  };
  Config c;
  Weights w;
  State make_state(Index, Index, seqmix::Memory) const { return {}; }
  void run(View<const float, 2> x, State&, View<float, 2> y, const seqmix::Call& call) const {
    auto scratch = call.scratch<float>();
    auto hidden = scratch(x.extent(0), c.d_model);  // [T, D]
    seqmix::project(x, {{w.named, hidden}}, call);
    seqmix::project(hidden, {{w.forgotten, y}}, call);
  }
};

TEST_CASE("a weight that no visit names is missed with a reason") {
  ForgetfulDefinition::Weights weights;
  weights.named.weight = seqmix::Parameter<float, 2>(random_tensor<float, 2>({4, 4}, 1));
  weights.forgotten.weight = seqmix::Parameter<float, 2>(random_tensor<float, 2>({4, 4}, 2));
  const seqmix::Mixer<ForgetfulDefinition> layer({.d_model = 4}, weights);
  const auto x = random_tensor<float, 3>({1, 3, 4}, 3);
  Tensor<float, 3> y(x.shape());
  Context context;
  CHECK(error_of<ShapeError>([&] { layer.forward(x, y, context); }) ==
        "matmul: there is no weight, expected one of shape [4, 4]; every weight of a layer must be "
        "named by its Weights::visit");
}

TEST_CASE("a bound below one that rounds to one is legal") {
  const Json config = seqmix::parse_json(
      R"({"d_model": 6, "n_heads": 2, "head_k": 2, "head_v": 3, "lower_bound": true})", "hgrn2");
  const auto all = random_layer_weights(registry<float>(), "hgrn2", config);
  const auto output = [&]<class S>(S, double bound) {
    std::vector<seqmix::StoredTensor> tensors;
    Tensor<double, 1> bounds({4});
    fill(bounds.view(), bound);
    for (const std::string& name : all.names()) {
      if (name != "lower_bound") tensors.push_back(all.entry(name));
    }
    tensors.push_back(seqmix::stored_tensor("lower_bound", bounds.view()));
    const auto layer = registry<S>().make("hgrn2", config, seqmix::MemoryTensors(tensors), "");
    Tensor<S, 3> y({1, 9, 6});
    Context context;
    layer.forward(random_tensor<S, 3>({1, 9, 6}, 1), y, context);
    return y;
  };
  CHECK(is_finite(output(float{}, 1 - 1e-9)));
  CHECK(is_finite(output(double{}, 1 - 1e-9)));
  CHECK(is_finite(output(float{}, 0)));
  for (const double bound : {-0.1, 1.1, infinity, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(error_of<ConfigError>([&] { output(float{}, bound); }) ==
          "hgrn2: every lower_bound must be from 0 to 1");
  }
}

// Limits of position.

/// A layer whose streams end after 40 tokens, and what the error says of it.
struct Limited {
  std::string layer, config, fields;
};
const Limited limited[] = {
    {"linear_attention",
     R"({"d_model": 6, "n_heads": 2, "head_k": 3, "head_v": 3, "feature_map": "cosformer",
         "max_length": 40})",
     "max_length"},
    {"hyena", R"({"d_model": 6, "max_length": 40})", "max_length"},
    {"hyena", R"({"d_model": 6, "max_length": 40, "step_form": "spread"})", "max_length"},
    {"block_sparse_attention",
     R"({"d_model": 6, "n_heads": 2, "head_dim": 3, "pattern": "layout", "block": 8,
         "layout_heads": 1, "layout_blocks": 5})",
     "layout_blocks * block"},
    {"big_bird_attention",
     R"({"d_model": 6, "n_heads": 2, "block": 8, "n_random": 1, "n_blocks": 5})",
     "n_blocks * block"}};

TEST_CASE("tokens beyond the last position are refused before anything is computed") {
  for (const Limited& one : limited) {
    INFO(one.layer << " " << one.config);
    const Json config = seqmix::parse_json(one.config, one.layer);
    const auto weights = random_layer_weights(registry<double>(), one.layer, config);
    const auto layer = registry<double>().make(one.layer, config, weights, "");
    const auto x = random_tensor<double, 3>({1, 41, 6}, 1);
    const auto first = [](auto&& of, Index count) { return of.view().template slice<1>(0, count); };
    const std::string limit = " exceed the 40 positions of " + one.fields;
    auto y = unwritten<double>(x.shape());
    const auto untouched = [&] {
      return std::all_of(y.data(), y.data() + y.size(), [](double v) { return std::isnan(v); });
    };
    Context context;
    CHECK(error_of<CapacityError>([&] { layer.forward(x, y, context); }) ==
          one.layer + ": 41 tokens after 0" + limit);
    Tensor<Index, 1> two({3}), even({3});
    two[1] = even[1] = 20, two[2] = 61, even[2] = 60;
    const auto documents = random_tensor<double, 2>({61, 6}, 2);
    auto z = unwritten<double>({1, 61, 6});
    CHECK(error_of<CapacityError>([&] {
            layer.forward_documents(documents, two, z.view()[0], context);
          }) == one.layer + ": 41 tokens after 0" + limit);
    CHECK(untouched());
    CHECK(std::isnan(z(0, 0, 0)));
    layer.forward_documents(documents.view().slice<0>(0, 60), even, z.view()[0].slice<0>(0, 60),
                            context);
    layer.forward(first(x, 40), first(y, 40), context);
    CHECK(std::isfinite(y(0, 39, 5)));
    if (!layer.continues()) continue;

    // Caches are as long as the limit; a state without any counts.
    auto state = layer.make_state(1, 40);
    layer.prefill(first(x, 38), state, first(y, 38), context);
    AnyState before = state;
    fill(y.view(), nan_of<double>);
    CHECK(error_of<CapacityError>([&] {
            layer.prefill(first(x, 3), state, first(y, 3), context);
          }) == one.layer + ": 3 tokens after 38" + limit);
    Tensor<Index, 1> three({2});
    three[1] = 3;
    CHECK_THROWS_AS(layer.prefill_documents(first(x, 3)[0], three, state, first(y, 3)[0], context),
                    CapacityError);
    CHECK(untouched());
    CHECK(valid_numbers(state) == valid_numbers(before));
    for (Index t = 38; t < 40; ++t) {
      layer.step(x.view().at<1>(t), state, y.view().at<1>(t), context);
    }
    before = state;
    CHECK(error_of<CapacityError>([&] {
            layer.step(x.view().at<1>(40), state, y.view().at<1>(40), context);
          }) == one.layer + ": 1 tokens after 40" + limit);
    CHECK(std::isnan(y(0, 40, 0)));
    CHECK(valid_numbers(state) == valid_numbers(before));
    layer.reset(state, 0);
    layer.step(x.view().at<1>(0), state, y.view().at<1>(0), context);
  }
}

TEST_CASE("a block has the least limit of its parts") {
  using namespace seqmix;
  LinearAttentionConfig linear{.d_model = 4, .n_heads = 1, .head_k = 2, .head_v = 2};
  const auto mixer = [&] {
    return AnyMixer<double>(LinearAttention<double>(
        linear, random_weights<LinearAttention<double>::Weights>(linear, 1)));
  };
  const auto block = [&] {
    return AnyMixer<double>(
        Block<double>({.branches = {{.parts = {{.name = "mixer", .mixer = mixer()}}}}}));
  };
  CHECK(block().position_limit().tokens == std::numeric_limits<Index>::max());
  linear.feature_map = FeatureMap::cosformer, linear.max_length = 30;
  CHECK(block().position_limit().tokens == 30);

  HyenaConfig filters{.d_model = 4, .max_length = 20, .filter_width = 3};
  const auto limit = [&] {
    return stack<double>({block(), Hyena<double>(filters, random_weights<Hyena<double>::Weights>(
                                                              filters, 1))})
        .definition()
        .position_limit()
        .tokens;
  };
  CHECK(limit() == 20);
  filters.max_length = 50;
  CHECK(limit() == 30);
}

}  // namespace
}  // namespace support
