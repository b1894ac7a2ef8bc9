// Model folders: each is written by hand beside the same model in parts, or beside another folder
// that must give the same logits.

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/io/model.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using support::random_weights;
using test::error_of;

using FeedForwardPart = FeedForwardDefinition<double>;
using Experts = MixtureOfExpertsDefinition<double>;
using Model = LanguageModel<double>;

constexpr Index vocabulary = 11;

/// How the tensors of a block are called, a literal copy of the published names.
struct Names {
  std::string blocks, mixer_norm, mixer, channel_norm, channel;
};
const Names llama_names{"model.layers.", "input_layernorm.", "self_attn.",
                        "post_attention_layernorm.", "mlp."};

/// config.json and tensors of a model, and its parts.
struct Small {
  Json config;
  std::map<std::string, std::pair<std::vector<Index>, std::vector<double>>> tensors;
  Model::Parts parts;

  template <Index Rank>
  void put(const std::string& name, const Tensor<double, Rank>& numbers) {
    const auto& extents = numbers.shape().extents;
    tensors[name] = {{extents.begin(), extents.end()},
                     {numbers.data(), numbers.data() + numbers.size()}};
  }
  /// A part of the next block behind its norm: `ours` is "mixer" or "channel".
  template <class Definition>
  Branch<double> branch(const std::string& ours, const std::string& norm, const std::string& theirs,
                        const Names& names, const typename Definition::Config& sizes) {
    using Weights = typename Definition::Weights;
    const auto number = static_cast<unsigned>(parts.blocks.size());
    const std::string block = names.blocks + std::to_string(number) + ".";
    const unsigned seed = 100 + 50 * number + (ours == "mixer" ? 0 : 25);
    Branch<double> result;
    result.before = {.kind = NormKind::rms,
                     .weight = random_tensor<double, 1>({sizes.d_model}, seed),
                     .eps = parts.norm.eps};
    put(block + norm + "weight", result.before.weight.to_tensor());
    auto weights = random_weights<Weights>(sizes, seed + 1);
    Weights::visit(weights, sizes,
                   [&]<class P>(const Name& name, const P& parameter, Shape<P::rank>, auto...) {
                     put(block + theirs + name.text(), parameter.to_tensor());
                   });
    result.parts.push_back({.name = ours, .mixer = Mixer<Definition>(sizes, std::move(weights))});
    return result;
  }
  template <class MixerPart>
  void add_block(const Names& names, const typename MixerPart::Config& mixer) {
    parts.blocks.push_back(Block<double>(
        {.branches = {branch<MixerPart>("mixer", names.mixer_norm, names.mixer, names, mixer)}}));
  }
  template <class MixerPart, class ChannelPart>
  void add_block(const Names& names, const typename MixerPart::Config& mixer,
                 const typename ChannelPart::Config& channel) {
    parts.blocks.push_back(Block<double>(
        {.branches = {
             branch<MixerPart>("mixer", names.mixer_norm, names.mixer, names, mixer),
             branch<ChannelPart>("channel", names.channel_norm, names.channel, names, channel)}}));
  }
  void add_ends(const std::string& embedding, const std::string& norm, Index d_model) {
    parts.embedding = random_tensor<double, 2>({vocabulary, d_model}, 1);
    parts.norm.kind = NormKind::rms;
    parts.norm.weight = random_tensor<double, 1>({d_model}, 2);
    parts.head.weight = Parameter<double, 2>(random_tensor<double, 2>({vocabulary, d_model}, 3));
    put(embedding, parts.embedding.to_tensor());
    put(norm, parts.norm.weight.to_tensor());
    put("lm_head.weight", parts.head.weight.to_tensor());
  }

  Model load(LoadOptions options = {}) const {
    const test::TemporaryFolder folder;
    write(folder);
    return load_language_model<double>(folder.path(), options);
  }
  void write(const test::TemporaryFolder& folder) const {
    folder.write("config.json", config.dump());
    test::SafetensorsBuilder file;
    for (const auto& [name, tensor] : tensors) {
      file.add(name, "F64", Json(tensor.first).dump(), tensor.second);
    }
    folder.write("model.safetensors", file.build());
  }
  Small with(const Json& changes) const {
    Small result = *this;
    result.config.update(changes);
    return result;
  }
  Small without(const std::string& key) const {
    Small result = *this;
    result.config.erase(key);
    return result;
  }
};

