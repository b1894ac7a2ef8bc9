#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/twin.hpp"

namespace reference {

/// Feng et al. 2024, arXiv:2405.13956, section 3.1: (m, u, w) of the tokens up to t.
template <class S>
Output<S> aaren(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v");
  const double given = in.number("score_scale");
  const S scale = static_cast<S>(given > 0 ? given : 1 / std::sqrt(static_cast<double>(K)));
  const auto bias = [&](const char* name) { return in.flag("bias") ? &in.weight(name) : nullptr; };
  Output<S> out{in.x, {}};
  Array<S> numerator({B, H, V}), denominator({B, H}), maximum({B, H});
  for (Index b = 0; b < B; ++b) {
    for (Index h = 0; h < H; ++h) maximum(b, h) = S(-1e38);
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto k = linear<S>(in.weight("k_proj.weight"), nullptr, x);
      const auto v = linear<S>(in.weight("v_proj.weight"), bias("v_proj.bias"), x);
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        S score = 0;
        for (Index i = 0; i < K; ++i) {
          score += in.weight("query")(h, i) * k[static_cast<std::size_t>(h * K + i)];
        }
        score *= scale;
        const S before = maximum(b, h), most = std::max(before, score);
        maximum(b, h) = most;
        denominator(b, h) = denominator(b, h) * std::exp(before - most) + std::exp(score - most);
        for (Index i = 0; i < V; ++i) {
          const auto at = static_cast<std::size_t>(h * V + i);
          S& sum = numerator(b, h, i);
          sum = sum * std::exp(before - most) + std::exp(score - most) * v[at];
          o[at] = sum / denominator(b, h);
        }
      }
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), bias("o_proj.bias"), o));
    }
  }
  out.state = {{"numerator", numerator}, {"denominator", denominator}, {"maximum", maximum}};
  return out;
}

inline const std::vector<std::string> aaren_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 8, "head_v": 8})",
    R"({"d_model": 13, "n_heads": 3, "head_k": 5, "head_v": 7, "bias": true, "score_scale": 1.3})",
    R"({"d_model": 12, "n_heads": 1, "head_k": 33, "head_v": 83})"};

}  // namespace reference
