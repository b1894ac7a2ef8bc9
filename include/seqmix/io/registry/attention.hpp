#pragma once

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

SEQMIX_END_NAMESPACE
}  // namespace seqmix
