#pragma once

#include <cmath>
#include <complex>
#include <utility>

#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/scan/state_space.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct S4Config {
  Index d_model = 0;
  Index state_size = 64;  // N of a channel, conjugate states included
  Index n_ssm = 1;        // different A, P and B; channel d has those of number d mod n_ssm
  Index l_kernel = 0;  // tokens after which the stored C cuts the impulse response; 0: it does not

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("state_size", self.state_size);
    field("n_ssm", self.n_ssm), field("l_kernel", self.l_kernel, zero_is_legal);
  }
  void check() const {
    require(state_size % 2 == 0, "state_size must be even: states come in conjugate pairs");
    require(d_model % n_ssm == 0, "d_model must be a multiple of n_ssm");
  }
};

/// S4: a state-space model for each channel whose matrix is diagonal plus low rank, as HiPPO's is.
///
///   x' = A x + B u,   A = diag(-exp(A_real) - i A_imag) - P P*       continuous, in N states
///   x_t = Ā x_{t-1} + B̄ u_t                                         Ā, B̄ by the bilinear transform
///   v_t = 2 Re(C x_t) + D ⊙ u_t
///   y_t = a_t ⊙ σ(b_t),   (a_t, b_t) = W gelu(v_t) + b
///
/// A trained checkpoint holds C̃ = C (1 - Ā^L) with L = `l_kernel`; C itself is solved for once.
/// forward: O(T (D² + N D)); step: O(D² + N D). State: N D numbers a stream, whatever T.
/// The transforms of parallel segments under `Algorithm::chunked` carry a NaN to up to 63 earlier
/// tokens of its row; else it reaches later ones alone.
/// Source: Gu et al. 2021, arXiv:2111.00396, sections 3.2 to 3.4; state-spaces/s4 models/s4/s4.py
/// S4Block with SSMKernelDPLR of rank 1.
template <class S>
struct S4Definition {
  using Scalar = S;
  using Config = S4Config;
  static constexpr Traits traits{.name = "s4",
                                 .title = "S4 (diagonal plus low rank)",
                                 .paper = "Gu 2021, arXiv:2111.00396",
                                 .forward = "O(T (D² + N D))",
                                 .step = "O(D² + N D)",
                                 .state = "N D",
                                 .tolerance = Tolerance::indirect};

  struct Weights {
    Parameter<Scalar, 4> C;               // [1, D, N / 2, {re, im}]
    Parameter<Scalar, 4> B, P;            // [1, n_ssm, N / 2, {re, im}]
    Parameter<Scalar, 2> A_real, A_imag;  // [n_ssm, N / 2]
    Parameter<Scalar, 2> inv_dt;          // [D, 1], the logarithm of dt
    Parameter<Scalar, 2> D;               // [1, D]
    Projection<Scalar> output;            // [2 D, D]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index pairs = c.state_size / 2;
      parameter("kernel.C", self.C, {1, c.d_model, pairs, 2});
      parameter("kernel.B", self.B, {1, c.n_ssm, pairs, 2});
      parameter("kernel.P", self.P, {1, c.n_ssm, pairs, 2});
      parameter("kernel.A_real", self.A_real, {c.n_ssm, pairs}, init::normal(-0.7, 0.3));
      parameter("kernel.A_imag", self.A_imag, {c.n_ssm, pairs}, init::uniform(0, 10));
      parameter("kernel.inv_dt", self.inv_dt, {c.d_model, 1}, init::uniform(-4.6, -1.6));
      parameter("D", self.D, {1, c.d_model}, init::ones);
      parameter("output_linear.0.weight", self.output.weight, {2 * c.d_model, c.d_model});
      parameter("output_linear.0.bias", self.output.bias, {2 * c.d_model}, init::zeros);
    }
  };

  struct State {
    Tensor<Scalar, 4> ssm;  // [B, N / 2, {re, im}, D]
    static void visit(auto& self, auto&& tensor) { tensor("ssm", self.ssm); }
  };

  Config c;
  Weights w;
  StateSpace<Scalar> system;

  S4Definition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        system(c.d_model, c.state_size / 2, true, [&](Index d) { return discrete(d); }) {}

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.ssm = {{batch, c.state_size / 2, 2, c.d_model}, memory}};
  }

  void run(View<const Scalar, 2> u, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = u.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto v = scratch(T, c.d_model);          // [T, D]
    auto gated = scratch(T, 2 * c.d_model);  // [T, 2 D]
    state_space<Scalar>(u, system, w.D[0], state.ssm, v, call);
    activate(Activation::gelu, v, call);
    project(v, {{w.output, gated}}, call);
    gated_linear_unit<Scalar>(gated, y, call);
  }

 private:
  DiscreteSystem discrete(Index d) const {
    const Index copy = d % c.n_ssm;
    const auto number = [](const Parameter<Scalar, 4>& from, Index i, Index n) {
      return std::complex<double>(static_cast<double>(from(0, i, n, 0)),
                                  static_cast<double>(from(0, i, n, 1)));
    };
    ContinuousSystem channel;
    channel.dt = std::exp(static_cast<double>(w.inv_dt(d, 0)));
    for (Index n = 0; n < c.state_size / 2; ++n) {
      channel.lambda.emplace_back(-std::exp(static_cast<double>(w.A_real(copy, n))),
                                  -static_cast<double>(w.A_imag(copy, n)));
      channel.B.push_back(number(w.B, copy, n));
      channel.P.push_back(number(w.P, copy, n));
      channel.C.push_back(number(w.C, d, n));
    }
    DiscreteSystem result = discretize_bilinear(channel);
    if (c.l_kernel > 0) undo_truncation(result, c.l_kernel);
    return result;
  }
};

template <class Scalar = float>
using S4 = Mixer<S4Definition<Scalar>>;
SEQMIX_COMPILE_MIXER(S4Definition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
