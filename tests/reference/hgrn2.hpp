#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Qin et al. 2024, arXiv:2404.07904, section 3.
template <class S>
Output<S> hgrn2(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v");
  Output<S> out{in.x, {}};
  Array<S> memory({B, H, K, V});
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto q = linear<S>(in.weight("q_proj.weight"), nullptr, x);
      const auto raw = linear<S>(in.weight("f_proj.weight"), nullptr, x);
      const auto v = linear<S>(in.weight("i_proj.weight"), nullptr, x);
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        for (Index i = 0; i < K; ++i) {
          const Index channel = h * K + i;
          const auto at = static_cast<std::size_t>(channel);
          const S bound = in.flag("lower_bound") ? in.weight("lower_bound")(channel) : S(0);
          const S keep = bound + (1 - bound) * sigmoid(raw[at]);
          const S key = (1 - bound) * sigmoid(-raw[at]);
          for (Index j = 0; j < V; ++j) {
            S& cell = memory(b, h, i, j);
            cell = keep * cell + key * v[static_cast<std::size_t>(h * V + j)];
            o[static_cast<std::size_t>(h * V + j)] +=
                silu(q[at]) / std::sqrt(static_cast<S>(K)) * cell;
          }
        }
      }
      S square = 0;
      for (const S value : o) square += value * value;
      const S norm =
          std::sqrt(square / static_cast<S>(H * V) + static_cast<S>(in.number("norm_eps")));
      for (Index j = 0; j < H * V; ++j) {
        S& value = o[static_cast<std::size_t>(j)];
        value = value / norm * in.weight("g_norm.weight")(j);
      }
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), nullptr, o));
    }
  }
  out.state["memory"] = memory;
  return out;
}

inline const std::vector<std::string> hgrn2_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 8, "head_v": 8, "lower_bound": false,
        "norm_eps": 1e-5})",
    R"({"d_model": 21, "n_heads": 3, "head_k": 5, "head_v": 7, "lower_bound": true,
        "norm_eps": 1e-5})",
    R"({"d_model": 13, "n_heads": 1, "head_k": 33, "head_v": 65, "lower_bound": true,
        "norm_eps": 1e-6})"};

}  // namespace reference
