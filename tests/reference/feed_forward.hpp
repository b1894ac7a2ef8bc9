#pragma once

#include <cmath>
#include <numbers>
#include <stdexcept>

#include "reference/twin.hpp"

namespace reference {

template <class S>
S activation(const std::string& name, S x) {
  if (name == "silu") return silu(x);
  if (name == "gelu") return x * std::erfc(-x * std::numbers::sqrt2_v<S> / 2) / 2;
  if (name == "gelu_tanh") {
    const S inner = std::sqrt(2 / std::numbers::pi_v<S>) * (x + S(0.044715) * x * x * x);
    return x / 2 * (1 + std::tanh(inner));
  }
  if (name == "quick_gelu") return x * sigmoid(S(1.702) * x);
  if (name == "relu") return x > 0 ? x : S(0);
  if (name == "relu_squared") return x > 0 ? x * x : S(0);
  throw std::invalid_argument(name);
}

/// Shazeer 2020, arXiv:2002.05202, eq. 5-6.
template <class S>
Output<S> feed_forward(const Input<S>& in) {
  const std::string kind = in.config.at("activation");
  const auto bias = [&](const char* name) { return in.flag("bias") ? &in.weight(name) : nullptr; };
  Output<S> out{in.x, {}};
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      const auto x = token(in.x, b, t);
      auto hidden = linear<S>(in.weight("up_proj.weight"), bias("up_proj.bias"), x);
      if (in.flag("gated")) {
        const auto gate = linear<S>(in.weight("gate_proj.weight"), bias("gate_proj.bias"), x);
        for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] *= activation(kind, gate[i]);
      } else {
        for (S& value : hidden) value = activation(kind, value);
      }
      set_token(out.y, b, t,
                linear<S>(in.weight("down_proj.weight"), bias("down_proj.bias"), hidden));
    }
  }
  return out;
}

inline const std::vector<std::string> feed_forward_configs{
    R"({"d_model": 16, "d_ff": 32, "activation": "silu", "gated": true, "bias": false})",
    R"({"d_model": 21, "d_ff": 37, "activation": "gelu", "gated": false, "bias": true})",
    R"({"d_model": 9, "d_ff": 70, "activation": "gelu_tanh", "gated": true, "bias": true})",
    R"({"d_model": 10, "d_ff": 19, "activation": "gelu", "gated": true, "bias": false})",
    R"({"d_model": 7, "d_ff": 5, "activation": "relu_squared", "gated": false, "bias": false})",
    R"({"d_model": 7, "d_ff": 13, "activation": "quick_gelu", "gated": false, "bias": false})",
    R"({"d_model": 3, "d_ff": 11, "activation": "relu", "gated": true, "bias": false})"};

}  // namespace reference
