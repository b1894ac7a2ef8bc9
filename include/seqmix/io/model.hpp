#pragma once

#include <array>
#include <cmath>
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
#include "seqmix/layers/attention/sliding_window_attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/linear/gated_delta_net.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// How a Hugging Face model names the parts of a decoder; block names are behind `blocks` + number.
struct Dialect {
  std::string_view embedding, blocks, norm, mixer_norm, mixer, channel_norm, channel;
  std::string_view norm_eps = "rms_norm_eps";  // key of the config
  bool norms_around_zero = false;              // the decoder's norms multiply by 1 + weight
};

inline constexpr Dialect llama_dialect{.embedding = "model.embed_tokens.weight",
                                       .blocks = "model.layers",
                                       .norm = "model.norm.weight",
                                       .mixer_norm = "input_layernorm",
                                       .mixer = "self_attn",
                                       .channel_norm = "post_attention_layernorm",
                                       .channel = "mlp"};
inline constexpr Dialect mixtral_dialect = [] {
  Dialect dialect = llama_dialect;
  dialect.channel = "block_sparse_moe";
  return dialect;
}();
inline constexpr Dialect qwen3_next_dialect = [] {
  Dialect dialect = llama_dialect;
  dialect.mixer = "linear_attn";
  dialect.norms_around_zero = true;
  return dialect;
}();
inline constexpr Dialect recurrent_gemma_dialect{.embedding = "model.embed_tokens.weight",
                                                 .blocks = "model.layers",
                                                 .norm = "model.final_norm.weight",
                                                 .mixer_norm = "temporal_pre_norm",
                                                 .mixer = "temporal_block",
                                                 .channel_norm = "channel_pre_norm",
                                                 .channel = "mlp_block",
                                                 .norms_around_zero = true};
inline constexpr Dialect mamba2_dialect{.embedding = "backbone.embeddings.weight",
                                        .blocks = "backbone.layers",
                                        .norm = "backbone.norm_f.weight",
                                        .mixer_norm = "norm",
                                        .mixer = "mixer",
                                        .channel_norm = "",
                                        .channel = "",
                                        .norm_eps = "layer_norm_epsilon"};

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

