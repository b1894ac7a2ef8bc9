#pragma once

#include <vector>

#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/softmax.hpp"
#include "seqmix/kernels/product/routing.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct MixtureOfExpertsConfig {
  Index d_model = 0;
  Index d_ff = 0;  // hidden width of one expert
  Index n_experts = 8;
  Index n_experts_per_token = 2;
  Router router = Router::mixtral;
  bool normalize_top_k = false;  // the weights of a token add up to 1; those of mixtral always do
  Index n_group = 1;             // deepseek_v3: equal groups of experts
  Index topk_group = 1;          // of which a token may use this many
  double routed_scaling = 1;     // deepseek_v3: multiplies the weights
  Index d_shared = 0;            // hidden width of the expert that every token uses
  bool shared_gate = false;      // whose output a sigmoid of the token multiplies

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_ff", self.d_ff);
    field("n_experts", self.n_experts), field("n_experts_per_token", self.n_experts_per_token);
    const auto deepseek_v3 =
        only_where(self.router == Router::deepseek_v3, "router is deepseek_v3");
    field("router", self.router);
    field("normalize_top_k", self.normalize_top_k,
          only_where(self.router != Router::mixtral, "router is not mixtral"));
    field("n_group", self.n_group, deepseek_v3), field("topk_group", self.topk_group, deepseek_v3);
    field("routed_scaling", self.routed_scaling, is_finite, deepseek_v3);
    field("d_shared", self.d_shared, zero_is_legal), field("shared_gate", self.shared_gate);
  }
  void check() const {
    require(n_experts_per_token <= n_experts, "n_experts_per_token must not exceed n_experts");
    require(topk_group <= n_group, "topk_group must not exceed n_group");
    require(n_group == 1 || (n_experts % n_group == 0 && n_experts >= 2 * n_group),
            "n_group must cut n_experts into equal groups of at least 2");
    require(n_experts_per_token <= topk_group * (n_experts / n_group),
            "the topk_group groups of a token must have n_experts_per_token experts");
    require(!shared_gate || d_shared > 0, "shared_gate needs a shared expert: d_shared");
  }
};

/// A mixture of SwiGLU experts of which each token uses the k that its router scores highest.
///
///   l = W_gate x,  y = Σ_{e in top} p_e W2_e (silu(W1_e x) ⊙ W3_e x) + g shared(x)
///   mixtral             top = the k largest of l, p = softmax(l[top])
///   softmax_then_top_k  top = the k largest of l, p = softmax(l)[top], / Σ p if normalize_top_k
///   deepseek_v3         s = σ(l), top = the k largest of s + b among the topk_group groups whose
///                       two largest sum up highest, p = s[top], / Σ p if normalize_top_k, times
///                       routed_scaling
///   g = σ(w_g x) if shared_gate, else 1; shared: a SwiGLU of width d_shared
///
/// Dropless: no capacity, so every token is on its own and the law holds. A tie of scores goes to
/// the lower expert.
/// forward: O(T (D E + k D F)); step: O(D E + k D F). State: none.
/// Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1; HF transformers MixtralSparseMoeBlock,
/// Qwen2MoeSparseMoeBlock; DeepSeek-AI 2024, arXiv:2412.19437, eq. 12-16 and its
/// inference/model.py.
template <class S>
struct MixtureOfExpertsDefinition {
  using Scalar = S;
  using Config = MixtureOfExpertsConfig;
  using State = NoState;
  static constexpr Traits traits{
      .name = "mixture_of_experts",
      .title = "Mixture of SwiGLU experts (Mixtral, Qwen2-MoE, OLMoE, DeepSeek-V3 routers)",
      .paper = "Jiang 2024, arXiv:2401.04088",
      .forward = "O(T (D E + k D F))",
      .step = "O(D E + k D F)",
      .state = "none",
      .has_block_tokens = true};

