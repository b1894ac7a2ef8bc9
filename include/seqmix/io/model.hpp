#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/blocks/block.hpp"
#include "seqmix/blocks/language_model.hpp"
#include "seqmix/io/load.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/linear/gated_delta_net.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Whether a tensor holds the angles of rotary positions. Older files do; models compute their own.
inline bool is_rotary_table(std::string_view tensor) {
  return tensor.find("rotary_emb.inv_freq") != tensor.npos;
}

/// One architecture as Hugging Face writes it down.
struct Dialect {
  // What its class takes for keys that config.json lacks, without those whose default is None:
  // configuration_<model_type>.py of transformers 4.57.6.
  std::string_view defaults;
  // How it names the parts of a decoder; block names are behind `blocks` + number.
  std::string_view embedding, blocks, norm, mixer_norm, mixer, channel_norm, channel;
  std::string_view norm_eps = "rms_norm_eps";  // key of the config
  bool norms_around_zero = false;              // the decoder's norms multiply by 1 + weight
  // Which tensors of a file its class ignores.
  bool (*ignores)(std::string_view tensor) = is_rotary_table;
};

inline constexpr Dialect llama_dialect{
    .defaults = R"({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
                    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu",
                    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
                    "tie_word_embeddings": false, "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0, "attention_bias": false, "mlp_bias": false})",
    .embedding = "model.embed_tokens.weight",
    .blocks = "model.layers",
    .norm = "model.norm.weight",
    .mixer_norm = "input_layernorm",
    .mixer = "self_attn",
    .channel_norm = "post_attention_layernorm",
    .channel = "mlp"};
inline constexpr Dialect mixtral_dialect = [] {
  Dialect dialect = llama_dialect;
  dialect.defaults = R"({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
                         "num_hidden_layers": 32, "num_attention_heads": 32,
                         "num_key_value_heads": 8, "hidden_act": "silu",
                         "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
                         "tie_word_embeddings": false, "rope_theta": 1e6,
                         "partial_rotary_factor": 1.0, "num_experts_per_tok": 2,
                         "num_local_experts": 8})";
  dialect.channel = "block_sparse_moe";
  return dialect;
}();
inline constexpr Dialect qwen3_next_dialect = [] {
  Dialect dialect = llama_dialect;
  dialect.defaults = R"({"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632,
                         "num_hidden_layers": 48, "hidden_act": "silu", "rms_norm_eps": 1e-6,
                         "tie_word_embeddings": false, "linear_conv_kernel_dim": 4,
                         "linear_key_head_dim": 128, "linear_value_head_dim": 128,
                         "linear_num_key_heads": 16, "linear_num_value_heads": 32,
                         "num_experts": 512, "full_attention_interval": 4})";
  dialect.mixer = "linear_attn";
  dialect.norms_around_zero = true;
  dialect.ignores = [](std::string_view tensor) {
    return is_rotary_table(tensor) || tensor.starts_with("mtp");
  };
  return dialect;
}();
inline constexpr Dialect recurrent_gemma_dialect{
    .defaults = R"({"vocab_size": 256000, "hidden_size": 2560, "intermediate_size": 7680,
                    "num_hidden_layers": 26, "num_attention_heads": 10,
                    "attention_window_size": 2048, "conv1d_width": 4, "logits_soft_cap": 30.0,
                    "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
                    "hidden_activation": "gelu_pytorch_tanh", "partial_rotary_factor": 0.5,
                    "rope_theta": 10000.0, "attention_bias": false,
                    "block_types": ["recurrent", "recurrent", "attention"]})",
    .embedding = "model.embed_tokens.weight",
    .blocks = "model.layers",
    .norm = "model.final_norm.weight",
    .mixer_norm = "temporal_pre_norm",
    .mixer = "temporal_block",
    .channel_norm = "channel_pre_norm",
    .channel = "mlp_block",
    .norms_around_zero = true};
