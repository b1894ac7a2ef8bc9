#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Gu & Dao 2023, arXiv:2312.00752, algorithm 2, with the norms of arXiv:2403.19887.
template <class S>
Output<S> mamba(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), D = in.size("d_inner"), N = in.size("state_size");
  const Index R = in.size("dt_rank"), W = in.size("conv_kernel");
  const std::string kind = in.text("norm");
  const auto bias = [&](const char* name) { return in.flag("bias") ? &in.weight(name) : nullptr; };
  const auto norm = [&](const std::vector<S>& from, Index first, Index count, const char* weight) {
    std::vector<S> part(from.begin() + first, from.begin() + first + count);
    if (kind == "none") return part;
    S square = 0;
    for (const S value : part) square += value * value;
    const S root =
        std::sqrt(square / static_cast<S>(count) + static_cast<S>(in.number("norm_eps")));
    for (Index i = 0; i < count; ++i) {
      S& value = part[static_cast<std::size_t>(i)];
      value /= root;
      if (kind == "weighted") value *= in.weight(weight)(i);
    }
    return part;
  };
  Output<S> out{in.x, {}};
  Array<S> conv({B, W - 1, D}), ssm({B, N, D}), A = in.weight("A_log");
  for (S& rate : A.numbers) rate = -std::exp(rate);
  const Array<S>&taps = in.weight("conv1d.weight"), &skip = in.weight("D");
  const Array<S>* const conv_bias = in.flag("conv_bias") ? &in.weight("conv1d.bias") : nullptr;
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto row =
          linear<S>(in.weight("in_proj.weight"), bias("in_proj.bias"), token(in.x, b, t));
      std::vector<S> x(static_cast<std::size_t>(D)), y(x.size());
      for (Index d = 0; d < D; ++d) {
        const S now = row[static_cast<std::size_t>(d)];
        S sum = conv_bias != nullptr ? (*conv_bias)(d) : S(0);
        for (Index j = 0; j < W - 1; ++j) sum += taps(d, 0, j) * conv(b, j, d);
        sum += taps(d, 0, W - 1) * now;
        x[static_cast<std::size_t>(d)] = silu(sum);
        for (Index j = 0; j + 1 < W - 1; ++j) conv(b, j, d) = conv(b, j + 1, d);
        if (W > 1) conv(b, W - 2, d) = now;
      }
      const auto selected = linear<S>(in.weight("x_proj.weight"), nullptr, x);
      const auto r = norm(selected, 0, R, "dt_layernorm.weight");
      const auto keys = norm(selected, R, N, "b_layernorm.weight");
      const auto queries = norm(selected, R + N, N, "c_layernorm.weight");
      const auto steps = linear<S>(in.weight("dt_proj.weight"), &in.weight("dt_proj.bias"), r);
      for (Index d = 0; d < D; ++d) {
        const auto at = static_cast<std::size_t>(d);
        const S dt = steps[at] > 20 ? steps[at] : std::log1p(std::exp(steps[at]));
        S sum = 0;
        for (Index n = 0; n < N; ++n) {
          S& cell = ssm(b, n, d);
          cell = std::exp(dt * A(d, n)) * cell + dt * keys[static_cast<std::size_t>(n)] * x[at];
          sum += cell * queries[static_cast<std::size_t>(n)];
        }
        y[at] = (sum + skip(d) * x[at]) * silu(row[static_cast<std::size_t>(D + d)]);
      }
      set_token(out.y, b, t, linear<S>(in.weight("out_proj.weight"), bias("out_proj.bias"), y));
    }
  }
  out.state = {{"conv", conv}, {"ssm", ssm}};
  return out;
}

inline const std::vector<std::string> mamba_configs{
    R"({"d_model": 16, "d_inner": 32, "state_size": 16, "dt_rank": 2, "conv_kernel": 4,
        "conv_bias": true, "bias": false, "norm": "none", "norm_eps": 1e-6})",
    R"({"d_model": 21, "d_inner": 37, "state_size": 7, "dt_rank": 3, "conv_kernel": 3,
        "conv_bias": true, "bias": true, "norm": "weighted", "norm_eps": 1e-5})",
    R"({"d_model": 10, "d_inner": 150, "state_size": 17, "dt_rank": 5, "conv_kernel": 2,
        "conv_bias": false, "bias": false, "norm": "weightless", "norm_eps": 1e-6})"};

}  // namespace reference
