#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/attention/attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_attention(Registry<S>& registry) {
  registry.template add<AttentionDefinition<S>>(
      {.title = "Softmax attention (MHA, GQA, MQA; RoPE)",
       .paper = "Vaswani 2017, arXiv:1706.03762; Ainslie 2023, arXiv:2305.13245",
       .forward = "O(T D² + T² H K)",
       .step = "O(D² + t H K)",
       .state = "2 t G K",
       .header = "attention/attention.hpp",
       .checked = "transformers LlamaAttention, Qwen2Attention, GPTJAttention"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
