#pragma once

#include "seqmix/kernels/memory/exponential_gate.hpp"
#include "seqmix/kernels/memory/key_sum.hpp"
#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct MlstmConfig {
  Index d_model = 0;
  Index n_heads = 4;
  Index head_k = 0;      // key width per head
  Index head_v = 0;      // value width per head
  double gate_cap = 15;  // bound of the gates' logits
  double eps = 1e-6;     // added to the denominator
  double norm_eps = 1e-6;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_k", self.head_k), field("head_v", self.head_v);
    field("gate_cap", self.gate_cap, is_positive), field("eps", self.eps, at_least(0));
    field("norm_eps", self.norm_eps, at_least(0));
  }
};

/// The mLSTM layer of xLSTM 7B: a matrix memory with exponential input gates.
///
///   i_t, f_t = cap tanh(W x_t / cap),   m_t = max(log σ(f_t) + m_{t-1}, i_t)    per head, m_0 = 0
///   C_t = exp(log σ(f_t) + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_tᵀ v_t     C_t [K, V]
///   n_t = the same with k_t alone                                               n_t [K]
///   h_t = K^{-1/2} q_t C_t / (max(|K^{-1/2} q_t · n_t|, exp(-m_t)) + eps)
///   y_t = W_out (σ(W_o x_t) ⊙ layer_norm(h_t))                                  norm by heads
///
/// m_t, a number a token and head, comes first; then every weight is at most 1 and C a linear state
/// that decays by head.
///
/// forward: O(T (D² + C D + D K)); step: O(D² + D K). State: H (K V + K + 1) numbers a stream.
/// Source: Beck et al. 2025, arXiv:2503.13427, section 3; xlstm.xlstm_large mLSTMLayer.
template <class S>
struct MlstmDefinition {
  using Scalar = S;
  using Config = MlstmConfig;
  static constexpr Traits traits{.name = "mlstm",
                                 .title = "mLSTM (xLSTM 7B)",
                                 .paper = "Beck 2025, arXiv:2503.13427",
                                 .forward = "O(T (D² + C D + D K))",
                                 .step = "O(D² + D K)",
                                 .state = "H (K V + K + 1)"};

  struct Weights {
    Projection<Scalar> q, k, v, ogate, igate, fgate, out_proj;
    Parameter<Scalar, 1> norm;  // [H V]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v;
      parameter("q.weight", self.q.weight, {keys, c.d_model});
      parameter("k.weight", self.k.weight, {keys, c.d_model});
      parameter("v.weight", self.v.weight, {values, c.d_model});
      parameter("ogate_preact.weight", self.ogate.weight, {values, c.d_model});
      parameter("igate_preact.weight", self.igate.weight, {c.n_heads, c.d_model}, keep_float);
      parameter("igate_preact.bias", self.igate.bias, {c.n_heads}, init::zeros);
      parameter("fgate_preact.weight", self.fgate.weight, {c.n_heads, c.d_model}, keep_float);
      parameter("fgate_preact.bias", self.fgate.bias, {c.n_heads}, init::zeros);
      parameter("multihead_norm.weight", self.norm, {values}, init::ones);
      parameter("out_proj.weight", self.out_proj.weight, {c.d_model, values});
    }
  };

  struct State {
    Tensor<Scalar, 4> memory;   // [B, H, K, V], C
    Tensor<Scalar, 3> key_sum;  // [B, H, K], n
    Tensor<Scalar, 2> maximum;  // [B, H], m

    static void visit(auto& self, auto&& tensor) {
      tensor("memory", self.memory), tensor("key_sum", self.key_sum);
      tensor("maximum", self.maximum);
    }
  };

  Config c;
  Weights w;

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.memory = {{batch, c.n_heads, c.head_k, c.head_v}, memory},
            .key_sum = {{batch, c.n_heads, c.head_k}, memory},
            .maximum = {{batch, c.n_heads}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), H = c.n_heads;
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, H, c.head_k);        // [T, H, K]
    auto k = scratch(T, H, c.head_k);        // [T, H, K]
    auto v = scratch(T, H, c.head_v);        // [T, H, V]
    auto h = scratch(T, H, c.head_v);        // [T, H, V]
    auto output = scratch(T, H * c.head_v);  // [T, H V], output gate
    auto input = scratch(T, H);              // [T, H], input gate
    auto forget = scratch(T, H);             // [T, H], log decay
    auto floor = scratch(T, H);              // [T, H], least denominator
    auto weight = scratch(T, H);             // [T, H], denominator

    project(x, {{w.q, q}, {w.k, k}, {w.v, v}, {w.ogate, output}}, call);
    project(x, {{w.igate, input}, {w.fgate, forget}}, call);
    soft_cap(input, c.gate_cap, call);
    soft_cap(forget, c.gate_cap, call);
    log_sigmoid(forget, 1, call);
    exponential_gates(input, forget, state.maximum.view(), floor, call);
    elementwise(
        call, [](auto value, auto by) { return value * by; }, k, k, by_row(input));

    const ScalarDecay<Scalar> decay{forget};
    const double scale = inverse_sqrt(c.head_k);
    linear_state(q, k, v, decay, scale, state.memory.view(), h, call);
    key_sum(q, k, decay, scale, state.key_sum.view(), weight, call);
    const auto normalized = [eps = static_cast<Scalar>(c.eps)](auto value, auto sum, auto least) {
      return simd::divide_or_zero(value, simd::max(simd::abs(sum), least) + eps);
    };
    elementwise(call, normalized, h, h, by_row(weight), by_row(floor));

    auto normed = h.merge(axis::head);  // [T, H V]
    group_norm(normed, w.norm, {}, c.head_v, c.norm_eps, normed, call);
    const auto gated = [](auto value, auto gate) { return simd::sigmoid(gate) * value; };
    elementwise(call, gated, normed, normed, output);
    project(normed, {{w.out_proj, y}}, call);
  }
};

template <class Scalar = float>
using Mlstm = Mixer<MlstmDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(MlstmDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
