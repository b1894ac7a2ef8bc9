#pragma once

#include <algorithm>
#include <cmath>

#include "reference/rwkv.hpp"

namespace reference {

/// Peng et al. 2025, arXiv:2503.14456, section 4.
template <class S>
Output<S> rwkv7(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), D = in.size("d_model"), N = in.size("head_dim"), H = D / N;
  const bool is_first = in.size("layer_index") == 0;
  const auto channels = static_cast<std::size_t>(D);
  Output<S> out{in.x, {}};
  Array<S> att({B, 1, D}), ffn({B, 1, D}), memory({B, H, N, N}), first({B, T, D});
  const auto ffn_k = in.weight("ffn.x_k").numbers;
  for (Index b = 0; b < B; ++b) {
    std::vector<S> past(channels), ffn_past(channels);
    for (Index t = 0; t < T; ++t) {
      const auto x = rwkv_enter(in, b, t);
      const auto normed = rwkv_layer_norm(in, "ln1", x);
      const auto mixed = [&](const char* weight) {
        return rwkv_mix(normed, past, in.weight(weight).numbers);
      };
      // What a pair of factors makes of x.
      const auto low_rank = [&](std::vector<S> from, char letter, auto&& f, bool bias) {
        const std::string factor = std::string("att.") + letter;
        return rwkv_times<S>(f(rwkv_times<S>(from, in.weight(factor + "1"), nullptr)),
                             in.weight(factor + "2"), bias ? &in.weight(factor + "0") : nullptr);
      };
      const auto same = [](std::vector<S> values) { return values; };
      const auto r = linear<S>(in.weight("att.receptance.weight"), nullptr, mixed("att.x_r"));
      auto k = linear<S>(in.weight("att.key.weight"), nullptr, mixed("att.x_k"));
      auto v = linear<S>(in.weight("att.value.weight"), nullptr, mixed("att.x_v"));
      if (is_first) {
        set_token(first, b, t, v);
      } else {
        const auto gate = rwkv_sigmoid(low_rank(mixed("att.x_v"), 'v', same, true));
        const auto from = token(in.input("value_first"), b, t);
        for (std::size_t i = 0; i < channels; ++i) v[i] += (from[i] - v[i]) * gate[i];
      }
      const auto raw_decay = low_rank(mixed("att.x_w"), 'w', rwkv_tanh<S>, true);
      const auto a = rwkv_sigmoid(low_rank(mixed("att.x_a"), 'a', same, true));
      const auto g = low_rank(mixed("att.x_g"), 'g', rwkv_sigmoid<S>, false);
      std::vector<S> o(channels), bonus(channels);
      for (Index h = 0; h < H; ++h) {
        const auto at = [&](Index i) { return static_cast<std::size_t>(h * N + i); };
        const auto cell = [&](Index i, Index j) -> S& { return memory(b, h, i, j); };
        std::vector<S> kappa(static_cast<std::size_t>(N)), decay(kappa.size());
        S square = 0, share = 0;
        for (Index i = 0; i < N; ++i) {
          decay[static_cast<std::size_t>(i)] =
              std::exp(static_cast<S>(-std::exp(-0.5)) * sigmoid(raw_decay[at(i)]));
          S& number = kappa[static_cast<std::size_t>(i)];
          number = k[at(i)] * in.weight("att.k_k").numbers[at(i)];
          square += number * number;
          k[at(i)] *= 1 + (a[at(i)] - 1) * in.weight("att.k_a").numbers[at(i)];
          share += r[at(i)] * k[at(i)] * in.weight("att.r_k")(h, i);
        }
        for (S& number : kappa) number /= std::max(std::sqrt(square), S(1e-12));
        for (Index j = 0; j < N; ++j) {
          S found = 0;
          for (Index i = 0; i < N; ++i) found += kappa[static_cast<std::size_t>(i)] * cell(i, j);
          for (Index i = 0; i < N; ++i) {
            cell(i, j) = decay[static_cast<std::size_t>(i)] * cell(i, j) -
                         kappa[static_cast<std::size_t>(i)] * a[at(i)] * found +
                         k[at(i)] * v[at(j)];
            o[at(j)] += r[at(i)] * cell(i, j);
          }
          bonus[at(j)] = share * v[at(j)];
        }
      }
      o = rwkv_norm(o, in.weight("att.ln_x.weight"), in.weight("att.ln_x.bias"), N,
                    in.number("head_norm_eps"));
      for (std::size_t i = 0; i < channels; ++i) o[i] = (o[i] + bonus[i]) * g[i];
      past = normed;
      const auto y = rwkv_plus(x, linear<S>(in.weight("att.output.weight"), nullptr, o));
      set_token(out.y, b, t, rwkv_channel_mix<S>(in, y, ffn_past, ffn_k, nullptr));
    }
    for (Index i = 0; i < D; ++i) {
      att(b, 0, i) = past[static_cast<std::size_t>(i)];
      ffn(b, 0, i) = ffn_past[static_cast<std::size_t>(i)];
    }
  }
  out.state["att_shift"] = att, out.state["ffn_shift"] = ffn, out.state["memory"] = memory;
  if (is_first) out.outputs["value_first"] = first;
  return out;
}

inline const std::vector<std::string> rwkv7_configs{
    R"({"d_model": 16, "head_dim": 8, "d_ff": 64, "decay_rank": 4, "rate_rank": 5, "value_rank": 3,
        "gate_rank": 6, "layer_index": 0, "norm_eps": 1e-5, "head_norm_eps": 64e-5})",
    R"({"d_model": 21, "head_dim": 7, "d_ff": 43, "decay_rank": 5, "rate_rank": 3, "value_rank": 4,
        "gate_rank": 7, "layer_index": 2, "norm_eps": 1e-5, "head_norm_eps": 64e-5})",
    R"({"d_model": 67, "head_dim": 67, "d_ff": 40, "decay_rank": 8, "rate_rank": 16,
        "value_rank": 5, "gate_rank": 9, "layer_index": 1, "norm_eps": 1e-6,
        "head_norm_eps": 1e-5})"};

}  // namespace reference
