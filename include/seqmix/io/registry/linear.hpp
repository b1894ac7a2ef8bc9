#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_linear(Registry<S>& registry) {
  registry.template add<GatedLinearAttentionDefinition<S>>(
      {.title = "Gated linear attention (GLA)",
       .paper = "Yang 2023, arXiv:2312.06635",
       .forward = "O(T (D² + C D + D K))",
       .step = "O(D² + D K)",
       .state = "H K V",
       .header = "linear/gated_linear_attention.hpp",
       .checked = "flash-linear-attention GatedLinearAttention"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
