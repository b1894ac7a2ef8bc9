#pragma once

#include <cmath>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/latent.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/positions/rope_scaling.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct MultiHeadLatentAttentionConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index q_rank = 0;              // width of the queries' latent; 0: queries straight from x
  Index kv_rank = 0;             // width of the latent that keys and values are made of
  Index nope_dim = 0;            // numbers of a query and key head without a position
  Index rotary_dim = 0;          // numbers behind them that RoPE rotates; one key for all heads
  Index head_v = 0;              // value width per head
  double rope_theta = 10000;     // base of the RoPE wavelengths
  bool rope_interleaved = true;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  RopeScalingConfig rope_scaling = {};
  double mscale_all_dim = 0;  // scores times (0.1 mscale_all_dim ln rope_factor + 1)²; 0: once
  double norm_eps = 1e-6;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("q_rank", self.q_rank, zero_is_legal), field("kv_rank", self.kv_rank);
    field("nope_dim", self.nope_dim), field("rotary_dim", self.rotary_dim);
    field("head_v", self.head_v), field("rope_theta", self.rope_theta, is_positive);
    field("rope_interleaved", self.rope_interleaved);
    RopeScalingConfig::visit(self.rope_scaling, field);
    field("mscale_all_dim", self.mscale_all_dim, at_least(0),
          only_where(self.rope_scaling.factor > 1, "rope_factor exceeds 1"));
    field("norm_eps", self.norm_eps, at_least(0));
  }
  void check() const {
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    rope_scaling.check(rope_theta, rotary_dim);
    rope_scaling.check_fixed();
  }
  Index head_k() const { return nope_dim + rotary_dim; }
  double score_scale() const {
    const double mscale = 0.1 * mscale_all_dim * std::log(rope_scaling.factor) + 1;
    return mscale * mscale / std::sqrt(static_cast<double>(head_k()));
  }
};

/// Multi-head latent attention: keys and values of all heads are maps of one short latent a token,
/// which is all that the cache holds.
///
///   [c_t; kr_t] = W_kva x_t,  c_t normalised, kr_t rotated by position (RoPE), both without heads
///   [qn_h; qr_h] = W_qb rms_norm(W_qa x_t)  (or W_q x_t),  qr_h rotated;  [kn_h; v_h] = W_kvb,h c
///   o_h = Σ_{j <= t} softmax_j(scale (qn_h · kn_h,j + qr_h · kr_j)) v_h,j
///   y_t = W_o o_t
///
/// forward: O(T D² + T² H (K + V)); step: O(D² + t H r), which reads the latents as they lie
/// (`latent_attention` says when). State: t (r + rotary) numbers a stream after t tokens.
/// Source: DeepSeek-AI 2024, arXiv:2405.04434, eq. 9-19; HF transformers DeepseekV3Attention.
template <class S>
struct MultiHeadLatentAttentionDefinition {
  using Scalar = S;
  using Config = MultiHeadLatentAttentionConfig;
  static constexpr Traits traits{.name = "multi_head_latent_attention",
                                 .title = "Multi-head latent attention (MLA; YaRN)",
                                 .paper = "DeepSeek-AI 2024, arXiv:2405.04434",
                                 .forward = "O(T D² + T² H (K + V))",
                                 .step = "O(D² + t H r)",
                                 .state = "t (r + rotary)",
                                 .whole_sequence = true};
  // Sequences stay whole, as each call expands the cache once.

  struct Weights {
    Projection<Scalar> q_proj, q_a_proj, q_b_proj, kv_a_proj, kv_b_proj, o_proj;
    Parameter<Scalar, 1> q_a_layernorm, kv_a_layernorm;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index queries = c.n_heads * c.head_k();
      if (c.q_rank > 0) {
        parameter("q_a_proj.weight", self.q_a_proj.weight, {c.q_rank, c.d_model});
        parameter("q_a_layernorm.weight", self.q_a_layernorm, {c.q_rank}, init::ones);
        parameter("q_b_proj.weight", self.q_b_proj.weight, {queries, c.q_rank});
      } else {
        parameter("q_proj.weight", self.q_proj.weight, {queries, c.d_model});
      }
      parameter("kv_a_proj_with_mqa.weight", self.kv_a_proj.weight,
                {c.kv_rank + c.rotary_dim, c.d_model});
      parameter("kv_a_layernorm.weight", self.kv_a_layernorm, {c.kv_rank}, init::ones);
      parameter("kv_b_proj.weight", self.kv_b_proj.weight,
                {c.n_heads * (c.nope_dim + c.head_v), c.kv_rank});
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, c.n_heads * c.head_v});
    }
  };

  struct State {
    Position position;              // [B]
    Appended<Scalar, 4, 2> latent;  // [B, 1, capacity, r + rotary], normalised and rotated

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("latent", self.latent);
    }
  };

  Config c;
  Weights w;
  RotaryFrequencies frequencies;
  LatentHeads<Scalar> heads;  // of kv_b_proj

  MultiHeadLatentAttentionDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        frequencies(c.rotary_dim, c.rope_theta, c.rope_scaling),
        heads(w.kv_b_proj.weight.to_tensor().view().split(axis::row, c.n_heads,
                                                          c.nope_dim + c.head_v),
              c.nope_dim) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    return {.position = {batch, memory},
            .latent = {{batch, 1, capacity, c.kv_rank + c.rotary_dim}, memory, memory.caches()}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_k());             // [T, H, K + rotary]
    auto latent = scratch(T, 1, c.kv_rank + c.rotary_dim);  // [T, 1, r + rotary]
    auto o = scratch(T, c.n_heads, c.head_v);               // [T, H, V]
    const View<const Index, 1> past = state.position.tokens;

    if (c.q_rank > 0) {
      auto low = scratch(T, c.q_rank);  // [T, R]
      project(x, {{w.q_a_proj, low}}, call);
      rms_norm(low, w.q_a_layernorm, c.norm_eps, low, call);
      project(low, {{w.q_b_proj, q}}, call);
    } else {
      project(x, {{w.q_proj, q}}, call);
    }
    project(x, {{w.kv_a_proj, latent}}, call);
    const auto content = latent.slice(axis::channel, 0, c.kv_rank);  // [T, 1, r]
    rms_norm(content, w.kv_a_layernorm, c.norm_eps, content, call);
    rope(q.slice(axis::channel, c.nope_dim, c.rotary_dim), frequencies, past, layout(), call);
    rope(latent.slice(axis::channel, c.kv_rank, c.rotary_dim), frequencies, past, layout(), call);
    append<Scalar>(latent, past, state.latent.view(), call);
    latent_attention(q, state.latent.view(), past, heads, c.score_scale(), o, call);
    project(o, {{w.o_proj, y}}, call);
  }

 private:
  RotaryLayout layout() const {
    return c.rope_interleaved ? RotaryLayout::interleaved : RotaryLayout::half_split;
  }
};

template <class Scalar = float>
using MultiHeadLatentAttention = Mixer<MultiHeadLatentAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(MultiHeadLatentAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