Tensor<double, 3> logits_of(const Model& model) {
  const Index B = 2, T = 9;
  Tensor<Index, 2> tokens({B, T});
  for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = i * i % vocabulary;
  Tensor<double, 3> logits({B, T, vocabulary});
  Context context;
  model.forward(tokens, logits, context);
  return logits;
}
bool same(const Model& a, const Model& b) {
  return support::same_bits(logits_of(a).view(), logits_of(b).view());
}
/// Whether the folder gives the logits of the parts.
bool same(const Small& small) { return same(small.load(), Model(small.parts)); }
std::string refusal(const Small& small) {
  return error_of<ConfigError>([&] { small.load(); });
}

AttentionConfig attention() {
  return {.d_model = 16,
          .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6},
          .positions = {.rotary_dim = 6}};
}
FeedForwardConfig feed_forward() { return {.d_model = 16, .d_ff = 20}; }

/// Two blocks; the config says no more than the sizes.
Small llama(const AttentionConfig& mixer = attention(),
            const FeedForwardConfig& channel = feed_forward()) {
  Small small{.config = {{"model_type", "llama"},
                         {"vocab_size", vocabulary},
                         {"hidden_size", 16},
                         {"intermediate_size", 20},
                         {"num_hidden_layers", 2},
                         {"num_attention_heads", 4},
                         {"num_key_value_heads", 2},
                         {"head_dim", 6}},
              .tensors = {},
              .parts = {}};
  small.add_ends("model.embed_tokens.weight", "model.norm.weight", 16);
  for (int i = 0; i < 2; ++i) {
    small.add_block<AttentionDefinition<double>, FeedForwardPart>(llama_names, mixer, channel);
  }
  return small;
}

Small mixtral(AttentionConfig mixer = attention()) {
  Small small = llama();
  small.config.update(
      {{"model_type", "mixtral"}, {"num_local_experts", 3}, {"intermediate_size", 12}});
  small.tensors.clear(), small.parts = {};
  small.parts.norm.eps = 1e-5;
  small.add_ends("model.embed_tokens.weight", "model.norm.weight", 16);
  Names names = llama_names;
  names.channel = "block_sparse_moe.";
  mixer.positions.rope_theta = 1e6;
  small.add_block<AttentionDefinition<double>, Experts>(
      names, mixer, {.d_model = 16, .d_ff = 12, .n_experts = 3, .n_experts_per_token = 2});
  small.config["num_hidden_layers"] = 1;
  return small;
}

Small mamba2(const Mamba2Config& mixer) {
  Small small{.config = {{"model_type", "mamba2"},
                         {"vocab_size", vocabulary},
                         {"hidden_size", 12},
                         {"num_hidden_layers", 1},
                         {"num_heads", 4},
                         {"head_dim", 6},
                         {"state_size", 5},
                         {"n_groups", 2}},
              .tensors = {},
              .parts = {}};
  small.parts.norm.eps = 1e-5;
  small.add_ends("backbone.embeddings.weight", "backbone.norm_f.weight", 12);
  small.add_block<Mamba2Definition<double>>({"backbone.layers.", "norm.", "mixer.", "", ""}, mixer);
  return small;
}
Mamba2Config mamba2_mixer() {
  return {.d_model = 12, .n_heads = 4, .head_dim = 6, .state_size = 5, .n_groups = 2};
}

/// Its parts are not the folder's: norms are stored around zero.
Small qwen3_next() {
  Small small{.config = {{"model_type", "qwen3_next"},
                         {"vocab_size", vocabulary},
                         {"hidden_size", 12},
                         {"intermediate_size", 10},
                         {"num_hidden_layers", 1},
                         {"linear_num_value_heads", 4},
                         {"linear_num_key_heads", 2},
                         {"linear_key_head_dim", 3},
                         {"linear_value_head_dim", 5},
                         {"num_experts", 0}},
              .tensors = {},
              .parts = {}};
  small.add_ends("model.embed_tokens.weight", "model.norm.weight", 12);
  Names names = llama_names;
  names.mixer = "linear_attn.";
  small.add_block<GatedDeltaNetDefinition<double>, FeedForwardPart>(
      names, {.d_model = 12, .n_heads = 4, .n_key_heads = 2, .head_k = 3, .head_v = 5},
      {.d_model = 12, .d_ff = 10});
  return small;
}

