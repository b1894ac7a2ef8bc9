#pragma once

#include <cmath>
#include <utility>

#include "seqmix/kernels/memory/dplr.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/scan/wkv.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/rwkv/detail/block.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct Rwkv7Config {
  Index d_model = 0;
  Index head_dim = 64;    // N
  Index d_ff = 0;         // hidden width of the channel mix
  Index decay_rank = 64;  // ranks of the factors behind w, a, the value residual and the gate
  Index rate_rank = 64;
  Index value_rank = 32;
  Index gate_rank = 128;
  Index layer_index = 0;  // layer 0 starts with a norm of its own and gives `value_first`
  double norm_eps = 1e-5;
  double head_norm_eps = 64e-5;  // head_dim 1e-5

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("head_dim", self.head_dim), field("d_ff", self.d_ff);
    field("decay_rank", self.decay_rank), field("rate_rank", self.rate_rank);
    field("value_rank", self.value_rank), field("gate_rank", self.gate_rank);
    field("layer_index", self.layer_index, zero_is_legal);
    field("norm_eps", self.norm_eps, at_least(0));
    field("head_norm_eps", self.head_norm_eps, at_least(0));
  }
  void check() const { require(d_model % head_dim == 0, "d_model must be a multiple of head_dim"); }
  Index n_heads() const { return d_model / head_dim; }
};

/// A block of RWKV-7 (Goose): an outer-product memory that the input decays channel by channel and
/// corrects along a key; then the channels are mixed. Residuals and norms are part of it.
///
///   x̂ = LN1 x,   m_i = x̂_t + (x̂_{t-1} - x̂_t) ⊙ μ_i,   (r, k, v) = W_(r,k,v) m_(r,k,v)
///   log w = -e^{-1/2} σ(w_0 + tanh(m_w W1) W2),   a = σ(a_0 + m_a A1 A2),   g = σ(m_g G1) G2
///   κ = k ⊙ k_k / |k ⊙ k_k| per head,   k = k ⊙ (1 + (a - 1) ⊙ k_a)
///   v = v + (v_first - v) ⊙ σ(v_0 + m_v V1 V2); layer 0 gives v_first instead
///   S_t = diag(w_t) S_{t-1} - (κ_t ⊙ a_t)ᵀ (κ_t S_{t-1}) + k_tᵀ v_t     S_t [N, N] per head
///   x = x + W_o ((group_norm(r_t S_t) + (Σ_j r_j (r_k)_j k_j) v_t) ⊙ g_t)
///   y = x + channel_mix(LN2 x)
///
/// forward: O(T (D² + D F + D N)); step: O(D² + D F + D N). State: H N N accumulators and two
/// inputs a channel. Side value: value_first [T, D], from layer 0 to the others.
///
/// Source: Peng et al. 2025, arXiv:2503.14456, section 4; BlinkDL RWKV-v7/rwkv_v7_demo.py, classes
/// RWKV_Tmix_x070, RWKV_CMix_x070 and Block, whose names the weights have.
template <class S>
struct Rwkv7Definition {
  using Scalar = S;
  using Config = Rwkv7Config;
  static constexpr Traits traits{.name = "rwkv7",
                                 .title = "RWKV-7 block (Goose)",
                                 .paper = "Peng 2025, arXiv:2503.14456",
                                 .forward = "O(T (D² + D F + D N))",
                                 .step = "O(D² + D F + D N)",
                                 .state = "H N N + 2 D"};