inline constexpr Dialect mamba2_dialect{
    .defaults = R"({"num_heads": 128, "head_dim": 64, "vocab_size": 32768, "hidden_size": 4096,
                    "state_size": 128, "num_hidden_layers": 64, "layer_norm_epsilon": 1e-5,
                    "conv_kernel": 4, "n_groups": 8, "use_bias": false, "use_conv_bias": true,
                    "hidden_act": "silu", "time_step_limit": [0.0, "Infinity"], "rms_norm": true,
                    "tie_word_embeddings": false})",
    .embedding = "backbone.embeddings.weight",
    .blocks = "backbone.layers",
    .norm = "backbone.norm_f.weight",
    .mixer_norm = "norm",
    .mixer = "mixer",
    .channel_norm = "",
    .channel = "",
    .norm_eps = "layer_norm_epsilon",
    .ignores = [](std::string_view) { return false; }};

/// The checkpoint's name of a parameter of block `block`.
inline std::string dialect_name(const Dialect& dialect, Index block, std::string_view name) {
  const std::array<std::pair<std::string_view, std::string_view>, 4> parts{
      {{"mixer_norm.", dialect.mixer_norm},
       {"mixer.", dialect.mixer},
       {"channel_norm.", dialect.channel_norm},
       {"channel.", dialect.channel}}};
  for (const auto& [ours, theirs] : parts) {
    if (!name.starts_with(ours)) continue;
    return std::string(dialect.blocks) + "." + std::to_string(block) + "." + std::string(theirs) +
           "." + std::string(name.substr(ours.size()));
  }
  throw CheckpointError("no checkpoint name for " + std::string(name));
}

/// The names in transformers' ACT2FN of the functions that the library has.
inline constexpr std::array<std::pair<std::string_view, Activation>, 11> activation_names{
    {{"silu", Activation::silu},
     {"swish", Activation::silu},
     {"gelu", Activation::gelu},
     {"gelu_python", Activation::gelu},
     {"gelu_pytorch_tanh", Activation::gelu_tanh},
     {"gelu_python_tanh", Activation::gelu_tanh},
     {"gelu_new", Activation::gelu_tanh},
     {"gelu_accurate", Activation::gelu_tanh},
     {"quick_gelu", Activation::quick_gelu},
     {"relu", Activation::relu},
     {"relu2", Activation::relu_squared}}};

/// Reads the fields of one Hugging Face config.json, or of an object inside it. A field that no
/// model can have is a `ConfigError` that starts with the file and the key.
class HuggingFaceConfig {
 public:
  /// What `object`, which must outlive this, lacks has the value of `defaults`, a JSON text.
  HuggingFaceConfig(const Json& object, std::string name, std::string_view defaults = "{}")
      : object_(object), defaults_(parse_json(defaults, "defaults")), name_(std::move(name)) {
    if (!object.is_object()) {
      throw ConfigError(name_ + ": got " + excerpt(object) + ", expected an object");
    }
  }

