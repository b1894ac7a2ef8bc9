#pragma once

#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct FeedForwardConfig {
  Index d_model = 0;
  Index d_ff = 0;  // hidden width
  Activation activation = Activation::silu;
  bool gated = true;
  bool bias = false;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_ff", self.d_ff);
    field("activation", self.activation), field("gated", self.gated), field("bias", self.bias);
  }
};

/// The feed-forward channel mixer: two projections around an activation, or its gated form (SwiGLU
/// with silu, GeGLU with gelu).
///
///   y = W_down f(W_up x)                      plain
///   y = W_down (f(W_gate x) ⊙ W_up x)         gated
///
/// forward: O(T D F); step: O(D F). State: none, each token is on its own.
/// Source: Shazeer 2020, arXiv:2002.05202, eq. 5-6; HF transformers LlamaMLP, GPTNeoXMLP.
template <class S>
struct FeedForwardDefinition {
  using Scalar = S;
  using Config = FeedForwardConfig;
  using State = NoState;
  static constexpr Traits traits{.name = "feed_forward",
                                 .title = "Feed-forward (SwiGLU, GeGLU, GELU)",
                                 .paper = "Shazeer 2020, arXiv:2002.05202",
                                 .forward = "O(T D F)",
                                 .step = "O(D F)",
                                 .state = "none"};

  struct Weights {
    Projection<Scalar> gate_proj, up_proj, down_proj;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      if (c.gated) parameter("gate_proj.weight", self.gate_proj.weight, {c.d_ff, c.d_model});
      if (c.gated && c.bias)
        parameter("gate_proj.bias", self.gate_proj.bias, {c.d_ff}, init::zeros);
      parameter("up_proj.weight", self.up_proj.weight, {c.d_ff, c.d_model});
      if (c.bias) parameter("up_proj.bias", self.up_proj.bias, {c.d_ff}, init::zeros);
      parameter("down_proj.weight", self.down_proj.weight, {c.d_model, c.d_ff});
      if (c.bias) parameter("down_proj.bias", self.down_proj.bias, {c.d_model}, init::zeros);
    }
  };

  Config c;
  Weights w;

  State make_state(Index /*batch*/, Index /*capacity*/, Memory /*memory*/) const { return {}; }

  void run(View<const Scalar, 2> x, State& /*state*/, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto hidden = scratch(T, c.d_ff);  // [T, F]
    project(x, {{w.up_proj, hidden}}, call);
    if (c.gated) {
      auto gate = scratch(T, c.d_ff);  // [T, F]
      project(x, {{w.gate_proj, gate}}, call);
      activate_gated(c.activation, hidden, gate, call);
    } else {
      activate(c.activation, hidden, call);
    }
    project(hidden, {{w.down_proj, y}}, call);
  }
};

template <class Scalar = float>
using FeedForward = Mixer<FeedForwardDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(FeedForwardDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
