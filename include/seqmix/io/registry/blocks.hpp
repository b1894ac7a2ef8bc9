#pragma once

#include "seqmix/blocks/jamba.hpp"
#include "seqmix/blocks/recurrent_gemma.hpp"
#include "seqmix/io/registry.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_blocks(Registry<S>& registry) {
  registry.template add<JambaBlockDefinition<S>>(
      {.title = "Jamba block (7 Mamba, 1 attention; experts in every second layer)",
       .paper = "Lieber 2024, arXiv:2403.19887",
       .forward = "O(T (D² + D N) + T² H K)",
       .step = "O(D² + D N + t H K)",
       .state = "the parts'",
       .header = "blocks/jamba.hpp"});
  registry.template add<RecurrentGemmaBlockDefinition<S>>(
      {.title = "RecurrentGemma block (2 RG-LRU, 1 local attention)",
       .paper = "De 2024, arXiv:2402.19427",
       .forward = "O(T (D² + W H K))",
       .step = "O(D² + W H K)",
       .state = "the parts'",
       .header = "blocks/recurrent_gemma.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
