#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// De et al. 2024, arXiv:2402.19427, eq. 1-4 and figure 2c.
template <class S>
Output<S> rg_lru(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), D = in.size("lru_width"), H = in.size("n_heads");
  const Index W = in.size("conv_kernel"), P = D / H;
  const auto gelu_tanh = [](S x) {
    const S inner = std::sqrt(2 / static_cast<S>(3.14159265358979323846L)) *
                    (x + static_cast<S>(0.044715L) * x * x * x);
    return x * (1 + std::tanh(inner)) / 2;
  };
  const auto gate = [&](const std::string& name, const std::vector<S>& x) {
    std::vector<S> result(x.size());
    const Array<S>& weight = in.weight("rg_lru." + name + "_weight");
    const Array<S>& bias = in.weight("rg_lru." + name + "_bias");
    for (Index d = 0; d < D; ++d) {
      S sum = bias(d / P, d % P);
      for (Index i = 0; i < P; ++i) {
        sum += x[static_cast<std::size_t>(d / P * P + i)] * weight(d / P, i, d % P);
      }
      result[static_cast<std::size_t>(d)] = sigmoid(sum);
    }
    return result;
  };
  Output<S> out{in.x, {}};
  Array<S> position({B}), conv({B, W - 1, D}), hidden({B, D});
  const Array<S>& taps = in.weight("conv_1d.weight");
  for (Index b = 0; b < B; ++b) {
    position(b) = static_cast<S>(T);
    for (Index t = 0; t < T; ++t) {
      const auto u = token(in.x, b, t);
      const auto branch = linear<S>(in.weight("linear_y.weight"), &in.weight("linear_y.bias"), u);
      const auto raw = linear<S>(in.weight("linear_x.weight"), &in.weight("linear_x.bias"), u);
      std::vector<S> x(raw.size());
      for (Index d = 0; d < D; ++d) {
        const S now = raw[static_cast<std::size_t>(d)];
        S sum = in.weight("conv_1d.bias")(d);
        for (Index j = 0; j < W - 1; ++j) sum += taps(d, 0, j) * conv(b, j, d);
        x[static_cast<std::size_t>(d)] = sum + taps(d, 0, W - 1) * now;
        for (Index j = 0; j + 1 < W - 1; ++j) conv(b, j, d) = conv(b, j + 1, d);
        if (W > 1) conv(b, W - 2, d) = now;
      }
      const auto i = gate("input_gate", x), r = gate("recurrent_gate", x);
      std::vector<S> y(raw.size());
      for (Index d = 0; d < D; ++d) {
        const auto at = static_cast<std::size_t>(d);
        const S param = in.weight("rg_lru.recurrent_param")(d);
        const S softplus =
            param > 0 ? param + std::log1p(std::exp(-param)) : std::log1p(std::exp(param));
        const S log_a = -8 * r[at] * softplus;
        if (t == 0) {
          hidden(b, d) = i[at] * x[at];
        } else {
          hidden(b, d) =
              std::exp(log_a) * hidden(b, d) + std::sqrt(-std::expm1(2 * log_a)) * i[at] * x[at];
        }
        y[at] = hidden(b, d) * gelu_tanh(branch[at]);
      }
      set_token(out.y, b, t,
                linear<S>(in.weight("linear_out.weight"), &in.weight("linear_out.bias"), y));
    }
  }
  out.state = {{"position", position}, {"conv", conv}, {"hidden", hidden}};
  return out;
}

inline const std::vector<std::string> rg_lru_configs{
    R"({"d_model": 16, "lru_width": 16, "n_heads": 2, "conv_kernel": 4})",
    R"({"d_model": 21, "lru_width": 33, "n_heads": 3, "conv_kernel": 3})",
    R"({"d_model": 10, "lru_width": 35, "n_heads": 1, "conv_kernel": 1})"};

}  // namespace reference