/// The same is true of these.
Small recurrent_gemma() {
  Small small{.config = {{"model_type", "recurrent_gemma"},
                         {"vocab_size", vocabulary},
                         {"hidden_size", 12},
                         {"intermediate_size", 20},
                         {"num_hidden_layers", 3},
                         {"num_attention_heads", 3},
                         {"num_key_value_heads", 1},
                         {"attention_window_size", 4}},
              .tensors = {},
              .parts = {}};
  small.add_ends("model.embed_tokens.weight", "model.final_norm.weight", 12);
  small.tensors.erase("lm_head.weight");
  const Names names{"model.layers.", "temporal_pre_norm.", "temporal_block.", "channel_pre_norm.",
                    "mlp_block."};
  const FeedForwardConfig channel{.d_model = 12, .d_ff = 10, .bias = true};
  const RgLruConfig recurrence{.d_model = 12, .lru_width = 12, .n_heads = 3};
  const AttentionConfig window{.d_model = 12,
                               .heads = {.n_heads = 3, .head_dim = 4, .o_bias = true},
                               .positions = {.rotary_dim = 2},
                               .sees = {.window = 4}};
  small.add_block<RgLruDefinition<double>, FeedForwardPart>(names, recurrence, channel);
  small.add_block<RgLruDefinition<double>, FeedForwardPart>(names, recurrence, channel);
  small.add_block<AttentionDefinition<double>, FeedForwardPart>(names, window, channel);
  return small;
}

/// A model of each architecture, and what its class takes for absent keys.
struct Architecture {
  Small small;
  std::string_view defaults;
};
std::vector<Architecture> architectures() {
  return {{llama(), detail::llama_dialect.defaults},
          {mixtral(), detail::mixtral_dialect.defaults},
          {mamba2(mamba2_mixer()), detail::mamba2_dialect.defaults},
          {qwen3_next(), detail::qwen3_next_dialect.defaults},
          {recurrent_gemma(), detail::recurrent_gemma_dialect.defaults}};
}

}  // namespace

TEST_CASE("a model folder that says only its sizes has the settings of its class") {
  CHECK(same(llama()));
  CHECK(same(mixtral()));
  CHECK(same(mamba2(mamba2_mixer())));
  // Each default, written out, changes nothing.
  for (const auto& [small, defaults] : architectures()) {
    Json full = parse_json(defaults, "defaults");
    full.update(small.config);
    CHECK(same(small.load(), small.with(full).load()));
  }
}

TEST_CASE("a model folder that lacks a size has that of its class") {
  // The tensors are of other sizes, so that the error says what was expected.
  const auto error = [](const Small& small, const std::string& key) {
    return error_of<CheckpointError>([&] { small.without(key).load(); });
  };
  CHECK_THAT(error(mamba2(mamba2_mixer()), "vocab_size"), ContainsSubstring("32768"));
  CHECK_THAT(error(llama(), "intermediate_size"), ContainsSubstring("11008"));
  CHECK_THAT(error(mixtral(), "intermediate_size"), ContainsSubstring("14336"));
  AttentionConfig grouped = attention();
  grouped.heads.n_heads = 16, grouped.heads.n_kv_heads = 8;
  const Small eight = mixtral(grouped).with({{"num_attention_heads", 16}});
  CHECK(same(eight.without("num_key_value_heads")));
  CHECK_THAT(error(eight.with({{"num_key_value_heads", nullptr}}), ""),
             ContainsSubstring("k_proj") && ContainsSubstring("96"));  // as many as heads
  CHECK_THAT(refusal(qwen3_next().without("num_experts")), ContainsSubstring("num_experts"));
  Small deep = qwen3_next().with({{"num_hidden_layers", 4}});
  CHECK_THAT(refusal(deep.with({{"layer_types", {"linear_attention"}}})),
             ContainsSubstring("layer_types") || ContainsSubstring("missing"));
  CHECK_THAT(refusal(qwen3_next().with({{"full_attention_interval", 1}})),
             ContainsSubstring("full_attention_interval: got 1, expected layer 0 to be"));
  CHECK_THAT(refusal(qwen3_next().with({{"layer_types", {"full_attention"}}})),
             ContainsSubstring("layer_types: got an array, expected layer 0 to be"));
}

