#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/scan/state_space.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a continuous system becomes one of tokens: `zoh` holds the input between two of them.
enum class Discretization { zoh, bilinear };
constexpr std::array<std::string_view, 2> names_of(Discretization) { return {"zoh", "bilinear"}; }

struct S4DConfig {
  Index d_model = 0;
  Index state_size = 64;  // N of a channel, conjugate states included
  Discretization discretization = Discretization::zoh;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("state_size", self.state_size);
    field("discretization", self.discretization);
  }
  void check() const {
    require(state_size % 2 == 0, "state_size must be even: states come in conjugate pairs");
  }
};

/// S4D: a diagonal state-space model of complex states for each channel.
///
///   x' = A x + u,   A = diag(-exp(A_log) + i A_imag)           continuous, N / 2 conjugate pairs
///   x_t = Ā x_{t-1} + B̄ u_t                                    Ā, B̄ by zero-order hold or bilinear
///   v_t = 2 Re(C x_t) + D ⊙ u_t
///   y_t = a_t ⊙ σ(b_t),   (a_t, b_t) = W gelu(v_t) + b
///
/// forward: O(T (D² + N D)); step: O(D² + N D). State: N D numbers a stream, whatever T.
/// The transforms of parallel segments under `Algorithm::chunked` carry a NaN to up to 63 earlier
/// tokens of its row; else it reaches later ones alone.
/// Source: Gu et al. 2022, arXiv:2206.11893, section 3 and table 1; state-spaces/s4
/// models/s4/s4d.py S4D.
template <class S>
struct S4DDefinition {
  using Scalar = S;
  using Config = S4DConfig;
  static constexpr Traits traits{.name = "s4d",
                                 .title = "S4D (diagonal)",
                                 .paper = "Gu 2022, arXiv:2206.11893",
                                 .forward = "O(T (D² + N D))",
                                 .step = "O(D² + N D)",
                                 .state = "N D"};

  struct Weights {
    Parameter<Scalar, 3> C;                   // [D, N / 2, {re, im}]
    Parameter<Scalar, 1> log_dt;              // [D]
    Parameter<Scalar, 2> log_A_real, A_imag;  // [D, N / 2]
    Parameter<Scalar, 1> D;                   // [D]
    PointwiseWeight<Scalar> output_weight;    // [2 D, D, 1]
    Parameter<Scalar, 1> output_bias;         // [2 D]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index pairs = c.state_size / 2;
      parameter("kernel.C", self.C, {c.d_model, pairs, 2});
      parameter("kernel.log_dt", self.log_dt, {c.d_model}, init::uniform(-4.6, -1.6));
      parameter("kernel.log_A_real", self.log_A_real, {c.d_model, pairs}, init::normal(-0.7, 0.3));
      parameter("kernel.A_imag", self.A_imag, {c.d_model, pairs}, init::uniform(0, 10));
      parameter("D", self.D, {c.d_model}, init::ones);
      parameter("output_linear.0.weight", self.output_weight, {2 * c.d_model, c.d_model, 1});
      parameter("output_linear.0.bias", self.output_bias, {2 * c.d_model}, init::zeros);
    }
  };

  struct State {
    Tensor<Scalar, 4> ssm;  // [B, N / 2, {re, im}, D]
    static void visit(auto& self, auto&& tensor) { tensor("ssm", self.ssm); }
  };

  Config c;
  Weights w;
  StateSpace<Scalar> system;
  Projection<Scalar> output;  // [2 D, D]

  S4DDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        system(c.d_model, c.state_size / 2, false, [&](Index d) { return discrete(d); }),
        output{w.output_weight, w.output_bias} {}

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.ssm = {{batch, c.state_size / 2, 2, c.d_model}, memory}};
  }

  void run(View<const Scalar, 2> u, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = u.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto v = scratch(T, c.d_model);          // [T, D]
    auto gated = scratch(T, 2 * c.d_model);  // [T, 2 D]
    state_space<Scalar>(u, system, w.D, state.ssm, v, call);
    activate(Activation::gelu, v, call);
    project(v, {{output, gated}}, call);
    gated_linear_unit<Scalar>(gated, y, call);
  }

 private:
  DiscreteSystem discrete(Index d) const {
    ContinuousSystem channel;
    channel.dt = std::exp(static_cast<double>(w.log_dt[d]));
    for (Index n = 0; n < c.state_size / 2; ++n) {
      channel.lambda.emplace_back(-std::exp(static_cast<double>(w.log_A_real(d, n))),
                                  static_cast<double>(w.A_imag(d, n)));
      channel.B.emplace_back(1);
      channel.C.emplace_back(static_cast<double>(w.C(d, n, 0)), static_cast<double>(w.C(d, n, 1)));
    }
    return c.discretization == Discretization::zoh ? discretize_zoh(channel)
                                                   : discretize_bilinear(channel);
  }
};

template <class Scalar = float>
using S4D = Mixer<S4DDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(S4DDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
