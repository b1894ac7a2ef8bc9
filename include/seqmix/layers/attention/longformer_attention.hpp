#pragma once

#include <algorithm>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct LongformerAttentionConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index window = 0;    // neighbours that a token sees, half of them on each side
  Index n_global = 0;  // first tokens, which see and are seen by all

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("window", self.window), field("n_global", self.n_global, zero_is_legal);
  }
  void check() const {
    require(d_model % n_heads == 0, "d_model must be a multiple of n_heads");
    require(window % 2 == 0, "window must be even");
  }
  Index head_dim() const { return d_model / n_heads; }
};

/// Longformer's self-attention: each token sees its neighbours and the global tokens, which are the
/// first ones; a global token sees all, by projections of its own.
///
///   q, k, v = W_q x + b_q, ...;  q', k', v' = W'_q x + b'_q, ... where the query is global
///   y_i = Σ softmax_j(K^{-1/2} q_i · k_j) v_j     over j < n_global and |i - j| <= window / 2
///   y_i = Σ softmax_j(K^{-1/2} q'_i · k'_j) v'_j  over all j, for i < n_global
///
/// It has `forward` alone: an output needs the tokens behind it. Decoders have the pattern local of
/// `block_sparse_attention` with a prefix. The output projection is a layer of its own.
/// forward: O(T D² + T (window + n_global) D). State: none.
/// Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1; HF transformers
/// LongformerSelfAttention.
template <class S>
struct LongformerAttentionDefinition {
  using Scalar = S;
  using Config = LongformerAttentionConfig;
  static constexpr Traits traits{.name = "longformer_attention",
                                 .title = "Longformer attention (window and global tokens)",
                                 .paper = "Beltagy 2020, arXiv:2004.05150",
                                 .forward = "O(T D² + T (W + N) D)",
                                 .step = "none",
                                 .state = "none"};

  struct Weights {
    Projection<Scalar> query, key, value, query_global, key_global, value_global;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const auto linear = [&](auto weight, auto bias, auto& projection) {
        parameter(weight, projection.weight, {c.d_model, c.d_model});
        parameter(bias, projection.bias, {c.d_model}, init::zeros);
      };
      linear("query.weight", "query.bias", self.query);
      linear("key.weight", "key.bias", self.key);
      linear("value.weight", "value.bias", self.value);
      linear("query_global.weight", "query_global.bias", self.query_global);
      linear("key_global.weight", "key_global.bias", self.key_global);
      linear("value_global.weight", "value_global.bias", self.value_global);
    }
  };

  Config c;
  Weights w;

  void run(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), D = c.d_model, H = c.n_heads, K = c.head_dim();
    Index globals = 0;  // of all segments
    for (const Segment& segment : call.segments()) globals += globals_of(segment);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, H, K);               // [T, H, K]
    auto k = scratch(T, H, K);               // [T, H, K]
    auto v = scratch(T, H, K);               // [T, H, K]
    auto o = scratch(T, H, K);               // [T, H, K]
    auto global_x = scratch(globals, D);     // [N, D]
    auto global_q = scratch(globals, H, K);  // [N, H, K]
    const PlainScore score{inverse_sqrt(K)};

    project(x, {{w.query, q}, {w.key, k}, {w.value, v}}, call);
    self_attention(q, k, v, WindowAndPrefix{c.window / 2, c.window / 2, c.n_global}, score, o, call,
                   {}, {c.n_global, T});
    if (globals > 0) {
      for_each_global_run(call, [&](Index from, Index to, Index count) {
        copy(x.slice(axis::time, from, count), global_x.slice(axis::time, to, count));
      });
      project(global_x, {{w.query_global, global_q}}, call);
      for_each_global_run(call, [&](Index from, Index to, Index count) {
        copy(global_q.slice(axis::time, to, count), q.slice(axis::time, from, count));
      });
      project(x, {{w.key_global, k}, {w.value_global, v}}, call);
      self_attention(q, k, v, Band::everything(), score, o, call, {}, {0, c.n_global});
    }
    copy(o.merge(axis::head), y);
  }

 private:
  Index globals_of(const Segment& segment) const { return std::min(c.n_global, segment.count); }

  /// Calls `body(token, number, count)` for the global tokens of each segment, from `token` on in
  /// the call and from `number` on among all of them.
  void for_each_global_run(const Call& call, auto&& body) const {
    Index number = 0;
    for (const Segment& segment : call.segments()) {
      body(segment.first, number, globals_of(segment));
      number += globals_of(segment);
    }
  }
};

template <class Scalar = float>
using LongformerAttention = Mixer<LongformerAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(LongformerAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