TEST_CASE("a tied head is the embedding, by the class's word alone") {
  // An embedding that is the head as well, written down twice.
  const auto untied = [](Small small, const std::string& embedding) {
    small.tensors["lm_head.weight"] = small.tensors.at(embedding);
    return small.with({{"tie_word_embeddings", false}});
  };
  for (auto& [small, defaults] : architectures()) {
    const std::string embedding = small.config.at("model_type") == "mamba2"
                                      ? "backbone.embeddings.weight"
                                      : "model.embed_tokens.weight";
    const Model expected = untied(small, embedding).load();
    Small tied = small.with({{"tie_word_embeddings", true}});
    // A head of other numbers is ignored.
    tied.tensors["lm_head.weight"] = {{vocabulary, 1}, std::vector<double>(vocabulary)};
    CHECK(same(tied.load(), expected));
    tied.tensors.erase("lm_head.weight");
    const Model model = tied.load();
    CHECK(same(model, expected));
    CHECK(expected.parameters() - model.parameters() == vocabulary * model.d_model());
    CHECK(parse_json(defaults, "defaults").at("tie_word_embeddings") ==
          (small.config.at("model_type") == "recurrent_gemma"));
  }
  CHECK(same(recurrent_gemma().load(),
             untied(recurrent_gemma(), "model.embed_tokens.weight").load()));
}

TEST_CASE("a tied head in a narrower storage is the embedding, too") {
  for (const Storage storage : {Storage::bf16, Storage::f16, Storage::int8}) {
    Small small = llama().with({{"tie_word_embeddings", true}});
    const Model model = small.load({storage, Storage::native});
    const PackedMatrix<double> packed(small.parts.embedding.view(), storage);
    small.put("model.embed_tokens.weight", packed.unpack());
    small.put("lm_head.weight", packed.unpack());
    small.config["tie_word_embeddings"] = false;
    CHECK(support::relative_error(logits_of(model).view(),
                                  logits_of(small.load({storage, Storage::native})).view()) <
          1e-14);
  }
}

TEST_CASE("Mamba-2 of several groups is loaded as it was trained, or as transformers runs it") {
  Mamba2Config config = mamba2_mixer();
  config.norm_groups = 2;
  const Small trained = mamba2(config);
  config.norm_groups = 1;
  const Small published = mamba2(config);
  LoadOptions options;
  CHECK(same(trained.load(), Model(trained.parts)));
  options.mamba2_norm = Mamba2Norm::width;
  CHECK(same(trained.load(options), Model(published.parts)));
  CHECK_FALSE(same(Model(trained.parts), Model(published.parts)));
}

TEST_CASE("the biases and time steps of Mamba-2 are loaded as the config says") {
  Mamba2Config config = mamba2_mixer();
  config.bias = true, config.conv_bias = false, config.dt_min = 0.125, config.dt_max = 0.5;
  const Small small = mamba2(config);
  CHECK(same(small.with(
      {{"use_bias", true}, {"use_conv_bias", false}, {"time_step_limit", {0.125, 0.5}}})));
  for (const Json& limit : {Json(1), Json({0.1}), Json({0.1, "x"}), Json({0.1, 0.2, 0.3})}) {
    CHECK_THAT(refusal(small.with({{"time_step_limit", limit}})),
               ContainsSubstring("time_step_limit"));
  }
}

TEST_CASE("tensors that the class ignores are ignored, all others are refused") {
  const auto with = [](Small small, const std::string& name) {
    small.tensors[name] = {{2}, {1, 2}};
    return small;
  };
  const auto refused = [](const Small& small) {
    return error_of<CheckpointError>([&] { small.load(); });
  };
  const std::string table = "model.layers.0.self_attn.rotary_emb.inv_freq";
  CHECK(same(with(llama(), table)));
  CHECK(same(with(mixtral(), table)));
  CHECK(same(with(recurrent_gemma(), table).load(), recurrent_gemma().load()));
  CHECK(same(with(qwen3_next(), "mtp.fc.weight").load(), qwen3_next().load()));
  CHECK_THAT(refused(with(llama(), "mtp.fc.weight")), ContainsSubstring("mtp.fc.weight"));
  CHECK_THAT(refused(with(llama(), "model.rotary_emb")), ContainsSubstring("model.rotary_emb"));
  CHECK_THAT(refused(with(mamba2(mamba2_mixer()), table)), ContainsSubstring("inv_freq"));
}

