#pragma once

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/rwkv/rwkv4.hpp"
#include "seqmix/layers/rwkv/rwkv6.hpp"
#include "seqmix/layers/rwkv/rwkv7.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class S>
void register_rwkv(Registry<S>& registry) {
  registry.template add<Rwkv4Definition<S>>({.title = "RWKV-4 block",
                                             .paper = "Peng 2023, arXiv:2305.13048",
                                             .forward = "O(T (D² + D F))",
                                             .step = "O(D² + D F)",
                                             .state = "5 D",
                                             .header = "layers/rwkv/rwkv4.hpp"});
  registry.template add<Rwkv6Definition<S>>({.title = "RWKV-6 block (Finch)",
                                             .paper = "Peng 2024, arXiv:2404.05892",
                                             .forward = "O(T (D² + D F + D N))",
                                             .step = "O(D² + D F + D N)",
                                             .state = "H N N + 2 D",
                                             .header = "layers/rwkv/rwkv6.hpp"});
  registry.template add<Rwkv7Definition<S>>({.title = "RWKV-7 block (Goose)",
                                             .paper = "Peng 2025, arXiv:2503.14456",
                                             .forward = "O(T (D² + D F + D N))",
                                             .step = "O(D² + D F + D N)",
                                             .state = "H N N + 2 D",
                                             .header = "layers/rwkv/rwkv7.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
