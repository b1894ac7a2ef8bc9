#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Yang et al. 2023, arXiv:2312.06635, eq. 3-4, with the output gate of section 4.4.
template <class S>
Output<S> gated_linear_attention(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v");
  Output<S> out{in.x, {}};
  Array<S> memory({B, H, K, V});
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto q = linear<S>(in.weight("q_proj.weight"), nullptr, x);
      const auto k = linear<S>(in.weight("k_proj.weight"), nullptr, x);
      const auto v = linear<S>(in.weight("v_proj.weight"), nullptr, x);
      const auto gate = linear<S>(in.weight("g_proj.weight"), nullptr, x);
      const auto low = linear<S>(in.weight("gk_proj.0.weight"), nullptr, x);
      const auto raw = linear<S>(in.weight("gk_proj.1.weight"), &in.weight("gk_proj.1.bias"), low);
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        for (Index i = 0; i < K; ++i) {
          const auto at = static_cast<std::size_t>(h * K + i);
          const S log_gate = raw[at] < 0 ? raw[at] - std::log1p(std::exp(raw[at]))
                                         : -std::log1p(std::exp(-raw[at]));
          const S decay = std::exp(log_gate / static_cast<S>(in.number("gate_normalizer")));
          for (Index j = 0; j < V; ++j) {
            S& cell = memory(b, h, i, j);
            cell = decay * cell + k[at] * v[static_cast<std::size_t>(h * V + j)];
            o[static_cast<std::size_t>(h * V + j)] += q[at] * cell;
          }
        }
        S square = 0;
        for (Index j = 0; j < V; ++j) {
          S& value = o[static_cast<std::size_t>(h * V + j)];
          value /= std::sqrt(static_cast<S>(K));
          square += value * value;
        }
        const S norm =
            std::sqrt(square / static_cast<S>(V) + static_cast<S>(in.number("norm_eps")));
        for (Index j = 0; j < V; ++j) {
          const auto at = static_cast<std::size_t>(h * V + j);
          o[at] = o[at] / norm * in.weight("g_norm_swish_gate.weight")(j) * silu(gate[at]);
        }
      }
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), nullptr, o));
    }
  }
  out.state["memory"] = memory;
  return out;
}

inline const std::vector<std::string> gated_linear_attention_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 4, "head_v": 8, "gate_rank": 4,
        "gate_normalizer": 16, "norm_eps": 1e-5})",
    R"({"d_model": 21, "n_heads": 3, "head_k": 5, "head_v": 7, "gate_rank": 3,
        "gate_normalizer": 1, "norm_eps": 1e-5})",
    R"({"d_model": 40, "n_heads": 1, "head_k": 33, "head_v": 65, "gate_rank": 16,
        "gate_normalizer": 4, "norm_eps": 1e-6})"};

}  // namespace reference
