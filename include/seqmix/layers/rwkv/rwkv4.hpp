#pragma once

#include <cmath>
#include <utility>

#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/scan/wkv.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/rwkv/detail/block.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct Rwkv4Config {
  Index d_model = 0;
  Index d_ff = 0;         // hidden width of the channel mix
  Index layer_index = 0;  // layer 0 starts with a norm of its own
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_ff", self.d_ff);
    field("layer_index", self.layer_index, zero_is_legal),
        field("norm_eps", self.norm_eps, at_least(0));
  }
};

/// A block of RWKV-4: each channel averages its values, weighted by an exponential of their keys
/// and of their age; then the channels are mixed. Residuals and norms are part of it.
///
///   x̂ = LN1 x,   (r, k, v)_t = W_(r,k,v) (x̂_t ⊙ μ + x̂_{t-1} ⊙ (1 - μ))
///   wkv_t = (Σ_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)
///   x = x + W_o (σ(r_t) ⊙ wkv_t),   w = -e^decay
///   y = x + channel_mix(LN2 x)
///
/// forward: O(T (D² + D F)); step: O(D² + D F). State: three sums and two inputs a channel.
///
/// Source: Peng et al. 2023, arXiv:2305.13048, eq. 11-18; BlinkDL RWKV-v4 model_run.py, whose names
/// the weights have; HF transformers RwkvBlock.
template <class S>
struct Rwkv4Definition {
  using Scalar = S;
  using Config = Rwkv4Config;
  static constexpr Traits traits{.name = "rwkv4",
                                 .title = "RWKV-4 block",
                                 .paper = "Peng 2023, arXiv:2305.13048",
                                 .forward = "O(T (D² + D F))",
                                 .step = "O(D² + D F)",
                                 .state = "5 D",
                                 .has_start_row = true};

  struct Weights {
    RwkvNorms<Scalar> norms;
    Parameter<Scalar, 1> decay, first;                                           // [D]
    Parameter<Scalar, 3> att_mix_k, att_mix_v, att_mix_r, ffn_mix_k, ffn_mix_r;  // [1, 1, D]
    Projection<Scalar> key, value, receptance, output, ffn_key, ffn_receptance, ffn_value;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index D = c.d_model;
      RwkvNorms<Scalar>::visit(self.norms, c, parameter);
      parameter("att.time_decay", self.decay, {D}, init::uniform(-6, 0.5));
      parameter("att.time_first", self.first, {D}, init::ones);
      parameter("att.time_mix_k", self.att_mix_k, {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_mix_v", self.att_mix_v, {1, 1, D}, init::uniform(0, 1));
      parameter("att.time_mix_r", self.att_mix_r, {1, 1, D}, init::uniform(0, 1));
      parameter("att.key.weight", self.key.weight, {D, D});
      parameter("att.value.weight", self.value.weight, {D, D});
      parameter("att.receptance.weight", self.receptance.weight, {D, D});
      parameter("att.output.weight", self.output.weight, {D, D});
      parameter("ffn.time_mix_k", self.ffn_mix_k, {1, 1, D}, init::uniform(0, 1));
      parameter("ffn.time_mix_r", self.ffn_mix_r, {1, 1, D}, init::uniform(0, 1));
      parameter("ffn.key.weight", self.ffn_key.weight, {c.d_ff, D});
      parameter("ffn.receptance.weight", self.ffn_receptance.weight, {D, D});
      parameter("ffn.value.weight", self.ffn_value.weight, {D, c.d_ff});
    }
  };

  struct State {
    Tensor<Scalar, 3> att_shift, ffn_shift;             // [B, 1, D], last input of each mix
    Tensor<Scalar, 2> numerator, denominator, maximum;  // [B, D]

    static void visit(auto& self, auto&& tensor) {
      tensor("att_shift", self.att_shift), tensor("ffn_shift", self.ffn_shift);
      tensor("numerator", self.numerator), tensor("denominator", self.denominator);
      tensor("maximum", self.maximum);
    }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 3> past_k, past_v, past_r, ffn_past_k, ffn_past_r;  // [1, 1, D], 1 - μ
  Parameter<Scalar, 1> log_decay;                                       // [D], -e^decay

  Rwkv4Definition(Config config, Weights weights) : c(std::move(config)), w(std::move(weights)) {
    const auto past = [](const Parameter<Scalar, 3>& mix) {
      return mapped(mix, [](Scalar x) { return 1 - x; });
    };
    past_k = past(w.att_mix_k), past_v = past(w.att_mix_v), past_r = past(w.att_mix_r);
    ffn_past_k = past(w.ffn_mix_k), ffn_past_r = past(w.ffn_mix_r);
    log_decay = mapped(w.decay, [](Scalar x) { return -std::exp(x); });
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.att_shift = {{batch, 1, c.d_model}, memory},
            .ffn_shift = {{batch, 1, c.d_model}, memory},
            .numerator = {{batch, c.d_model}, memory},
            .denominator = {{batch, c.d_model}, memory},
            .maximum = {{batch, c.d_model}, memory}};
  }
  void start_row(State& state, Index row) const {
    fill(state.maximum.view()[row], static_cast<Scalar>(wkv_initial_maximum));
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), D = c.d_model;
    auto scratch = call.scratch<Scalar>();
    auto normed = scratch(T, D);  // [T, D]
    auto before = scratch(T, D);  // [T, D], previous token - token
    auto mixed = scratch(T, D);   // [T, D]
    auto r = scratch(T, D);       // [T, D]
    auto k = scratch(T, D);       // [T, D]
    auto v = scratch(T, D);       // [T, D]
    auto out = scratch(T, D);     // [T, D]
    const auto mixed_by = [&](const Parameter<Scalar, 3>& past) {
      mix_tokens(normed, before, by_channel(flat(past)), mixed, call);
      return mixed;
    };

    x = w.norms.enter(x, c.norm_eps, y, call);
    layer_norm(x, w.norms.ln1, w.norms.ln1_bias, c.norm_eps, normed, call);
    token_shift(normed, state.att_shift, before, call);
    project(mixed_by(past_r), {{w.receptance, r}}, call);
    project(mixed_by(past_k), {{w.key, k}}, call);
    project(mixed_by(past_v), {{w.value, v}}, call);
    wkv4(k, v, log_decay, w.first, state.numerator, state.denominator, state.maximum, out, call);
    elementwise(
        call, [](auto mean, auto by) { return mean * simd::sigmoid(by); }, out, out, r);
    project(out, {{w.output, mixed}}, call);
    add<Scalar>(x, mixed, y, call);

    layer_norm<Scalar>(y, w.norms.ln2, w.norms.ln2_bias, c.norm_eps, normed, call);
    channel_mix<Scalar>(normed, ffn_past_k, ffn_past_r, w.ffn_key, w.ffn_receptance, w.ffn_value,
                        state.ffn_shift, out, call);
    add<Scalar>(y, out, y, call);
  }
};

template <class Scalar = float>
using Rwkv4 = Mixer<Rwkv4Definition<Scalar>>;
SEQMIX_COMPILE_MIXER(Rwkv4Definition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
