#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/rwkv/rwkv4.hpp"
#include "seqmix/layers/rwkv/rwkv6.hpp"
#include "seqmix/layers/rwkv/rwkv7.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_rwkv(Registry<S>& registry) {
  registry.template add<Rwkv4Definition<S>>();
  registry.template add<Rwkv6Definition<S>>();
  registry.template add<Rwkv7Definition<S>>();
}

#define SEQMIX_REGISTER_RWKV(S) void register_rwkv(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_RWKV);
#undef SEQMIX_REGISTER_RWKV

SEQMIX_END_NAMESPACE
}  // namespace seqmix
