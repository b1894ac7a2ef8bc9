#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/channel/switch_mixture_of_experts.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_channel(Registry<S>& registry) {
  registry.template add<FeedForwardDefinition<S>>({.title = "Feed-forward (SwiGLU, GeGLU, GELU)",
                                                   .paper = "Shazeer 2020, arXiv:2002.05202",
                                                   .forward = "O(T D F)",
                                                   .step = "O(D F)",
                                                   .state = "none",
                                                   .header = "layers/channel/feed_forward.hpp"});
  registry.template add<MixtureOfExpertsDefinition<S>>(
      {.title = "Mixture of SwiGLU experts (Mixtral, Qwen2-MoE, OLMoE, DeepSeek-V3 routers)",
       .paper = "Jiang 2024, arXiv:2401.04088",
       .forward = "O(T (D E + k D F))",
       .step = "O(D E + k D F)",
       .state = "none",
       .header = "layers/channel/mixture_of_experts.hpp"});
  registry.template add<SwitchMixtureOfExpertsDefinition<S>>(
      {.title = "Switch mixture of experts (top-1, capacity)",
       .paper = "Fedus 2021, arXiv:2101.03961",
       .forward = "O(T (D E + D F))",
       .step = "O(D E + D F)",
       .state = "E counts",
       .header = "layers/channel/switch_mixture_of_experts.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
