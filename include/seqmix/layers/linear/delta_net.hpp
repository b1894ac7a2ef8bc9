#pragma once

#include <utility>

#include "seqmix/kernels/memory/delta_rule.hpp"
#include "seqmix/layers/linear/detail/convolved_heads.hpp"
#include "seqmix/layers/mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct DeltaNetConfig {
  Index d_model = 0;
  Index n_heads = 4;
  Index head_k = 0;                   // key width per head
  Index head_v = 0;                   // value width per head
  Index conv_kernel = 4;              // taps of the short convolutions
  bool output_gate = false;           // whether silu of a projection multiplies the output
  bool negative_eigenvalues = false;  // doubles beta: what is held at a key may change its sign
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_k", self.head_k), field("head_v", self.head_v);
    field("conv_kernel", self.conv_kernel), field("output_gate", self.output_gate);
    field("negative_eigenvalues", self.negative_eigenvalues);
    field("norm_eps", self.norm_eps, at_least(0));
  }
  Index channels() const { return n_heads * (2 * head_k + head_v); }
};

/// DeltaNet: a memory that replaces a share beta of what it holds at a key, and forgets nothing
/// else.
///
///   (q, k, v) = silu(short_conv(W x)),   beta_t = σ(W_b x) (doubled),   q, k of length 1
///   S_t = (I - beta_t k_tᵀ k_t) S_{t-1} + beta_t k_tᵀ v_t               S_t [K, V] per head
///   y_t = W_o (rms_norm(K^{-1/2} q_t S_t) (⊙ silu(W_g x_t)))
///
/// forward: O(T (D² + D K)); step: O(D² + D K). State: H K V accumulators and W - 1 inputs of the
/// short convolutions a stream, whatever T.
/// Source: Yang et al. 2024, arXiv:2406.06484, sections 2.2 and 3; Grazzi et al. 2024,
/// arXiv:2411.12537 (negative eigenvalues); fla/layers/delta_net.py.
template <class S>
struct DeltaNetDefinition {
  using Scalar = S;
  using Config = DeltaNetConfig;
  static constexpr Traits traits{.name = "delta_net",
                                 .title = "DeltaNet",
                                 .paper = "Yang 2024, arXiv:2406.06484",
                                 .forward = "O(T (D² + D K))",
                                 .step = "O(D² + D K)",
                                 .state = "H K V + (W - 1) (2 H K + H V)"};

  struct Weights {
    ConvolvedHeadsWeights<Scalar> heads;
    Projection<Scalar> b_proj, g_proj, o_proj;
    Parameter<Scalar, 1> o_norm;  // [V]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v;
      ConvolvedHeadsWeights<Scalar>::visit(self.heads, c.d_model, keys, values, c.conv_kernel,
                                           parameter);
      parameter("b_proj.weight", self.b_proj.weight, {c.n_heads, c.d_model}, keep_float);
      if (c.output_gate) parameter("g_proj.weight", self.g_proj.weight, {values, c.d_model});
      parameter("o_norm.weight", self.o_norm, {c.head_v}, init::ones);
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, values});
    }
  };

  struct State {
    Tensor<Scalar, 3> conv;    // [B, W - 1, 2 H K + H V], last inputs, oldest first
    Tensor<Scalar, 4> memory;  // [B, H, K, V]

    static void visit(auto& self, auto&& tensor) {
      tensor("conv", self.conv), tensor("memory", self.memory);
    }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 2> taps;  // [W, 2 H K + H V]

  DeltaNetDefinition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), taps(w.heads.taps()) {}

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.conv = {{batch, c.conv_kernel - 1, c.channels()}, memory},
            .memory = {{batch, c.n_heads, c.head_k, c.head_v}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto mixed = scratch(T, c.channels());     // [T, 2 H K + H V]
    auto beta = scratch(T, c.n_heads);         // [T, H]
    auto o = scratch(T, c.n_heads, c.head_v);  // [T, H, V]

    const auto [q, k, v] =
        convolved_heads(x, w.heads, taps, c.n_heads, state.conv.view(), mixed, call);
    project(x, {{w.b_proj, beta}}, call);
    delta_shares(beta, c.negative_eigenvalues ? 2 : 1, call);
    delta_rule(q, k, v, beta, NoDecay{}, inverse_sqrt(c.head_k), state.memory.view(), o, call);
    if (c.output_gate) {
      auto gate = scratch(T, c.n_heads, c.head_v);  // [T, H, V]
      project(x, {{w.g_proj, gate}}, call);
      gated_rms_norm(o, gate, w.o_norm, c.norm_eps, activation::silu, call);
    } else {
      rms_norm(o, w.o_norm, c.norm_eps, o, call);
    }
    project(o, {{w.o_proj, y}}, call);
  }
};

template <class Scalar = float>
using DeltaNet = Mixer<DeltaNetDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(DeltaNetDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
