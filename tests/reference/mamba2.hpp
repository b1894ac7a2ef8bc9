#pragma once

#include <algorithm>
#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Dao & Gu 2024, arXiv:2405.21060, section 2.1 and figure 6.
template <class S>
Output<S> mamba2(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads"), P = in.size("head_dim");
  const Index N = in.size("state_size"), G = in.size("n_groups"), W = in.size("conv_kernel");
  const Index inner = H * P, channels = inner + 2 * G * N;
  Index groups = in.size("norm_groups");
  if (groups == 0) groups = in.text("norm") == "group" ? G : 1;
  const double dt_max = in.config.at("dt_max").is_string() ? HUGE_VAL : in.number("dt_max");
  const auto bias = [&](const char* name) { return in.flag("bias") ? &in.weight(name) : nullptr; };
  Output<S> out{in.x, {}};
  Array<S> conv({B, W - 1, channels}), ssm({B, H, N, P});
  const Array<S>&taps = in.weight("conv1d.weight"), &skip = in.weight("D");
  const Array<S>* const conv_bias = in.flag("conv_bias") ? &in.weight("conv1d.bias") : nullptr;
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto row =
          linear<S>(in.weight("in_proj.weight"), bias("in_proj.bias"), token(in.x, b, t));
      // The rows of in_proj: z [inner], conv input x, B, C [channels], dt [H].
      std::vector<S> mixed(static_cast<std::size_t>(channels));
      for (Index d = 0; d < channels; ++d) {
        const S now = row[static_cast<std::size_t>(inner + d)];
        S sum = conv_bias != nullptr ? (*conv_bias)(d) : S(0);
        for (Index j = 0; j < W - 1; ++j) sum += taps(d, 0, j) * conv(b, j, d);
        sum += taps(d, 0, W - 1) * now;
        mixed[static_cast<std::size_t>(d)] = silu(sum);
        for (Index j = 0; j + 1 < W - 1; ++j) conv(b, j, d) = conv(b, j + 1, d);
        if (W > 1) conv(b, W - 2, d) = now;
      }
      std::vector<S> y(static_cast<std::size_t>(inner));
      for (Index h = 0; h < H; ++h) {
        const S raw = row[static_cast<std::size_t>(inner + channels + h)] + in.weight("dt_bias")(h);
        const S softplus = raw > 20 ? raw : std::log1p(std::exp(raw));
        const S dt =
            std::clamp(softplus, static_cast<S>(in.number("dt_min")), static_cast<S>(dt_max));
        const S decay = std::exp(-dt * std::exp(in.weight("A_log")(h)));
        const Index g = h / (H / G);
        for (Index p = 0; p < P; ++p) {
          const S value = mixed[static_cast<std::size_t>(h * P + p)];
          S sum = 0;
          for (Index n = 0; n < N; ++n) {
            S& cell = ssm(b, h, n, p);
            cell = decay * cell + dt * value * mixed[static_cast<std::size_t>(inner + g * N + n)];
            sum += cell * mixed[static_cast<std::size_t>(inner + (G + g) * N + n)];
          }
          y[static_cast<std::size_t>(h * P + p)] = sum + skip(h) * value;
        }
      }
      const auto gate = [&] {
        for (Index d = 0; d < inner; ++d) {
          y[static_cast<std::size_t>(d)] *= silu(row[static_cast<std::size_t>(d)]);
        }
      };
      const Index width = inner / groups;
      if (!in.flag("norm_before_gate") || !in.flag("rms_norm")) gate();
      for (Index first = 0; in.flag("rms_norm") && first < inner; first += width) {
        S square = 0;
        for (Index d = first; d < first + width; ++d) {
          square += y[static_cast<std::size_t>(d)] * y[static_cast<std::size_t>(d)];
        }
        const S norm =
            std::sqrt(square / static_cast<S>(width) + static_cast<S>(in.number("norm_eps")));
        for (Index d = first; d < first + width; ++d) {
          y[static_cast<std::size_t>(d)] *= in.weight("norm.weight")(d) / norm;
        }
      }
      if (in.flag("norm_before_gate") && in.flag("rms_norm")) gate();
      set_token(out.y, b, t, linear<S>(in.weight("out_proj.weight"), bias("out_proj.bias"), y));
    }
  }
  out.state = {{"conv", conv}, {"ssm", ssm}};
  return out;
}

inline const std::vector<std::string> mamba2_configs{
    R"({"d_model": 16, "n_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1,
        "conv_kernel": 4, "dt_min": 0, "dt_max": "Infinity", "conv_bias": true, "bias": false,
        "rms_norm": true, "norm_before_gate": false, "norm_groups": 1, "norm_eps": 1e-5})",
    R"({"d_model": 21, "n_heads": 6, "head_dim": 5, "state_size": 7, "n_groups": 3,
        "conv_kernel": 3, "dt_min": 0.01, "dt_max": 0.05, "conv_bias": false, "bias": true,
        "rms_norm": true, "norm_before_gate": true, "norm": "group", "norm_eps": 1e-6})",
    R"({"d_model": 10, "n_heads": 2, "head_dim": 51, "state_size": 33, "n_groups": 2,
        "conv_kernel": 2, "dt_min": 0, "dt_max": "Infinity", "conv_bias": true, "bias": false,
        "rms_norm": true, "norm_before_gate": false, "norm": "width", "norm_eps": 1e-5})",
    R"({"d_model": 12, "n_heads": 3, "head_dim": 7, "state_size": 9, "n_groups": 1,
        "conv_kernel": 4, "dt_min": 0, "dt_max": "Infinity", "conv_bias": true, "bias": false,
        "rms_norm": false, "norm_before_gate": false, "norm_groups": 1, "norm_eps": 1e-5})"};

}  // namespace reference
