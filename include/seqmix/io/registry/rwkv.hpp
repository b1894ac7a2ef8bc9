#pragma once

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

SEQMIX_END_NAMESPACE
}  // namespace seqmix
