#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/channel/switch_mixture_of_experts.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_channel(Registry<S>& registry) {
  registry.template add<FeedForwardDefinition<S>>();
  registry.template add<MixtureOfExpertsDefinition<S>>();
  registry.template add<SwitchMixtureOfExpertsDefinition<S>>();
}

#define SEQMIX_REGISTER_CHANNEL(S) void register_channel(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_CHANNEL);
#undef SEQMIX_REGISTER_CHANNEL

SEQMIX_END_NAMESPACE
}  // namespace seqmix
