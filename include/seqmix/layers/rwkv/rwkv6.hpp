#pragma once

#include <array>
#include <utility>

#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/rwkv/detail/block.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct Rwkv6Config {
  Index d_model = 0;
  Index head_dim = 64;    // N
  Index d_ff = 0;         // hidden width of the channel mix
  Index mix_rank = 32;    // rank of what the input adds to each of the five mixes
  Index decay_rank = 64;  // rank of what it adds to the decay
  Index layer_index = 0;  // layer 0 starts with a norm of its own
  double norm_eps = 1e-5;
  double head_norm_eps = 64e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("head_dim", self.head_dim), field("d_ff", self.d_ff);
    field("mix_rank", self.mix_rank), field("decay_rank", self.decay_rank);
    field("layer_index", self.layer_index, zero_is_legal);
    field("norm_eps", self.norm_eps, at_least(0));
    field("head_norm_eps", self.head_norm_eps, at_least(0));
  }
  void check() const { require(d_model % head_dim == 0, "d_model must be a multiple of head_dim"); }
  Index n_heads() const { return d_model / head_dim; }
};

/// A block of RWKV-6 (Finch): an outer-product memory whose key channels forget at rates that the
/// input chooses, as it chooses how tokens are mixed with their predecessors; then the channels are
/// mixed. Residuals and norms are part of it.
///
///   x̂ = LN1 x,   x̃_t = x̂_t + (x̂_{t-1} - x̂_t) ⊙ μ_x
///   m_i = x̂_t + (x̂_{t-1} - x̂_t) ⊙ (μ_i + tanh(x̃_t W1)_i W2_i)              i = w, k, v, r, g
///   (r, k, v) = W_(r,k,v) m_(r,k,v),   log w_t = -exp(decay + tanh(m_w D1) D2)
///   o_t = r_t (S_{t-1} + (u ⊙ k_t)ᵀ v_t),   S_t = diag(w_t) S_{t-1} + k_tᵀ v_t
///   x = x + W_o (group_norm(o_t) ⊙ silu(W_g m_g))                S_t [N, N] per head
///   y = x + channel_mix(LN2 x)
///
/// forward: O(T (D² + D F + D N)); step: O(D² + D F + D N). State: H N N accumulators and two
/// inputs a channel.
///
/// Source: Peng et al. 2024, arXiv:2404.05892, section 4; BlinkDL RWKV-v5/src/model.py, classes
/// RWKV_Tmix_x060, RWKV_CMix_x060 and Block, whose names the weights have.
template <class S>
struct Rwkv6Definition {
  using Scalar = S;
  using Config = Rwkv6Config;
  static constexpr Traits traits{.name = "rwkv6",
                                 .title = "RWKV-6 block (Finch)",
                                 .paper = "Peng 2024, arXiv:2404.05892",
                                 .forward = "O(T (D² + D F + D N))",
                                 .step = "O(D² + D F + D N)",
                                 .state = "H N N + 2 D"};
  enum Mix { of_w, of_k, of_v, of_r, of_g, mixes };  // the published order

