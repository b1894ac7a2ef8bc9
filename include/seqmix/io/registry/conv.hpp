#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/conv/hyena.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_conv(Registry<S>& registry) {
  registry.template add<HyenaDefinition<S>>({.title = "Hyena long convolution",
                                             .paper = "Poli 2023, arXiv:2302.10866",
                                             .forward = "O(T D² + T log T D)",
                                             .step = "O(D² + log² t D), amortized or spread",
                                             .state = "2 t (order - 1) D + (W - 1) (order + 1) D",
                                             .header = "layers/conv/hyena.hpp",
                                             .indirect = true});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
