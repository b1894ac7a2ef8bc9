#pragma once

#include <cmath>
#include <utility>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/latent.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/attention/attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct MultiHeadLatentAttentionConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index q_rank = 0;      // width of the queries' latent; 0: queries straight from x
  Index kv_rank = 0;     // width of the latent that keys and values are made of
  Index nope_dim = 0;    // numbers of a query and key head that are made of latents
  Index shared_dim = 0;  // numbers behind them, of one key for all heads; 0: those that are rotated
  Index head_v = 0;      // value width per head
  PositionsConfig positions = {.rope_interleaved = true};  // of the shared numbers
  ScoresConfig scores = {};
  double mscale_all_dim = 0;  // scores times (0.1 mscale_all_dim ln rope_factor + 1)²; 0: once
  OutputGate output_gate = OutputGate::none;
  double norm_eps = 1e-6;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("q_rank", self.q_rank, zero_is_legal), field("kv_rank", self.kv_rank);
    field("nope_dim", self.nope_dim), field("shared_dim", self.shared_dim, zero_is_legal);
    field("head_v", self.head_v);
    field("positions", self.positions), field("scores", self.scores);
    field("mscale_all_dim", self.mscale_all_dim, at_least(0),
          only_where(self.positions.rope_scaling.factor > 1, "rope_factor exceeds 1"));
    field("output_gate", self.output_gate), field("norm_eps", self.norm_eps, at_least(0));
  }
  void check() const {
    require(positions.rotary_offset + positions.rotary_dim <= shared(),
            "positions.rotary_offset and positions.rotary_dim must not exceed shared_dim");
    const AttentionDemands all{outputs(), scores, positions};
    all.xpos.needs("keys of each head"), all.remap.needs("keys of each head");
    positions.rope_scaling.check_fixed();
  }
  Index shared() const { return shared_dim > 0 ? shared_dim : positions.rotary_dim; }
  Index head_k() const { return nope_dim + shared(); }
  /// The scores with their scale, score_scale or (nope_dim + shared)^-1/2, times mscale².
  ScoresConfig scaled_scores() const {
    const double mscale = 0.1 * mscale_all_dim * std::log(positions.rope_scaling.factor) + 1;
    const double width = static_cast<double>(head_k());
    ScoresConfig result = scores;
    result.score_scale = scores.score_scale > 0 ? mscale * mscale * scores.score_scale
                                                : mscale * mscale / std::sqrt(width);
    return result;
  }
  /// The heads behind the latents.
  HeadsConfig outputs() const {
    return {.n_heads = n_heads, .head_dim = head_v, .output_gate = output_gate};
  }
};

/// Multi-head latent attention: keys and values of all heads are maps of one short latent a token,
/// which is all that the cache holds.
///
///   [c_t; kr_t] = W_kva x_t,  c_t normalised, kr_t turned by position, both without heads
///   [qn_h; qr_h] = W_qb rms_norm(W_qa x_t)  (or W_q x_t),  qr_h turned;  [kn_h; v_h] = W_kvb,h c
///   o_h = Σ_{j <= t} p_tj v_h,j,  p_t of the scores of qn_h · kn_h,j + qr_h · kr_j
///   y_t = W_o o_t, gated by x_t if output_gate says so
///
/// forward: O(T D² + T² H (K + V)); step: O(D² + t H r), which reads the latents as they lie
/// (`latent_attention` says when). State: t (r + shared) numbers a stream after t tokens.
/// Source: DeepSeek-AI 2024, arXiv:2405.04434, eq. 9-19; HF transformers DeepseekV3Attention;
/// Kimi Team 2025, arXiv:2510.26692 (rotary_dim 0: shared numbers that nothing turns).
template <class S>
struct MultiHeadLatentAttentionDefinition {
  using Scalar = S;
  using Config = MultiHeadLatentAttentionConfig;
  static constexpr Traits traits{.name = "multi_head_latent_attention",
                                 .title = "Multi-head latent attention (MLA; YaRN)",
                                 .paper = "DeepSeek-AI 2024, arXiv:2405.04434",
                                 .forward = "O(T D² + T² H (K + V))",
                                 .step = "O(D² + t H r)",
                                 .state = "t (r + shared)",
                                 .whole_sequence = true};
  // Sequences stay whole, as each call expands the cache once.

