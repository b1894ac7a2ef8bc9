#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/memory/key_sum.hpp"
#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What the outputs of heads are divided by before their norm, which leaves eps alone of it.
enum class ScoreNorm { none, decay, scores };
constexpr std::array<std::string_view, 3> names_of(ScoreNorm) {
  return {"none", "decay", "scores"};
}

struct RetentionConfig {
  Index d_model = 0;
  Index n_heads = 4;
  Index head_k = 0;               // key width per head
  Index head_v = 0;               // value width per head
  Index rotary_dim = 0;           // leading numbers of a head that turn; 0: no positions
  double rope_theta = 10000;      // base of the angles
  bool rope_interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  bool rope_closed = false;  // exponents i / (pairs - 1) up to 1 instead of i / pairs; torchscale
  bool norm_weight = true;   // of the head norm; torchscale has none
  double norm_eps = 1e-5;
  ScoreNorm score_norm = ScoreNorm::none;  // torchscale: scores in parallel form, decay in steps

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_k", self.head_k), field("head_v", self.head_v);
    const auto rotated = only_where(self.rotary_dim > 0, "rotary_dim is positive");
    field("rotary_dim", self.rotary_dim, zero_is_legal);
    field("rope_theta", self.rope_theta, is_positive, rotated);
    field("rope_interleaved", self.rope_interleaved, rotated);
    field("rope_closed", self.rope_closed, rotated);
    field("norm_weight", self.norm_weight), field("norm_eps", self.norm_eps, at_least(0));
    field("score_norm", self.score_norm);
  }
  void check() const {
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    require(rotary_dim <= head_k, "rotary_dim must not exceed head_k");
  }
  std::vector<double> angles() const {
    const Index pairs = rotary_dim / 2, last = rope_closed ? std::max<Index>(pairs - 1, 1) : pairs;
    std::vector<double> result;
    for (Index n = 0; n < pairs; ++n) {
      result.push_back(std::pow(rope_theta, -static_cast<double>(n) / static_cast<double>(last)));
    }
    return result;
  }
};

/// Multi-scale retention (RetNet): a linear memory whose heads forget at fixed rates, with rotated
/// queries and keys.
///
///   S_t = γ_h S_{t-1} + k_tᵀ v_t,   γ_h = 1 - 2^{-5-h}                S_t [K, V] per head
///   o_t = K^{-1/2} q_t S_t          q, k turned by position (RoPE, no xPos magnitude)
///   y_t = W_o (rms_norm(o_t) ⊙ silu(W_g x_t))
///
/// What divides o_t, the norm takes out again, all but its eps. fla divides by nothing, torchscale
/// in its steps (score_norm "decay") and in its parallel form ("scores") by
///
///   decay:   d_t = (Σ_s γ^{t-s})^{1/2}
///   scores:  max(d_t, |Σ_s γ^{t-s} q_t k_sᵀ| K^{-1/2})
///
/// and in its chunkwise form by numbers that depend on where chunks lie: it agrees where eps is 0.
///
/// In chunks of C tokens o_i = γ^{i+1} q_i S_{-1} + Σ_{j<=i} γ^{i-j} (q_i k_jᵀ) v_j, 0 <= i < C,
/// with powers of γ from a table; or by the recurrence, where the heads' shape makes that faster.
///
/// forward: O(T (D² + C D + D K)); step: O(D² + D K). State: H K V accumulators a stream, and the
/// sums above: H, and H K for "scores".
/// Source: Sun et al. 2023, arXiv:2307.08621, eq. 5-8 and section 2.4; torchscale
/// MultiScaleRetention; fla/layers/multiscale_retention.py.
template <class S>
struct RetentionDefinition {
  using Scalar = S;
  using Config = RetentionConfig;
  static constexpr Traits traits{.name = "retention",
                                 .title = "Retention (RetNet)",
                                 .paper = "Sun 2023, arXiv:2307.08621",
                                 .forward = "O(T (D² + D K))",
                                 .step = "O(D² + D K)",
                                 .state = "H K V"};

