#pragma once

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct CrossAttentionConfig {
  Index d_model = 0;
  Index d_source = 0;  // width of the sequence that is read
  Index n_heads = 1;
  Index n_kv_heads = 1;  // n_heads: multi-head; 1: multi-query; between: grouped-query
  Index head_dim = 0;
  bool q_bias = false, k_bias = false, v_bias = false, o_bias = false;
  double score_scale = 0;  // of q · k; 0: head_dim^-1/2

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_source", self.d_source);
    field("n_heads", self.n_heads), field("n_kv_heads", self.n_kv_heads);
    field("head_dim", self.head_dim);
    field("q_bias", self.q_bias), field("k_bias", self.k_bias);
    field("v_bias", self.v_bias), field("o_bias", self.o_bias);
    field("score_scale", self.score_scale, is_positive.or_zero());
  }
  void check() const {
    require(n_heads % n_kv_heads == 0, "n_heads must be a multiple of n_kv_heads");
  }
};

/// Softmax attention over another sequence, of each row its own: a decoder's look at what the
/// encoder made. Neither sequence has positions. A row that reads nothing gets o = 0.
///
///   k_s, v_s = W_k source_s, W_v source_s,   once, in `read`
///   o_t = Σ_s softmax_s(score_scale W_q x_t · k_s) v_s,   query head h reads head h / (H / G)
///   y_t = W_o o_t
///
/// read: O(S D' G K); forward: O(T D² + T S H K); step: O(D² + S H K).
/// State: 2 S G K numbers a row, which no token changes.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; HF transformers WhisperAttention,
/// BartAttention, T5Attention (score_scale 1).
template <class S>
struct CrossAttentionDefinition {
  using Scalar = S;
  using Config = CrossAttentionConfig;
  static constexpr Traits traits{.name = "cross_attention",
                                 .title = "Cross attention",
                                 .paper = "Vaswani 2017, arXiv:1706.03762",
                                 .forward = "O(T D² + T S H K)",
                                 .step = "O(D² + S H K)",
                                 .state = "2 S G K",
                                 .has_source = true};

  struct Weights {
    Projection<Scalar> q_proj, k_proj, v_proj, o_proj;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index queries = c.n_heads * c.head_dim, keys = c.n_kv_heads * c.head_dim;
      parameter("q_proj.weight", self.q_proj.weight, {queries, c.d_model});
      parameter("k_proj.weight", self.k_proj.weight, {keys, c.d_source});
      parameter("v_proj.weight", self.v_proj.weight, {keys, c.d_source});
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, queries});
      if (c.q_bias) parameter("q_proj.bias", self.q_proj.bias, {queries}, init::zeros);
      if (c.k_bias) parameter("k_proj.bias", self.k_proj.bias, {keys}, init::zeros);
      if (c.v_bias) parameter("v_proj.bias", self.v_proj.bias, {keys}, init::zeros);
      if (c.o_bias) parameter("o_proj.bias", self.o_proj.bias, {c.d_model}, init::zeros);
    }
  };

  struct State {
    Source<Scalar, 4, 2> keys;    // [B, G, capacity, K]
    Source<Scalar, 4, 2> values;  // [B, G, capacity, K]

    static void visit(auto& self, auto&& tensor) {
      tensor("keys", self.keys), tensor("values", self.values);
    }
  };

  Config c;
  Weights w;

  State make_state(Index batch, Index capacity, Memory memory) const {
    const Shape<4> cache{batch, c.n_kv_heads, capacity, c.head_dim};
    const Storage storage = memory.caches();
    return {.keys = {cache, memory, storage}, .values = {cache, memory, storage}};
  }

  void read(View<const Scalar, 2> source, State& state, const Call& call) const {
    const Index length = source.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto k = scratch(length, c.n_kv_heads, c.head_dim);  // [S, G, K]
    auto v = scratch(length, c.n_kv_heads, c.head_dim);  // [S, G, K]
    project(source, {{w.k_proj, k}, {w.v_proj, v}}, call);
    append<Scalar>(k, state.keys.length, state.keys.view(), call);
    append<Scalar>(v, state.values.length, state.values.view(), call);
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_dim);  // [T, H, K]
    auto o = scratch(T, c.n_heads, c.head_dim);  // [T, H, K]
    const Index no_position = 0;
    const View<const Index, 1> past(&no_position, state.keys.length.shape(), {0});
    const double scale = c.score_scale > 0 ? c.score_scale : inverse_sqrt(c.head_dim);
    project(x, {{w.q_proj, q}}, call);
    attention(q, state.keys.view(), state.values.view(), past, Lengths{state.keys.length},
              PlainScore{scale}, o, call);
    project(o, {{w.o_proj, y}}, call);
  }
};

template <class Scalar = float>
using CrossAttention = Mixer<CrossAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(CrossAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
