#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/ssm/lru.hpp"
#include "seqmix/layers/ssm/mamba.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_scan(Registry<S>& registry) {
  registry.template add<RgLruDefinition<S>>({.title = "RG-LRU (Griffin, Hawk, RecurrentGemma)",
                                             .paper = "De 2024, arXiv:2402.19427",
                                             .forward = "O(T (D² + D P))",
                                             .step = "O(D² + D P)",
                                             .state = "D + (W - 1) D",
                                             .header = "layers/ssm/rg_lru.hpp"});
  registry.template add<LruDefinition<S>>({.title = "LRU",
                                           .paper = "Orvieto 2023, arXiv:2303.06349",
                                           .forward = "O(T D N)",
                                           .step = "O(D N)",
                                           .state = "2 N",
                                           .header = "layers/ssm/lru.hpp"});
  registry.template add<MambaDefinition<S>>({.title = "Mamba (S6; Jamba, FalconMamba)",
                                             .paper = "Gu 2023, arXiv:2312.00752",
                                             .forward = "O(T (D² + D (R + N)))",
                                             .step = "O(D² + D (R + N))",
                                             .state = "D N + (W - 1) D",
                                             .header = "layers/ssm/mamba.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
