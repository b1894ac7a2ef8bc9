#pragma once

#include <array>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/blocks/decoder.hpp"
#include "seqmix/blocks/language_model.hpp"
#include "seqmix/io/load.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// How a Hugging Face model names the parts of a decoder; block names are behind `blocks` + number.
struct Dialect {
  std::string_view embedding, blocks, norm, mixer_norm, mixer, channel_norm, channel;
  std::string_view norm_eps;  // key of the config
};

inline constexpr Dialect llama_dialect{"model.embed_tokens.weight",
                                       "model.layers",
                                       "model.norm.weight",
                                       "input_layernorm",
                                       "self_attn",
                                       "post_attention_layernorm",
                                       "mlp",
                                       "rms_norm_eps"};
inline constexpr Dialect mixtral_dialect{
    "model.embed_tokens.weight", "model.layers", "model.norm.weight",
    "input_layernorm",           "self_attn",    "post_attention_layernorm",
    "block_sparse_moe",          "rms_norm_eps"};
inline constexpr Dialect mamba2_dialect{"backbone.embeddings.weight",
                                        "backbone.layers",
                                        "backbone.norm_f.weight",
                                        "norm",
                                        "mixer",
                                        "",
                                        "",
                                        "layer_norm_epsilon"};

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

/// Reads the fields of one Hugging Face config.json.
class HuggingFaceConfig {
 public:
  HuggingFaceConfig(const Json& json, std::string name) : json_(json), name_(std::move(name)) {}

  template <class Field>
  Field get(std::string_view key) const {
    return json_field<Field>(json_, key, name_);
  }
  /// Absent and null are the same to Hugging Face.
  template <class Field>
  Field get(std::string_view key, Field otherwise) const {
    return is_null(key) ? otherwise : get<Field>(key);
  }
  bool is_null(std::string_view key) const {
    return !json_.contains(key) || json_.at(std::string(key)).is_null();
  }
  /// Throws unless the field has the one value that the library's block stands for.
  template <class Field>
  void expect(std::string_view key, Field value) const {
    if (is_null(key) || get<Field>(key) == value) return;
    throw ConfigError(name_ + ": " + std::string(key) + " is " + json_.at(std::string(key)).dump() +
                      ", which this model does not support");
  }
  void expect_null(std::string_view key) const {
    if (is_null(key)) return;
    throw ConfigError(name_ + ": " + std::string(key) +
                      " is set, which this model does not support");
  }
  /// The RoPE base: at the top level, or in `rope_parameters` as newer files have it.
  double rope_theta() const {
    expect_null("rope_scaling");
    if (is_null("rope_parameters")) return get<double>("rope_theta", 10000.0);
    const HuggingFaceConfig rope(json_.at("rope_parameters"), name_ + ": rope_parameters");
    rope.expect<std::string>("rope_type", "default");
    return rope.get<double>("rope_theta", 10000.0);
  }
  /// [smallest, largest] time step of Mamba-2.
  std::pair<double, double> time_step_limit() const {
    if (is_null("time_step_limit")) return {0.0, std::numeric_limits<double>::infinity()};
    const Json& limit = json_.at("time_step_limit");
    if (!limit.is_array() || limit.size() != 2) {
      throw ConfigError(name_ + ": time_step_limit is " + limit.dump() + ", expected two numbers");
    }
    return {field_from_json<double>(limit[0], name_ + ": time_step_limit"),
            field_from_json<double>(limit[1], name_ + ": time_step_limit")};
  }

 private:
  const Json& json_;
  std::string name_;
};

inline AttentionConfig llama_attention_config(const HuggingFaceConfig& from) {
  from.expect("attention_bias", false);
  from.expect_null("sliding_window");
  AttentionConfig config;
  config.d_model = from.get<Index>("hidden_size");
  config.n_heads = from.get<Index>("num_attention_heads");
  config.n_kv_heads = from.get<Index>("num_key_value_heads", config.n_heads);
  require(config.n_heads > 0, "num_attention_heads must be positive");
  config.head_dim = from.get<Index>("head_dim", config.d_model / config.n_heads);
  config.rotary_dim = config.head_dim;
  config.rope_theta = from.rope_theta();
  return config;
}

inline FeedForwardConfig llama_channel_config(const HuggingFaceConfig& from) {
  FeedForwardConfig config;
  from.expect<std::string>("hidden_act", "silu");
  config.d_model = from.get<Index>("hidden_size");
  config.d_ff = from.get<Index>("intermediate_size");
  config.bias = from.get<bool>("mlp_bias", false);
  return config;
}

