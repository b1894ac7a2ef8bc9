#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "reference/twin.hpp"

namespace reference {

/// DeepSeek-AI 2024, arXiv:2405.04434, eq. 9-19, with keys and values expanded at every token; YaRN
/// as in arXiv:2309.00071, eq. 19-23.
template <class S>
Output<S> multi_head_latent_attention(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads"), R = in.size("q_rank");
  const Index r = in.size("kv_rank"), nope = in.size("nope_dim"), rotary = in.size("rotary_dim");
  const Index K = nope + rotary, V = in.size("head_v");
  const auto at = [](const std::vector<S>& v, Index i) { return v[static_cast<std::size_t>(i)]; };
  const auto normalise = [&](std::vector<S>& v, const Array<S>& weight) {
    const Index width = weight.shape[0];
    S square = 0;
    for (Index i = 0; i < width; ++i) square += at(v, i) * at(v, i);
    const S scale =
        1 / std::sqrt(square / static_cast<S>(width) + static_cast<S>(in.number("norm_eps")));
    for (Index i = 0; i < width; ++i) v[static_cast<std::size_t>(i)] *= scale * weight(i);
  };
  const bool yarn = in.config.at("rope_scaling") == "yarn";
  const double factor = in.number("rope_factor");
  std::vector<double> angles;  // a token further turns pair i by it
  for (Index i = 0; i < rotary / 2; ++i) {
    const double base = in.number("rope_theta"), width = static_cast<double>(rotary);
    double angle = std::pow(base, -2.0 * static_cast<double>(i) / width);
    if (yarn) {
      const auto pair = [&](double turns) {
        return width *
               std::log(in.number("rope_original_length") / (turns * 2 * std::numbers::pi)) /
               (2 * std::log(base));
      };
      const double low = std::max(std::floor(pair(in.number("rope_beta_fast"))), 0.0);
      double high = std::min(std::ceil(pair(in.number("rope_beta_slow"))), width - 1);
      if (high == low) high += 0.001;
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      angle = angle / factor * ramp + angle * (1 - ramp);
    }
    angles.push_back(angle);
  }
  double amplitude = 1;
  if (yarn) amplitude = in.number("rope_attention_factor");
  if (yarn && amplitude == 0) amplitude = 0.1 * std::log(factor) + 1;
  const auto rotate = [&](std::vector<S>& v, Index first, Index t) {
    for (Index i = 0; i < rotary / 2; ++i) {
      const double angle = static_cast<double>(t) * angles[static_cast<std::size_t>(i)];
      const bool interleaved = in.flag("rope_interleaved");
      S& a = v[static_cast<std::size_t>(first + (interleaved ? 2 * i : i))];
      S& b = v[static_cast<std::size_t>(first + (interleaved ? 2 * i + 1 : i + rotary / 2))];
      const S cosine = static_cast<S>(amplitude * std::cos(angle));
      const S sine = static_cast<S>(amplitude * std::sin(angle));
      const S turned = a * cosine - b * sine;
      b = a * sine + b * cosine;
      a = turned;
    }
  };
  const S mscale = static_cast<S>(0.1 * in.number("mscale_all_dim") * std::log(factor) + 1);
  const S scale = mscale * mscale / std::sqrt(static_cast<S>(K));

  Output<S> out{in.x, {}};
  Array<S> latents({B, 1, T, r + rotary}), position({B});
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
      for (Index h = 0; h < H; ++h) rotate(q, h * K + nope, t);
      auto latent = linear<S>(in.weight("kv_a_proj_with_mqa.weight"), nullptr, x);
      normalise(latent, in.weight("kv_a_layernorm.weight"));
      rotate(latent, r, t);
      for (Index i = 0; i < r + rotary; ++i) latents(b, 0, t, i) = at(latent, i);
      latent.resize(static_cast<std::size_t>(r));
      expanded.push_back(linear<S>(in.weight("kv_b_proj.weight"), nullptr, latent));
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        std::vector<S> score;
        for (Index j = 0; j <= t; ++j) {
          const auto& keys = expanded[static_cast<std::size_t>(j)];
          S dot = 0;
          for (Index i = 0; i < nope; ++i) dot += at(q, h * K + i) * at(keys, h * (nope + V) + i);
          for (Index i = 0; i < rotary; ++i) {
            dot += at(q, h * K + nope + i) * latents(b, 0, j, r + i);
          }
          score.push_back(scale * dot);
        }
        const S largest = *std::max_element(score.begin(), score.end());
        S total = 0;
        for (S& value : score) total += value = std::exp(value - largest);
        for (Index i = 0; i < V; ++i) {
          S sum = 0;
          for (Index j = 0; j <= t; ++j) {
            sum +=
                at(score, j) * at(expanded[static_cast<std::size_t>(j)], h * (nope + V) + nope + i);
          }
          o[static_cast<std::size_t>(h * V + i)] = sum / total;
        }
      }
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), nullptr, o));
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
        "mscale_all_dim": 0.7, "norm_eps": 1e-6})"};

}  // namespace reference
