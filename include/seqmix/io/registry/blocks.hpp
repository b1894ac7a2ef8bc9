#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/block.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/ssm/mamba.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A block as its config puts it together; see `BlockEntry`.
inline constexpr Traits block_traits{
    .name = "block",
    .title = "Block of registry layers (norms before, after or around parts; side by side)",
    .paper = "Xiong 2020, arXiv:2002.04745",
    .forward = "the parts'",
    .step = "the parts'",
    .state = "the parts'"};

/// What Jamba repeats: eight layers, one of attention without positions and seven of Mamba; every
/// second has experts in place of the feed-forward layer.
///
///   u = x + mixer_i(rms_norm(x)),  x = u + channel_i(rms_norm(u)),    i = 0 ... 7
///   mixer: attention for i = 4, else Mamba; channel: experts for odd i, else feed-forward
///
/// forward: O(T (D² + D N) + T² H K); step: O(D² + D N + t H K). State: the parts'; 2 t G K numbers
/// a stream grow with it.
/// Source: Lieber et al. 2024, arXiv:2403.19887, figure 1; HF transformers JambaMambaDecoderLayer,
/// JambaAttentionDecoderLayer.
inline constexpr Traits jamba_block_traits{
    .name = "jamba_block",
    .title = "Jamba block (7 Mamba, 1 attention; experts in every second layer)",
    .paper = "Lieber 2024, arXiv:2403.19887",
    .forward = "O(T (D² + D N) + T² H K)",
    .step = "O(D² + D N + t H K)",
    .state = "the parts'"};

/// What Griffin and RecurrentGemma repeat: two layers of recurrence and one of local attention,
/// each with its own feed-forward layer.
///
///   u = x + mixer_i(rms_norm(x)),  x = u + feed_forward_i(rms_norm(u)),    i = 0, 1, 2
///
/// forward: O(T (D² + W H K)); step: O(D² + W H K). State: the parts', bounded whatever T.
/// Source: De et al. 2024, arXiv:2402.19427, section 2; HF transformers RecurrentGemmaDecoderLayer.
inline constexpr Traits recurrent_gemma_block_traits{
    .name = "recurrent_gemma_block",
    .title = "RecurrentGemma block (2 RG-LRU, 1 local attention)",
    .paper = "De 2024, arXiv:2402.19427",
    .forward = "O(T (D² + W H K))",
    .step = "O(D² + W H K)",
    .state = "the parts'"};

/// Registers the blocks last: the parts of `block` may be what is registered before it.
template <class S>
void register_blocks(Registry<S>& registry) {
  const auto attention = std::make_shared<const DefinitionEntry<AttentionDefinition<S>>>();
  const auto experts = std::make_shared<const DefinitionEntry<MixtureOfExpertsDefinition<S>>>();
  const auto feed_forward = std::make_shared<const DefinitionEntry<FeedForwardDefinition<S>>>();
  const auto mamba = std::make_shared<const DefinitionEntry<MambaDefinition<S>>>();
  const auto rg_lru = std::make_shared<const DefinitionEntry<RgLruDefinition<S>>>();

  using Entry = HybridEntry<S>;
  using Layer = std::vector<typename Entry::PartEntry>;
  const auto layer = [](auto mixer, auto channel) {
    return Layer{{"mixer", mixer}, {"channel", channel}};
  };
  const Layer dense = layer(mamba, feed_forward), sparse = layer(mamba, experts);
  registry.add(std::make_shared<const Entry>(
      jamba_block_traits, std::vector{dense, sparse, dense, sparse, layer(attention, feed_forward),
                                      sparse, dense, sparse}));
  const Layer recurrence = layer(rg_lru, feed_forward);
  registry.add(std::make_shared<const Entry>(
      recurrent_gemma_block_traits,
      std::vector{recurrence, recurrence, layer(attention, feed_forward)},
      std::vector<std::string>{"layers.2.mixer.sees.window"}));
  registry.add(std::make_shared<const BlockEntry<S>>(block_traits, registry));
}

#define SEQMIX_REGISTER_BLOCKS(S) void register_blocks(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_BLOCKS);
#undef SEQMIX_REGISTER_BLOCKS

SEQMIX_END_NAMESPACE
}  // namespace seqmix