  using Side = GivenPositions;

  struct Weights : ScoresWeights<Scalar> {
    HeadsWeights<Scalar> heads;  // q_proj where there is no q_rank, g_proj, o_proj
    Projection<Scalar> q_a_proj, q_b_proj, kv_a_proj, kv_b_proj;
    Parameter<Scalar, 1> q_a_layernorm, kv_a_layernorm;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index queries = c.n_heads * c.head_k();
      if (c.q_rank > 0) {
        parameter("q_a_proj.weight", self.q_a_proj.weight, {c.q_rank, c.d_model});
        parameter("q_a_layernorm.weight", self.q_a_layernorm, {c.q_rank}, init::ones);
        parameter("q_b_proj.weight", self.q_b_proj.weight, {queries, c.q_rank});
      } else {
        parameter("q_proj.weight", self.heads.q_proj.weight, {queries, c.d_model});
      }
      parameter("kv_a_proj_with_mqa.weight", self.kv_a_proj.weight,
                {c.kv_rank + c.shared(), c.d_model});
      parameter("kv_a_layernorm.weight", self.kv_a_layernorm, {c.kv_rank}, init::ones);
      parameter("kv_b_proj.weight", self.kv_b_proj.weight,
                {c.n_heads * (c.nope_dim + c.head_v), c.kv_rank});
      HeadsWeights<Scalar>::visit_outputs(self.heads, c.outputs(), c.n_heads, c.d_model, parameter);
      ScoresWeights<Scalar>::visit(self, c.scores, c.n_heads, parameter);
    }
  };

  struct State {
    Position position;              // [B]
    Appended<Scalar, 4, 2> latent;  // [B, 1, capacity, r + shared], normalised and turned

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("latent", self.latent);
    }
  };

  Config c;
  Weights w;
  Rotation rotate;
  LatentHeads<Scalar> heads;  // of kv_b_proj
  ComposedScore<Scalar> score;

  MultiHeadLatentAttentionDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        rotate(c.positions),
        heads(w.kv_b_proj.weight.to_tensor().view().split(axis::row, c.n_heads,
                                                          c.nope_dim + c.head_v),
              c.nope_dim),
        score(make_score<Scalar>(c.scaled_scores(), w, {}, {}, {}, c.outputs(), 1)) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    return {.position = {batch, memory},
            .latent = {{batch, 1, capacity, c.kv_rank + c.shared()}, memory, memory.caches()}};
  }

  void run(View<const Scalar, 2> x, State& state, const Side& side, View<Scalar, 2> y,
           const Call& call) const {
    const Index T = x.extent(axis::time), shared = c.shared();
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_k());       // [T, H, K + shared]
    auto latent = scratch(T, 1, c.kv_rank + shared);  // [T, 1, r + shared]
    auto o = scratch(T, c.n_heads, c.head_v);         // [T, H, V]
    const TokenPlaces at{state.position.tokens, side.positions};

    if (c.q_rank > 0) {
      auto low = scratch(T, c.q_rank);  // [T, R]
      project(x, {{w.q_a_proj, low}}, call);
      rms_norm(low, w.q_a_layernorm, c.norm_eps, low, call);
      project(low, {{w.q_b_proj, q}}, call);
    } else {
      project(x, {{w.heads.q_proj, q}}, call);
    }
    project(x, {{w.kv_a_proj, latent}}, call);
    const auto content = latent.slice(axis::channel, 0, c.kv_rank);  // [T, 1, r]
    rms_norm(content, w.kv_a_layernorm, c.norm_eps, content, call);
    rotate(q.slice(axis::channel, c.nope_dim, shared), at, call);
    rotate(latent.slice(axis::channel, c.kv_rank, shared), at, call);
    sharpen_queries<Scalar>(c.scores, w, q, at.past, call);
    append<Scalar>(latent, at.past, state.latent.view(), call);
    latent_attention<Scalar>(q, state.latent.view(), at.past, heads, score, o, call);
    project_outputs<Scalar>(c.outputs(), w.heads, x, o, y, call);
  }
};

template <class Scalar = float>
using MultiHeadLatentAttention = Mixer<MultiHeadLatentAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(MultiHeadLatentAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
