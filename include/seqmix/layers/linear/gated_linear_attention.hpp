#pragma once

#include <cmath>

#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct GatedLinearAttentionConfig {
  Index d_model = 0;
  Index n_heads = 4;
  Index head_k = 0;  // key width per head
  Index head_v = 0;  // value width per head
  Index gate_rank = 16;
  double gate_normalizer = 16;  // divides the log decay: larger forgets more slowly
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads), field("head_k", self.head_k),
        field("head_v", self.head_v);
    field("gate_rank", self.gate_rank);
    field("gate_normalizer", self.gate_normalizer, is_positive);
    field("norm_eps", self.norm_eps, at_least(0));
  }
};

/// Gated linear attention: an outer-product memory whose key channels forget at rates that the
/// input chooses.
///
///   S_t = diag(exp g_t) S_{t-1} + k_tᵀ v_t          S_t [K, V] per head, g_t <= 0
///   o_t = K^{-1/2} q_t S_t
///   y_t = W_o (rms_norm(o_t) ⊙ silu(W_g x_t))
///   g_t = log_sigmoid(W_2 W_1 x_t + b) / gate_normalizer
///
/// forward: O(T (D² + C D + D K)); step: O(D² + D K). State: H K V accumulators a stream, whatever
/// T. Source: Yang et al. 2023, arXiv:2312.06635, eq. 3-4; fla/layers/gla.py.
template <class S>
struct GatedLinearAttentionDefinition {
  using Scalar = S;
  using Config = GatedLinearAttentionConfig;
  static constexpr Traits traits{.name = "gated_linear_attention",
                                 .title = "Gated linear attention (GLA)",
                                 .paper = "Yang 2023, arXiv:2312.06635",
                                 .forward = "O(T (D² + C D + D K))",
                                 .step = "O(D² + D K)",
                                 .state = "H K V"};

  struct Weights {
    Projection<Scalar> q_proj, k_proj, v_proj, g_proj, o_proj, gk_down, gk_up;
    Parameter<Scalar, 1> g_norm;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v;
      parameter("q_proj.weight", self.q_proj.weight, {keys, c.d_model});
      parameter("k_proj.weight", self.k_proj.weight, {keys, c.d_model});
      parameter("v_proj.weight", self.v_proj.weight, {values, c.d_model});
      parameter("g_proj.weight", self.g_proj.weight, {values, c.d_model});
      parameter("gk_proj.0.weight", self.gk_down.weight, {c.gate_rank, c.d_model}, keep_float);
      parameter("gk_proj.1.weight", self.gk_up.weight, {keys, c.gate_rank}, keep_float);
      parameter("gk_proj.1.bias", self.gk_up.bias, {keys}, init::zeros);
      parameter("g_norm_swish_gate.weight", self.g_norm, {c.head_v}, init::ones);
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, values});
    }
  };

  struct State {
    Tensor<Scalar, 4> memory;  // [B, H, K, V]
    static void visit(auto& self, auto&& tensor) { tensor("memory", self.memory); }
  };

  Config c;
  Weights w;

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.memory = {{batch, c.n_heads, c.head_k, c.head_v}, memory}};
  }

  /// Both forms are this one function; only the kernel differs, by what the call says.
  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_k);     // [T, H, K]
    auto k = scratch(T, c.n_heads, c.head_k);     // [T, H, K]
    auto g = scratch(T, c.n_heads, c.head_k);     // [T, H, K], log decay
    auto v = scratch(T, c.n_heads, c.head_v);     // [T, H, V]
    auto o = scratch(T, c.n_heads, c.head_v);     // [T, H, V]
    auto gate = scratch(T, c.n_heads, c.head_v);  // [T, H, V]
    auto low = scratch(T, c.gate_rank);           // [T, R]

    project(x, {{w.q_proj, q}, {w.k_proj, k}, {w.v_proj, v}, {w.g_proj, gate}, {w.gk_down, low}},
            call);
    project(low, {{w.gk_up, g}}, call);
    log_sigmoid(g, 1 / c.gate_normalizer, call);
    call.trace("q", q), call.trace("k", k), call.trace("v", v), call.trace("g", g);
    linear_state(q, k, v, VectorDecay<Scalar>{g}, inverse_sqrt(c.head_k), state.memory.view(), o,
                 call);
    call.trace("o", o);
    gated_rms_norm(o, gate, w.g_norm, c.norm_eps, activation::silu, call);
    project(o, {{w.o_proj, y}}, call);
  }
};

template <class Scalar = float>
using GatedLinearAttention = Mixer<GatedLinearAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(GatedLinearAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