inline MixtureOfExpertsConfig mixtral_channel_config(const HuggingFaceConfig& from) {
  from.expect<std::string>("hidden_act", "silu");
  MixtureOfExpertsConfig config;
  config.d_model = from.get<Index>("hidden_size");
  config.d_ff = from.get<Index>("intermediate_size");
  config.n_experts = from.get<Index>("num_local_experts");
  config.n_experts_per_token = from.get<Index>("num_experts_per_tok");
  return config;
}

inline Mamba2Config mamba2_mixer_config(const HuggingFaceConfig& from) {
  from.expect<std::string>("hidden_act", "silu");
  from.expect("use_bias", false);
  from.expect("use_conv_bias", true);
  from.expect("rms_norm", true);
  Mamba2Config config;
  config.d_model = from.get<Index>("hidden_size");
  config.n_heads = from.get<Index>("num_heads");
  config.head_dim = from.get<Index>("head_dim");
  config.state_size = from.get<Index>("state_size");
  config.n_groups = from.get<Index>("n_groups");
  config.conv_kernel = from.get<Index>("conv_kernel");
  config.norm_eps = from.get<double>("layer_norm_epsilon");
  const auto [least, most] = from.time_step_limit();
  config.dt_min = least, config.dt_max = most;
  return config;
}

/// The blocks of a model whose every layer is the same decoder.
template <class Block, class S>
std::vector<AnyMixer<S>> load_blocks(const typename Block::Config& config, Index count,
                                     const Dialect& dialect, const Checkpoint& checkpoint,
                                     UsedNames& used) {
  std::vector<AnyMixer<S>> blocks;
  for (Index block = 0; block < count; ++block) {
    auto weights = load_weights<typename Block::Weights>(
        config, checkpoint,
        [&](std::string_view name) { return dialect_name(dialect, block, name); }, used);
    blocks.push_back(Mixer<Block>(config, std::move(weights)));
  }
  return blocks;
}

}  // namespace detail

/// A language model in Hugging Face's own format: `folder` holds config.json and model.safetensors,
/// or the shards that model.safetensors.index.json lists. Weights of any stored type are converted
/// to the compute type.
///
/// Architectures (`model_type`): llama, mixtral, mamba2. Throws `ConfigError` on a setting that the
/// library does not reproduce and `CheckpointError` on a tensor that is missing, misshapen or left
/// over.
template <class S>
LanguageModel<S> load_language_model(const std::filesystem::path& folder) {
  const std::filesystem::path config_path = folder / "config.json";
  const Json json = read_json(config_path);
  const detail::HuggingFaceConfig config(json, config_path.string());
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const std::string type = config.get<std::string>("model_type");
  const Index n_layers = config.get<Index>("num_hidden_layers");
  UsedNames used;

  const auto load = [&]<class Block>(const detail::Dialect& dialect, typename Block::Config block) {
    block.d_model = config.get<Index>("hidden_size");
    block.norm_eps = config.get<double>(dialect.norm_eps);
    const Index vocabulary = config.get<Index>("vocab_size");
    const auto parameter = [&]<Index Rank>(std::string_view name, Shape<Rank> shape) {
      used.insert(std::string(name));
      return checkpoint.parameter<S, Rank>(std::string(name), shape);
    };
    typename LanguageModel<S>::Parts parts;
    parts.embedding = parameter(dialect.embedding, Shape<2>{vocabulary, block.d_model});
    parts.blocks = detail::load_blocks<Block, S>(block, n_layers, dialect, checkpoint, used);
    parts.norm = parameter(dialect.norm, Shape<1>{block.d_model});
    parts.norm_eps = block.norm_eps;
    const bool tied = config.get<bool>("tie_word_embeddings", false);
    // A tied head is the embedding, and absent from the file.
    parts.head.weight = tied && !checkpoint.contains("lm_head.weight")
                            ? parts.embedding
                            : parameter("lm_head.weight", Shape<2>{vocabulary, block.d_model});
    checkpoint.expect_no_others(used);
    return LanguageModel<S>(std::move(parts));
  };

  if (type == "llama") {
    return load
        .template operator()<DecoderDefinition<AttentionDefinition<S>, FeedForwardDefinition<S>>>(
            detail::llama_dialect, {.mixer = detail::llama_attention_config(config),
                                    .channel = detail::llama_channel_config(config)});
  }
  if (type == "mixtral") {
    return load.template
    operator()<DecoderDefinition<AttentionDefinition<S>, MixtureOfExpertsDefinition<S>>>(
        detail::mixtral_dialect, {.mixer = detail::llama_attention_config(config),
                                  .channel = detail::mixtral_channel_config(config)});
  }
  if (type == "mamba2") {
    return load.template operator()<DecoderDefinition<Mamba2Definition<S>>>(
        detail::mamba2_dialect, {.mixer = detail::mamba2_mixer_config(config), .channel = {}});
  }
  throw ConfigError(config_path.string() + ": model_type is \"" + type +
                    "\", expected one of: llama, mixtral, mamba2");
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