  struct Expert {
    Projection<Scalar> w1, w2, w3;
  };
  struct Weights {
    Projection<Scalar> gate;
    Parameter<Scalar, 1> correction_bias;  // [E], b
    std::vector<Expert> experts;
    Projection<Scalar> shared_gate_proj, shared_up_proj, shared_down_proj, shared_expert_gate;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("gate.weight", self.gate.weight, {c.n_experts, c.d_model}, keep_float);
      if (c.router == Router::deepseek_v3) {
        parameter("gate.e_score_correction_bias", self.correction_bias, {c.n_experts}, init::zeros);
      }
      for_each_part("experts", self.experts, c.n_experts, [&](auto& expert, Index e) {
        parameter({"experts", e, "w1.weight"}, expert.w1.weight, {c.d_ff, c.d_model});
        parameter({"experts", e, "w2.weight"}, expert.w2.weight, {c.d_model, c.d_ff});
        parameter({"experts", e, "w3.weight"}, expert.w3.weight, {c.d_ff, c.d_model});
      });
      if (c.d_shared == 0) return;
      const Shape<2> in{c.d_shared, c.d_model}, out{c.d_model, c.d_shared};
      parameter("shared_experts.gate_proj.weight", self.shared_gate_proj.weight, in);
      parameter("shared_experts.up_proj.weight", self.shared_up_proj.weight, in);
      parameter("shared_experts.down_proj.weight", self.shared_down_proj.weight, out);
      if (c.shared_gate) {
        parameter("shared_expert_gate.weight", self.shared_expert_gate.weight, {1, c.d_model});
      }
    }
  };

  Config c;
  Weights w;

  State make_state(Index /*batch*/, Index /*capacity*/, Memory /*memory*/) const { return {}; }

  /// An expert sees k of E tokens; then its weights are read for as many as a dense layer's.
  Index block_tokens() const { return usual_block_tokens * c.n_experts / c.n_experts_per_token; }

  void run(View<const Scalar, 2> x, State& /*state*/, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), k = c.n_experts_per_token, pairs = T * k;
    const Index shared_width = c.d_shared > 0 ? c.d_model : 0;
    auto scratch = call.scratch<Scalar>();
    auto indices = call.scratch<Index>();
    auto logits = scratch(T, c.n_experts);  // [T, E]
    auto weight = scratch(T, k);            // [T, k]
    const Routes routes{indices(T, k), indices(T, k), indices(pairs), indices(c.n_experts + 1)};

    project(x, {{w.gate, logits}}, call);
    choose(logits, routes.expert, weight, call);
    group_by_expert(c.n_experts, routes);

    auto in = scratch(pairs, c.d_model);     // [T k, D], grouped by expert
    auto gate = scratch(pairs, c.d_ff);      // [T k, F]
    auto hidden = scratch(pairs, c.d_ff);    // [T k, F]
    auto shared = scratch(T, shared_width);  // [T, D], or nothing
    if (c.d_shared > 0) shared_expert(x, shared, call);
    gather_rows<Scalar>(x, routes, in, call);
    for_each_expert(routes, [&](Index e, Index first, Index count) {
      const auto rows_of = [&](View<Scalar, 2> panel) {
        return panel.slice(axis::time, first, count);
      };
      const Expert& expert = w.experts[static_cast<std::size_t>(e)];
      project(rows_of(in), {{expert.w1, rows_of(gate)}, {expert.w3, rows_of(hidden)}}, call);
      activate_gated(Activation::silu, rows_of(hidden), rows_of(gate), call);
      project(rows_of(hidden), {{expert.w2, rows_of(in)}}, call);
    });
    combine_rows<Scalar>(in, weight, routes, y, call);
    if (c.d_shared > 0) {
      elementwise(
          call, [](auto a, auto b) { return a + b; }, y, y, shared);
    }
  }

 private:
  /// The experts of each token of logits [T, E], which are overwritten, and their weights.
  void choose(View<Scalar, 2> logits, View<Index, 2> expert, View<Scalar, 2> weight,
              const Call& call) const {
    if (c.router != Router::deepseek_v3) {
      top_k<Scalar>(logits, expert);
      if (c.router == Router::softmax_then_top_k) softmax<Scalar, 2>(logits, call);
      gather_scores<Scalar>(logits, expert, weight);
      if (c.router == Router::mixtral) {
        softmax<Scalar, 2>(weight, call);
      } else if (c.normalize_top_k) {
        normalize_weights(weight, 1, 0);
      }
      return;
    }
    auto scratch = call.scratch<Scalar>();
    auto selection = scratch(logits.extent(0), logits.extent(1));  // [T, E]
    elementwise(call, activation::sigmoid, logits, logits);
    elementwise(
        call, [](auto s, auto b) { return s + b; }, selection, logits,
        by_channel(w.correction_bias));
    if (c.n_group > 1) keep_groups(selection, c.n_group, c.topk_group, call);
    top_k<Scalar>(selection, expert);
    gather_scores<Scalar>(logits, expert, weight);
    if (c.normalize_top_k) {
      normalize_weights(weight, c.routed_scaling, 1e-20);
    } else {
      const auto factor = static_cast<Scalar>(c.routed_scaling);
      elementwise(
          call, [factor](auto p) { return factor * p; }, weight, weight);
    }
  }

  void shared_expert(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto hidden = scratch(T, c.d_shared);  // [T, F]
    auto gate = scratch(T, c.d_shared);    // [T, F]
    auto openness = scratch(T, Index{1});  // [T, 1]
    project(x, {{w.shared_up_proj, hidden}, {w.shared_gate_proj, gate}}, call);
    activate_gated(Activation::silu, hidden, gate, call);
    project(hidden, {{w.shared_down_proj, y}}, call);
    if (!c.shared_gate) return;
    project(x, {{w.shared_expert_gate, openness}}, call);
    elementwise(call, activation::sigmoid, openness, openness);
    elementwise(
        call, [](auto value, auto by) { return by * value; }, y, y,
        by_row(openness.at(axis::channel, 0)));
  }
};

template <class Scalar = float>
using MixtureOfExperts = Mixer<MixtureOfExpertsDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(MixtureOfExpertsDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