TEST_CASE("biases, activations and windows of a model folder are those of its layers") {
  AttentionConfig mixer = attention();
  HeadsConfig& heads = mixer.heads;
  heads.q_bias = heads.k_bias = heads.v_bias = heads.o_bias = true;
  FeedForwardConfig channel = feed_forward();
  channel.bias = true;
  CHECK(same(llama(mixer, channel).with({{"attention_bias", true}, {"mlp_bias", true}})));
  const std::vector<std::pair<const char*, Activation>> names{
      {"silu", Activation::silu},          {"swish", Activation::silu},
      {"gelu", Activation::gelu},          {"gelu_pytorch_tanh", Activation::gelu_tanh},
      {"gelu_new", Activation::gelu_tanh}, {"quick_gelu", Activation::quick_gelu},
      {"relu2", Activation::relu_squared}, {"relu", Activation::relu}};
  for (const auto& [name, activation] : names) {
    channel = feed_forward(), channel.activation = activation;
    CHECK(same(llama(attention(), channel).with({{"hidden_act", name}})));
  }
  CHECK_THAT(refusal(llama().with({{"hidden_act", "mish"}})),
             ContainsSubstring("hidden_act: got \"mish\", expected one of silu, swish, gelu"));
  CHECK(same(mixtral().with({{"hidden_act", "swish"}})));
  CHECK(same(qwen3_next().with({{"hidden_act", "swish"}}).load(), qwen3_next().load()));
  CHECK(same(recurrent_gemma().with({{"hidden_activation", "gelu_new"}}).load(),
             recurrent_gemma().load()));
  CHECK_THAT(refusal(mixtral().with({{"hidden_act", "gelu"}})),
             ContainsSubstring("hidden_act: got \"gelu\", expected silu, all that is supported"));
  AttentionConfig window = attention();
  window.sees.window = 3;
  CHECK(same(mixtral(window).with({{"sliding_window", 3}})));
  CHECK_THAT(refusal(llama().with({{"sliding_window", 3}})), ContainsSubstring("sliding_window"));
}

TEST_CASE("the scaling of rotary positions in a model folder is that of the layer") {
  AttentionConfig mixer = attention();
  mixer.positions.rope_theta = 500;
  const auto check = [&](const RopeScalingConfig& scaling, Json rope) {
    mixer.positions.rope_scaling = scaling;
    const Small small = llama(mixer).with({{"rope_theta", 500.0}});
    CHECK(same(small.with({{"rope_scaling", rope}})));
    rope["rope_theta"] = 500;
    CHECK(same(small.with({{"rope_theta", 7.0}, {"rope_parameters", rope}})));
    rope["type"] = rope.at("rope_type");
    CHECK(same(small.with({{"rope_scaling", rope}})));
    rope.erase("rope_type");
    CHECK(same(small.with({{"rope_scaling", rope}})));
    rope["rope_type"] = "llama4";
    CHECK_THAT(refusal(small.with({{"rope_scaling", rope}})), ContainsSubstring("type"));
  };
  check({}, {{"rope_type", "default"}});
  check({.kind = RopeScaling::linear, .factor = 4}, {{"rope_type", "linear"}, {"factor", 4.0}});
  check({.kind = RopeScaling::llama3,
         .factor = 8,
         .original_length = 32,
         .low_freq_factor = 1.5,
         .high_freq_factor = 5},
        {{"rope_type", "llama3"},
         {"factor", 8},
         {"low_freq_factor", 1.5},
         {"high_freq_factor", 5.0},
         {"original_max_position_embeddings", 32}});
  check({.kind = RopeScaling::yarn, .factor = 4, .original_length = 2048},
        {{"rope_type", "yarn"}, {"factor", 4.0}, {"beta_fast", nullptr}});
  check({.kind = RopeScaling::yarn,
         .factor = 4,
         .original_length = 64,
         .beta_fast = 16,
         .beta_slow = 2,
         .attention_factor = 1.5},
        {{"rope_type", "yarn"},
         {"factor", 4.0},
         {"original_max_position_embeddings", 64},
         {"beta_fast", 16},
         {"beta_slow", 2},
         {"attention_factor", 1.5}});
  check({.kind = RopeScaling::yarn,
         .factor = 4,
         .original_length = 64,
         .attention_factor = (0.2 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1)},
        {{"rope_type", "yarn"},
         {"factor", 4.0},
         {"original_max_position_embeddings", 64},
         {"mscale", 2.0},
         {"mscale_all_dim", 0.5}});
}