  /// Whether the class sees None: the key is null, or absent without a default.
  bool is_null(std::string_view key) const {
    const Json* const found = find(key);
    return found == nullptr || found->is_null();
  }
  template <class Field>
  Field get(std::string_view key) const {
    return json_field<Field>(holder_of(key), key, name_);
  }
  template <class Field>
  Field get(std::string_view key, Field in_place_of_null) const {
    return is_null(key) ? in_place_of_null : get<Field>(key);
  }
  /// An integer from `least` to 2^31, so that products of two sizes fit in `Index`.
  Index size(std::string_view key, Index least = 1) const {
    constexpr Index most = Index{1} << 31;
    const auto value = get<Index>(key);
    if (value < least || value > most) {
      fail(key, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value;
  }
  /// The part of `whole` that the factor at `key` keeps, rounded down.
  Index part_of(std::string_view key, Index whole) const {
    const double part = get<double>(key) * static_cast<double>(whole);
    if (!(part >= 0 && part <= static_cast<double>(whole))) fail(key, "a number from 0 to 1");
    return static_cast<Index>(part);
  }
  double positive(std::string_view key) const {
    const auto value = get<double>(key);
    if (!is_positive.has(value)) fail(key, is_positive.text());
    return value;
  }
  Activation activation(std::string_view key) const {
    const auto name = get<std::string>(key);
    std::string known;
    for (const auto& [theirs, ours] : activation_names) {
      if (name == theirs) return ours;
      known.append(known.empty() ? "" : ", ").append(theirs);
    }
    fail(key, "one of " + known);
  }
  HuggingFaceConfig object(std::string_view key) const {
    return {*find(key), name_ + ": " + std::string(key)};
  }
  /// A list of at least one number or string.
  template <class Field>
  std::vector<Field> list(std::string_view key) const {
    std::vector<Field> result;
    if (is_null(key) || !find(key)->is_array()) fail(key, "a list");
    for (const Json& item : *find(key)) {
      result.push_back(field_from_json<Field>(item, name_ + ": " + std::string(key)));
    }
    if (result.empty()) fail(key, "a list with items");
    return result;
  }

  /// Throws unless the field has the one value that the library's block stands for.
  template <class Field>
  void expect(std::string_view key, Field value) const {
    if (get<Field>(key) != value) fail(key, Json(value).dump() + ", all that is supported");
  }
  void expect_activation(std::string_view key, Activation value) const {
    if (activation(key) == value) return;
    fail(key, std::string(to_string(value)) + ", all that is supported");
  }
  void expect_null(std::string_view key) const {
    if (!is_null(key)) fail(key, "null, all that is supported");
  }
  [[noreturn]] void fail(std::string_view key, std::string_view expected) const {
    const Json* const found = find(key);
    throw ConfigError(name_ + ": " + std::string(key) + ": got " +
                      (found == nullptr ? "nothing" : excerpt(*found)) + ", expected " +
                      std::string(expected));
  }

 private:
  const Json& holder_of(std::string_view key) const {
    if (object_.contains(key)) return object_;
    return defaults_;
  }
  const Json* find(std::string_view key) const {
    const Json& holder = holder_of(key);
    const auto found = holder.find(key);
    return found == holder.end() ? nullptr : &*found;
  }

  const Json& object_;
  JsonDocument defaults_;
  std::string name_;
};

/// The scaling that `rope` describes, an object inside `from` with the kind `type` at `type_key`.
inline RopeScalingConfig rope_scaling(const HuggingFaceConfig& from, const HuggingFaceConfig& rope,
                                      std::string_view type_key, std::string_view type) {
  constexpr std::string_view original_length = "original_max_position_embeddings";
  RopeScalingConfig scaling;
  if (type == "default") return scaling;
  if (type == "linear") {
    scaling.kind = RopeScaling::linear;
  } else if (type == "llama3") {
    scaling.kind = RopeScaling::llama3;
    scaling.low_freq_factor = rope.get<double>("low_freq_factor");
    scaling.high_freq_factor = rope.get<double>("high_freq_factor");
    scaling.original_length = rope.size(original_length);
  } else if (type == "yarn") {
    scaling.kind = RopeScaling::yarn;
    // Python's `or`: null and 0 are the same.
    const auto number = [&](std::string_view key, double otherwise) {
      const double value = rope.get<double>(key, 0.0);
      return value == 0 ? otherwise : value;
    };
    scaling.beta_fast = number("beta_fast", 32);
    scaling.beta_slow = number("beta_slow", 1);
    scaling.original_length = rope.is_null(original_length) ? from.size("max_position_embeddings")
                                                            : rope.size(original_length);
    const double factor = rope.get<double>("factor");
    const double numerator = number("mscale", 0), denominator = number("mscale_all_dim", 0);
    if (!rope.is_null("attention_factor")) {
      scaling.attention_factor = rope.positive("attention_factor");
    } else if (numerator != 0 && denominator != 0) {
      const double more = factor > 1 ? 0.1 * std::log(factor) : 0;
      scaling.attention_factor = (numerator * more + 1) / (denominator * more + 1);
    }
    if (!rope.get<bool>("truncate", true)) rope.fail("truncate", "true, all that is supported");
  } else {
    const bool by_length = type == "dynamic" || type == "longrope";
    rope.fail(type_key, std::string("default, linear, yarn or llama3") +
                            (by_length ? "; its angles follow the length of the call, so that a "
                                         "sequence in pieces would not be the sequence as a whole"
                                       : ""));
  }
  scaling.factor = rope.get<double>("factor");
  return scaling;
}

/// Rotary positions: `rope_theta` and `rope_scaling`, or `rope_parameters` as newer files have it.
inline void read_positions(const HuggingFaceConfig& from, AttentionConfig& config) {
  PositionsConfig& positions = config.positions;
  positions.rope_theta = from.get<double>("rope_theta");
  positions.rotary_dim = from.part_of("partial_rotary_factor", config.heads.head_dim);
  const bool newer = !from.is_null("rope_parameters");
  if (newer) from.expect_null("rope_scaling");
  if (!newer && from.is_null("rope_scaling")) return;
  const HuggingFaceConfig rope = from.object(newer ? "rope_parameters" : "rope_scaling");
  if (newer) {
    positions.rope_theta = rope.get<double>("rope_theta", positions.rope_theta);
    if (!rope.is_null("partial_rotary_factor")) {
      positions.rotary_dim = rope.part_of("partial_rotary_factor", config.heads.head_dim);
    }
  }
  // "type" is the older name; a file may have both.
  const char* const key = rope.is_null("rope_type") && !rope.is_null("type") ? "type" : "rope_type";
  const auto type = newer ? rope.get<std::string>(key, "default") : rope.get<std::string>(key);
  if (rope.get<std::string>("type", type) != type) rope.fail("type", "that of rope_type, " + type);
  positions.rope_scaling = rope_scaling(from, rope, key, type);
}

inline AttentionConfig rotary_attention_config(const HuggingFaceConfig& from) {
  AttentionConfig config;
  config.d_model = from.size("hidden_size");
  config.heads.n_heads = from.size("num_attention_heads");
  config.heads.n_kv_heads =
      from.is_null("num_key_value_heads") ? config.heads.n_heads : from.size("num_key_value_heads");
  config.heads.head_dim =
      from.is_null("head_dim") ? config.d_model / config.heads.n_heads : from.size("head_dim");
  read_positions(from, config);
  return config;
}

/// The same with heads that are rotated as a whole.
inline AttentionConfig mixtral_attention_config(const HuggingFaceConfig& from) {
  AttentionConfig config = rotary_attention_config(from);
  if (config.positions.rotary_dim != config.heads.head_dim) from.fail("partial_rotary_factor", "1");
  if (!from.is_null("sliding_window")) config.sees.window = from.size("sliding_window");
  return config;
}
inline AttentionConfig llama_attention_config(const HuggingFaceConfig& from) {
  from.expect_null("sliding_window");
  AttentionConfig config = mixtral_attention_config(from);
  HeadsConfig& heads = config.heads;
  heads.q_bias = heads.k_bias = heads.v_bias = heads.o_bias = from.get<bool>("attention_bias");
  return config;
}

inline FeedForwardConfig gated_channel_config(const HuggingFaceConfig& from) {
  FeedForwardConfig config;
  config.d_model = from.size("hidden_size");
  config.d_ff = from.size("intermediate_size");
  config.activation = from.activation("hidden_act");
  return config;
}
inline FeedForwardConfig llama_channel_config(const HuggingFaceConfig& from) {
  FeedForwardConfig config = gated_channel_config(from);
  config.bias = from.get<bool>("mlp_bias");
  return config;
}

inline MixtureOfExpertsConfig mixtral_channel_config(const HuggingFaceConfig& from) {
  from.expect_activation("hidden_act", Activation::silu);
  MixtureOfExpertsConfig config;
  config.d_model = from.size("hidden_size");
  config.d_ff = from.size("intermediate_size");
  config.n_experts = from.size("num_local_experts");
  config.n_experts_per_token = from.size("num_experts_per_tok");
  return config;
}

inline Mamba2Config mamba2_mixer_config(const HuggingFaceConfig& from, Mamba2Norm norm) {
  from.expect_activation("hidden_act", Activation::silu);
  from.expect("rms_norm", true);
  Mamba2Config config;
  config.d_model = from.size("hidden_size");
  config.n_heads = from.size("num_heads");
  config.head_dim = from.size("head_dim");
  config.state_size = from.size("state_size");
  config.n_groups = from.size("n_groups");
  config.conv_kernel = from.size("conv_kernel");
  config.conv_bias = from.get<bool>("use_conv_bias");
  config.bias = from.get<bool>("use_bias");
  config.norm = norm;
  config.norm_eps = from.get<double>("layer_norm_epsilon");
  const auto limit = from.list<double>("time_step_limit");
  if (limit.size() != 2) from.fail("time_step_limit", "two numbers");
  config.dt_min = limit[0], config.dt_max = limit[1];
  return config;
}

/// Throws where layer `number` is none of linear attention.
inline void expect_linear_attention(const HuggingFaceConfig& from, Index number) {
  const std::string expected =
      "layer " + std::to_string(number) + " to be linear_attention, all that is supported";
  if (from.is_null("layer_types")) {
    const Index interval = from.size("full_attention_interval");
    if ((number + 1) % interval == 0) from.fail("full_attention_interval", expected);
  } else {
    const auto types = from.list<std::string>("layer_types");
    const auto at = static_cast<std::size_t>(number);
    if (at >= types.size() || types[at] != "linear_attention") from.fail("layer_types", expected);
  }
}
inline GatedDeltaNetConfig qwen3_next_mixer_config(const HuggingFaceConfig& from) {
  from.expect_activation("hidden_act", Activation::silu);
  GatedDeltaNetConfig config;
  config.d_model = from.size("hidden_size");
  config.n_heads = from.size("linear_num_value_heads");
  config.n_key_heads = from.size("linear_num_key_heads");
  config.head_k = from.size("linear_key_head_dim");
  config.head_v = from.size("linear_value_head_dim");
  config.conv_kernel = from.size("linear_conv_kernel_dim");
  config.norm_eps = from.get<double>("rms_norm_eps");
  return config;
}

/// Whether block `number` mixes by recurrence, not by attention; `block_types` repeat themselves.
inline bool is_recurrent_block(const HuggingFaceConfig& from, Index number) {
  const auto types = from.list<std::string>("block_types");
  const std::string& type = types[static_cast<std::size_t>(number) % types.size()];
  if (type != "recurrent" && type != "attention") {
    from.fail("block_types", "recurrent and attention as items");
  }
  return type == "recurrent";
}
inline RgLruConfig recurrent_gemma_mixer_config(const HuggingFaceConfig& from) {
  RgLruConfig config;
  config.d_model = from.size("hidden_size");
  config.lru_width = from.is_null("lru_width") ? config.d_model : from.size("lru_width");
  config.n_heads = from.size("num_attention_heads");
  config.conv_kernel = from.size("conv1d_width");
  return config;
}
inline AttentionConfig recurrent_gemma_attention_config(const HuggingFaceConfig& from) {
  from.expect_null("rope_scaling");
  AttentionConfig config = rotary_attention_config(from);
  HeadsConfig& heads = config.heads;
  heads.q_bias = heads.k_bias = heads.v_bias = from.get<bool>("attention_bias");
  heads.o_bias = true;
  config.sees.window = from.size("attention_window_size");
  return config;
}
/// One branch has half of `intermediate_size`.
inline FeedForwardConfig recurrent_gemma_channel_config(const HuggingFaceConfig& from) {
  from.expect_activation("hidden_activation", Activation::gelu_tanh);
  FeedForwardConfig config;
  config.d_model = from.size("hidden_size");
  config.d_ff = from.size("intermediate_size", 2) / 2;
  config.activation = Activation::gelu_tanh;
  config.bias = true;
  return config;
}

/// What all architectures share: the tensors of one folder under one dialect.
template <class S>
class ModelLoader {
 public:
  ModelLoader(HuggingFaceConfig config, const Checkpoint& checkpoint, const Dialect& dialect,
              Options options)
      : config_(std::move(config)), checkpoint_(checkpoint), dialect_(dialect), options_(options) {}

  const HuggingFaceConfig& config() const { return config_; }

  /// Part `name` ("mixer" or "channel") of block number `number`, behind its norm.
  template <class Definition>
  Branch<S> branch(Index number, const std::string& name, typename Definition::Config config) {
    const auto theirs = [&](const std::string& ours) {
      return dialect_name(dialect_, number, name + ours);
    };
    Branch<S> branch;
    branch.before = norm(theirs("_norm.weight"));
    auto weights = load_weights<Mixer<Definition>>(
        config, checkpoint_, [&](const std::string& ours) { return theirs("." + ours); }, used_);
    branch.parts.push_back(
        {.name = name, .mixer = Mixer<Definition>(config, std::move(weights), options_)});
    return branch;
  }

  /// The model of blocks that have the branches `branches_of(number)`.
  typename LanguageModel<S>::Parts load(auto&& branches_of) {
    const Index d_model = config_.size("hidden_size");
    const Shape<2> table{config_.size("vocab_size"), d_model};
    typename LanguageModel<S>::Parts parts;
    parts.embedding = parameter(dialect_.embedding, table);
    for (Index number = 0; number < config_.size("num_hidden_layers", 0); ++number) {
      parts.blocks.push_back(Block<S>({.branches = branches_of(number)}));
    }
    parts.norm = norm(dialect_.norm);
    if (config_.get<bool>("tie_word_embeddings")) {
      // The class takes the embedding, whether or not the file has a head, too.
      parts.head.weight = std::exchange(parts.embedding, {});
      used_.insert("lm_head.weight");
    } else {
      parts.head.weight = parameter("lm_head.weight", table);
    }
    pack_weight("language model", "lm_head.weight", parts.head.weight, options_.weights);
    for (std::string& name : checkpoint_.names()) {
      if (dialect_.ignores(name)) used_.insert(std::move(name));
    }
    checkpoint_.expect_no_others(used_);
    return parts;
  }

 private:
  template <Index Rank>
  Parameter<S, Rank> parameter(std::string_view name, Shape<Rank> shape) {
    used_.insert(std::string(name));
    return checkpoint_.parameter<S, Rank>(std::string(name), shape);
  }
  Norm<S> norm(std::string_view weight) {
    return {.kind = dialect_.norms_around_zero ? NormKind::rms_around_one : NormKind::rms,
            .weight = parameter(weight, Shape<1>{config_.size("hidden_size")}),
            .eps = config_.get<double>(dialect_.norm_eps)};
  }

  HuggingFaceConfig config_;
  const Checkpoint& checkpoint_;
  const Dialect& dialect_;
  Options options_;
  UsedNames used_;
};

template <class S>
using Branches = std::vector<Branch<S>>;

template <class S>
LanguageModel<S> load_llama(ModelLoader<S> from) {
  const HuggingFaceConfig& config = from.config();
  return LanguageModel<S>(from.load([&](Index number) {
    return Branches<S>{from.template branch<AttentionDefinition<S>>(number, "mixer",
                                                                    llama_attention_config(config)),
                       from.template branch<FeedForwardDefinition<S>>(
                           number, "channel", llama_channel_config(config))};
  }));
}

template <class S>
LanguageModel<S> load_mixtral(ModelLoader<S> from) {
  const HuggingFaceConfig& config = from.config();
  return LanguageModel<S>(from.load([&](Index number) {
    return Branches<S>{from.template branch<AttentionDefinition<S>>(
                           number, "mixer", mixtral_attention_config(config)),
                       from.template branch<MixtureOfExpertsDefinition<S>>(
                           number, "channel", mixtral_channel_config(config))};
  }));
}

template <class S>
LanguageModel<S> load_mamba2(ModelLoader<S> from, Mamba2Norm norm) {
  return LanguageModel<S>(from.load([&](Index number) {
    return Branches<S>{from.template branch<Mamba2Definition<S>>(
        number, "mixer", mamba2_mixer_config(from.config(), norm))};
  }));
}

template <class S>
LanguageModel<S> load_qwen3_next(ModelLoader<S> from) {
  const HuggingFaceConfig& config = from.config();
  config.template expect<Index>("num_experts", 0);
  return LanguageModel<S>(from.load([&](Index number) {
    expect_linear_attention(config, number);
    return Branches<S>{from.template branch<GatedDeltaNetDefinition<S>>(
                           number, "mixer", qwen3_next_mixer_config(config)),
                       from.template branch<FeedForwardDefinition<S>>(
                           number, "channel", gated_channel_config(config))};
  }));
}

template <class S>
LanguageModel<S> load_recurrent_gemma(ModelLoader<S> from) {
  const HuggingFaceConfig& config = from.config();
  auto parts = from.load([&](Index number) {
    const auto mixer = [&] {
      if (is_recurrent_block(config, number)) {
        return from.template branch<RgLruDefinition<S>>(number, "mixer",
                                                        recurrent_gemma_mixer_config(config));
      }
      return from.template branch<AttentionDefinition<S>>(number, "mixer",
                                                          recurrent_gemma_attention_config(config));
    };
    return Branches<S>{mixer(), from.template branch<FeedForwardDefinition<S>>(
                                    number, "channel", recurrent_gemma_channel_config(config))};
  });
  // The published model multiplies embeddings by a root that is rounded to bfloat16.
  const bfloat16 root(static_cast<float>(std::sqrt(static_cast<double>(parts.norm.weight.size()))));
  parts.embedding_scale = static_cast<double>(static_cast<float>(root));
  parts.logit_cap = from.config().positive("logits_soft_cap");
  return LanguageModel<S>(std::move(parts));
}

}  // namespace detail

/// How a model is loaded: how weights and caches are stored, and what config.json leaves open.
struct LoadOptions : Options {
  using Options::Options;
  LoadOptions() = default;
  LoadOptions(Options options) : Options(options) {}

