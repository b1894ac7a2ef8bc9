#pragma once

#include <vector>

#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/softmax.hpp"
#include "seqmix/kernels/product/routing.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct SwitchMixtureOfExpertsConfig {
  Index d_model = 0;
  Index d_ff = 0;  // hidden width of one expert
  Index n_experts = 8;
  Index capacity = 64;  // tokens of a stream that an expert takes; 0: all
  Activation activation = Activation::relu;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_ff", self.d_ff), field("n_experts", self.n_experts);
    field("capacity", self.capacity, zero_is_legal), field("activation", self.activation);
  }
};

/// The Switch Transformer's mixture: each token goes to one expert, which takes a bounded number of
/// them.
///
///   p = softmax(W_r x),  e = argmax p
///   y = p_e Wo_e f(Wi_e x) if e has had less than `capacity` tokens of the stream, else 0
///
/// The capacity is a number, as in the published code, not a share of T as in the paper: only then
/// does a token not depend on how many come later. The count goes on in the state, so the law
/// holds. forward: O(T (D E + D F)); step: O(D E + D F). State: E counts a stream. Source: Fedus et
/// al. 2021, arXiv:2101.03961, section 2.1; HF transformers SwitchTransformersSparseMLP.
template <class S>
struct SwitchMixtureOfExpertsDefinition {
  using Scalar = S;
  using Config = SwitchMixtureOfExpertsConfig;
  static constexpr Traits traits{.name = "switch_mixture_of_experts",
                                 .title = "Switch mixture of experts (top-1, capacity)",
                                 .paper = "Fedus 2021, arXiv:2101.03961",
                                 .forward = "O(T (D E + D F))",
                                 .step = "O(D E + D F)",
                                 .state = "E counts",
                                 .has_block_tokens = true};

  struct Expert {
    Projection<Scalar> wi, wo;
  };
  struct Weights {
    Projection<Scalar> router;
    std::vector<Expert> experts;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("router.classifier.weight", self.router.weight, {c.n_experts, c.d_model},
                keep_float);
      for_each_part("experts", self.experts, c.n_experts, [&](auto& expert, Index e) {
        parameter({"experts", e, "wi.weight"}, expert.wi.weight, {c.d_ff, c.d_model});
        parameter({"experts", e, "wo.weight"}, expert.wo.weight, {c.d_model, c.d_ff});
      });
    }
  };

  struct State {
    Tensor<Index, 2> counts;  // [B, E], tokens that have chosen each expert
    static void visit(auto& self, auto&& tensor) { tensor("counts", self.counts); }
  };

  Config c;
  Weights w;

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.counts = {{batch, c.n_experts}, memory}};
  }

  /// An expert sees 1 of E tokens.
  Index block_tokens() const { return usual_block_tokens * c.n_experts; }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto indices = call.scratch<Index>();
    auto scores = scratch(T, c.n_experts);  // [T, E]
    auto weight = scratch(T, Index{1});     // [T, 1]
    auto expert = indices(T);               // [T]
    const Routes routes{expert.split(axis::time, T, 1), indices(T, Index{1}), indices(T),
                        indices(c.n_experts + 1)};

    project(x, {{w.router, scores}}, call);
    top_k<Scalar>(scores, routes.expert);
    softmax<Scalar, 2>(scores, call);
    gather_scores<Scalar>(scores, routes.expert, weight);
    drop_above_capacity(c.capacity, expert, state.counts, call);
    group_by_expert(c.n_experts, routes);

    auto in = scratch(routes.pairs(), c.d_model);   // [pairs, D], grouped by expert
    auto hidden = scratch(routes.pairs(), c.d_ff);  // [pairs, F]
    gather_rows<Scalar>(x, routes, in, call);
    for_each_expert(routes, [&](Index e, Index first, Index count) {
      const auto rows_of = [&](View<Scalar, 2> panel) {
        return panel.slice(axis::time, first, count);
      };
      const Expert& chosen = w.experts[static_cast<std::size_t>(e)];
      project(rows_of(in), {{chosen.wi, rows_of(hidden)}}, call);
      activate(c.activation, rows_of(hidden), call);
      project(rows_of(hidden), {{chosen.wo, rows_of(in)}}, call);
    });
    combine_rows<Scalar>(in, weight, routes, y, call);
  }
};

template <class Scalar = float>
using SwitchMixtureOfExperts = Mixer<SwitchMixtureOfExpertsDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(SwitchMixtureOfExpertsDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
