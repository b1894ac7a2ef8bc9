#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/attention/big_bird_attention.hpp"
#include "seqmix/layers/attention/block_sparse_attention.hpp"
#include "seqmix/layers/attention/longformer_attention.hpp"
#include "seqmix/layers/attention/multi_head_latent_attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_sparse_attention(Registry<S>& registry) {
  registry.template add<MultiHeadLatentAttentionDefinition<S>>();
  registry.template add<BlockSparseAttentionDefinition<S>>();
  registry.template add<BidirectionalBlockSparseAttentionDefinition<S>>();
  registry.template add<LongformerAttentionDefinition<S>>();
  registry.template add<BigBirdAttentionDefinition<S>>();
}

#define SEQMIX_REGISTER_SPARSE_ATTENTION(S) void register_sparse_attention(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_SPARSE_ATTENTION);
#undef SEQMIX_REGISTER_SPARSE_ATTENTION

SEQMIX_END_NAMESPACE
}  // namespace seqmix
