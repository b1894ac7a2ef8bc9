#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"
#include "seqmix/layers/ssm/s4.hpp"
#include "seqmix/layers/ssm/s4d.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_ssm(Registry<S>& registry) {
  registry.template add<Mamba2Definition<S>>();
  registry.template add<S4Definition<S>>();
  registry.template add<S4DDefinition<S>>();
}

#define SEQMIX_REGISTER_SSM(S) void register_ssm(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_SSM);
#undef SEQMIX_REGISTER_SSM

SEQMIX_END_NAMESPACE
}  // namespace seqmix
