#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_channel(Registry<S>& registry) {
  registry.template add<FeedForwardDefinition<S>>({.title = "Feed-forward (SwiGLU, GeGLU, GELU)",
                                                   .paper = "Shazeer 2020, arXiv:2002.05202",
                                                   .forward = "O(T D F)",
                                                   .step = "O(D F)",
                                                   .state = "none",
                                                   .header = "channel/feed_forward.hpp",
                                                   .checked = "transformers LlamaMLP, GPTNeoXMLP"});
  registry.template add<MixtureOfExpertsDefinition<S>>(
      {.title = "Mixture of experts (top-k SwiGLU)",
       .paper = "Jiang 2024, arXiv:2401.04088",
       .forward = "O(T (D E + k D F))",
       .step = "O(D E + k D F)",
       .state = "none",
       .header = "channel/mixture_of_experts.hpp",
       .checked = "transformers MixtralSparseMoeBlock"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