  struct Weights {
    RwkvNorms<Scalar> norms;
    Parameter<Scalar, 1> ln_x, ln_x_bias;                     // [D]
    Parameter<Scalar, 3> mix_x, ffn_mix_k, ffn_mix_r, decay;  // [1, 1, D]
    std::array<Parameter<Scalar, 3>, mixes> mix;              // [1, 1, D]
    Parameter<Scalar, 2> mix_w1;                              // [D, 5 R]
    Parameter<Scalar, 3> mix_w2;                              // [5, R, D]
    Parameter<Scalar, 2> decay_w1, decay_w2;                  // [D, R], [R, D]
    Parameter<Scalar, 2> bonus;                               // [H, N]
    Projection<Scalar> receptance, key, value, gate, output, ffn_key, ffn_receptance, ffn_value;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index D = c.d_model;
      RwkvNorms<Scalar>::visit(self.norms, c, parameter);
      parameter("att.time_maa_x", self.mix_x, {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_maa_w", self.mix[of_w], {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_maa_k", self.mix[of_k], {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_maa_v", self.mix[of_v], {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_maa_r", self.mix[of_r], {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_maa_g", self.mix[of_g], {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_maa_w1", self.mix_w1, {D, mixes * c.mix_rank});
      parameter("att.time_maa_w2", self.mix_w2, {mixes, c.mix_rank, D});
      parameter("att.time_decay", self.decay, {1, 1, D}, init::uniform(-6, 0.5));
      parameter("att.time_decay_w1", self.decay_w1, {D, c.decay_rank});
      parameter("att.time_decay_w2", self.decay_w2, {c.decay_rank, D});
      parameter("att.time_faaaa", self.bonus, {c.n_heads(), c.head_dim});
      parameter("att.receptance.weight", self.receptance.weight, {D, D});
      parameter("att.key.weight", self.key.weight, {D, D});
      parameter("att.value.weight", self.value.weight, {D, D});
      parameter("att.gate.weight", self.gate.weight, {D, D});
      parameter("att.output.weight", self.output.weight, {D, D});
      parameter("att.ln_x.weight", self.ln_x, {D}, init::ones);
      parameter("att.ln_x.bias", self.ln_x_bias, {D}, init::zeros);
      parameter("ffn.time_maa_k", self.ffn_mix_k, {1, 1, D}, init::uniform(0, 1));
      parameter("ffn.time_maa_r", self.ffn_mix_r, {1, 1, D}, init::uniform(0, 1));
      parameter("ffn.key.weight", self.ffn_key.weight, {c.d_ff, D});
      parameter("ffn.receptance.weight", self.ffn_receptance.weight, {D, D});
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

  Config c;
  Weights w;
  Projection<Scalar> mix_down, decay_down, decay_up;
  std::array<Projection<Scalar>, mixes> mix_up;  // with μ as bias

  Rwkv6Definition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        mix_down(transposed_projection<Scalar>(w.mix_w1)),
        decay_down(transposed_projection<Scalar>(w.decay_w1)),
        decay_up(transposed_projection<Scalar>(w.decay_w2, flat(w.decay))) {
    for (std::size_t i = 0; i < mixes; ++i) {
      mix_up[i] =
          transposed_projection<Scalar>(w.mix_w2.view()[static_cast<Index>(i)], flat(w.mix[i]));
    }
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.att_shift = {{batch, 1, c.d_model}, memory},
            .ffn_shift = {{batch, 1, c.d_model}, memory},
            .memory = {{batch, c.n_heads(), c.head_dim, c.head_dim}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), D = c.d_model, H = c.n_heads(), N = c.head_dim;
    auto scratch = call.scratch<Scalar>();
    auto normed = scratch(T, D);                // [T, D]
    auto before = scratch(T, D);                // [T, D], previous token - token
    auto mixed = scratch(T, D);                 // [T, D]
    auto by = scratch(T, D);                    // [T, D], the weights of a mix
    auto low = scratch(T, mixes * c.mix_rank);  // [T, 5 R]
    auto low_decay = scratch(T, c.decay_rank);  // [T, R]
    auto r = scratch(T, H, N);                  // [T, H, N]
    auto k = scratch(T, H, N);                  // [T, H, N]
    auto v = scratch(T, H, N);                  // [T, H, N]
    auto decay = scratch(T, H, N);              // [T, H, N], log decay
    auto gate = scratch(T, H, N);               // [T, H, N]
    auto o = scratch(T, H, N);                  // [T, H, N]
    const auto mixed_for = [&](Mix which) {
      const auto part = low.slice(axis::channel, which * c.mix_rank, c.mix_rank);
      project(part, {{mix_up[which], by}}, call);
      mix_tokens(normed, before, by, mixed, call);
      return mixed;
    };
    const auto tanh = [](auto number) { return simd::tanh(number); };

    x = w.norms.enter(x, c.norm_eps, y, call);
    layer_norm(x, w.norms.ln1, w.norms.ln1_bias, c.norm_eps, normed, call);
    token_shift(normed, state.att_shift, before, call);
    mix_tokens(normed, before, by_channel(flat(w.mix_x)), mixed, call);
    project(mixed, {{mix_down, low}}, call);
    elementwise(call, tanh, low, low);
    project(mixed_for(of_w), {{decay_down, low_decay}}, call);
    elementwise(call, tanh, low_decay, low_decay);
    project(low_decay, {{decay_up, decay}}, call);
    elementwise(
        call, [](auto raw) { return -simd::exp(raw); }, decay, decay);
    project(mixed_for(of_k), {{w.key, k}}, call);
    project(mixed_for(of_v), {{w.value, v}}, call);
    project(mixed_for(of_r), {{w.receptance, r}}, call);
    project(mixed_for(of_g), {{w.gate, gate}}, call);
    linear_state(r, k, v, ReadBeforeWithBonus<Scalar>{{{decay}}, w.bonus}, 1, state.memory, o,
                 call);
    auto merged = o.merge(axis::head);  // [T, D]
    group_norm(merged, w.ln_x, w.ln_x_bias, N, c.head_norm_eps, merged, call);
    activate_gated(Activation::silu, merged, gate.merge(axis::head), call);
    project(merged, {{w.output, mixed}}, call);
    add<Scalar>(x, mixed, y, call);

    layer_norm<Scalar>(y, w.norms.ln2, w.norms.ln2_bias, c.norm_eps, normed, call);
    channel_mix<Scalar>(normed, w.ffn_mix_k, w.ffn_mix_r, w.ffn_key, w.ffn_receptance, w.ffn_value,
                        state.ffn_shift, mixed, call);
    add<Scalar>(y, mixed, y, call);
  }
};

template <class Scalar = float>
using Rwkv6 = Mixer<Rwkv6Definition<Scalar>>;
SEQMIX_COMPILE_MIXER(Rwkv6Definition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
