#pragma once

#include <utility>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/rings.hpp"
#include "seqmix/layers/attention/detail/heads.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct SlidingWindowAttentionConfig : AttentionConfig {
  Index window = 0;        // keys that a query sees, its own among them
  Index dilation = 1;      // positions from one seen key to the next
  Index n_sinks = 0;       // first tokens of the stream that every query sees besides
  Index max_rollback = 0;  // tokens that the state can take back

  static void visit(auto& self, auto&& field) {
    AttentionConfig::visit(self, field);
    field("window", self.window), field("dilation", self.dilation);
    field("n_sinks", self.n_sinks, zero_is_legal);
    field("max_rollback", self.max_rollback, zero_is_legal,
          only_where(self.n_sinks == 0, "n_sinks is 0"));
  }
  void check() const {
    AttentionConfig::check();
    require(n_sinks == 0 || dilation == 1, "n_sinks needs a dilation of 1");
    require(n_sinks == 0 || !alibi, "n_sinks needs rotary positions or none, not alibi");
    require(reach() + max_rollback <= largest_size,
            "the tokens that window, dilation and max_rollback keep must not exceed 2^30");
  }
  Index reach() const { return (window - 1) * dilation + 1; }
  Index ring_rows() const { return round_up(reach() + max_rollback, dilation); }
};

/// Causal softmax attention over the last `window` keys, whose memory does not grow with the
/// stream. All else is `attention`'s.
///
///   o_t = Σ softmax_j(s_tj) v_j  over j = t, t - dilation, ..., t - (window - 1) dilation
///
/// With n_sinks = n > 0 the first n tokens stay visible, and RoPE sees slots in place of positions
/// (StreamingLLM): once n + window tokens are there, the sinks stand right before the window. A
/// window of keys that move together with their query looks the same from everywhere, so that keys
/// keep the rotation of their position, and it is the query that is rotated a second time, to
/// min(t, n + window - 1), for the sinks alone. A state with sinks cannot be rewound.
///
/// forward: O(T D² + T W H K); step: O(D² + W H K), W keys in the window. State: a ring of
/// (W - 1) dilation + 1 + max_rollback tokens and the sinks, 2 G K numbers each.
/// Source: Jiang et al. 2023, arXiv:2310.06825, section 2 (window counts the query's own key);
/// Xiao et al. 2023, arXiv:2309.17453, section 3.2, pos_shift of mit-han-lab/streaming-llm; Beltagy
/// et al. 2020, arXiv:2004.05150, figure 2c (dilation); HF transformers MistralAttention,
/// Gemma3Attention, RecurrentGemmaSdpaAttention.
template <class S>
struct SlidingWindowAttentionDefinition : AttentionHeads<S, SlidingWindowAttentionConfig> {
  using Scalar = S;
  using Config = SlidingWindowAttentionConfig;
  using Weights = AttentionWeights<Scalar>;
  static constexpr Traits traits{
      .name = "sliding_window_attention",
      .title = "Sliding-window attention (sinks, dilation)",
      .paper = "Jiang 2023, arXiv:2310.06825; Xiao 2023, arXiv:2309.17453",
      .forward = "O(T D² + T W H K)",
      .step = "O(D² + W H K)",
      .state = "2 W G K"};

  struct State {
    Position position;             // [B]
    Ring<Scalar, 4, 2> keys;       // [B, G, rows, K], rotated
    Ring<Scalar, 4, 2> values;     // [B, G, rows, K]
    Cache<Scalar, 4> sink_keys;    // [B, G, n_sinks, K], rotated; only where there are sinks
    Cache<Scalar, 4> sink_values;  // [B, G, n_sinks, K]

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("keys", self.keys), tensor("values", self.values);
      if (self.sink_keys.extent(2) == 0) return;
      tensor("sink_keys", self.sink_keys), tensor("sink_values", self.sink_values);
    }
  };

  using AttentionHeads<S, Config>::c;
  using AttentionHeads<S, Config>::w;

  SlidingWindowAttentionDefinition(Config config, Weights weights)
      : AttentionHeads<S, Config>(std::move(config), std::move(weights)) {
    for (double& slope : this->slopes) slope *= static_cast<double>(c.dilation);
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    const Shape<4> ring{batch, c.n_kv_heads, c.ring_rows(), c.head_dim};
    const Shape<4> sinks{batch, c.n_kv_heads, c.n_sinks, c.head_dim};
    const Storage storage = memory.caches();
    return {.position = {batch, memory},
            .keys = {ring, c.reach(), memory, storage},
            .values = {ring, c.reach(), memory, storage},
            .sink_keys = {sinks, memory, storage},
            .sink_values = {sinks, memory, storage}};
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
    this->rotate(k, past, call);
    if (c.n_sinks == 0) {
      this->rotate(q, past, call);
      this->with_score([&](auto score) {
        dilated_ring_attention(q, k, v, past, c.window, c.dilation, score, state.keys.view(),
                               state.values.view(), o, call);
      });
    } else {
      auto sink_q = scratch(T, c.n_heads, c.head_dim);  // [T, H, K]
      auto sink_o = scratch(T, c.n_heads, c.head_dim);  // [T, H, K]
      auto total = scratch(T, c.n_heads);               // [T, H], log Σ exp(s)
      auto sink_total = scratch(T, c.n_heads);          // [T, H]
      copy(q, sink_q);
      this->rotate(sink_q, past, call, c.n_sinks + c.window - 1);
      this->rotate(q, past, call);
      append_leading<Scalar>(k, past, state.sink_keys.view(), call);
      append_leading<Scalar>(v, past, state.sink_values.view(), call);
      this->with_score([&](auto score) {
        ring_attention(q, k, v, past, Band::window(c.window, c.n_sinks), score, state.keys.view(),
                       state.values.view(), o, call, total);
        attention(sink_q, state.sink_keys.view(), state.sink_values.view(), past,
                  Band::leading(c.n_sinks), score, sink_o, call, sink_total);
      });
      merge_attention(sink_o, sink_total, o, total);
    }
    project(o, {{w.o_proj, y}}, call);
  }
};

template <class Scalar = float>
using SlidingWindowAttention = Mixer<SlidingWindowAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(SlidingWindowAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
