#pragma once

#include <algorithm>
#include <cmath>

#include "reference/attention.hpp"

namespace reference {

/// DeepSeek-AI 2024, arXiv:2405.04434, eq. 9-19, with keys and values expanded at every token.
template <class S>
Output<S> multi_head_latent_attention(const Input<S>& parts) {
  const Input<S> in = with_flat_config(parts);
  const Index B = in.B(), T = in.T(), H = in.size("n_heads"), R = in.size("q_rank");
  const Index r = in.size("kv_rank"), nope = in.size("nope_dim"), given = in.size("shared_dim");
  const Index shared = given > 0 ? given : in.size("rotary_dim");
  const Index K = nope + shared, V = in.size("head_v");
  const auto at = [](const std::vector<S>& v, Index i) { return v[static_cast<std::size_t>(i)]; };
  const auto normalise = [&](std::vector<S>& v, const Array<S>& weight) {
    const Index width = weight.shape[0];
    S square = 0;
    for (Index i = 0; i < width; ++i) square += at(v, i) * at(v, i);
    const S scale =
        1 / std::sqrt(square / static_cast<S>(width) + static_cast<S>(in.number("norm_eps")));
    for (Index i = 0; i < width; ++i) v[static_cast<std::size_t>(i)] *= scale * weight(i);
  };
  Input<S> of_shared = in;  // as heads of their own
  of_shared.config["head_dim"] = shared;
  const auto turn = [&](std::vector<S>& v, Index first, const Place& place) {
    std::vector<S> head(v.begin() + first, v.begin() + first + shared);
    rotate(of_shared, head, place);
    std::copy(head.begin(), head.end(), v.begin() + first);
  };
  const S mscale =
      static_cast<S>(0.1 * in.number("mscale_all_dim") * std::log(in.number("rope_factor")) + 1);
  const S given_scale = static_cast<S>(in.number("score_scale"));
  const S scale = mscale * mscale *
                  (given_scale > 0 ? given_scale : 1 / std::sqrt(static_cast<S>(K))) /
                  static_cast<S>(number_or(in, "score_divisor", 1));
  const S cap = static_cast<S>(in.number("soft_cap"));

  Output<S> out{in.x, {}};
  Array<S> latents({B, 1, T, r + shared}), position({B});
  for (Index b = 0; b < B; ++b) {
    position(b) = static_cast<S>(T);
    std::vector<std::vector<S>> expanded;  // of each token, [H, nope + V]
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      std::vector<S> q;
      if (R > 0) {
        auto low = linear<S>(in.weight("q_a_proj.weight"), nullptr, x);
        normalise(low, in.weight("q_a_layernorm.weight"));
        q = linear<S>(in.weight("q_b_proj.weight"), nullptr, low);
      } else {
        q = linear<S>(in.weight("q_proj.weight"), nullptr, x);
      }
      const Place place = place_of(in, b, t);
      for (Index h = 0; h < H; ++h) turn(q, h * K + nope, place);
      sharpen(in, t, q);
      auto latent = linear<S>(in.weight("kv_a_proj_with_mqa.weight"), nullptr, x);
      normalise(latent, in.weight("kv_a_layernorm.weight"));
      turn(latent, r, place);
      for (Index i = 0; i < r + shared; ++i) latents(b, 0, t, i) = at(latent, i);
      latent.resize(static_cast<std::size_t>(r));
      expanded.push_back(linear<S>(in.weight("kv_b_proj.weight"), nullptr, latent));
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        std::vector<S> score;
        std::vector<Index> seen;
        std::vector<const S*> value;
        for (Index j = 0; j <= t; ++j) {
          const auto& keys = expanded[static_cast<std::size_t>(j)];
          S dot = 0;
          for (Index i = 0; i < nope; ++i) dot += at(q, h * K + i) * at(keys, h * (nope + V) + i);
          for (Index i = 0; i < shared; ++i) {
            dot += at(q, h * K + nope + i) * latents(b, 0, j, r + i);
          }
          const S scaled = scale * dot;
          score.push_back(cap > 0 ? cap * std::tanh(scaled / cap) : scaled);
          seen.push_back(j), value.push_back(keys.data() + h * (nope + V) + nope);
        }
        const std::vector<S> head = weighted_values(in, h, t, seen, score, value, V);
        std::copy(head.begin(), head.end(), o.begin() + h * V);
      }
      set_token(out.y, b, t, project_outputs(in, x, o));
    }
  }
  out.state = {{"position", position}, {"latent", latents}};
  return out;
}

inline const std::vector<std::string> multi_head_latent_attention_configs{
    R"({"d_model": 16, "n_heads": 4, "q_rank": 12, "kv_rank": 16, "nope_dim": 8, "rotary_dim": 4,
        "head_v": 8, "rope_theta": 10000, "rope_interleaved": true, "rope_scaling": "none",
        "rope_factor": 1, "rope_original_length": 0, "rope_beta_fast": 32, "rope_beta_slow": 1,
        "rope_attention_factor": 0, "rope_low_freq_factor": 1, "rope_high_freq_factor": 4,
        "mscale_all_dim": 0, "norm_eps": 1e-6})",
    R"({"d_model": 21, "n_heads": 3, "q_rank": 0, "kv_rank": 19, "nope_dim": 7, "rotary_dim": 6,
        "head_v": 5, "rope_theta": 100, "rope_interleaved": false, "rope_scaling": "none",
        "rope_factor": 1, "rope_original_length": 0, "rope_beta_fast": 32, "rope_beta_slow": 1,
        "rope_attention_factor": 0, "rope_low_freq_factor": 1, "rope_high_freq_factor": 4,
        "mscale_all_dim": 0, "norm_eps": 1e-5})",
    R"({"d_model": 11, "n_heads": 1, "q_rank": 5, "kv_rank": 34, "nope_dim": 33, "rotary_dim": 8,
        "head_v": 9, "rope_theta": 10000, "rope_interleaved": true, "rope_scaling": "yarn",
        "rope_factor": 8, "rope_original_length": 32, "rope_beta_fast": 32, "rope_beta_slow": 1,
        "rope_attention_factor": 1, "rope_low_freq_factor": 1, "rope_high_freq_factor": 4,
        "mscale_all_dim": 0.7, "norm_eps": 1e-6})",
    R"({"d_model": 10, "n_heads": 2, "kv_rank": 9, "nope_dim": 5, "shared_dim": 4, "head_v": 6,
        "scores": {"soft_cap": 2.0, "sink_logits": true}, "output_gate": "channel"})",
    R"({"d_model": 9, "n_heads": 3, "kv_rank": 12, "nope_dim": 6, "head_v": 4,
        "positions": {"rotary_dim": 4, "given": 1},
        "scores": {"temperature": "logarithmic", "temperature_length": 9,
                   "normaliser": "entmax15"}, "output_gate": "head"})"};

}  // namespace reference
