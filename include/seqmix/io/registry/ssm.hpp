#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_ssm(Registry<S>& registry) {
  registry.template add<Mamba2Definition<S>>({.title = "Mamba-2 (SSD)",
                                              .paper = "Dao 2024, arXiv:2405.21060",
                                              .forward = "O(T (D² + C D + D N))",
                                              .step = "O(D² + D N)",
                                              .state = "H N P + (W - 1) (H P + 2 G N)",
                                              .header = "ssm/mamba2.hpp",
                                              .checked = "transformers Mamba2Mixer"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
