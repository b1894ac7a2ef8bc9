#pragma once

#include "seqmix/core/compiled.hpp"
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

#define SEQMIX_REGISTER_SCAN(S) void register_scan(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_SCAN);
#undef SEQMIX_REGISTER_SCAN

SEQMIX_END_NAMESPACE
}  // namespace seqmix
