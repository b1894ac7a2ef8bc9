#include "support/attention_parts.hpp"

#include <algorithm>
#include <string_view>

namespace support {
namespace {

using seqmix::Json;
using seqmix::parse_json;

enum class Of { both, causal, bidirectional };

std::vector<AttentionMember> make_members() {
  std::vector<AttentionMember> members;
  const auto add = [&](std::string_view slot, std::string_view name, std::string_view config,
                       Of of = Of::both) {
    Json json = Json::object();
    json[std::string(slot)] = parse_json(config, name);
    members.push_back({std::string(slot), std::string(name), std::move(json),
                       of != Of::bidirectional, of != Of::causal});
  };
  // Of two parts: what else turns, or is a bias, comes behind it.
  members.push_back({"sees", "first tokens at a distance",
                     parse_json(R"(
      {"positions": {"rotary_dim": 6, "remap": "lm_infinite"},
       "sees": {"window": 5, "n_sinks": 2}})",
                                "LM-Infinite"),
                     true, false});
  members.push_back({"content", "CAPE",
                     parse_json(R"(
      {"content": {"kind": "cape", "mlp_width": 7}, "bias": {"kind": "kerple_log"}})",
                                "CAPE"),
                     true, true});
  add("heads", "multi-query", R"({"n_kv_heads": 1})");
  add("heads", "one key head", R"({"n_key_heads": 1})");
  add("heads", "values that are keys", R"({"values_are_keys": true, "value_norm": true})");
  add("heads", "half as many value heads", R"({"n_value_heads": 1, "value_dim": 12})");
  add("heads", "short convolutions", R"({"conv_kernel": 4, "conv_bias": true, "conv_silu": true})",
      Of::causal);
  add("heads", "biases", R"({"q_bias": true, "v_bias": true, "o_bias": true})");
  add("heads", "clip", R"({"qkv_clip": 0.5})");
  add("heads", "value width", R"({"value_dim": 5})");
  add("heads", "RMSNorm of heads", R"({"qk_norm": "head", "qk_norm_eps": 0.01})");
  add("heads", "LayerNorm by head",
      R"({"qk_norm": "head", "qk_norm_kind": "layer", "qk_norm_weight": "by_head",
          "qk_norm_bias": true})");
  add("heads", "LayerNorm of projections", R"({"qk_norm": "projection", "qk_norm_kind": "layer"})");
  add("heads", "l2 norm after rotation",
      R"({"qk_norm": "head", "qk_norm_kind": "l2", "qk_norm_rotated": true})");
  add("heads", "weightless LayerNorm after rotation",
      R"({"qk_norm": "head", "qk_norm_kind": "layer", "qk_norm_weight": "none",
          "qk_norm_rotated": true})");
  add("heads", "l2 norm of projections", R"({"qk_norm": "projection", "qk_norm_kind": "l2"})");
  add("heads", "weightless norm", R"({"qk_norm": "head", "qk_norm_weight": "none"})");
  add("heads", "gate by head", R"({"output_gate": "head"})");
  add("heads", "gate by channel", R"({"output_gate": "channel"})");
  add("heads", "gated norm of outputs", R"({"output_norm": "gated_rms"})");

  add("positions", "rotary", R"({"rotary_dim": 6})");
  add("positions", "rotary, partial and interleaved",
      R"({"rotary_dim": 4, "rope_theta": 100, "rope_interleaved": true})");
  add("positions", "YaRN",
      R"({"rotary_dim": 6, "rope_scaling": "yarn", "rope_factor": 4,
          "rope_original_length": 64})");

  add("positions", "a table of angles",
      R"({"rotary_dim": 4, "rope_scaling": "table", "rope_angles": [1.25, 0.125]})");
  add("positions", "LongRoPE",
      R"({"rotary_dim": 6, "rope_scaling": "longrope", "rope_factor": 4,
          "rope_original_length": 16, "rope_length": 64, "rope_short_factor": [1, 1, 1],
          "rope_long_factor": [1, 2.5, 3.5]})");
  add("positions", "dynamic NTK",
      R"({"rotary_dim": 6, "rope_scaling": "dynamic", "rope_factor": 2,
          "rope_original_length": 16, "rope_length": 40})");
  add("positions", "resonance, behind an offset",
      R"({"rotary_dim": 4, "rotary_offset": 2, "rope_theta": 30, "rope_resonance": true})");
  add("positions", "given", R"({"rotary_dim": 6, "given": 1})");
  add("positions", "given on three axes",
      R"({"rotary_dim": 6, "given": 3, "rope_sections": [1, 0, 2]})");
  add("positions", "given on three axes in turn",
      R"({"rotary_dim": 6, "given": 3, "rope_sections": [1, 1, 1],
          "rope_section_order": "interleaved", "rope_interleaved": true})");
  add("positions", "Self-Extend",
      R"({"rotary_dim": 6, "rope_theta": 30, "remap": "self_extend", "remap_window": 5,
          "remap_group": 3})",
      Of::causal);
  add("positions", "Dual Chunk",
      R"({"rotary_dim": 6, "rope_theta": 30, "remap": "dual_chunk", "remap_chunk": 8,
          "remap_local": 3})",
      Of::causal);
  add("positions", "3D-RPE",
      R"({"rotary_dim": 6, "rope_theta": 3, "remap": "rpe_3d", "remap_chunk": 7,
          "remap_local": 2})",
      Of::causal);
  add("positions", "xPos", R"({"rotary_dim": 6, "rope_closed": true, "rope_xpos": 32})");

  add("positions", "dynamic NTK by call",
      R"({"rotary_dim": 6, "rope_scaling": "dynamic", "rope_factor": 2,
          "rope_original_length": 16, "rope_by_call": true})",
      Of::bidirectional);

  add("bias", "ALiBi", R"({"kind": "alibi"})");
  add("bias", "ALiBi in bfloat16", R"({"kind": "falcon_alibi"})");
  add("bias", "T5", R"({"kind": "t5", "num_buckets": 10, "max_distance": 20})");
  add("bias", "T5, both directions",
      R"({"kind": "t5", "num_buckets": 12, "max_distance": 16, "bidirectional": true})");
  add("bias", "relative", R"({"kind": "relative", "max_distance": 6})");
  add("bias", "KERPLE, logarithmic", R"({"kind": "kerple_log"})");
  add("bias", "KERPLE, power", R"({"kind": "kerple_power"})");
  add("bias", "Sandwich", R"({"kind": "sandwich", "sandwich_dim": 8, "max_positions": 100})");
  add("bias", "FIRE", R"({"kind": "fire", "fire_width": 7, "fire_initial_length": 12})");
  add("bias", "inverse squares", R"({"kind": "inverse_square"})");
  add("bias", "squares of logarithms", R"({"kind": "log_square"})");

  add("content", "forget gates", R"({"kind": "forget_gate"})", Of::causal);
  add("content", "CoPE", R"({"kind": "cope", "n_positions": 6})", Of::causal);
  add("content", "Transformer-XL", R"({"kind": "transformer_xl", "max_distance": 100})");
  add("content", "Transformer-XL, clamped", R"({"kind": "transformer_xl", "max_distance": 9})");
  add("content", "DeBERTa", R"({"kind": "deberta", "max_distance": 11, "query_bias": false})",
      Of::bidirectional);
  add("content", "DeBERTa, buckets",
      R"({"kind": "deberta", "position_buckets": 8, "max_distance": 24})", Of::bidirectional);
  add("content", "DeBERTa, content to position",
      R"({"kind": "deberta", "key_term": false, "position_buckets": 6, "max_distance": 16})");

  add("sees", "window", R"({"window": 7})");
  add("sees", "dilation", R"({"window": 4, "dilation": 3})", Of::causal);
  add("sees", "first tokens", R"({"window": 5, "n_sinks": 2})", Of::causal);
  add("sees", "windows by head", R"({"windows": [9, 3]})");
  add("sees", "windows by head, first tokens in place",
      R"({"windows": [4, 1, 7, 2], "n_sinks": 3, "sinks_in_place": true})", Of::causal);
  add("sees", "dilated segments", R"({"segments": [6, 16], "segment_dilations": [1, 4]})");
  add("sees", "chunks", R"({"chunk": 8})");
  add("sees", "shifted chunks", R"({"chunk": 8, "chunk_shift": 3})");
  add("sees", "shifted chunks, first tokens",
      R"({"chunk": 6, "chunk_shift": 3, "n_sinks": 2, "sinks_in_place": true})", Of::causal);
  add("sees", "chunks back", R"({"chunk": 5, "chunks_back": 1})");
  add("sees", "chunks ahead", R"({"chunk": 5, "chunks_ahead": 1})", Of::bidirectional);
  add("sees", "block-causal", R"({"chunk": 6, "all_chunks_back": true})", Of::bidirectional);
  add("sees", "prefix", R"({"prefix": 9})", Of::bidirectional);
  add("sees", "marked keys", R"({"key_mask": true})", Of::bidirectional);
  add("sees", "marked keys of a window", R"({"window": 4, "key_mask": true})", Of::bidirectional);

  add("scores", "scale", R"({"score_scale": 0.7})");
  add("scores", "scales by head", R"({"head_scale": true})");
  add("scores", "divisor", R"({"score_divisor": 0.6})");
  add("scores", "soft cap", R"({"soft_cap": 1.5})");
  add("scores", "sink logits", R"({"sink_logits": true})");
  add("scores", "stepped temperature",
      R"({"temperature": "stepped", "temperature_rate": 0.6, "temperature_length": 9})");
  add("scores", "logarithmic temperature",
      R"({"temperature": "logarithmic", "temperature_length": 5})");
  add("scores", "relu", R"({"normaliser": "relu"})");
  add("scores", "relu squared", R"({"normaliser": "relu_squared", "normaliser_length": 6})");
  add("scores", "sigmoid", R"({"normaliser": "sigmoid", "normaliser_length": 20})");
  add("scores", "sigmoid with a bias", R"({"normaliser": "sigmoid", "normaliser_bias": -0.7})");
  add("scores", "layer norm", R"({"normaliser": "layer_norm", "normaliser_eps": 0.01})");
  add("scores", "sparsemax", R"({"normaliser": "sparsemax", "score_scale": 1.2})");
  add("scores", "entmax", R"({"normaliser": "entmax15", "score_scale": 1.2})");
  add("scores", "stick-breaking", R"({"normaliser": "stick_breaking"})", Of::causal);
  add("scores", "stick-breaking, remainder",
      R"({"normaliser": "stick_breaking", "own_key": "remainder"})", Of::causal);
  add("scores", "geometric", R"({"normaliser": "geometric"})");
  add("scores", "geometric, own key hidden", R"({"normaliser": "geometric", "own_key": "hidden"})");

  add("store", "rollback", R"({"max_rollback": 3})", Of::causal);

  const auto add_pattern = [&](std::string_view name, std::string_view config, bool bidirectional) {
    members.push_back(
        {"pattern", std::string(name), parse_json(config, name), true, bidirectional});
  };
  add_pattern("window and strides", R"({"pattern": "local,strided", "span": 6})", true);
  add_pattern("rows and columns", R"({"pattern": "row,strided", "span": 7})", true);
  add_pattern("stripes", R"({"pattern": "stripes", "block": 4, "n_local": 2, "stripe_stride": 3})",
              true);
  add_pattern("layout", R"({"pattern": "layout", "block": 9, "layout_heads": 4,
                            "layout_blocks": 5})",
              true);
  add_pattern("fixed", R"({"pattern": "fixed", "block": 2, "span": 6})", false);
  add_pattern("BigBird", R"({"pattern": "big_bird", "block": 4, "n_global": 1, "n_local": 2,
                             "n_random": 1})",
              false);

  add("merge", "difference", R"({"kind": "difference", "sub_norm_weight": true})");
  return members;
}

}  // namespace

