#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"
#include "seqmix/layers/ssm/s4.hpp"
#include "seqmix/layers/ssm/s4d.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_ssm(Registry<S>& registry) {
  registry.template add<Mamba2Definition<S>>({.title = "Mamba-2 (SSD)",
                                              .paper = "Dao 2024, arXiv:2405.21060",
                                              .forward = "O(T (D² + C D + D N))",
                                              .step = "O(D² + D N)",
                                              .state = "H N P + (W - 1) (H P + 2 G N)",
                                              .header = "layers/ssm/mamba2.hpp"});
  registry.template add<S4Definition<S>>({.title = "S4 (diagonal plus low rank)",
                                          .paper = "Gu 2021, arXiv:2111.00396",
                                          .forward = "O(T (D² + N D))",
                                          .step = "O(D² + N D)",
                                          .state = "N D",
                                          .header = "layers/ssm/s4.hpp",
                                          .indirect = true});
  registry.template add<S4DDefinition<S>>({.title = "S4D (diagonal)",
                                           .paper = "Gu 2022, arXiv:2206.11893",
                                           .forward = "O(T (D² + N D))",
                                           .step = "O(D² + N D)",
                                           .state = "N D",
                                           .header = "layers/ssm/s4d.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
