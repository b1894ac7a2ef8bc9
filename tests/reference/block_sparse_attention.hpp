#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "reference/attention.hpp"

namespace reference {

/// Whether head h sees key j <= t, or in an encoder any key j. Child et al. 2019, arXiv:1904.10509,
/// section 4.3; the causal part of Zaheer et al. 2020, arXiv:2007.14062, figure 1, with draws from
/// SplitMix64; Lin et al. 2024, arXiv:2407.17678, section 3.
template <class S>
bool sees_sparsely(const Input<S>& in, Index h, Index t, Index j, bool causal) {
  std::vector<std::string> patterns(1);
  for (const char letter : in.config.at("pattern").template get<std::string>()) {
    if (letter == ',') {
      patterns.emplace_back();
    } else {
      patterns.back() += letter;
    }
  }
  const std::string& pattern = patterns[static_cast<std::size_t>(h) % patterns.size()];
  const auto size = [&](const char* name, Index otherwise) {
    return in.config.value(name, otherwise);
  };
  const Index span = size("span", 128), block = size("block", 64);
  const Index i = t / block, k = j / block;  // the blocks
  if (pattern == "local") return std::abs(t - j) < span || j < size("prefix", 0);
  if (pattern == "row") return t / span == j / span;
  if (pattern == "stripes") {
    const Index near = size("n_local", 3), stride = size("stripe_stride", 4);
    if (std::abs(i - k) < near) return true;
    if (!causal) return (std::abs(i - k) - near + 1) % stride == 0;
    const Index H = in.size("n_heads"), group = h / (H / in.size("n_kv_heads"));
    const Index given = size("stripe_step", 0);
    const Index step = given > 0 ? given : std::max<Index>(1, stride / H);
    return (k + group * step + size("stripe_offset", 0)) % stride == 0;
  }
  if (pattern == "strided") return (t - j) % span == 0;
  if (pattern == "fixed") {
    if (t / span == j / span) return true;
    const Index width = size("vertical_blocks", 1) * block;
    const Index group = h % size("n_verticals", 1), from_end = span - 1 - j % span;
    return group * width <= from_end && from_end < (group + 1) * width;
  }
  if (pattern == "big_bird") {
    if (k < size("n_global", 1) || k > i - size("n_local", 3)) return true;
    for (Index draw = 0; draw < size("n_random", 0); ++draw) {
      std::uint64_t bits = 0;
      for (const Index number : {size("seed", 0), h, i, draw}) {
        bits += static_cast<std::uint64_t>(number) + 11400714819323198485U;
        bits = (bits ^ (bits >> 30)) * 13787848793156543929U;
        bits = (bits ^ (bits >> 27)) * 10723151780598845931U;
        bits = bits ^ (bits >> 31);
      }
      const double fraction = static_cast<double>(bits >> 32) / 4294967296.0;
      if (static_cast<Index>(fraction * static_cast<double>(i + 1)) == k) return true;
    }
    return false;
  }
  if (pattern == "layout") {
    const Array<S>& layout = in.weight("layout");
    return layout(h % layout.shape[0], i, k) == 1;
  }
  return true;
}

/// All rows, each head of which sees what its pattern leaves.
template <class S>
void attend_sparsely(const Input<S>& in, bool causal, Output<S>& out) {
  const Index H = in.size("n_heads"), T = in.T();
  std::vector<bool> seen(static_cast<std::size_t>(H * T * T));  // a pattern knows no row
  const auto place = [T](Index h, Index t, Index j) {
    return static_cast<std::size_t>((h * T + t) * T + j);
  };
  for (Index h = 0; h < H; ++h) {
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < (causal ? t + 1 : T); ++j) {
        seen[place(h, t, j)] = sees_sparsely(in, h, t, j, causal);
      }
    }
  }
  const auto sees = [&](Index h, Index t, Index j) { return seen[place(h, t, j)]; };
  for (Index b = 0; b < in.B(); ++b) attention_row(in, b, sees, out);
}

template <class S>
Output<S> block_sparse_attention(const Input<S>& parts) {
  const Input<S> in = with_flat_config(parts);
  std::vector<Index> list;
  for (Index t = 0; t < in.T(); ++t) list.push_back(t);
  const auto [keys, values] = cached(in, list);
  Output<S> out{in.x, state_of(in, keys, values)};
  attend_sparsely(in, true, out);
  return out;
}

