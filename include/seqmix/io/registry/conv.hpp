#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/conv/hyena.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_conv(Registry<S>& registry) {
  registry.template add<HyenaDefinition<S>>();
}

#define SEQMIX_REGISTER_CONV(S) void register_conv(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_CONV);
#undef SEQMIX_REGISTER_CONV

SEQMIX_END_NAMESPACE
}  // namespace seqmix
