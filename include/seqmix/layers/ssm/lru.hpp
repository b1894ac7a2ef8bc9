#pragma once

#include <cmath>
#include <utility>

#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/scan/diagonal.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct LruConfig {
  Index d_model = 0;
  Index state_size = 0;  // N, complex numbers

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("state_size", self.state_size);
  }
};

/// The linear recurrent unit: complex numbers that turn and fade at rates of their own.
///
///   λ = exp(-exp(ν_log) + i exp(θ_log))
///   h_t = λ ⊙ h_{t-1} + exp(γ_log) ⊙ (B_re + i B_im) x_t         h_t [N], complex
///   y_t = Re((C_re + i C_im) h_t) + D ⊙ x_t
///
/// All N numbers are stored: there are no conjugates, hence no factor of 2.
///
/// forward: O(T D N); step: O(D N). State: N complex numbers a stream, whatever T.
/// Source: Orvieto et al. 2023, arXiv:2303.06349, section 3 and appendix A; minimal-LRU
/// lru/model.py, class LRU.
template <class S>
struct LruDefinition {
  using Scalar = S;
  using Config = LruConfig;
  static constexpr Traits traits{.name = "lru",
                                 .title = "LRU",
                                 .paper = "Orvieto 2023, arXiv:2303.06349",
                                 .forward = "O(T D N)",
                                 .step = "O(D N)",
                                 .state = "2 N"};

  struct Weights {
    Parameter<Scalar, 1> theta_log, nu_log, gamma_log;  // [N]
    Parameter<Scalar, 2> B_re, B_im;                    // [N, D]
    Parameter<Scalar, 2> C_re, C_im;                    // [D, N]
    Parameter<Scalar, 1> D;                             // [D]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("theta_log", self.theta_log, {c.state_size}, init::uniform(-4, 1.8));
      parameter("nu_log", self.nu_log, {c.state_size}, init::uniform(-4, -1));
      parameter("gamma_log", self.gamma_log, {c.state_size}, init::uniform(-2, 0));
      parameter("B_re", self.B_re, {c.state_size, c.d_model});
      parameter("B_im", self.B_im, {c.state_size, c.d_model});
      parameter("C_re", self.C_re, {c.d_model, c.state_size});
      parameter("C_im", self.C_im, {c.d_model, c.state_size});
      parameter("D", self.D, {c.d_model}, init::ones);
    }
  };

  struct State {
    Tensor<Scalar, 3> hidden;  // [B, 2, N], real and imaginary parts

    static void visit(auto& self, auto&& tensor) { tensor("hidden", self.hidden); }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 2> lambda;  // [2, N]
  Projection<Scalar> inputs,
      readouts;  // [2 N, D], exp(γ_log) (B_re, B_im); [D, 2 N], (C_re, -C_im)

  LruDefinition(Config config, Weights weights) : c(std::move(config)), w(std::move(weights)) {
    const Index N = c.state_size;
    Tensor<Scalar, 2> factors({2, N}), in({2 * N, c.d_model}), out({c.d_model, 2 * N});
    for (Index n = 0; n < N; ++n) {
      const double radius = std::exp(-std::exp(static_cast<double>(w.nu_log[n])));
      const double angle = std::exp(static_cast<double>(w.theta_log[n]));
      factors(0, n) = static_cast<Scalar>(radius * std::cos(angle));
      factors(1, n) = static_cast<Scalar>(radius * std::sin(angle));
      const Scalar gain = std::exp(w.gamma_log[n]);
      for (Index d = 0; d < c.d_model; ++d) {
        in(n, d) = gain * w.B_re(n, d), in(N + n, d) = gain * w.B_im(n, d);
        out(d, n) = w.C_re(d, n), out(d, N + n) = -w.C_im(d, n);
      }
    }
    lambda = std::move(factors);
    inputs.weight = Parameter<Scalar, 2>(std::move(in)), inputs.weight.pack();
    readouts.weight = Parameter<Scalar, 2>(std::move(out)), readouts.weight.pack();
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.hidden = {{batch, 2, c.state_size}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto h = scratch(T, 2 * c.state_size);  // [T, 2 N]
    auto read = scratch(T, c.d_model);      // [T, D]

    project(x, {{inputs, h}}, call);
    const auto numbers = h.split(axis::channel, 2, c.state_size);  // [T, 2, N]
    diagonal_scan(lambda, numbers, state.hidden, numbers, call);
    project(h, {{readouts, read}}, call);
    elementwise(
        call, [](auto d, auto in, auto sum) { return simd::fma(d, in, sum); }, y, by_channel(w.D),
        x, read);
  }
};

template <class Scalar = float>
using Lru = Mixer<LruDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(LruDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
