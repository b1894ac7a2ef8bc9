#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "reference/twin.hpp"

namespace reference {

/// Jiang et al. 2024, arXiv:2401.04088, section 2.1.
template <class S>
Output<S> mixture_of_experts(const Input<S>& in) {
  const Index experts = in.size("n_experts"), k = in.size("n_experts_per_token");
  Output<S> out{in.x, {}};
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      const auto x = token(in.x, b, t);
      const auto logits = linear<S>(in.weight("gate.weight"), nullptr, x);
      std::vector<std::size_t> order(static_cast<std::size_t>(experts));
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](std::size_t i, std::size_t j) { return logits[i] > logits[j]; });
      order.resize(static_cast<std::size_t>(k));
      S total = 0;
      for (const std::size_t e : order) total += std::exp(logits[e] - logits[order[0]]);
      std::vector<S> y(x.size());
      for (const std::size_t e : order) {
        const std::string prefix = "experts." + std::to_string(e) + ".";
        auto hidden = linear<S>(in.weight(prefix + "w3.weight"), nullptr, x);
        const auto gate = linear<S>(in.weight(prefix + "w1.weight"), nullptr, x);
        for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] *= silu(gate[i]);
        const auto part = linear<S>(in.weight(prefix + "w2.weight"), nullptr, hidden);
        const S p = std::exp(logits[e] - logits[order[0]]) / total;
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += p * part[i];
      }
      set_token(out.y, b, t, y);
    }
  }
  return out;
}

inline const std::vector<std::string> mixture_of_experts_configs{
    R"({"d_model": 16, "d_ff": 24, "n_experts": 4, "n_experts_per_token": 2})",
    R"({"d_model": 13, "d_ff": 7, "n_experts": 5, "n_experts_per_token": 3})",
    R"({"d_model": 8, "d_ff": 17, "n_experts": 3, "n_experts_per_token": 1})"};

}  // namespace reference
