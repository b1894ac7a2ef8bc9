#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/attention/big_bird_attention.hpp"
#include "seqmix/layers/attention/block_sparse_attention.hpp"
#include "seqmix/layers/attention/longformer_attention.hpp"
#include "seqmix/layers/attention/multi_head_latent_attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_sparse_attention(Registry<S>& registry) {
  registry.template add<MultiHeadLatentAttentionDefinition<S>>(
      {.title = "Multi-head latent attention (MLA; YaRN)",
       .paper = "DeepSeek-AI 2024, arXiv:2405.04434",
       .forward = "O(T D² + T² H (K + V))",
       .step = "O(D² + t H r)",
       .state = "t (r + rotary)",
       .header = "layers/attention/multi_head_latent_attention.hpp"});
  registry.template add<BlockSparseAttentionDefinition<S>>(
      {.title = "Block-sparse attention (Sparse Transformer, causal BigBird, layouts)",
       .paper = "Child 2019, arXiv:1904.10509; Zaheer 2020, arXiv:2007.14062",
       .forward = "O(T D² + Σ |A| K)",
       .step = "O(D² + t + Σ |A| K)",
       .state = "2 t G K",
       .header = "layers/attention/block_sparse_attention.hpp"});
  registry.template add<LongformerAttentionDefinition<S>>(
      {.title = "Longformer attention (window and global tokens)",
       .paper = "Beltagy 2020, arXiv:2004.05150",
       .forward = "O(T D² + T (W + N) D)",
       .step = "none",
       .state = "none",
       .header = "layers/attention/longformer_attention.hpp"});
  registry.template add<BigBirdAttentionDefinition<S>>(
      {.title = "BigBird attention (window, edge and random blocks)",
       .paper = "Zaheer 2020, arXiv:2007.14062",
       .forward = "O(T D² + T (5 + r) C D)",
       .step = "none",
       .state = "none",
       .header = "layers/attention/big_bird_attention.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
