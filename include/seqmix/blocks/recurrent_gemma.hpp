#pragma once

#include "seqmix/blocks/decoder.hpp"
#include "seqmix/blocks/sequence.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A layer of RecurrentGemma that mixes by recurrence, and one that mixes by local attention.
template <class S>
using RecurrentGemmaRecurrence = DecoderDefinition<RgLruDefinition<S>, FeedForwardDefinition<S>>;
template <class S>
using RecurrentGemmaAttention = DecoderDefinition<AttentionDefinition<S>, FeedForwardDefinition<S>>;

/// What Griffin and RecurrentGemma repeat: two layers of recurrence and one of local attention,
/// each with its own feed-forward layer.
///
///   u = x + mixer_i(rms_norm(x)),  x = u + feed_forward_i(rms_norm(u)),    i = 0, 1, 2
///
/// forward: O(T (D² + W H K)); step: O(D² + W H K). State: the parts', bounded whatever T.
/// Source: De et al. 2024, arXiv:2402.19427, section 2; HF transformers RecurrentGemmaDecoderLayer.
template <class S>
struct RecurrentGemmaBlockDefinition
    : SequenceDefinition<RecurrentGemmaRecurrence<S>, RecurrentGemmaRecurrence<S>,
                         RecurrentGemmaAttention<S>> {
  using Base = SequenceDefinition<RecurrentGemmaRecurrence<S>, RecurrentGemmaRecurrence<S>,
                                  RecurrentGemmaAttention<S>>;
  using Base::Base;
  static constexpr Traits traits{.name = "recurrent_gemma_block",
                                 .title = "RecurrentGemma block (2 RG-LRU, 1 local attention)",
                                 .paper = "De 2024, arXiv:2402.19427",
                                 .forward = "O(T (D² + W H K))",
                                 .step = "O(D² + W H K)",
                                 .state = "the parts'",
                                 .whole_sequence = Base::traits.whole_sequence,
                                 .composite = true,
                                 .has_position_limit = true,
                                 .has_start_row = true};
};

template <class Scalar = float>
using RecurrentGemmaBlock = Mixer<RecurrentGemmaBlockDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(RecurrentGemmaBlockDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
