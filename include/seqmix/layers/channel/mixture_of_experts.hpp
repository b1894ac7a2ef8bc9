#pragma once

#include <string_view>
#include <vector>

#include "seqmix/kernels/activation.hpp"
#include "seqmix/kernels/routing.hpp"
#include "seqmix/kernels/softmax.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct MixtureOfExpertsConfig {
  Index d_model = 0;
  Index d_ff = 0;  // hidden width of one expert
  Index n_experts = 8;
  Index n_experts_per_token = 2;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_ff", self.d_ff);
    field("n_experts", self.n_experts), field("n_experts_per_token", self.n_experts_per_token);
  }
  void check() const {
    require(n_experts_per_token <= n_experts, "n_experts_per_token must not exceed n_experts");
  }
};

/// A mixture of SwiGLU experts of which each token uses the k that its router scores highest.
///
///   l = W_gate x,  top = the k largest of l,  p = softmax(l[top])
///   y = Σ_{e in top} p_e W2_e (silu(W1_e x) ⊙ W3_e x)
///
/// Dropless: no capacity, so every token is on its own and the law holds. A tie of scores goes to
/// the lower expert.
/// forward: O(T (D E + k D F)); step: O(D E + k D F). State: none.
/// Source: Jiang et al. 2024, arXiv:2401.04088, section 2.1; HF transformers MixtralSparseMoeBlock.
template <class S>
struct MixtureOfExpertsDefinition {
  using Scalar = S;
  using Config = MixtureOfExpertsConfig;
  using State = NoState;
  static constexpr std::string_view name = "mixture_of_experts";

  struct Expert {
    Projection<Scalar> w1, w2, w3;
  };
  struct Weights {
    Projection<Scalar> gate;
    std::vector<Expert> experts;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("gate.weight", self.gate.weight, {c.n_experts, c.d_model});
      resize_parts(self.experts, c.n_experts);
      for (Index e = 0; e < c.n_experts; ++e) {
        auto& expert = self.experts[static_cast<std::size_t>(e)];
        parameter({"experts", e, "w1.weight"}, expert.w1.weight, {c.d_ff, c.d_model});
        parameter({"experts", e, "w2.weight"}, expert.w2.weight, {c.d_model, c.d_ff});
        parameter({"experts", e, "w3.weight"}, expert.w3.weight, {c.d_ff, c.d_model});
      }
    }
  };

  Config c;
  Weights w;

  State make_state(Index /*batch*/, Index /*capacity*/, Memory /*memory*/) const { return {}; }

  /// An expert sees k of E rows; then its weights are read for as many as a dense layer's.
  Index block_rows() const { return time_block_rows * c.n_experts / c.n_experts_per_token; }

  template <Form form>
  void run(View<const Scalar, 3> x, State& /*state*/, View<Scalar, 3> y, Context& context) const {
    const Index B = x.extent(0), T = x.extent(1), k = c.n_experts_per_token, pairs = B * T * k;
    auto scratch = context.scratch<Scalar>();
    auto indices = context.scratch<Index>();
    auto logits = scratch(B, T, c.n_experts);  // [B, T, E]
    auto weight = scratch(B * T, k);           // [B T, k]
    const Routes routes{indices(B * T, k), indices(B * T, k), indices(pairs),
                        indices(c.n_experts + 1)};

    project(x, {{w.gate, logits}}, context);
    const auto scores = logits.template merge<0>();  // [B T, E]
    top_k<Scalar>(scores, routes.expert);
    for (Index row = 0; row < B * T; ++row) {
      for (Index i = 0; i < k; ++i) weight(row, i) = scores(row, routes.expert(row, i));
    }
    softmax<Scalar, 2>(weight, context);
    group_by_expert(c.n_experts, routes);

    auto in = scratch(pairs, c.d_model);   // [B T k, D], grouped by expert
    auto gate = scratch(pairs, c.d_ff);    // [B T k, F]
    auto hidden = scratch(pairs, c.d_ff);  // [B T k, F]
    gather_rows<Scalar>(x, routes, in, context);
    for (Index e = 0; e < c.n_experts; ++e) {
      const Index first = routes.first[e], count = routes.first[e + 1] - first;
      if (count == 0) continue;
      const auto rows_of = [&](View<Scalar, 2> panel) {
        return panel.template slice<0>(first, count).template insert<0>();
      };
      const Expert& expert = w.experts[static_cast<std::size_t>(e)];
      project(rows_of(in), {{expert.w1, rows_of(gate)}, {expert.w3, rows_of(hidden)}}, context);
      activate_gated(Activation::silu, rows_of(hidden), rows_of(gate), context);
      project(rows_of(hidden), {{expert.w2, rows_of(in)}}, context);
    }
    combine_rows<Scalar>(in, weight, routes, y, context);
  }
};

template <class Scalar = float>
using MixtureOfExperts = Mixer<MixtureOfExpertsDefinition<Scalar>>;

SEQMIX_END_NAMESPACE
}  // namespace seqmix