TEST_CASE("a scaling of rotary positions that the layer does not have is refused") {
  const auto rope_error = [](const Json& rope) {
    return refusal(llama().with({{"rope_scaling", rope}}));
  };
  CHECK_THAT(rope_error({{"rope_type", "dynamic"}, {"factor", 2.0}}),
             ContainsSubstring("rope_scaling: rope_type: got \"dynamic\"") &&
                 ContainsSubstring("follow the length of the call"));
  CHECK_THAT(rope_error({{"type", "longrope"}}), ContainsSubstring("type: got \"longrope\""));
  CHECK_THAT(rope_error({{"factor", 2.0}}), ContainsSubstring("rope_type is missing"));
  CHECK_THAT(rope_error({{"rope_type", "linear"}}), ContainsSubstring("factor is missing"));
  CHECK_THAT(rope_error({{"rope_type", "linear"}, {"factor", 0.5}}),
             ContainsSubstring("rope_factor is 0.5, expected at least 1"));
  CHECK_THAT(rope_error({{"rope_type", "yarn"}, {"factor", 2.0}, {"truncate", false}}),
             ContainsSubstring("truncate: got false"));
  CHECK_THAT(rope_error({{"rope_type", "yarn"}, {"factor", 2.0}, {"attention_factor", 0.0}}),
             ContainsSubstring("attention_factor: got 0.0"));
  const Json linear{{"rope_type", "linear"}, {"factor", 2.0}};
  CHECK_THAT(refusal(llama().with({{"rope_scaling", linear}, {"rope_parameters", linear}})),
             ContainsSubstring("rope_scaling: got an object, expected null"));
  CHECK_THAT(refusal(recurrent_gemma().with({{"rope_scaling", linear}})),
             ContainsSubstring("rope_scaling"));
  for (const Json& wrong : {Json::array(), Json("linear"), Json(1), Json(false)}) {
    CHECK_THAT(rope_error(wrong), ContainsSubstring("rope_scaling: got"));
    CHECK_THAT(refusal(llama().with({{"rope_parameters", wrong}})),
               ContainsSubstring("rope_parameters: got"));
  }
  for (const Json& wrong :
       {Json("Infinity"), Json("-Infinity"), Json(-0.5), Json(2), Json(1e300)}) {
    CHECK_THAT(refusal(recurrent_gemma().with({{"partial_rotary_factor", wrong}})),
               ContainsSubstring("partial_rotary_factor: got"));
  }
  for (const Small& small : {llama(), mixtral()}) {
    CHECK_THAT(refusal(small.with({{"partial_rotary_factor", 0.5}})),
               ContainsSubstring("partial_rotary_factor: got 0.5"));
  }
}

TEST_CASE("a field of a wrong type or size is refused with its key, whatever the architecture") {
  for (const auto& [plain, defaults] : architectures()) {
    Small small = plain;
    if (small.config.at("num_hidden_layers") == 2 || small.config.contains("num_local_experts")) {
      small.config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 2.0}};
    }
    Json fields = parse_json(defaults, "defaults");
    fields.update(plain.config);
    for (const auto& [key, value] : fields.items()) {
      const auto refused = [&, key = key](const Json& wrong) {
        INFO(small.config.at("model_type") << ": " << key << " " << wrong);
        CHECK_THAT(refusal(small.with({{key, wrong}})), ContainsSubstring(": " + key));
      };
      refused(Json::object());
      if (key != "num_key_value_heads" && key != "head_dim") refused(nullptr);
      if (value.is_number_integer() && key != "num_experts") {
        if (key != "num_hidden_layers") refused(0);
        refused(-1);
        refused(std::int64_t{1} << 40);
        refused(std::uint64_t{1} << 63);
        refused(2.5);
      }
    }
  }
}

TEST_CASE("where memory ends while a model is loaded nothing ends the program") {
  const test::TemporaryFolder folder;
  llama()
      .with({{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}},
             {"architectures", {{"of", "no"}, {"use", "here"}}}})
      .write(folder);
  support::exhaust([&] { load_language_model<double>(folder.path()); });
}

TEST_CASE("a size of zero that others are divided by is refused, not divided by") {
  const std::string folder = SEQMIX_SOURCE_DIR "/tests/io/faults/";
  const auto error = [&](const std::string& name) {
    return error_of<ConfigError>([&] { load_language_model<float>(folder + name); });
  };
  CHECK_THAT(error("tiny_fpe_qwen3_next"),
             ContainsSubstring("linear_num_key_heads: got 0, expected an integer from 1"));
  CHECK_THAT(error("tiny_fpe_recurrent_gemma"),
             ContainsSubstring("num_attention_heads: got 0, expected an integer from 1"));
}

}  // namespace seqmix
