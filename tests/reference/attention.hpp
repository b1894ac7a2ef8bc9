#pragma once

#include <algorithm>
#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Vaswani et al. 2017, arXiv:1706.03762, eq. 1, with rotary positions (arXiv:2104.09864, eq. 34).
template <class S>
Output<S> attention(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads"), G = in.size("n_kv_heads");
  const Index K = in.size("head_dim"), rotary = in.size("rotary_dim");
  const auto bias = [&](const char* name) {
    return in.flag("qkv_bias") ? &in.weight(name) : nullptr;
  };
  const auto rotate = [&](std::vector<S>& heads, Index t) {
    for (Index first = 0; first < static_cast<Index>(heads.size()); first += K) {
      for (Index i = 0; i < rotary / 2; ++i) {
        const double angle = static_cast<double>(t) *
                             std::pow(in.number("rope_theta"),
                                      -2.0 * static_cast<double>(i) / static_cast<double>(rotary));
        const bool interleaved = in.flag("rope_interleaved");
        S& a = heads[static_cast<std::size_t>(first + (interleaved ? 2 * i : i))];
        S& b = heads[static_cast<std::size_t>(first + (interleaved ? 2 * i + 1 : i + rotary / 2))];
        const S cosine = static_cast<S>(std::cos(angle)), sine = static_cast<S>(std::sin(angle));
        const S turned = a * cosine - b * sine;
        b = a * sine + b * cosine;
        a = turned;
      }
    }
  };
  Output<S> out{in.x, {}};
  Array<S> keys({B, G, T, K}), values({B, G, T, K});
  Array<S> position({B});
  for (Index b = 0; b < B; ++b) {
    position(b) = static_cast<S>(T);
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      auto q = linear<S>(in.weight("q_proj.weight"), bias("q_proj.bias"), x);
      auto k = linear<S>(in.weight("k_proj.weight"), bias("k_proj.bias"), x);
      const auto v = linear<S>(in.weight("v_proj.weight"), bias("v_proj.bias"), x);
      rotate(q, t), rotate(k, t);
      for (Index g = 0; g < G; ++g) {
        for (Index i = 0; i < K; ++i) {
          keys(b, g, t, i) = k[static_cast<std::size_t>(g * K + i)];
          values(b, g, t, i) = v[static_cast<std::size_t>(g * K + i)];
        }
      }
      std::vector<S> o(static_cast<std::size_t>(H * K));
      for (Index h = 0; h < H; ++h) {
        const Index g = h / (H / G);
        std::vector<S> score(static_cast<std::size_t>(t + 1));
        for (Index j = 0; j <= t; ++j) {
          S dot = 0;
          for (Index i = 0; i < K; ++i) {
            dot += q[static_cast<std::size_t>(h * K + i)] * keys(b, g, j, i);
          }
          score[static_cast<std::size_t>(j)] = dot / std::sqrt(static_cast<S>(K));
        }
        const S largest = *std::max_element(score.begin(), score.end());
        S total = 0;
        for (S& value : score) total += value = std::exp(value - largest);
        for (Index i = 0; i < K; ++i) {
          S sum = 0;
          for (Index j = 0; j <= t; ++j) {
            sum += score[static_cast<std::size_t>(j)] * values(b, g, j, i);
          }
          o[static_cast<std::size_t>(h * K + i)] = sum / total;
        }
      }
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), nullptr, o));
    }
  }
  out.state = {{"position", position}, {"keys", keys}, {"values", values}};
  return out;
}

inline const std::vector<std::string> attention_configs{
    R"({"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rotary_dim": 8,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false})",
    R"({"d_model": 21, "n_heads": 3, "n_kv_heads": 3, "head_dim": 7, "rotary_dim": 4,
        "rope_theta": 100, "rope_interleaved": true, "qkv_bias": true})",
    R"({"d_model": 30, "n_heads": 5, "n_kv_heads": 1, "head_dim": 34, "rotary_dim": 34,
        "rope_theta": 500000, "rope_interleaved": false, "qkv_bias": true})",
    R"({"d_model": 12, "n_heads": 2, "n_kv_heads": 2, "head_dim": 5, "rotary_dim": 0,
        "rope_theta": 10000, "rope_interleaved": false, "qkv_bias": false})"};

}  // namespace reference
