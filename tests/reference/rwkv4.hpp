#pragma once

#include <cmath>

#include "reference/rwkv.hpp"

namespace reference {

/// Peng et al. 2023, arXiv:2305.13048, eq. 11-18; the sums with a running maximum as in the
/// published float code, since e^k alone overflows.
template <class S>
Output<S> rwkv4(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), D = in.size("d_model");
  const auto channels = static_cast<std::size_t>(D);
  Output<S> out{in.x, {}};
  Array<S> att({B, 1, D}), ffn({B, 1, D}), num({B, D}), den({B, D}), top({B, D});
  const auto past_weight = [&](const char* name) {
    auto weight = in.weight(name).numbers;
    for (S& number : weight) number = 1 - number;
    return weight;
  };
  const auto past_k = past_weight("att.time_mix_k"), past_v = past_weight("att.time_mix_v"),
             past_r = past_weight("att.time_mix_r"), ffn_k = past_weight("ffn.time_mix_k"),
             ffn_r = past_weight("ffn.time_mix_r");
  for (Index b = 0; b < B; ++b) {
    std::vector<S> past(channels), ffn_past(channels);
    std::vector<S> a(channels), n(channels), m(channels, S(-1e38));
    for (Index t = 0; t < T; ++t) {
      const auto x = rwkv_enter(in, b, t);
      const auto normed = rwkv_layer_norm(in, "ln1", x);
      const auto sent = [&](const char* weight, const std::vector<S>& by) {
        return linear<S>(in.weight(weight), nullptr, rwkv_mix(normed, past, by));
      };
      const auto r = sent("att.receptance.weight", past_r), k = sent("att.key.weight", past_k),
                 v = sent("att.value.weight", past_v);
      std::vector<S> o(channels);
      for (std::size_t i = 0; i < channels; ++i) {
        const S current = in.weight("att.time_first").numbers[i] + k[i];
        const S q = std::max(m[i], current);
        const S old_share = std::exp(m[i] - q), new_share = std::exp(current - q);
        o[i] =
            sigmoid(r[i]) * (old_share * a[i] + new_share * v[i]) / (old_share * n[i] + new_share);
        const S aged = m[i] - std::exp(in.weight("att.time_decay").numbers[i]);
        m[i] = std::max(aged, k[i]);
        a[i] = std::exp(aged - m[i]) * a[i] + std::exp(k[i] - m[i]) * v[i];
        n[i] = std::exp(aged - m[i]) * n[i] + std::exp(k[i] - m[i]);
      }
      past = normed;
      const auto y = rwkv_plus(x, linear<S>(in.weight("att.output.weight"), nullptr, o));
      set_token(out.y, b, t, rwkv_channel_mix(in, y, ffn_past, ffn_k, &ffn_r));
    }
    for (Index i = 0; i < D; ++i) {
      const auto at = static_cast<std::size_t>(i);
      att(b, 0, i) = past[at], ffn(b, 0, i) = ffn_past[at];
      num(b, i) = a[at], den(b, i) = n[at], top(b, i) = m[at];
    }
  }
  out.state["att_shift"] = att, out.state["ffn_shift"] = ffn;
  out.state["numerator"] = num, out.state["denominator"] = den, out.state["maximum"] = top;
  return out;
}

inline const std::vector<std::string> rwkv4_configs{
    R"({"d_model": 16, "d_ff": 64, "layer_index": 0, "norm_eps": 1e-5})",
    R"({"d_model": 21, "d_ff": 43, "layer_index": 3, "norm_eps": 1e-5})",
    R"({"d_model": 83, "d_ff": 50, "layer_index": 1, "norm_eps": 1e-6})"};

}  // namespace reference
