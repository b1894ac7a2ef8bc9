#pragma once

#include <string_view>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention.hpp"
#include "seqmix/kernels/rope.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct AttentionConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index n_kv_heads = 1;  // n_heads: multi-head; 1: multi-query; between: grouped-query
  Index head_dim = 0;
  Index rotary_dim = 0;           // leading numbers of a head that RoPE rotates; 0: no positions
  double rope_theta = 10000;      // base of the RoPE wavelengths
  bool rope_interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  bool qkv_bias = false;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("n_kv_heads", self.n_kv_heads), field("head_dim", self.head_dim);
    field("rotary_dim", self.rotary_dim, zero_is_legal), field("rope_theta", self.rope_theta);
    field("rope_interleaved", self.rope_interleaved), field("qkv_bias", self.qkv_bias);
  }
  void check() const {
    require(n_heads % n_kv_heads == 0, "n_heads must be a multiple of n_kv_heads");
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    require(rotary_dim <= head_dim, "rotary_dim must not exceed head_dim");
    require(rope_theta > 0, "rope_theta must be positive");
  }
};

/// Causal softmax attention with grouped key/value heads, rotary positions and a key/value cache.
///
///   q_t, k_t, v_t = W_q x_t, W_k x_t, W_v x_t,  split in heads; q, k rotated by position (RoPE)
///   o_t = Σ_{j <= t} softmax_j(K^{-1/2} q_t · k_j) v_j,      query head h reads head h / (H / G)
///   y_t = W_o o_t
///
/// forward: O(T D² + T² H K); step: O(D² + t H K). State: 2 t G K numbers a stream after t tokens.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, arXiv:2305.13245;
/// Su et al. 2021, arXiv:2104.09864, eq. 34; HF transformers LlamaAttention.
template <class S>
struct AttentionDefinition {
  using Scalar = S;
  using Config = AttentionConfig;
  static constexpr std::string_view name = "attention";

  struct Weights {
    Projection<Scalar> q_proj, k_proj, v_proj, o_proj;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index queries = c.n_heads * c.head_dim, keys = c.n_kv_heads * c.head_dim;
      parameter("q_proj.weight", self.q_proj.weight, {queries, c.d_model});
      parameter("k_proj.weight", self.k_proj.weight, {keys, c.d_model});
      parameter("v_proj.weight", self.v_proj.weight, {keys, c.d_model});
      if (c.qkv_bias) {
        parameter("q_proj.bias", self.q_proj.bias, {queries});
        parameter("k_proj.bias", self.k_proj.bias, {keys});
        parameter("v_proj.bias", self.v_proj.bias, {keys});
      }
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, queries});
    }
  };

  struct State {
    Position position;              // [B]
    Appended<Scalar, 4, 2> keys;    // [B, G, capacity, K], rotated
    Appended<Scalar, 4, 2> values;  // [B, G, capacity, K]

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("keys", self.keys), tensor("values", self.values);
    }
  };

  Config c;
  Weights w;
  RotaryFrequencies frequencies;

  AttentionDefinition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), frequencies(c.rotary_dim, c.rope_theta) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    const Shape<4> cache{batch, c.n_kv_heads, capacity, c.head_dim};
    return {.position = {batch, memory}, .keys = {cache, memory}, .values = {cache, memory}};
  }

  template <Form form>
  void run(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context) const {
    const Index B = x.extent(0), T = x.extent(1);
    auto scratch = context.scratch<Scalar>();
    auto q = scratch(B, T, c.n_heads, c.head_dim);     // [B, T, H, K]
    auto k = scratch(B, T, c.n_kv_heads, c.head_dim);  // [B, T, G, K]
    auto v = scratch(B, T, c.n_kv_heads, c.head_dim);  // [B, T, G, K]
    auto o = scratch(B, T, c.n_heads, c.head_dim);     // [B, T, H, K]
    const View<const Index, 1> past = state.position.tokens;

    project(x, {{w.q_proj, q}, {w.k_proj, k}, {w.v_proj, v}}, context);
    rope(q, frequencies, past, layout(), context);
    rope(k, frequencies, past, layout(), context);
    append<Scalar>(k, past, state.keys.view());
    append<Scalar>(v, past, state.values.view());
    attention<form>(q, state.keys.view(), state.values.view(), past, Causal{},
                    PlainScore{inverse_sqrt(c.head_dim)}, o, context);
    project(o, {{w.o_proj, y}}, context);
  }

 private:
  RotaryLayout layout() const {
    return c.rope_interleaved ? RotaryLayout::interleaved : RotaryLayout::half_split;
  }
};

template <class Scalar = float>
using Attention = Mixer<AttentionDefinition<Scalar>>;

SEQMIX_END_NAMESPACE
}  // namespace seqmix
