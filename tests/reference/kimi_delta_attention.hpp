#pragma once

#include <cmath>

#include "reference/delta_net.hpp"

namespace reference {

/// Kimi Team 2025, arXiv:2510.26692, section 3 and 4.
template <class S>
Output<S> kimi_delta_attention(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v"), W = in.size("conv_kernel");
  Output<S> out{in.x, {}};
  Array<S> memory({B, H, K, V}), conv({B, W - 1, H * (2 * K + V)});
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto mixed = delta_heads(in, conv, b, x);
      const auto low_f = linear<S>(in.weight("f_a_proj.weight"), nullptr, x);
      auto decay = linear<S>(in.weight("f_b_proj.weight"), &in.weight("dt_bias"), low_f);
      for (Index i = 0; i < H * K; ++i) {
        S& value = decay[static_cast<std::size_t>(i)];
        const S softplus = value > 20 ? value : std::log1p(std::exp(value));
        value = std::exp(-std::exp(in.weight("A_log")(0, 0, i / K, 0)) * softplus);
      }
      auto o = delta_step(in, memory, b, mixed, decay, delta_beta(in, x));
      delta_norm(in, o);
      const auto low_g = linear<S>(in.weight("g_a_proj.weight"), nullptr, x);
      const auto* bias = in.flag("gate_bias") ? &in.weight("g_b_proj.bias") : nullptr;
      const auto gate = linear<S>(in.weight("g_b_proj.weight"), bias, low_g);
      for (std::size_t i = 0; i < o.size(); ++i) o[i] *= sigmoid(gate[i]);
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), nullptr, o));
    }
  }
  out.state = {{"conv", conv}, {"memory", memory}};
  return out;
}

inline const std::vector<std::string> kimi_delta_attention_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 8, "head_v": 8, "conv_kernel": 4,
        "gate_bias": false, "negative_eigenvalues": false, "norm_eps": 1e-5})",
    R"({"d_model": 21, "n_heads": 3, "head_k": 5, "head_v": 7, "conv_kernel": 3,
        "gate_bias": true, "negative_eigenvalues": false, "norm_eps": 1e-5})",
    R"({"d_model": 12, "n_heads": 1, "head_k": 33, "head_v": 83, "conv_kernel": 2,
        "gate_bias": false, "negative_eigenvalues": true, "norm_eps": 1e-6})"};

}  // namespace reference
