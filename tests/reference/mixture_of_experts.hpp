#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "reference/twin.hpp"

namespace reference {

/// W_down (silu(W_gate x) ⊙ W_up x).
template <class S>
std::vector<S> swiglu(const Array<S>& gate_weight, const Array<S>& up_weight,
                      const Array<S>& down_weight, const std::vector<S>& x) {
  auto hidden = linear<S>(up_weight, nullptr, x);
  const auto gate = linear<S>(gate_weight, nullptr, x);
  for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] *= silu(gate[i]);
  return linear<S>(down_weight, nullptr, hidden);
}

/// The numbers of the `count` largest scores, largest first.
template <class S>
std::vector<std::size_t> largest(const std::vector<S>& scores, Index count) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t i, std::size_t j) { return scores[i] > scores[j]; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

/// The experts of a token and their weights.
template <class S>
std::vector<std::pair<std::size_t, S>> route(const Input<S>& in, const std::vector<S>& logits) {
  const std::string router = in.config.at("router");
  const Index experts = in.size("n_experts"), k = in.size("n_experts_per_token");
  std::vector<std::pair<std::size_t, S>> chosen;
  if (router == "deepseek_v3") {
    // DeepSeek-AI 2024, arXiv:2412.19437, eq. 12-16.
    const Index groups = in.size("n_group"), size = experts / groups;
    std::vector<S> scores, group_scores;
    for (std::size_t e = 0; e < logits.size(); ++e) {
      scores.push_back(sigmoid(logits[e]) +
                       in.weight("gate.e_score_correction_bias")(static_cast<Index>(e)));
    }
    for (Index g = 0; g < groups && groups > 1; ++g) {
      const std::vector<S> members(scores.begin() + g * size, scores.begin() + (g + 1) * size);
      const auto two = largest(members, 2);
      group_scores.push_back(members[two[0]] + members[two[1]]);
    }
    if (groups > 1) {
      const auto kept = largest(group_scores, in.size("topk_group"));
      for (std::size_t e = 0; e < scores.size(); ++e) {
        const auto group = e / static_cast<std::size_t>(size);
        if (std::find(kept.begin(), kept.end(), group) == kept.end()) {
          scores[e] = -std::numeric_limits<S>::infinity();
        }
      }
    }
    S sum = S(1e-20);
    for (const std::size_t e : largest(scores, k)) {
      chosen.emplace_back(e, sigmoid(logits[e])), sum += chosen.back().second;
    }
    for (auto& [e, p] : chosen) {
      if (in.flag("normalize_top_k")) p /= sum;
      p *= static_cast<S>(in.number("routed_scaling"));
    }
    return chosen;
  }
  const auto order = largest(logits, k);
  S total = 0, chosen_total = 0;
  for (const S l : logits) total += std::exp(l - logits[order[0]]);
  for (const std::size_t e : order) {
    chosen.emplace_back(e, std::exp(logits[e] - logits[order[0]]));
    chosen_total += chosen.back().second;
  }
  const bool normalized = router == "mixtral" || in.flag("normalize_top_k");
  for (auto& [e, p] : chosen) p /= normalized ? chosen_total : total;
  return chosen;
}

/// Jiang et al. 2024, arXiv:2401.04088, section 2.1.
template <class S>
Output<S> mixture_of_experts(const Input<S>& in) {
  Output<S> out{in.x, {}};
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      const auto x = token(in.x, b, t);
      std::vector<S> y(x.size());
      for (const auto& [e, p] : route(in, linear<S>(in.weight("gate.weight"), nullptr, x))) {
        const std::string prefix = "experts." + std::to_string(e) + ".";
        const auto part = swiglu(in.weight(prefix + "w1.weight"), in.weight(prefix + "w3.weight"),
                                 in.weight(prefix + "w2.weight"), x);
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += p * part[i];
      }
      if (in.size("d_shared") > 0) {
        const auto part = swiglu(in.weight("shared_experts.gate_proj.weight"),
                                 in.weight("shared_experts.up_proj.weight"),
                                 in.weight("shared_experts.down_proj.weight"), x);
        const S openness =
            in.flag("shared_gate")
                ? sigmoid(linear<S>(in.weight("shared_expert_gate.weight"), nullptr, x)[0])
                : S(1);
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += openness * part[i];
      }
      set_token(out.y, b, t, y);
    }
  }
  return out;
}

inline const std::vector<std::string> mixture_of_experts_configs{
    R"({"d_model": 16, "d_ff": 24, "n_experts": 4, "n_experts_per_token": 2, "router": "mixtral",
        "normalize_top_k": false, "n_group": 1, "topk_group": 1, "routed_scaling": 1,
        "d_shared": 0, "shared_gate": false})",
    R"({"d_model": 13, "d_ff": 7, "n_experts": 5, "n_experts_per_token": 3,
        "router": "softmax_then_top_k", "normalize_top_k": false, "n_group": 1, "topk_group": 1,
        "routed_scaling": 1, "d_shared": 19, "shared_gate": true})",
    R"({"d_model": 8, "d_ff": 17, "n_experts": 3, "n_experts_per_token": 1, "router": "mixtral",
        "normalize_top_k": false, "n_group": 1, "topk_group": 1, "routed_scaling": 1,
        "d_shared": 0, "shared_gate": false})",
    R"({"d_model": 9, "d_ff": 5, "n_experts": 6, "n_experts_per_token": 2,
        "router": "softmax_then_top_k", "normalize_top_k": true, "n_group": 1, "topk_group": 1,
        "routed_scaling": 1, "d_shared": 0, "shared_gate": false})",
    R"({"d_model": 11, "d_ff": 9, "n_experts": 12, "n_experts_per_token": 3,
        "router": "deepseek_v3", "normalize_top_k": true, "n_group": 4, "topk_group": 2,
        "routed_scaling": 2.5, "d_shared": 10, "shared_gate": false})",
    R"({"d_model": 7, "d_ff": 6, "n_experts": 5, "n_experts_per_token": 2,
        "router": "deepseek_v3", "normalize_top_k": false, "n_group": 1, "topk_group": 1,
        "routed_scaling": 1.5, "d_shared": 0, "shared_gate": false})",
    R"({"d_model": 6, "d_ff": 3, "n_experts": 1, "n_experts_per_token": 1,
        "router": "deepseek_v3", "normalize_top_k": false, "n_group": 1, "topk_group": 1,
        "routed_scaling": 1, "d_shared": 0, "shared_gate": false})"};

}  // namespace reference