  struct Weights {
    RwkvNorms<Scalar> norms;
    Parameter<Scalar, 1> ln_x, ln_x_bias;                        // [D]
    Parameter<Scalar, 3> x_r, x_w, x_k, x_v, x_a, x_g, ffn_x_k;  // [1, 1, D]
    Parameter<Scalar, 3> w0, a0, v0, k_k, k_a;                   // [1, 1, D]
    Parameter<Scalar, 2> w1, a1, v1, g1;                         // [D, R]
    Parameter<Scalar, 2> w2, a2, v2, g2;                         // [R, D]
    Parameter<Scalar, 2> r_k;                                    // [H, N]
    Projection<Scalar> receptance, key, value, output, ffn_key, ffn_value;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index D = c.d_model;
      RwkvNorms<Scalar>::visit(self.norms, c, parameter);
      parameter("att.x_r", self.x_r, {1, 1, D}, init::uniform(0, 1));
      parameter("att.x_w", self.x_w, {1, 1, D}, init::uniform(0, 1));
      parameter("att.x_k", self.x_k, {1, 1, D}, init::uniform(0, 1));
      parameter("att.x_v", self.x_v, {1, 1, D}, init::uniform(0, 1));
      parameter("att.x_a", self.x_a, {1, 1, D}, init::uniform(0, 1));
      parameter("att.x_g", self.x_g, {1, 1, D}, init::uniform(0, 1));
      parameter("att.w0", self.w0, {1, 1, D}, init::uniform(-6, 0.5));
      parameter("att.w1", self.w1, {D, c.decay_rank});
      parameter("att.w2", self.w2, {c.decay_rank, D});
      parameter("att.a0", self.a0, {1, 1, D}, init::zeros);
      parameter("att.a1", self.a1, {D, c.rate_rank});
      parameter("att.a2", self.a2, {c.rate_rank, D});
      if (c.layer_index > 0) parameter("att.v0", self.v0, {1, 1, D}, init::zeros);
      if (c.layer_index > 0) parameter("att.v1", self.v1, {D, c.value_rank});
      if (c.layer_index > 0) parameter("att.v2", self.v2, {c.value_rank, D});
      parameter("att.g1", self.g1, {D, c.gate_rank});
      parameter("att.g2", self.g2, {c.gate_rank, D});
      parameter("att.k_k", self.k_k, {1, 1, D}, init::ones);
      parameter("att.k_a", self.k_a, {1, 1, D}, init::ones);
      parameter("att.r_k", self.r_k, {c.n_heads(), c.head_dim});
      parameter("att.receptance.weight", self.receptance.weight, {D, D});
      parameter("att.key.weight", self.key.weight, {D, D});
      parameter("att.value.weight", self.value.weight, {D, D});
      parameter("att.output.weight", self.output.weight, {D, D});
      parameter("att.ln_x.weight", self.ln_x, {D}, init::ones);
      parameter("att.ln_x.bias", self.ln_x_bias, {D}, init::zeros);
      parameter("ffn.x_k", self.ffn_x_k, {1, 1, D}, init::uniform(0, 1));
      parameter("ffn.key.weight", self.ffn_key.weight, {c.d_ff, D});
      parameter("ffn.value.weight", self.ffn_value.weight, {D, c.d_ff});
    }
  };

  struct State {
    Tensor<Scalar, 3> att_shift, ffn_shift;  // [B, 1, D], last input of each mix
    Tensor<Scalar, 4> memory;                // [B, H, N, N], keys first

    static void visit(auto& self, auto&& tensor) {
      tensor("att_shift", self.att_shift), tensor("ffn_shift", self.ffn_shift);
      tensor("memory", self.memory);
    }
  };

  struct Side {
    View<Scalar, 2> value_first;  // [T, D]

    static void visit(auto& self, const Config& c, auto&& side) {
      side("value_first", self.value_first, c.d_model,
           c.layer_index == 0 ? SideRole::output : SideRole::input);
    }
  };

  Config c;
  Weights w;
  Projection<Scalar> decay_down, decay_up, rate_down, rate_up, value_down, value_up, gate_down,
      gate_up;

  Rwkv7Definition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        decay_down(transposed_projection<Scalar>(w.w1)),
        decay_up(transposed_projection<Scalar>(w.w2, flat(w.w0))),
        rate_down(transposed_projection<Scalar>(w.a1)),
        rate_up(transposed_projection<Scalar>(w.a2, flat(w.a0))),
        gate_down(transposed_projection<Scalar>(w.g1)),
        gate_up(transposed_projection<Scalar>(w.g2)) {
    if (c.layer_index == 0) return;
    value_down = transposed_projection<Scalar>(w.v1),
    value_up = transposed_projection<Scalar>(w.v2, flat(w.v0));
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.att_shift = {{batch, 1, c.d_model}, memory},
            .ffn_shift = {{batch, 1, c.d_model}, memory},
            .memory = {{batch, c.n_heads(), c.head_dim, c.head_dim}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, const Side& side, View<Scalar, 2> y,
           const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto normed = scratch(T, c.d_model);  // [T, D]
    auto mixed = scratch(T, c.d_model);   // [T, D]

    x = w.norms.enter(x, c.norm_eps, y, call);
    layer_norm(x, w.norms.ln1, w.norms.ln1_bias, c.norm_eps, normed, call);
    time_mix(normed, state, side, mixed, call);
    add<Scalar>(x, mixed, y, call);

    layer_norm<Scalar>(y, w.norms.ln2, w.norms.ln2_bias, c.norm_eps, normed, call);
    channel_mix<Scalar>(normed, w.ffn_x_k, {}, w.ffn_key, {}, w.ffn_value, state.ffn_shift, mixed,
                        call);
    add<Scalar>(y, mixed, y, call);
  }

 private:
  /// y of x, behind its norm, both [T, D].
  void time_mix(View<const Scalar, 2> x, State& state, const Side& side, View<Scalar, 2> y,
                const Call& call) const {
    const Index T = x.extent(axis::time), D = c.d_model, H = c.n_heads(), N = c.head_dim;
    auto scratch = call.scratch<Scalar>();
    auto before = scratch(T, D);                // [T, D], previous token - token
    auto mixed = scratch(T, D);                 // [T, D]
    auto low_decay = scratch(T, c.decay_rank);  // [T, R]
    auto low_rate = scratch(T, c.rate_rank);    // [T, R]
    auto low_value = scratch(T, c.value_rank);  // [T, R]
    auto low_gate = scratch(T, c.gate_rank);    // [T, R]
    auto r = scratch(T, H, N);                  // [T, H, N]
    auto k = scratch(T, H, N);                  // [T, H, N]
    auto v = scratch(T, H, N);                  // [T, H, N]
    auto decay = scratch(T, H, N);              // [T, H, N], log decay
    auto rate = scratch(T, H, N);               // [T, H, N], a, then κ a
    auto erased = scratch(T, H, N);             // [T, H, N], -κ
    auto gate = scratch(T, D);                  // [T, D]
    auto o = scratch(T, H, N);                  // [T, H, N]
    const auto mixed_by = [&](const Parameter<Scalar, 3>& weight) {
      mix_tokens(x, before, by_channel(flat(weight)), mixed, call);
      return mixed;
    };
    const auto log_decay = [slope = static_cast<Scalar>(-std::exp(-0.5))](auto raw) {
      return slope * simd::sigmoid(raw);
    };

    token_shift(x, state.att_shift, before, call);
    project(mixed_by(w.x_r), {{w.receptance, r}}, call);
    project(mixed_by(w.x_k), {{w.key, k}}, call);
    project(mixed_by(w.x_v), {{w.value, v}}, call);
    if (c.layer_index > 0) project(mixed, {{value_down, low_value}}, call);
    project(mixed_by(w.x_w), {{decay_down, low_decay}}, call);
    project(mixed_by(w.x_a), {{rate_down, low_rate}}, call);
    project(mixed_by(w.x_g), {{gate_down, low_gate}}, call);
    elementwise(
        call, [](auto number) { return simd::tanh(number); }, low_decay, low_decay);
    elementwise(call, activation::sigmoid, low_gate, low_gate);
    project(low_decay, {{decay_up, decay}}, call);
    project(low_rate, {{rate_up, rate}}, call);
    project(low_gate, {{gate_up, gate}}, call);
    elementwise(call, log_decay, decay, decay);
    elementwise(call, activation::sigmoid, rate, rate);
    share_values(v.merge(axis::head), low_value, mixed, side.value_first, call);
    split_keys(k.merge(axis::head), rate.merge(axis::head), erased, call);

    dplr_state(r, decay, k, v, erased, rate, state.memory, o, call);
    auto merged = o.merge(axis::head);  // [T, D]
    group_norm(merged, w.ln_x, w.ln_x_bias, N, c.head_norm_eps, merged, call);
    add_bonus(r, w.r_k, k, v, o, call);
    elementwise(
        call, [](auto out, auto by) { return out * by; }, merged, merged, gate);
    project(merged, {{w.output, y}}, call);
  }

  /// Layer 0 gives its values v [T, D]; the others go towards them by a gate, whose numbers take
  /// the place of `gate`.
  void share_values(View<Scalar, 2> v, View<const Scalar, 2> low, View<Scalar, 2> gate,
                    View<Scalar, 2> first, const Call& call) const {
    if (c.layer_index == 0) {
      return elementwise(
          call, [](auto value) { return value; }, first, v);
    }
    project(low, {{value_up, gate}}, call);
    elementwise(
        call,
        [](auto value, auto of_first, auto by) {
          return simd::fma(of_first - value, simd::sigmoid(by), value);
        },
        v, v, first, gate);
  }

  /// From k and a, [T, D] each: erased = -κ [T, H, N], a = κ a and the key that is written, in k.
  void split_keys(View<Scalar, 2> k, View<Scalar, 2> a, View<Scalar, 3> erased,
                  const Call& call) const {
    const auto minus = erased.merge(axis::head);  // [T, D]
    elementwise(
        call, [](auto key, auto by) { return -(key * by); }, minus, k, by_channel(flat(w.k_k)));
    clamped_l2_norm(erased, 1e-12, call);
    elementwise(
        call, [](auto key, auto rate, auto share) { return key * simd::fma(rate - 1, share, 1); },
        k, k, a, by_channel(flat(w.k_a)));
    elementwise(
        call, [](auto rate, auto by) { return -(rate * by); }, a, a, minus);
  }
};

template <class Scalar = float>
using Rwkv7 = Mixer<Rwkv7Definition<Scalar>>;
SEQMIX_COMPILE_MIXER(Rwkv7Definition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
