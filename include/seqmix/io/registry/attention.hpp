#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/attention/bidirectional_attention.hpp"
#include "seqmix/layers/attention/cross_attention.hpp"
#include "seqmix/layers/attention/sliding_window_attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_attention(Registry<S>& registry) {
  registry.template add<AttentionDefinition<S>>();
  registry.template add<SlidingWindowAttentionDefinition<S>>();
  registry.template add<BidirectionalAttentionDefinition<S>>();
  registry.template add<CrossAttentionDefinition<S>>();
}

#define SEQMIX_REGISTER_ATTENTION(S) void register_attention(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_ATTENTION);
#undef SEQMIX_REGISTER_ATTENTION

SEQMIX_END_NAMESPACE
}  // namespace seqmix
