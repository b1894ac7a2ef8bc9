#pragma once

#include <utility>

#include "seqmix/kernels/memory/delta_rule.hpp"
#include "seqmix/layers/linear/detail/convolved_heads.hpp"
#include "seqmix/layers/mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct KimiDeltaAttentionConfig {
  Index d_model = 0;
  Index n_heads = 0;
  Index head_k = 128;                 // key width per head
  Index head_v = 128;                 // value width per head, rank of both gates too
  Index conv_kernel = 4;              // taps of the short convolutions
  bool gate_bias = false;             // whether the output gate has a bias
  bool negative_eigenvalues = false;  // doubles beta: what is held at a key may change its sign
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_k", self.head_k), field("head_v", self.head_v);
    field("conv_kernel", self.conv_kernel), field("gate_bias", self.gate_bias);
    field("negative_eigenvalues", self.negative_eigenvalues);
    field("norm_eps", self.norm_eps, at_least(0));
  }
  Index channels() const { return n_heads * (2 * head_k + head_v); }
};

/// Kimi Delta Attention: a memory whose key channels forget at rates that the input chooses, and
/// which then replaces a share beta of what it holds at a key.
///
///   (q, k, v) = silu(short_conv(W x)),   beta_t = σ(W_b x) (doubled),   q, k of length 1
///   g_t = -exp(A_log) softplus(W_fb W_fa x + dt_bias)                  [H, K]
///   S_t = (I - beta_t k_tᵀ k_t) diag(exp g_t) S_{t-1} + beta_t k_tᵀ v_t     S_t [K, V] per head
///   y_t = W_o (rms_norm(K^{-1/2} q_t S_t) ⊙ σ(W_gb W_ga x_t + b))
///
/// forward: O(T (D² + D K)); step: O(D² + D K). State: H K V accumulators and W - 1 inputs of the
/// short convolutions a stream, whatever T.
/// Source: Kimi Team 2025, arXiv:2510.26692, section 3 and 4; names of the checkpoint
/// Kimi-Linear-48B-A3B; fla/layers/kda.py.
template <class S>
struct KimiDeltaAttentionDefinition {
  using Scalar = S;
  using Config = KimiDeltaAttentionConfig;
  static constexpr Traits traits{.name = "kimi_delta_attention",
                                 .title = "Kimi Delta Attention (KDA)",
                                 .paper = "Kimi Team 2025, arXiv:2510.26692",
                                 .forward = "O(T (D² + D K))",
                                 .step = "O(D² + D K)",
                                 .state = "H K V + (W - 1) (2 H K + H V)"};

  struct Weights {
    ConvolvedHeadsWeights<Scalar> heads;
    Projection<Scalar> f_a_proj, f_b_proj, b_proj, g_a_proj, g_b_proj, o_proj;
    Parameter<Scalar, 4> A_log;    // [1, 1, H, 1]
    Parameter<Scalar, 1> dt_bias;  // [H K]
    Parameter<Scalar, 1> o_norm;   // [V]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v, rank = c.head_v;
      ConvolvedHeadsWeights<Scalar>::visit(self.heads, c.d_model, keys, values, c.conv_kernel,
                                           parameter);
      parameter("A_log", self.A_log, {1, 1, c.n_heads, 1}, init::log_uniform(1, 16));
      parameter("dt_bias", self.dt_bias, {keys}, init::time_steps(0.001, 0.1));
      parameter("f_a_proj.weight", self.f_a_proj.weight, {rank, c.d_model}, keep_float);
      parameter("f_b_proj.weight", self.f_b_proj.weight, {keys, rank}, keep_float);
      parameter("b_proj.weight", self.b_proj.weight, {c.n_heads, c.d_model}, keep_float);
      parameter("g_a_proj.weight", self.g_a_proj.weight, {rank, c.d_model});
      parameter("g_b_proj.weight", self.g_b_proj.weight, {values, rank});
      if (c.gate_bias) parameter("g_b_proj.bias", self.g_b_proj.bias, {values}, init::zeros);
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
  Parameter<Scalar, 2> taps;   // [W, 2 H K + H V]
  Parameter<Scalar, 1> rates;  // [H K], -exp(A_log)

  KimiDeltaAttentionDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        taps(w.heads.taps()),
        rates(decay_rates(w.A_log, c.head_k)) {}

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.conv = {{batch, c.conv_kernel - 1, c.channels()}, memory},
            .memory = {{batch, c.n_heads, c.head_k, c.head_v}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), keys = c.n_heads * c.head_k;
    auto scratch = call.scratch<Scalar>();
    auto mixed = scratch(T, c.channels());        // [T, 2 H K + H V]
    auto low = scratch(T, 2 * c.head_v);          // [T, 2 V]
    auto decay = scratch(T, keys);                // [T, H K], log
    auto beta = scratch(T, c.n_heads);            // [T, H]
    auto gate = scratch(T, c.n_heads, c.head_v);  // [T, H, V]
    auto o = scratch(T, c.n_heads, c.head_v);     // [T, H, V]

    const auto [q, k, v] =
        convolved_heads(x, w.heads, taps, c.n_heads, state.conv.view(), mixed, call);
    const auto low_f = low.slice(axis::channel, 0, c.head_v);
    const auto low_g = low.slice(axis::channel, c.head_v, c.head_v);
    project(x, {{w.b_proj, beta}, {w.f_a_proj, low_f}, {w.g_a_proj, low_g}}, call);
    project(low_f, {{w.f_b_proj, decay}}, call);
    project(low_g, {{w.g_b_proj, gate}}, call);
    log_decays(decay, w.dt_bias, rates, call);
    delta_shares(beta, c.negative_eigenvalues ? 2 : 1, call);
    delta_rule(q, k, v, beta, VectorDecay<Scalar>{decay.split(axis::channel, c.n_heads, c.head_k)},
               inverse_sqrt(c.head_k), state.memory.view(), o, call);
    gated_rms_norm(o, gate, w.o_norm, c.norm_eps, activation::sigmoid, call);
    project(o, {{w.o_proj, y}}, call);
  }
};

template <class Scalar = float>
using KimiDeltaAttention = Mixer<KimiDeltaAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(KimiDeltaAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
