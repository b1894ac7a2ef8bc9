#pragma once

#include "seqmix/core/compiled.hpp"
#include "seqmix/io/registry.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "seqmix/layers/linear/hgrn2.hpp"
#include "seqmix/layers/linear/linear_attention.hpp"
#include "seqmix/layers/linear/mlstm.hpp"
#include "seqmix/layers/linear/retention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_linear(Registry<S>& registry) {
  registry.template add<GatedLinearAttentionDefinition<S>>();
  registry.template add<Hgrn2Definition<S>>();
  registry.template add<LinearAttentionDefinition<S>>();
  registry.template add<MlstmDefinition<S>>();
  registry.template add<RetentionDefinition<S>>();
}

#define SEQMIX_REGISTER_LINEAR(S) void register_linear(Registry<S>&)
SEQMIX_COMPILE(SEQMIX_REGISTER_LINEAR);
#undef SEQMIX_REGISTER_LINEAR

SEQMIX_END_NAMESPACE
}  // namespace seqmix
