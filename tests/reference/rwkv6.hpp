#pragma once

#include <cmath>

#include "reference/rwkv.hpp"

namespace reference {

/// Peng et al. 2024, arXiv:2404.05892, section 4.
template <class S>
Output<S> rwkv6(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), D = in.size("d_model"), N = in.size("head_dim"), H = D / N;
  const Index R = in.size("mix_rank");
  const auto channels = static_cast<std::size_t>(D);
  Output<S> out{in.x, {}};
  Array<S> att({B, 1, D}), ffn({B, 1, D}), memory({B, H, N, N});
  const auto numbers = [&](const std::string& name) { return in.weight(name).numbers; };
  const auto ffn_k = numbers("ffn.time_maa_k"), ffn_r = numbers("ffn.time_maa_r");
  for (Index b = 0; b < B; ++b) {
    std::vector<S> past(channels), ffn_past(channels);
    const Array<S>&maa_w2 = in.weight("att.time_maa_w2"), &bonus = in.weight("att.time_faaaa");
    for (Index t = 0; t < T; ++t) {
      const auto x = rwkv_enter(in, b, t);
      const auto normed = rwkv_layer_norm(in, "ln1", x);
      const auto low = rwkv_tanh(rwkv_times<S>(rwkv_mix(normed, past, numbers("att.time_maa_x")),
                                               in.weight("att.time_maa_w1"), nullptr));
      std::vector<std::vector<S>> mixed;  // w, k, v, r, g
      for (const char letter : {'w', 'k', 'v', 'r', 'g'}) {
        auto weight = numbers(std::string("att.time_maa_") + letter);
        const Index i = static_cast<Index>(mixed.size());
        for (Index j = 0; j < R; ++j) {
          for (Index d = 0; d < D; ++d) {
            weight[static_cast<std::size_t>(d)] +=
                low[static_cast<std::size_t>(i * R + j)] * maa_w2(i, j, d);
          }
        }
        mixed.push_back(rwkv_mix(normed, past, weight));
      }
      const auto raw_decay =
          rwkv_times<S>(rwkv_tanh(rwkv_times<S>(mixed[0], in.weight("att.time_decay_w1"), nullptr)),
                        in.weight("att.time_decay_w2"), &in.weight("att.time_decay"));
      const auto k = linear<S>(in.weight("att.key.weight"), nullptr, mixed[1]);
      const auto v = linear<S>(in.weight("att.value.weight"), nullptr, mixed[2]);
      const auto r = linear<S>(in.weight("att.receptance.weight"), nullptr, mixed[3]);
      const auto g = linear<S>(in.weight("att.gate.weight"), nullptr, mixed[4]);
      std::vector<S> o(channels);
      for (Index h = 0; h < H; ++h) {
        for (Index i = 0; i < N; ++i) {
          const auto key = static_cast<std::size_t>(h * N + i);
          const S decay = std::exp(-std::exp(raw_decay[key]));
          for (Index j = 0; j < N; ++j) {
            const auto value = static_cast<std::size_t>(h * N + j);
            S& cell = memory(b, h, i, j);
            const S written = k[key] * v[value];
            o[value] += r[key] * (cell + bonus(h, i) * written);
            cell = decay * cell + written;
          }
        }
      }
      o = rwkv_norm(o, in.weight("att.ln_x.weight"), in.weight("att.ln_x.bias"), N,
                    in.number("head_norm_eps"));
      for (std::size_t i = 0; i < channels; ++i) o[i] *= silu(g[i]);
      past = normed;
      const auto y = rwkv_plus(x, linear<S>(in.weight("att.output.weight"), nullptr, o));
      set_token(out.y, b, t, rwkv_channel_mix(in, y, ffn_past, ffn_k, &ffn_r));
    }
    for (Index i = 0; i < D; ++i) {
      att(b, 0, i) = past[static_cast<std::size_t>(i)];
      ffn(b, 0, i) = ffn_past[static_cast<std::size_t>(i)];
    }
  }
  out.state["att_shift"] = att, out.state["ffn_shift"] = ffn, out.state["memory"] = memory;
  return out;
}

inline const std::vector<std::string> rwkv6_configs{
    R"({"d_model": 16, "head_dim": 8, "d_ff": 56, "mix_rank": 4, "decay_rank": 6, "layer_index": 0,
        "norm_eps": 1e-5, "head_norm_eps": 64e-5})",
    R"({"d_model": 21, "head_dim": 7, "d_ff": 43, "mix_rank": 3, "decay_rank": 5, "layer_index": 2,
        "norm_eps": 1e-5, "head_norm_eps": 64e-5})",
    R"({"d_model": 66, "head_dim": 33, "d_ff": 40, "mix_rank": 8, "decay_rank": 16,
        "layer_index": 1, "norm_eps": 1e-6, "head_norm_eps": 1e-5})"};

}  // namespace reference
