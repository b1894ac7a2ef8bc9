#pragma once

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/layers/attention/detail/heads.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Softmax attention in which every token sees every other: an encoder's. All else is
/// `attention`'s; the penalty of alibi is m_h |t - j|.
///
///   o_t = Σ_j softmax_j(s_tj) v_j  over all j
///
/// It has `forward` alone: each output needs the whole sequence.
/// forward: O(T D² + T² H K). State: none.
/// Source: Devlin et al. 2018, arXiv:1810.04805, section 3; HF transformers BertSelfAttention,
/// T5Attention (score_scale 1, without its position bias), ModernBertAttention.
template <class S>
struct BidirectionalAttentionDefinition : AttentionHeads<S, AttentionConfig> {
  using Scalar = S;
  using Config = AttentionConfig;
  using Weights = AttentionWeights<Scalar>;
  static constexpr Traits traits{.name = "bidirectional_attention",
                                 .title = "Bidirectional attention",
                                 .paper = "Devlin 2018, arXiv:1810.04805",
                                 .forward = "O(T D² + T² H K)",
                                 .step = "none",
                                 .state = "none"};

  using AttentionHeads<S, AttentionConfig>::AttentionHeads;
  using AttentionHeads<S, AttentionConfig>::c;
  using AttentionHeads<S, AttentionConfig>::w;

  void run(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_dim);     // [T, H, K]
    auto k = scratch(T, c.n_kv_heads, c.head_dim);  // [T, G, K]
    auto v = scratch(T, c.n_kv_heads, c.head_dim);  // [T, G, K]
    auto o = scratch(T, c.n_heads, c.head_dim);     // [T, H, K]

    this->project_heads(x, q, k, v, call);
    this->rotate(q, {}, call);
    this->rotate(k, {}, call);
    this->with_score(
        [&](auto score) { self_attention(q, k, v, Band::everything(), score, o, call); });
    project(o, {{w.o_proj, y}}, call);
  }
};

template <class Scalar = float>
using BidirectionalAttention = Mixer<BidirectionalAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BidirectionalAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
