#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/attention/aaren.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/attention/cross_attention.hpp"
#include "seqmix/layers/attention/gated_attention_unit.hpp"
#include "seqmix/layers/attention/mixed_chunk_attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_attention(Registry<S>& registry) {
  registry.template add<AttentionDefinition<S>>();
  registry.template add<AttentionDefinition<S>>(AttentionDefinition<S>::sliding_window_traits,
                                                {"sees.window"});
  registry.template add<BidirectionalAttentionDefinition<S>>();
  registry.template add<CrossAttentionDefinition<S>>();
  registry.template add<AarenDefinition<S>>();
  registry.template add<GatedAttentionUnitDefinition<S>>();
  registry.template add<BidirectionalGatedAttentionUnitDefinition<S>>();
  registry.template add<MixedChunkAttentionDefinition<S>>();
  registry.template add<BidirectionalMixedChunkAttentionDefinition<S>>();
}

#define SEQMIX_REGISTER_ATTENTION(S) void register_attention(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_ATTENTION);
#undef SEQMIX_REGISTER_ATTENTION

SEQMIX_END_NAMESPACE
}  // namespace seqmix
