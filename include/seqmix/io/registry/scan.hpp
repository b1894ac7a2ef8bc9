#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/ssm/lru.hpp"
#include "seqmix/layers/ssm/mamba.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_scan(Registry<S>& registry) {
  registry.template add<RgLruDefinition<S>>();
  registry.template add<LruDefinition<S>>();
  registry.template add<MambaDefinition<S>>();
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
