#pragma once

#include <cmath>

#include "reference/gated_unit.hpp"

namespace reference {

template <class S>
Output<S> gated_attention_unit_of(const Input<S>& in, bool both) {
  const GatedUnitTwin<S> unit{in, "offsetscale"};
  const Index B = in.B(), T = in.T(), K = unit.K, V = unit.V;
  const Index fixed = in.size("normaliser_length");
  const S length = static_cast<S>(fixed > 0 ? fixed : T);
  const S bias_scale = std::sqrt(static_cast<S>(unit.D));
  Output<S> out{in.x, {}};
  Array<S> keys({B, 1, T, K}), values({B, 1, T, V}), position({B});
  for (Index b = 0; b < B; ++b) {
    position(b) = static_cast<S>(T);
    std::vector<std::vector<S>> q, k, hidden;  // hidden: values, then the gate
    for (Index t = 0; t < T; ++t) {
      const auto x = unit.normed(token(in.x, b, t));
      hidden.push_back(unit.projected("to_hidden", x));
      const auto qk = unit.projected("to_qk", x);
      q.push_back(unit.use(0, qk)), k.push_back(unit.use(1, qk));
      for (Index i = 0; i < K; ++i) keys(b, 0, t, i) = k.back()[static_cast<std::size_t>(i)];
      for (Index i = 0; i < V; ++i) values(b, 0, t, i) = hidden.back()[static_cast<std::size_t>(i)];
    }
    for (Index t = 0; t < T; ++t) {
      const auto at = static_cast<std::size_t>(t);
      std::vector<S> o(static_cast<std::size_t>(V));
      for (Index j = 0; j < (both ? T : t + 1); ++j) {
        const S product = dot(q[at], k[static_cast<std::size_t>(j)]);
        const S p = unit.weight((product + bias_scale * unit.bias(t, j, both)) / length);
        for (Index i = 0; i < V; ++i) o[static_cast<std::size_t>(i)] += p * values(b, 0, j, i);
      }
      for (Index i = 0; i < V; ++i) {
        o[static_cast<std::size_t>(i)] *= hidden[at][static_cast<std::size_t>(V + i)];
      }
      auto y = linear<S>(in.weight("to_out.0.weight"), &in.weight("to_out.0.bias"), o);
      for (Index i = 0; i < unit.D && in.flag("residual"); ++i) {
        y[static_cast<std::size_t>(i)] += in.x(b, t, i);
      }
      set_token(out.y, b, t, y);
    }
  }
  if (!both) out.state = {{"position", position}, {"keys", keys}, {"values", values}};
  return out;
}

template <class S>
Output<S> gated_attention_unit(const Input<S>& in) {
  return gated_attention_unit_of(in, false);
}
template <class S>
Output<S> bidirectional_gated_attention_unit(const Input<S>& in) {
  return gated_attention_unit_of(in, true);
}

inline const std::vector<std::string> gated_attention_unit_configs{
    R"({"d_model": 16, "head_k": 8, "head_v": 32, "normaliser_length": 7, "residual": false})",
    R"({"d_model": 13, "head_k": 5, "head_v": 27, "normaliser_length": 3, "num_buckets": 9,
        "max_distance": 40, "norm": "scale", "norm_eps": 1e-3})",
    R"({"d_model": 12, "head_k": 33, "head_v": 83, "normaliser_length": 9,
        "activation": "laplace"})"};

inline const std::vector<std::string> bidirectional_gated_attention_unit_configs{
    R"({"d_model": 16, "head_k": 8, "head_v": 32, "residual": false})",
    R"({"d_model": 13, "head_k": 5, "head_v": 27, "normaliser_length": 3, "num_buckets": 9,
        "max_distance": 40, "norm": "scale", "norm_eps": 1e-3})",
    R"({"d_model": 12, "head_k": 33, "head_v": 83, "normaliser_length": 9,
        "activation": "laplace"})"};

}  // namespace reference
