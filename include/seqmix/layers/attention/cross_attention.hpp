#pragma once

#include <utility>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/layers/attention/attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The parts of attention that ask for no positions.
struct CrossAttentionConfig {
  Index d_model = 0;
  Index d_source = 0;  // width of the sequence that is read
  HeadsConfig heads = {};
  ScoresConfig scores = {};

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_source", self.d_source);
    field("heads", self.heads), field("scores", self.scores);
  }
  void check() const {
    const AttentionDemands all{heads, scores};
    for (const Demand& one : {all.late_norm, all.temperature, all.ordered_normaliser}) {
      one.needs("positions, which cross attention has none of");
    }
    all.convolutions.needs("causal attention");
  }
};

/// Softmax attention over another sequence, of each row its own: a decoder's look at what the
/// encoder made. Neither sequence has positions. A row that reads nothing gets o = 0.
///
///   k_s, v_s of source_s in heads,   once, in `read`
///   o_t = Σ_s p_ts v_s,  p_t of the scores of q_t · k_s;  query head h reads head h / (H / G)
///   y_t = W_o o_t, gated by x_t where the heads say so
///
/// read: O(S D' G K); forward: O(T D² + T S H K); step: O(D² + S H K).
/// State: S G (K + V) numbers a row, which no token changes.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; HF transformers WhisperAttention,
/// BartAttention, T5Attention (score_scale 1), MllamaTextCrossAttention (norms of heads).
template <class S>
struct CrossAttentionDefinition {
  using Scalar = S;
  using Config = CrossAttentionConfig;
  static constexpr Traits traits{.name = "cross_attention",
                                 .title = "Cross attention",
                                 .paper = "Vaswani 2017, arXiv:1706.03762",
                                 .forward = "O(T D² + T S H K)",
                                 .step = "O(D² + S H K)",
                                 .state = "S G (K + V)",
                                 .has_source = true};

  struct Weights : HeadsWeights<Scalar>, ScoresWeights<Scalar> {
    static void visit(auto& self, const Config& c, auto&& parameter) {
      HeadsWeights<Scalar>::visit(self, c.heads, c.heads.n_heads, c.d_model, c.d_source, parameter);
      ScoresWeights<Scalar>::visit(self, c.scores, c.heads.n_heads, parameter);
    }
  };

  struct State {
    Source<Scalar, 4, 2> keys;    // [B, G, capacity, K]
    Source<Scalar, 4, 2> values;  // [B, G, capacity, V]

    static void visit(auto& self, auto&& tensor) {
      tensor("keys", self.keys), tensor("values", self.values);
    }
  };

  Config c;
  Weights w;
  ComposedScore<Scalar> score;

  CrossAttentionDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        score(make_score<Scalar>(c.scores, w, {}, {}, {}, c.heads, 1)) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    const HeadsConfig& heads = c.heads;
    const Storage storage = memory.caches();
    return {.keys = {{batch, heads.key_heads(), capacity, heads.head_dim}, memory, storage},
            .values = {{batch, heads.value_heads(), capacity, heads.head_v()}, memory, storage}};
  }

  void read(View<const Scalar, 2> source, State& state, const Call& call) const {
    const Index length = source.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto k = scratch(length, c.heads.key_heads(), c.heads.head_dim);    // [S, G, K]
    auto v = scratch(length, c.heads.value_heads(), c.heads.head_v());  // [S, G, V]
    project_keys<Scalar>(c.heads, w, source, k, v, call);
    finish_keys<Scalar>(c.heads, w, k, v, call);
    append<Scalar>(k, state.keys.length, state.keys.view(), call);
    append<Scalar>(v, state.values.length, state.values.view(), call);
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), H = c.heads.n_heads;
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, H, c.heads.head_dim);  // [T, H, K]
    auto o = scratch(T, H, c.heads.head_v());  // [T, H, V]
    const Index no_position = 0;
    const View<const Index, 1> past(&no_position, state.keys.length.shape(), {0});
    project_queries<Scalar>(c.heads, w, x, q, call), finish_queries<Scalar>(c.heads, w, q, call);
    sharpen_queries<Scalar>(c.scores, w, q, past, call);
    attention(q, state.keys.view(), state.values.view(), past, Lengths{state.keys.length},
              AnyScore<Scalar>(score), o, call);
    project_outputs<Scalar>(c.heads, w, x, o, y, call);
  }
};

template <class Scalar = float>
using CrossAttention = Mixer<CrossAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(CrossAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
