#pragma once

#include <tuple>

#include "seqmix/blocks/jamba.hpp"
#include "seqmix/blocks/recurrent_gemma.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_blocks(Registry<S>& registry) {
  registry.template add<JambaBlockDefinition<S>>();
  using RecurrentGemma = RecurrentGemmaBlockDefinition<S>;
  registry.template add<RecurrentGemma>(RecurrentGemma::traits,
                                        [](const typename RecurrentGemma::Config& config) {
                                          require(std::get<2>(config.parts).mixer.sees.window > 0,
                                                  "layers.2.mixer.sees.window must be positive");
                                        });
}

#define SEQMIX_REGISTER_BLOCKS(S) void register_blocks(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_BLOCKS);
#undef SEQMIX_REGISTER_BLOCKS

SEQMIX_END_NAMESPACE
}  // namespace seqmix
