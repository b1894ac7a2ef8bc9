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
  registry.template add<AttentionDefinition<S>>(
      {.title = "Softmax attention (MHA, GQA, MQA; RoPE, YaRN, ALiBi, QK-norm, soft-cap)",
       .paper = "Vaswani 2017, arXiv:1706.03762; Ainslie 2023, arXiv:2305.13245",
       .forward = "O(T D² + T² H K)",
       .step = "O(D² + t H K)",
       .state = "2 t G K",
       .header = "layers/attention/attention.hpp"});
  registry.template add<SlidingWindowAttentionDefinition<S>>(
      {.title = "Sliding-window attention (sinks, dilation)",
       .paper = "Jiang 2023, arXiv:2310.06825; Xiao 2023, arXiv:2309.17453",
       .forward = "O(T D² + T W H K)",
       .step = "O(D² + W H K)",
       .state = "2 W G K",
       .header = "layers/attention/sliding_window_attention.hpp"});
  registry.template add<BidirectionalAttentionDefinition<S>>(
      {.title = "Bidirectional attention",
       .paper = "Devlin 2018, arXiv:1810.04805",
       .forward = "O(T D² + T² H K)",
       .step = "none",
       .state = "none",
       .header = "layers/attention/bidirectional_attention.hpp"});
  registry.template add<CrossAttentionDefinition<S>>(
      {.title = "Cross attention",
       .paper = "Vaswani 2017, arXiv:1706.03762",
       .forward = "O(T D² + T S H K)",
       .step = "O(D² + S H K)",
       .state = "2 S G K",
       .header = "layers/attention/cross_attention.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