inline const std::vector<std::string> block_sparse_attention_configs{
    R"({"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rotary_dim": 8,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false,
        "pattern": "local,strided", "span": 12})",
    R"({"d_model": 9, "n_heads": 3, "n_kv_heads": 1, "head_dim": 5, "rotary_dim": 4,
        "rope_theta": 100, "rope_interleaved": true, "qkv_bias": true, "qk_norm": "head",
        "pattern": "fixed", "block": 5, "span": 30, "n_verticals": 2, "vertical_blocks": 2})",
    R"({"d_model": 13, "n_heads": 4, "n_kv_heads": 4, "head_dim": 6, "rotary_dim": 0,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false,
        "pattern": "big_bird,dense,strided", "block": 16, "span": 7, "n_global": 1, "n_local": 2,
        "n_random": 2, "seed": 5})",
    R"({"d_model": 10, "n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "rotary_dim": 6,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false, "score_scale": 0.5,
        "pattern": "layout", "block": 9, "layout_heads": 2, "layout_blocks": 64})",
    R"({"d_model": 12, "n_heads": 3, "n_kv_heads": 1, "head_dim": 34, "rotary_dim": 34,
        "rope_theta": 1000, "rope_interleaved": false, "qkv_bias": false,
        "pattern": "layout,local", "block": 64, "span": 40, "prefix": 23, "layout_heads": 1,
        "layout_blocks": 9})",
    R"({"d_model": 8, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "value_dim": 3,
        "rotary_dim": 0, "soft_cap": 2.0, "sink_logits": true, "output_gate": "head",
        "pattern": "strided,fixed", "block": 4, "span": 8})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4}, "positions": {"rotary_dim": 4,
        "given": 1}, "pattern": "local,strided", "span": 20})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 4, "n_value_heads": 2, "head_dim": 4},
        "pattern": "local,strided", "span": 9, "merge": {"kind": "difference"}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "n_key_heads": 1, "head_dim": 4},
        "pattern": "strided,fixed", "block": 4, "span": 8})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4, "conv_kernel": 4, "conv_silu": true},
        "pattern": "local,strided", "span": 20})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "pattern": "row,strided", "span": 11})",
    R"({"d_model": 9, "heads": {"n_heads": 6, "n_kv_heads": 3, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "pattern": "stripes,stripes,stripes,stripes,dense,dense",
        "block": 6, "n_local": 2, "stripe_stride": 5, "stripe_step": 2, "stripe_offset": 1})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "head_dim": 4}, "positions": {"rotary_dim": 4},
        "pattern": "stripes", "block": 64, "n_local": 1, "stripe_stride": 4})"};

/// Qiu et al. 2019, arXiv:1911.02972, eq. 3; Ho et al. 2019, arXiv:1912.12180, section 3.1.
template <class S>
Output<S> bidirectional_block_sparse_attention(const Input<S>& parts) {
  const Input<S> in = with_flat_config(parts);
  Output<S> out{in.x, {}};
  attend_sparsely(in, false, out);
  return out;
}

inline const std::vector<std::string> bidirectional_block_sparse_attention_configs{
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4},
        "positions": {"rotary_dim": 4}, "pattern": "row,strided", "span": 11})",
    R"({"d_model": 9, "heads": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 5, "value_dim": 4,
        "o_bias": true}, "pattern": "layout", "block": 9, "layout_heads": 3,
        "layout_blocks": 64, "scores": {"soft_cap": 3}})",
    R"({"d_model": 8, "heads": {"n_heads": 3, "n_kv_heads": 3, "head_dim": 4},
        "positions": {"rotary_dim": 4, "given": 1}, "pattern": "stripes,local,dense", "block": 7,
        "span": 20, "n_local": 2, "stripe_stride": 3, "scores": {"sink_logits": true}})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 4, "n_key_heads": 2, "head_dim": 4},
        "pattern": "strided,row", "span": 11})",
    R"({"d_model": 8, "heads": {"n_heads": 4, "n_kv_heads": 2, "n_value_heads": 1, "head_dim": 4},
        "pattern": "strided,stripes", "span": 5, "block": 4, "n_local": 1, "stripe_stride": 3})",
    R"({"d_model": 8, "heads": {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "o_bias": true},
        "pattern": "layout", "block": 50, "layout_heads": 1, "layout_blocks": 12,
        "scores": {"normaliser": "sparsemax"}})"};

}  // namespace reference
