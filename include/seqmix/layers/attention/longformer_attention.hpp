#pragma once

#include <algorithm>
#include <string_view>

#include "seqmix/kernels/attention_policies.hpp"
#include "seqmix/kernels/sparse_attention.hpp"
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
  static constexpr std::string_view name = "longformer_attention";

  struct Weights {
    Projection<Scalar> query, key, value, query_global, key_global, value_global;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const auto linear = [&](auto weight, auto bias, auto& projection) {
        parameter(weight, projection.weight, {c.d_model, c.d_model});
        parameter(bias, projection.bias, {c.d_model});
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

  void run(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context) const {
    const Index B = x.extent(0), T = x.extent(1), H = c.n_heads, K = c.head_dim();
    const Index globals = std::min(c.n_global, T), locals = T - globals;
    auto scratch = context.scratch<Scalar>();
    auto q = scratch(B, locals, H, K);          // [B, T - N, H, K]
    auto k = scratch(B, T, H, K);               // [B, T, H, K]
    auto v = scratch(B, T, H, K);               // [B, T, H, K]
    auto global_q = scratch(B, globals, H, K);  // [B, N, H, K]
    auto global_k = scratch(B, T, H, K);        // [B, T, H, K]
    auto global_v = scratch(B, T, H, K);        // [B, T, H, K]
    auto o = scratch(B, T, H, K);               // [B, T, H, K]
    auto positions = context.scratch<Index>();
    auto past = positions(B);  // [B]
    const PlainScore score{inverse_sqrt(K)};

    project(x, {{w.key, k}, {w.value, v}}, context);
    project(x.template slice<1>(globals, locals), {{w.query, q}}, context);
    fill(past, globals);
    attention<Form::parallel>(q, heads_first(k), heads_first(v), past,
                              WindowAndPrefix{c.window / 2, c.window / 2, globals, T}, score,
                              o.template slice<1>(globals, locals), context);
    if (globals > 0) {
      project(x, {{w.key_global, global_k}, {w.value_global, global_v}}, context);
      project(x.template slice<1>(0, globals), {{w.query_global, global_q}}, context);
      fill(past, 0);
      attention<Form::parallel>(global_q, heads_first(global_k), heads_first(global_v), past,
                                Band::everything(T), score, o.template slice<1>(0, globals),
                                context);
    }
    copy(o.template merge<2>(), y);
  }
};

template <class Scalar = float>
using LongformerAttention = Mixer<LongformerAttentionDefinition<Scalar>>;

SEQMIX_END_NAMESPACE
}  // namespace seqmix
