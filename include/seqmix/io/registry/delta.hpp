#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/linear/delta_net.hpp"
#include "seqmix/layers/linear/gated_delta_net.hpp"
#include "seqmix/layers/linear/kimi_delta_attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_delta(Registry<S>& registry) {
  registry.template add<DeltaNetDefinition<S>>();
  registry.template add<GatedDeltaNetDefinition<S>>();
  registry.template add<KimiDeltaAttentionDefinition<S>>();
}

#define SEQMIX_REGISTER_DELTA(S) void register_delta(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_DELTA);
#undef SEQMIX_REGISTER_DELTA

SEQMIX_END_NAMESPACE
}  // namespace seqmix
