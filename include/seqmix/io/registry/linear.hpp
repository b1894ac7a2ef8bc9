#pragma once

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
  registry.template add<GatedLinearAttentionDefinition<S>>(
      {.title = "Gated linear attention (GLA)",
       .paper = "Yang 2023, arXiv:2312.06635",
       .forward = "O(T (D² + C D + D K))",
       .step = "O(D² + D K)",
       .state = "H K V",
       .header = "layers/linear/gated_linear_attention.hpp"});
  registry.template add<Hgrn2Definition<S>>({.title = "HGRN2",
                                             .paper = "Qin 2024, arXiv:2404.07904",
                                             .forward = "O(T (D² + D K))",
                                             .step = "O(D² + D K)",
                                             .state = "H K V",
                                             .header = "layers/linear/hgrn2.hpp"});
  registry.template add<LinearAttentionDefinition<S>>(
      {.title = "Linear attention, Based, cosFormer, Performer",
       .paper = "Katharopoulos 2020, arXiv:2006.16236",
       .forward = "O(T (D² + D F))",
       .step = "O(D² + D F)",
       .state = "H F (V + 1)",
       .header = "layers/linear/linear_attention.hpp"});
  registry.template add<MlstmDefinition<S>>({.title = "mLSTM (xLSTM 7B)",
                                             .paper = "Beck 2025, arXiv:2503.13427",
                                             .forward = "O(T (D² + C D + D K))",
                                             .step = "O(D² + D K)",
                                             .state = "H (K V + K + 1)",
                                             .header = "layers/linear/mlstm.hpp"});
  registry.template add<RetentionDefinition<S>>({.title = "Retention (RetNet)",
                                                 .paper = "Sun 2023, arXiv:2307.08621",
                                                 .forward = "O(T (D² + D K))",
                                                 .step = "O(D² + D K)",
                                                 .state = "H K V",
                                                 .header = "layers/linear/retention.hpp"});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
