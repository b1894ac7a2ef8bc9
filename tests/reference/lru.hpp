#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Orvieto et al. 2023, arXiv:2303.06349, section 3 and appendix A.
template <class S>
Output<S> lru(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), D = in.size("d_model"), N = in.size("state_size");
  Output<S> out{in.x, {}};
  Array<S> hidden({B, 2, N}), lambda({2, N}), gain({N});
  for (Index n = 0; n < N; ++n) {
    const S radius = std::exp(-std::exp(in.weight("nu_log")(n)));
    const S angle = std::exp(in.weight("theta_log")(n));
    lambda(0, n) = radius * std::cos(angle), lambda(1, n) = radius * std::sin(angle);
    gain(n) = std::exp(in.weight("gamma_log")(n));
  }
  const Array<S>&C_re = in.weight("C_re"), &C_im = in.weight("C_im"), &skip = in.weight("D");
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto in_re = linear<S>(in.weight("B_re"), nullptr, x);
      const auto in_im = linear<S>(in.weight("B_im"), nullptr, x);
      for (Index n = 0; n < N; ++n) {
        const auto at = static_cast<std::size_t>(n);
        const S re = hidden(b, 0, n), im = hidden(b, 1, n);
        hidden(b, 0, n) = lambda(0, n) * re - lambda(1, n) * im + gain(n) * in_re[at];
        hidden(b, 1, n) = lambda(0, n) * im + lambda(1, n) * re + gain(n) * in_im[at];
      }
      std::vector<S> y(x.size());
      for (Index d = 0; d < D; ++d) {
        S sum = 0;
        for (Index n = 0; n < N; ++n) {
          sum += C_re(d, n) * hidden(b, 0, n) - C_im(d, n) * hidden(b, 1, n);
        }
        const auto at = static_cast<std::size_t>(d);
        y[at] = sum + skip(d) * x[at];
      }
      set_token(out.y, b, t, y);
    }
  }
  out.state = {{"hidden", hidden}};
  return out;
}

inline const std::vector<std::string> lru_configs{R"({"d_model": 16, "state_size": 16})",
                                                  R"({"d_model": 21, "state_size": 33})",
                                                  R"({"d_model": 7, "state_size": 530})"};

}  // namespace reference