  // Of Mamba-2 with several groups: as mamba_ssm trained it, or as transformers runs it.
  Mamba2Norm mamba2_norm = Mamba2Norm::group;
};

/// A language model in Hugging Face's own format: `folder` holds config.json and model.safetensors,
/// or the shards that model.safetensors.index.json lists. Weights of any stored type are converted
/// to the compute type; `options` says how those of projections and of the head, and the caches of
/// states, are kept. A tied head and the embedding are one parameter, so that a narrower storage
/// rounds both.
///
/// Architectures (`model_type`): llama, mixtral, mamba2, qwen3_next (layers of linear attention and
/// dense feed-forward), recurrent_gemma. An absent key has the default of transformers' class, and
/// a tensor that this class ignores is ignored. Throws `ConfigError` on a setting that the library
/// does not reproduce and `CheckpointError` on a tensor that is missing, misshapen or left over.
template <class S>
LanguageModel<S> load_language_model(const std::filesystem::path& folder,
                                     LoadOptions options = {}) {
  const std::string config_path = (folder / "config.json").string();
  const detail::JsonDocument document(read_json(config_path));
  const Json& json = document;
  const auto type = json_field<std::string>(json, "model_type", config_path);
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const auto loader = [&](const detail::Dialect& dialect) {
    return detail::ModelLoader<S>({json, config_path, dialect.defaults}, checkpoint, dialect,
                                  options);
  };
  if (type == "llama") return detail::load_llama<S>(loader(detail::llama_dialect));
  if (type == "mixtral") return detail::load_mixtral<S>(loader(detail::mixtral_dialect));
  if (type == "mamba2") {
    return detail::load_mamba2<S>(loader(detail::mamba2_dialect), options.mamba2_norm);
  }
  if (type == "qwen3_next") return detail::load_qwen3_next<S>(loader(detail::qwen3_next_dialect));
  if (type == "recurrent_gemma") {
    return detail::load_recurrent_gemma<S>(loader(detail::recurrent_gemma_dialect));
  }
  throw ConfigError(config_path + ": model_type is " + detail::in_quotes(type) +
                    ", expected one of: llama, mixtral, mamba2, qwen3_next, recurrent_gemma");
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
