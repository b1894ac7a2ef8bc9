#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/conv/hyena.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_conv(Registry<S>& registry) {
  registry.template add<HyenaDefinition<S>>();
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