/// factor · x + offset, number by number.
template <class S, Index Rank>
Parameter<S, Rank> scaled(const Parameter<S, Rank>& parameter, S factor, S offset = 0) {
  Tensor<S, Rank> numbers = parameter.to_tensor();
  for (Index i = 0; i < numbers.size(); ++i) {
    numbers.data()[i] = factor * numbers.data()[i] + offset;
  }
  return numbers;
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
  /// Item `number` of a list of strings that repeats itself.
  std::string item_of_period(std::string_view key, Index number) const {
    const auto list = get_list(key);
    return list[static_cast<std::size_t>(number) % list.size()];
  }
  /// Throws unless item `number` of a list of strings is the one that the library's block stands
  /// for.
  void expect_item(std::string_view key, Index number, std::string_view value) const {
    const auto list = get_list(key);
    const auto at = static_cast<std::size_t>(number);
    if (at < list.size() && list[at] == value) return;
    throw ConfigError(name_ + ": " + std::string(key) + "[" + std::to_string(number) + "] is " +
                      (at < list.size() ? "\"" + list[at] + "\"" : "missing") + ", expected \"" +
                      std::string(value) + "\"");
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
  /// A list of at least one string.
  std::vector<std::string> get_list(std::string_view key) const {
    std::vector<std::string> result;
    if (!is_null(key) && json_.at(std::string(key)).is_array()) {
      for (const Json& item : json_.at(std::string(key))) {
        result.push_back(field_from_json<std::string>(item, name_ + ": " + std::string(key)));
      }
    }
    if (result.empty()) {
      throw ConfigError(name_ + ": " + std::string(key) + " must be a list of names");
    }
    return result;
  }

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

inline GatedDeltaNetConfig qwen3_next_mixer_config(const HuggingFaceConfig& from) {
  from.expect<std::string>("hidden_act", "silu");
  GatedDeltaNetConfig config;
  config.d_model = from.get<Index>("hidden_size");
  config.n_heads = from.get<Index>("linear_num_value_heads");
  config.n_key_heads = from.get<Index>("linear_num_key_heads");
  config.head_k = from.get<Index>("linear_key_head_dim");
  config.head_v = from.get<Index>("linear_value_head_dim");
  config.conv_kernel = from.get<Index>("linear_conv_kernel_dim");
  config.norm_eps = from.get<double>("rms_norm_eps");
  return config;
}

inline RgLruConfig recurrent_gemma_mixer_config(const HuggingFaceConfig& from) {
  RgLruConfig config;
  config.d_model = from.get<Index>("hidden_size");
  config.lru_width = from.get<Index>("lru_width", config.d_model);
  config.n_heads = from.get<Index>("num_attention_heads");
  config.conv_kernel = from.get<Index>("conv1d_width");
  return config;
}
inline SlidingWindowAttentionConfig recurrent_gemma_attention_config(
    const HuggingFaceConfig& from) {
  SlidingWindowAttentionConfig config;
  config.d_model = from.get<Index>("hidden_size");
  config.n_heads = from.get<Index>("num_attention_heads");
  config.n_kv_heads = from.get<Index>("num_key_value_heads", config.n_heads);
  require(config.n_heads > 0, "num_attention_heads must be positive");
  config.head_dim = config.d_model / config.n_heads;
  config.rotary_dim = static_cast<Index>(from.get<double>("partial_rotary_factor", 0.5) *
                                         static_cast<double>(config.head_dim));
  config.rope_theta = from.get<double>("rope_theta", 10000.0);
  config.qkv_bias = from.get<bool>("attention_bias", false);
  config.o_bias = true;
  config.window = from.get<Index>("attention_window_size");
  return config;
}
/// One branch has half of `intermediate_size`.
inline FeedForwardConfig recurrent_gemma_channel_config(const HuggingFaceConfig& from) {
  from.expect<std::string>("hidden_activation", "gelu_pytorch_tanh");
  FeedForwardConfig config;
  config.d_model = from.get<Index>("hidden_size");
  config.d_ff = from.get<Index>("intermediate_size") / 2;
  config.activation = Activation::gelu_tanh;
  config.bias = true;
  return config;
}

/// What all architectures share: the tensors of one folder under one dialect.
template <class S>
class ModelLoader {
 public:
  ModelLoader(const HuggingFaceConfig& config, const Checkpoint& checkpoint, const Dialect& dialect,
              Options options)
      : config_(config), checkpoint_(checkpoint), dialect_(dialect), options_(options) {}

  /// Block number `number`, a decoder of these parts.
  template <class MixerPart, class ChannelPart>
  AnyMixer<S> block(Index number, typename MixerPart::Config mixer,
                    typename ChannelPart::Config channel) {
    using Block = DecoderDefinition<MixerPart, ChannelPart>;
    typename Block::Config config;
    config.d_model = config_.get<Index>("hidden_size");
    config.norm_eps = config_.get<double>(dialect_.norm_eps);
    config.mixer = std::move(mixer), config.channel = std::move(channel);
    auto weights = load_weights<Block>(
        config, checkpoint_,
        [&](std::string_view name) { return dialect_name(dialect_, number, name); }, used_);
    weights.mixer_norm = norm(std::move(weights.mixer_norm));
    if constexpr (Block::has_channel) weights.channel_norm = norm(std::move(weights.channel_norm));
    return Mixer<Block>(config, std::move(weights), options_);
  }

  /// The model whose blocks `make_block(number)` makes.
  typename LanguageModel<S>::Parts load(auto&& make_block) {
    const Index d_model = config_.get<Index>("hidden_size");
    const Shape<2> table{config_.get<Index>("vocab_size"), d_model};
    typename LanguageModel<S>::Parts parts;
    parts.embedding = parameter(dialect_.embedding, table);
    for (Index number = 0; number < config_.get<Index>("num_hidden_layers"); ++number) {
      parts.blocks.push_back(make_block(number));
    }
    parts.norm = norm(parameter(dialect_.norm, Shape<1>{d_model}));
    parts.norm_eps = config_.get<double>(dialect_.norm_eps);
    const bool tied = config_.get<bool>("tie_word_embeddings", false);
    // A tied head is the embedding, and absent from the file.
    parts.head.weight = tied && !checkpoint_.contains("lm_head.weight")
                            ? parts.embedding
                            : parameter("lm_head.weight", table);
    parts.head.weight.pack(options_.weights);
    checkpoint_.expect_no_others(used_);
    return parts;
  }

 private:
  template <Index Rank>
  Parameter<S, Rank> parameter(std::string_view name, Shape<Rank> shape) {
    used_.insert(std::string(name));
    return checkpoint_.parameter<S, Rank>(std::string(name), shape);
  }
  Parameter<S, 1> norm(Parameter<S, 1> weight) const {
    return dialect_.norms_around_zero ? scaled(weight, S(1), S(1)) : std::move(weight);
  }

  const HuggingFaceConfig& config_;
  const Checkpoint& checkpoint_;
  const Dialect& dialect_;
  Options options_;
  UsedNames used_;
};

}  // namespace detail

/// A language model in Hugging Face's own format: `folder` holds config.json and model.safetensors,
/// or the shards that model.safetensors.index.json lists. Weights of any stored type are converted
/// to the compute type; `options` says how those of projections and of the head, and the caches of
/// states, are kept.
///
/// Architectures (`model_type`): llama, mixtral, mamba2, qwen3_next (layers of linear attention and
/// dense feed-forward), recurrent_gemma. Throws `ConfigError` on a setting that the library does
/// not reproduce and `CheckpointError` on a tensor that is missing, misshapen or left over.
template <class S>
LanguageModel<S> load_language_model(const std::filesystem::path& folder, Options options = {}) {
  using FeedForwardPart = FeedForwardDefinition<S>;
  const std::filesystem::path config_path = folder / "config.json";
  const Json json = read_json(config_path);
  const detail::HuggingFaceConfig config(json, config_path.string());
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const std::string type = config.get<std::string>("model_type");
  const auto loader = [&](const detail::Dialect& dialect) {
    return detail::ModelLoader<S>(config, checkpoint, dialect, options);
  };

  if (type == "llama") {
    auto from = loader(detail::llama_dialect);
    return LanguageModel<S>(from.load([&](Index number) {
      return from.template block<AttentionDefinition<S>, FeedForwardPart>(
          number, detail::llama_attention_config(config), detail::llama_channel_config(config));
    }));
  }
  if (type == "mixtral") {
    auto from = loader(detail::mixtral_dialect);
    return LanguageModel<S>(from.load([&](Index number) {
      return from.template block<AttentionDefinition<S>, MixtureOfExpertsDefinition<S>>(
          number, detail::llama_attention_config(config), detail::mixtral_channel_config(config));
    }));
  }
  if (type == "mamba2") {
    auto from = loader(detail::mamba2_dialect);
    return LanguageModel<S>(from.load([&](Index number) {
      return from.template block<Mamba2Definition<S>, NoChannelMixer<S>>(
          number, detail::mamba2_mixer_config(config), {});
    }));
  }
  if (type == "qwen3_next") {
    config.expect<Index>("num_experts", 0);
    auto from = loader(detail::qwen3_next_dialect);
    return LanguageModel<S>(from.load([&](Index number) {
      config.expect_item("layer_types", number, "linear_attention");
      return from.template block<GatedDeltaNetDefinition<S>, FeedForwardPart>(
          number, detail::qwen3_next_mixer_config(config), detail::llama_channel_config(config));
    }));
  }
  if (type == "recurrent_gemma") {
    auto from = loader(detail::recurrent_gemma_dialect);
    const auto channel = detail::recurrent_gemma_channel_config(config);
    auto parts = from.load([&](Index number) -> AnyMixer<S> {
      const std::string kind = config.item_of_period("block_types", number);
      if (kind == "recurrent") {
        return from.template block<RgLruDefinition<S>, FeedForwardPart>(
            number, detail::recurrent_gemma_mixer_config(config), channel);
      }
      if (kind == "attention") {
        return from.template block<SlidingWindowAttentionDefinition<S>, FeedForwardPart>(
            number, detail::recurrent_gemma_attention_config(config), channel);
      }
      throw ConfigError(config_path.string() + ": block_types has \"" + kind +
                        "\", expected recurrent or attention");
    });
    // The published model multiplies embeddings by a root that is rounded to bfloat16.
    const bfloat16 root(static_cast<float>(std::sqrt(static_cast<double>(parts.norm.size()))));
    parts.embedding = detail::scaled(parts.embedding, static_cast<S>(static_cast<float>(root)));
    parts.logit_cap = config.get<double>("logits_soft_cap", 30.0);
    return LanguageModel<S>(std::move(parts));
  }
  throw ConfigError(config_path.string() + ": model_type is \"" + type +
                    "\", expected one of: llama, mixtral, mamba2, qwen3_next, recurrent_gemma");
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
