#pragma once

#include <algorithm>
#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Beck et al. 2024, arXiv:2405.04517, eq. 19-27, stabilised as in its appendix A, with the caps
/// and the head norm of arXiv:2503.13427.
template <class S>
Output<S> mlstm(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v");
  const S cap = static_cast<S>(in.number("gate_cap"));
  const auto capped = [cap](S value) { return cap * std::tanh(value / cap); };
  Output<S> out{in.x, {}};
  Array<S> memory({B, H, K, V}), key_sum({B, H, K}), maximum({B, H});
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto q = linear<S>(in.weight("q.weight"), nullptr, x);
      const auto k = linear<S>(in.weight("k.weight"), nullptr, x);
      const auto v = linear<S>(in.weight("v.weight"), nullptr, x);
      const auto gate = linear<S>(in.weight("ogate_preact.weight"), nullptr, x);
      const auto input =
          linear<S>(in.weight("igate_preact.weight"), &in.weight("igate_preact.bias"), x);
      const auto forget =
          linear<S>(in.weight("fgate_preact.weight"), &in.weight("fgate_preact.bias"), x);
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        const S i = capped(input[static_cast<std::size_t>(h)]);
        const S f = capped(forget[static_cast<std::size_t>(h)]);
        const S log_forget = f < 0 ? f - std::log1p(std::exp(f)) : -std::log1p(std::exp(-f));
        const S before = maximum(b, h);
        const S m = std::max(log_forget + before, i);
        maximum(b, h) = m;
        const S keep = std::exp(log_forget + before - m), take = std::exp(i - m);
        S sum = 0;
        for (Index c = 0; c < K; ++c) {
          const auto at = static_cast<std::size_t>(h * K + c);
          const S query = q[at] / std::sqrt(static_cast<S>(K));
          key_sum(b, h, c) = keep * key_sum(b, h, c) + take * k[at];
          sum += query * key_sum(b, h, c);
          for (Index j = 0; j < V; ++j) {
            const auto place = static_cast<std::size_t>(h * V + j);
            memory(b, h, c, j) = keep * memory(b, h, c, j) + take * k[at] * v[place];
            o[place] += query * memory(b, h, c, j);
          }
        }
        const S denominator =
            std::max(std::abs(sum), std::exp(-m)) + static_cast<S>(in.number("eps"));
        S mean = 0, square = 0;
        for (Index j = 0; j < V; ++j) {
          S& value = o[static_cast<std::size_t>(h * V + j)];
          value /= denominator;
          mean += value / static_cast<S>(V);
        }
        for (Index j = 0; j < V; ++j) {
          S& value = o[static_cast<std::size_t>(h * V + j)];
          value -= mean;
          square += value * value;
        }
        const S norm =
            std::sqrt(square / static_cast<S>(V) + static_cast<S>(in.number("norm_eps")));
        for (Index j = 0; j < V; ++j) {
          const auto at = static_cast<std::size_t>(h * V + j);
          o[at] = o[at] / norm * in.weight("multihead_norm.weight")(h * V + j) * sigmoid(gate[at]);
        }
      }
      set_token(out.y, b, t, linear<S>(in.weight("out_proj.weight"), nullptr, o));
    }
  }
  out.state = {{"memory", memory}, {"key_sum", key_sum}, {"maximum", maximum}};
  return out;
}

inline const std::vector<std::string> mlstm_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 4, "head_v": 8, "gate_cap": 15, "eps": 1e-6,
        "norm_eps": 1e-6})",
    R"({"d_model": 21, "n_heads": 3, "head_k": 5, "head_v": 7, "gate_cap": 15, "eps": 1e-6,
        "norm_eps": 1e-6})",
    R"({"d_model": 13, "n_heads": 1, "head_k": 33, "head_v": 65, "gate_cap": 2, "eps": 1e-3,
        "norm_eps": 1e-5})"};

}  // namespace reference
