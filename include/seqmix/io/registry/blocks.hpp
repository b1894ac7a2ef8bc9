#pragma once

#include "seqmix/blocks/jamba.hpp"
#include "seqmix/blocks/recurrent_gemma.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_blocks(Registry<S>& registry) {
  registry.template add<JambaBlockDefinition<S>>();
  registry.template add<RecurrentGemmaBlockDefinition<S>>(RecurrentGemmaBlockDefinition<S>::traits,
                                                          {"layers.2.mixer.sees.window"});
}

#define SEQMIX_REGISTER_BLOCKS(S) void register_blocks(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_BLOCKS);
#undef SEQMIX_REGISTER_BLOCKS

SEQMIX_END_NAMESPACE
}  // namespace seqmix
