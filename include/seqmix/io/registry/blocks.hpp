#pragma once

#include "seqmix/blocks/jamba.hpp"
#include "seqmix/blocks/recurrent_gemma.hpp"
#include "seqmix/io/registry.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_blocks(Registry<S>& registry) {
  registry.template add<JambaBlockDefinition<S>>();
  registry.template add<RecurrentGemmaBlockDefinition<S>>();
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
