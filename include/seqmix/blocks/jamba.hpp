#pragma once

#include "seqmix/blocks/decoder.hpp"
#include "seqmix/blocks/sequence.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/ssm/mamba.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The layers of Jamba: Mamba or attention, then one feed-forward layer or experts.
template <class S>
using JambaMamba = DecoderDefinition<MambaDefinition<S>, FeedForwardDefinition<S>>;
template <class S>
using JambaMambaExperts = DecoderDefinition<MambaDefinition<S>, MixtureOfExpertsDefinition<S>>;
template <class S>
using JambaAttention = DecoderDefinition<AttentionDefinition<S>, FeedForwardDefinition<S>>;

namespace detail {
template <class S>
using JambaLayers = SequenceDefinition<JambaMamba<S>, JambaMambaExperts<S>, JambaMamba<S>,
                                       JambaMambaExperts<S>, JambaAttention<S>,
                                       JambaMambaExperts<S>, JambaMamba<S>, JambaMambaExperts<S>>;
}  // namespace detail

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
template <class S>
struct JambaBlockDefinition : detail::JambaLayers<S> {
  using Base = detail::JambaLayers<S>;
  using Base::Base;
  static constexpr Traits traits{
      .name = "jamba_block",
      .title = "Jamba block (7 Mamba, 1 attention; experts in every second layer)",
      .paper = "Lieber 2024, arXiv:2403.19887",
      .forward = "O(T (D² + D N) + T² H K)",
      .step = "O(D² + D N + t H K)",
      .state = "the parts'",
      .whole_sequence = Base::traits.whole_sequence,
      .composite = true,
      .has_position_limit = true,
      .has_start_row = true};
};

template <class Scalar = float>
using JambaBlock = Mixer<JambaBlockDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(JambaBlockDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