  struct Weights {
    Projection<Scalar> q_proj, k_proj, v_proj, g_proj, o_proj;
    Parameter<Scalar, 1> g_norm;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v;
      parameter("q_proj.weight", self.q_proj.weight, {keys, c.d_model});
      parameter("k_proj.weight", self.k_proj.weight, {keys, c.d_model});
      parameter("v_proj.weight", self.v_proj.weight, {values, c.d_model});
      parameter("g_proj.weight", self.g_proj.weight, {values, c.d_model});
      if (c.norm_weight) parameter("g_norm_swish_gate.weight", self.g_norm, {c.head_v}, init::ones);
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, values});
    }
  };

  struct State {
    Position position;          // [B]
    Tensor<Scalar, 4> memory;   // [B, H, K, V]
    Tensor<Scalar, 3> scale;    // [B, H, 1], sums of the decays, of score_norm
    Tensor<Scalar, 3> key_sum;  // [B, H, K], of the scores

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("memory", self.memory);
      if (self.scale.extent(2) > 0) tensor("scale", self.scale);
      if (self.key_sum.extent(2) > 0) tensor("key_sum", self.key_sum);
    }
  };

  Config c;
  Weights w;
  RotaryFrequencies frequencies;
  ConstantDecay<Scalar> decay;  // the powers of γ
  Parameter<Scalar, 1> norm;    // [V], the norm's weight, or ones

  RetentionDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        frequencies(c.angles()),
        decay(factors(c.n_heads)),
        norm(w.g_norm) {
    if (c.norm_weight) return;
    Tensor<Scalar, 1> ones({c.head_v});
    fill(ones.view(), 1);
    norm = std::move(ones);
  }

  /// γ of the heads.
  static Tensor<Scalar, 1> factors(Index n_heads) {
    Tensor<Scalar, 1> result({n_heads});
    for (Index h = 0; h < n_heads; ++h) {
      result[h] = static_cast<Scalar>(1 - std::exp2(-5 - static_cast<double>(h)));
    }
    return result;
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {
        .position = {batch, memory},
        .memory = {{batch, c.n_heads, c.head_k, c.head_v}, memory},
        .scale = {{batch, c.n_heads, c.score_norm == ScoreNorm::none ? 0 : 1}, memory},
        .key_sum = {{batch, c.n_heads, c.score_norm == ScoreNorm::scores ? c.head_k : 0}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_k);     // [T, H, K]
    auto k = scratch(T, c.n_heads, c.head_k);     // [T, H, K]
    auto v = scratch(T, c.n_heads, c.head_v);     // [T, H, V]
    auto o = scratch(T, c.n_heads, c.head_v);     // [T, H, V]
    auto gate = scratch(T, c.n_heads, c.head_v);  // [T, H, V]
    const View<const Index, 1> past = state.position.tokens;
    const RotaryLayout layout =
        c.rope_interleaved ? RotaryLayout::interleaved : RotaryLayout::half_split;

    project(x, {{w.q_proj, q}, {w.k_proj, k}, {w.v_proj, v}, {w.g_proj, gate}}, call);
    rope(q, frequencies, past, layout, call);
    rope(k, frequencies, past, layout, call);
    linear_state(q, k, v, decay, inverse_sqrt(c.head_k), state.memory.view(), o, call);
    normalize(q, k, state, o, call);
    gated_rms_norm(o, gate, norm, c.norm_eps, activation::silu, call);
    project(o, {{w.o_proj, y}}, call);
  }

 private:
  /// Divides o [T, H, V] by what score_norm says.
  void normalize(View<Scalar, 3> q, View<Scalar, 3> k, State& state, View<Scalar, 3> o,
                 const Call& call) const {
    if (c.score_norm == ScoreNorm::none) return;
    auto scratch = call.scratch<Scalar>();
    const Index T = o.extent(axis::time);
    auto ones = scratch(T, c.n_heads, 1);  // [T, H, 1]
    auto sums = scratch(T, c.n_heads);     // [T, H]
    auto scores = scratch(T, c.n_heads);   // [T, H]
    fill(ones, 1);
    key_sum(ones, ones, decay, 1, state.scale.view(), sums, call);
    if (c.score_norm == ScoreNorm::scores) {
      key_sum(q, k, decay, inverse_sqrt(c.head_k), state.key_sum.view(), scores, call);
    } else {
      fill(scores, 0);
    }
    const auto normalized = [](auto value, auto sum, auto score) {
      return simd::divide_or_zero(value, simd::max(simd::sqrt(sum), simd::abs(score)));
    };
    elementwise(call, normalized, o, o, by_row(sums), by_row(scores));
  }
};

template <class Scalar = float>
using Retention = Mixer<RetentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(RetentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
