#pragma once

#include <algorithm>
#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Sun et al. 2023, arXiv:2307.08621, eq. 6 and 8, and the normalisation of scores in section 2.4.
template <class S>
Output<S> retention(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v"), pairs = in.size("rotary_dim") / 2;
  Output<S> out{in.x, {}};
  const std::string score_norm = in.text("score_norm");
  Array<S> memory({B, H, K, V}), position({B}), scale({B, H, 1}), key_sum({B, H, K});
  const auto turned = [&](std::vector<S> x, Index t) {
    for (Index h = 0; h < H; ++h) {
      for (Index n = 0; n < pairs; ++n) {
        double exponent = static_cast<double>(n) / static_cast<double>(pairs);
        if (in.flag("rope_closed")) {
          exponent = pairs == 1 ? 0 : static_cast<double>(n) / static_cast<double>(pairs - 1);
        }
        const double angle = static_cast<double>(t) / std::pow(in.number("rope_theta"), exponent);
        const bool interleaved = in.flag("rope_interleaved");
        const auto low = static_cast<std::size_t>(h * K + (interleaved ? 2 * n : n));
        const auto high = low + static_cast<std::size_t>(interleaved ? 1 : pairs);
        const S cosine = static_cast<S>(std::cos(angle)), sine = static_cast<S>(std::sin(angle));
        const S a = x[low], b = x[high];
        x[low] = a * cosine - b * sine, x[high] = b * cosine + a * sine;
      }
    }
    return x;
  };
  for (Index b = 0; b < B; ++b) {
    position(b) = static_cast<S>(T);
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto q = turned(linear<S>(in.weight("q_proj.weight"), nullptr, x), t);
      const auto k = turned(linear<S>(in.weight("k_proj.weight"), nullptr, x), t);
      const auto v = linear<S>(in.weight("v_proj.weight"), nullptr, x);
      const auto gate = linear<S>(in.weight("g_proj.weight"), nullptr, x);
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        const S decay = static_cast<S>(1 - std::pow(2.0, -5.0 - static_cast<double>(h)));
        S square = 0, score = 0, divisor = 1;
        scale(b, h, 0) = decay * scale(b, h, 0) + 1;
        for (Index i = 0; i < K; ++i) {
          const auto channel = static_cast<std::size_t>(h * K + i);
          key_sum(b, h, i) = decay * key_sum(b, h, i) + k[channel];
          score += q[channel] * key_sum(b, h, i) / std::sqrt(static_cast<S>(K));
        }
        if (score_norm != "none") divisor = std::sqrt(scale(b, h, 0));
        if (score_norm == "scores") divisor = std::max(divisor, std::abs(score));
        for (Index j = 0; j < V; ++j) {
          const auto at = static_cast<std::size_t>(h * V + j);
          for (Index i = 0; i < K; ++i) {
            const auto channel = static_cast<std::size_t>(h * K + i);
            memory(b, h, i, j) = decay * memory(b, h, i, j) + k[channel] * v[at];
            o[at] += q[channel] * memory(b, h, i, j);
          }
          o[at] /= std::sqrt(static_cast<S>(K)) * divisor;
          square += o[at] * o[at];
        }
        const S norm =
            std::sqrt(square / static_cast<S>(V) + static_cast<S>(in.number("norm_eps")));
        for (Index j = 0; j < V; ++j) {
          const auto at = static_cast<std::size_t>(h * V + j);
          o[at] = o[at] / norm * silu(gate[at]);
          if (in.flag("norm_weight")) o[at] *= in.weight("g_norm_swish_gate.weight")(j);
        }
      }
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), nullptr, o));
    }
  }
  out.state = {{"position", position}, {"memory", memory}};
  if (score_norm != "none") out.state["scale"] = scale;
  if (score_norm == "scores") out.state["key_sum"] = key_sum;
  return out;
}

inline const std::vector<std::string> retention_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 8, "head_v": 16, "rotary_dim": 8,
        "rope_theta": 10000, "rope_interleaved": true, "rope_closed": true, "norm_weight": false,
        "norm_eps": 1e-6, "score_norm": "none"})",
    R"({"d_model": 21, "n_heads": 3, "head_k": 6, "head_v": 7, "rotary_dim": 6,
        "rope_theta": 10000, "rope_interleaved": false, "rope_closed": false, "norm_weight": true,
        "norm_eps": 1e-5, "score_norm": "none"})",
    R"({"d_model": 13, "n_heads": 1, "head_k": 33, "head_v": 65, "rotary_dim": 2,
        "rope_theta": 100, "rope_interleaved": true, "rope_closed": true, "norm_weight": true,
        "norm_eps": 1e-5, "score_norm": "none"})",
    R"({"d_model": 16, "n_heads": 2, "head_k": 8, "head_v": 16, "rotary_dim": 8,
        "rope_theta": 10000, "rope_interleaved": true, "rope_closed": true, "norm_weight": false,
        "norm_eps": 1e-2, "score_norm": "scores"})",
    R"({"d_model": 18, "n_heads": 3, "head_k": 6, "head_v": 5, "rotary_dim": 6,
        "rope_theta": 10000, "rope_interleaved": true, "rope_closed": true, "norm_weight": false,
        "norm_eps": 1e-2, "score_norm": "decay"})"};

}  // namespace reference
