#include "reference/aaren.hpp"
#include "reference/attention.hpp"
#include "reference/big_bird_attention.hpp"
#include "reference/block_sparse_attention.hpp"
#include "reference/blocks.hpp"
#include "reference/delta_net.hpp"
#include "reference/feed_forward.hpp"
#include "reference/gated_attention_unit.hpp"
#include "reference/gated_delta_net.hpp"
#include "reference/gated_linear_attention.hpp"
#include "reference/hgrn2.hpp"
#include "reference/hyena.hpp"
#include "reference/kimi_delta_attention.hpp"
#include "reference/linear_attention.hpp"
#include "reference/longformer_attention.hpp"
#include "reference/lru.hpp"
#include "reference/mamba.hpp"
#include "reference/mamba2.hpp"
#include "reference/mixed_chunk_attention.hpp"
#include "reference/mixture_of_experts.hpp"
#include "reference/mlstm.hpp"
#include "reference/multi_head_latent_attention.hpp"
#include "reference/retention.hpp"
#include "reference/rg_lru.hpp"
#include "reference/rwkv4.hpp"
#include "reference/rwkv6.hpp"
#include "reference/rwkv7.hpp"
#include "reference/s4.hpp"
#include "reference/s4d.hpp"
#include "reference/switch_mixture_of_experts.hpp"
#include "reference/twin.hpp"

namespace reference {

const std::vector<Twin>& twins() {
  static const std::vector<Twin> all{
      {"aaren", aaren_configs, aaren<double>, aaren<float>},
      {"attention", attention_configs, attention<double>, attention<float>},
      {"bidirectional_attention", bidirectional_attention_configs, bidirectional_attention<double>,
       bidirectional_attention<float>},
      {"bidirectional_gated_attention_unit", bidirectional_gated_attention_unit_configs,
       bidirectional_gated_attention_unit<double>, bidirectional_gated_attention_unit<float>},
      {"bidirectional_mixed_chunk_attention", bidirectional_mixed_chunk_attention_configs,
       bidirectional_mixed_chunk_attention<double>, bidirectional_mixed_chunk_attention<float>},
      {"big_bird_attention", big_bird_attention_configs, big_bird_attention<double>,
       big_bird_attention<float>},
      {"block", block_configs, block<double>, block<float>},
      {"block_sparse_attention", block_sparse_attention_configs, block_sparse_attention<double>,
       block_sparse_attention<float>},
      {"bidirectional_block_sparse_attention", bidirectional_block_sparse_attention_configs,
       bidirectional_block_sparse_attention<double>, bidirectional_block_sparse_attention<float>},
      {"cross_attention", cross_attention_configs, cross_attention<double>, cross_attention<float>},
      {"delta_net", delta_net_configs, delta_net<double>, delta_net<float>},
      {"feed_forward", feed_forward_configs, feed_forward<double>, feed_forward<float>},
      {"gated_attention_unit", gated_attention_unit_configs, gated_attention_unit<double>,
       gated_attention_unit<float>},
      {"gated_delta_net", gated_delta_net_configs, gated_delta_net<double>, gated_delta_net<float>},
      {"gated_linear_attention", gated_linear_attention_configs, gated_linear_attention<double>,
       gated_linear_attention<float>},
      {"hgrn2", hgrn2_configs, hgrn2<double>, hgrn2<float>},
      {"hyena", hyena_configs, hyena<double>, hyena<float>},
      {"jamba_block", jamba_block_configs, jamba_block<double>, jamba_block<float>},
      {"kimi_delta_attention", kimi_delta_attention_configs, kimi_delta_attention<double>,
       kimi_delta_attention<float>},
      {"linear_attention", linear_attention_configs, linear_attention<double>,
       linear_attention<float>},
      {"longformer_attention", longformer_attention_configs, longformer_attention<double>,
       longformer_attention<float>},
      {"lru", lru_configs, lru<double>, lru<float>},
      {"mamba", mamba_configs, mamba<double>, mamba<float>},
      {"mamba2", mamba2_configs, mamba2<double>, mamba2<float>},
      {"mixed_chunk_attention", mixed_chunk_attention_configs, mixed_chunk_attention<double>,
       mixed_chunk_attention<float>},
      {"mixture_of_experts", mixture_of_experts_configs, mixture_of_experts<double>,
       mixture_of_experts<float>},
      {"mlstm", mlstm_configs, mlstm<double>, mlstm<float>},
      {"multi_head_latent_attention", multi_head_latent_attention_configs,
       multi_head_latent_attention<double>, multi_head_latent_attention<float>},
      {"recurrent_gemma_block", recurrent_gemma_block_configs, recurrent_gemma_block<double>,
       recurrent_gemma_block<float>},
      {"retention", retention_configs, retention<double>, retention<float>},
      {"rg_lru", rg_lru_configs, rg_lru<double>, rg_lru<float>},
      {"rwkv4", rwkv4_configs, rwkv4<double>, rwkv4<float>},
      {"rwkv6", rwkv6_configs, rwkv6<double>, rwkv6<float>},
      {"rwkv7", rwkv7_configs, rwkv7<double>, rwkv7<float>},
      {"s4", s4_configs, s4<double>, s4<float>},
      {"s4d", s4d_configs, s4d<double>, s4d<float>},
      {"sliding_window_attention", sliding_window_attention_configs,
       sliding_window_attention<double>, sliding_window_attention<float>},
      {"switch_mixture_of_experts", switch_mixture_of_experts_configs,
       switch_mixture_of_experts<double>, switch_mixture_of_experts<float>}};
  return all;
}

}  // namespace reference
