#pragma once

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/layers/attention/detail/heads.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Causal softmax attention with grouped key/value heads, rotary positions or linear biases, and a
/// key/value cache.
///
///   q_t, k_t, v_t = W_q x_t, W_k x_t, W_v x_t,  split in heads; q, k normalised if `qk_norm` says
///                   so, then rotated by position (RoPE)
///   s_tj = score_scale q_t · k_j;  with soft_cap c: c tanh(s_tj / c);  alibi: s_tj - m_h (t - j)
///   o_t = Σ_{j <= t} softmax_j(s_tj) v_j,      query head h reads head h / (H / G)
///   y_t = W_o o_t
///
/// forward: O(T D² + T² H K); step: O(D² + t H K). State: 2 t G K numbers a stream after t tokens.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, arXiv:2305.13245;
/// Su et al. 2021, arXiv:2104.09864, eq. 34; HF transformers LlamaAttention, Qwen3Attention,
/// Olmo2Attention, Gemma2Attention, MptAttention.
template <class S>
struct AttentionDefinition : AttentionHeads<S, AttentionConfig> {
  using Scalar = S;
  using Config = AttentionConfig;
  using Weights = AttentionWeights<Scalar>;
  static constexpr Traits traits{
      .name = "attention",
      .title = "Softmax attention (MHA, GQA, MQA; RoPE, YaRN, ALiBi, QK-norm, soft-cap)",
      .paper = "Vaswani 2017, arXiv:1706.03762; Ainslie 2023, arXiv:2305.13245",
      .forward = "O(T D² + T² H K)",
      .step = "O(D² + t H K)",
      .state = "2 t G K"};

  struct State {
    Position position;              // [B]
    Appended<Scalar, 4, 2> keys;    // [B, G, capacity, K], rotated
    Appended<Scalar, 4, 2> values;  // [B, G, capacity, K]

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("keys", self.keys), tensor("values", self.values);
    }
  };

  using AttentionHeads<S, AttentionConfig>::AttentionHeads;
  using AttentionHeads<S, AttentionConfig>::c;
  using AttentionHeads<S, AttentionConfig>::w;

  State make_state(Index batch, Index capacity, Memory memory) const {
    const Shape<4> cache{batch, c.n_kv_heads, capacity, c.head_dim};
    const Storage storage = memory.caches();
    return {.position = {batch, memory},
            .keys = {cache, memory, storage},
            .values = {cache, memory, storage}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_dim);     // [T, H, K]
    auto k = scratch(T, c.n_kv_heads, c.head_dim);  // [T, G, K]
    auto v = scratch(T, c.n_kv_heads, c.head_dim);  // [T, G, K]
    auto o = scratch(T, c.n_heads, c.head_dim);     // [T, H, K]
    const View<const Index, 1> past = state.position.tokens;

    this->project_heads(x, q, k, v, call);
    this->rotate(q, past, call);
    this->rotate(k, past, call);
    call.trace("q", q), call.trace("k", k), call.trace("v", v);
    append<Scalar>(k, past, state.keys.view(), call);
    append<Scalar>(v, past, state.values.view(), call);
    this->with_score([&](auto score) {
      attention(q, state.keys.view(), state.values.view(), past, Causal{}, score, o, call);
    });
    call.trace("o", o);
    project(o, {{w.o_proj, y}}, call);
  }
};

template <class Scalar = float>
using Attention = Mixer<AttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(AttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
