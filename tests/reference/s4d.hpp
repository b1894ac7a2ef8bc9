#pragma once

#include <cmath>
#include <complex>

#include "reference/feed_forward.hpp"
#include "reference/twin.hpp"

namespace reference {

/// What follows the state-space model of a token: gelu, a projection, a gated linear unit.
template <class S>
std::vector<S> state_space_output(const Input<S>& in, std::vector<S> v) {
  for (S& value : v) value = activation<S>("gelu", value);
  const auto gated =
      linear<S>(in.weight("output_linear.0.weight"), &in.weight("output_linear.0.bias"), v);
  for (std::size_t d = 0; d < v.size(); ++d) v[d] = gated[d] * sigmoid(gated[v.size() + d]);
  return v;
}

/// Gu et al. 2022, arXiv:2206.11893, section 3. The discrete system, a constant, is formed in long
/// double; the recurrence runs in S.
template <class S>
Output<S> s4d(const Input<S>& original) {
  using Exact = std::complex<long double>;
  Input<S> in = original;
  const Index D = in.size("d_model"), N = in.size("state_size") / 2;
  in.weights.at("output_linear.0.weight").shape = {2 * D, D};  // one tap
  Output<S> out{in.x, {}};
  Array<S> ssm({in.B(), N, 2, D});
  std::vector<std::complex<S>> decays, inputs, outputs;  // [D, N]
  for (Index d = 0; d < D; ++d) {
    const long double dt = std::exp(static_cast<long double>(in.weight("kernel.log_dt")(d)));
    for (Index n = 0; n < N; ++n) {
      const Exact A(-std::exp(static_cast<long double>(in.weight("kernel.log_A_real")(d, n))),
                    static_cast<long double>(in.weight("kernel.A_imag")(d, n)));
      Exact decay, input;
      if (in.text("discretization") == "zoh") {
        decay = std::exp(dt * A), input = (decay - 1.0L) / A;
      } else {
        decay = (1.0L + dt * A / 2.0L) / (1.0L - dt * A / 2.0L);
        input = dt / (1.0L - dt * A / 2.0L);
      }
      decays.emplace_back(decay), inputs.emplace_back(input);
      outputs.emplace_back(in.weight("kernel.C")(d, n, 0), in.weight("kernel.C")(d, n, 1));
    }
  }
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      const auto u = token(in.x, b, t);
      std::vector<S> v(u.size());
      for (Index d = 0; d < D; ++d) {
        const S now = u[static_cast<std::size_t>(d)];
        S sum = 0;
        for (Index n = 0; n < N; ++n) {
          const auto at = static_cast<std::size_t>(d * N + n);
          S &re = ssm(b, n, 0, d), &im = ssm(b, n, 1, d);
          const std::complex<S> x = decays[at] * std::complex<S>(re, im) + inputs[at] * now;
          re = x.real(), im = x.imag();
          sum += (outputs[at] * x).real();
        }
        v[static_cast<std::size_t>(d)] = 2 * sum + in.weight("D")(d) * now;
      }
      set_token(out.y, b, t, state_space_output(in, v));
    }
  }
  out.state = {{"ssm", ssm}};
  return out;
}

inline const std::vector<std::string> s4d_configs{
    R"({"d_model": 16, "state_size": 16, "discretization": "zoh"})",
    R"({"d_model": 21, "state_size": 14, "discretization": "bilinear"})",
    R"({"d_model": 129, "state_size": 2, "discretization": "zoh"})"};

}  // namespace reference
