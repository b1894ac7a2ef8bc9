#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/linear/delta_net.hpp"
#include "seqmix/layers/linear/gated_delta_net.hpp"
#include "seqmix/layers/linear/kimi_delta_attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_delta(Registry<S>& registry) {
  registry.template add<DeltaNetDefinition<S>>({.title = "DeltaNet",
                                                .paper = "Yang 2024, arXiv:2406.06484",
                                                .forward = "O(T (D² + D K))",
                                                .step = "O(D² + D K)",
                                                .state = "H K V + (W - 1) (2 H K + H V)",
                                                .header = "layers/linear/delta_net.hpp"});
  registry.template add<GatedDeltaNetDefinition<S>>(
      {.title = "Gated DeltaNet",
       .paper = "Yang 2024, arXiv:2412.06464",
       .forward = "O(T (D² + D K))",
       .step = "O(D² + D K)",
       .state = "H K V + (W - 1) (2 G K + H V)",
       .header = "layers/linear/gated_delta_net.hpp"});
  registry.template add<KimiDeltaAttentionDefinition<S>>(
      {.title = "Kimi Delta Attention (KDA)",
       .paper = "Kimi Team 2025, arXiv:2510.26692",
       .forward = "O(T (D² + D K))",
       .step = "O(D² + D K)",
       .state = "H K V + (W - 1) (2 H K + H V)",
       .header = "layers/linear/kimi_delta_attention.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