const std::vector<AttentionMember>& attention_members() {
  static const std::vector<AttentionMember> members = make_members();
  return members;
}

bool AttentionMember::is_of(const std::string& layer) const {
  if (layer == "cross_attention") return slot == "heads" || slot == "scores";
  if (layer == "multi_head_latent_attention") {
    return causal && (slot == "positions" || slot == "scores");
  }
  const bool sparse = layer.ends_with("block_sparse_attention");
  if (slot == "pattern" && !sparse) return false;
  if (sparse && (slot == "sees" || slot == "store" || slot == "content")) return false;
  return layer.starts_with("bidirectional") ? bidirectional : causal;
}

bool fit(const std::string& layer, const std::vector<const AttentionMember*>& members) {
  return std::ranges::all_of(members, [&](const AttentionMember* one) {
    const auto same_slot = [&](const AttentionMember* other) { return other->slot == one->slot; };
    return one->is_of(layer) && std::ranges::count_if(members, same_slot) == 1;
  });
}

Json attention_config(const std::string& layer,
                      const std::vector<const AttentionMember*>& members) {
  Json config = {{"d_model", 10}};
  if (layer == "multi_head_latent_attention") {
    config.update(
        {{"n_heads", 4}, {"kv_rank", 9}, {"nope_dim", 5}, {"shared_dim", 6}, {"head_v", 5}});
  } else {
    config["heads"] = {{"n_heads", 4}, {"n_kv_heads", 2}, {"head_dim", 6}};
  }
  if (layer == "cross_attention") config["d_source"] = 7;
  for (const AttentionMember* member : members) config.merge_patch(member->config);
  return config;
}

}  // namespace support
