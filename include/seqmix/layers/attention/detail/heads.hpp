#pragma once

#include <array>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/positions/rope_scaling.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

// What the layers of softmax attention share: from x to queries, keys and values, and the scores.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What RMSNorm normalises of queries and keys before they are rotated: nothing, each head with one
/// weight for all (Qwen3), or the whole projection (OLMo-2).
enum class QkNorm { none, head, projection };
constexpr std::array<std::string_view, 3> names_of(QkNorm) {
  return {"none", "head", "projection"};
}

struct AttentionConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index n_kv_heads = 1;  // n_heads: multi-head; 1: multi-query; between: grouped-query
  Index head_dim = 0;
  Index rotary_dim = 0;           // leading numbers of a head that RoPE rotates; 0: no positions
  double rope_theta = 10000;      // base of the RoPE wavelengths
  bool rope_interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  RopeScalingConfig rope_scaling = {};
  bool qkv_bias = false;
  bool o_bias = false;
  QkNorm qk_norm = QkNorm::none;
  double qk_norm_eps = 1e-6;
  double score_scale = 0;  // of q · k; 0: head_dim^-1/2
  double soft_cap = 0;     // bound on the size of a score (Gemma-2); 0: none
  bool alibi = false;      // a penalty on distance, its slope by head

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("n_kv_heads", self.n_kv_heads), field("head_dim", self.head_dim);
    field("rotary_dim", self.rotary_dim, zero_is_legal);
    field("rope_theta", self.rope_theta, is_positive);  // named by models without positions too
    field("rope_interleaved", self.rope_interleaved,
          only_where(self.rotary_dim > 0, "rotary_dim is positive"));
    RopeScalingConfig::visit(self.rope_scaling, field);
    field("qkv_bias", self.qkv_bias), field("o_bias", self.o_bias);
    field("qk_norm", self.qk_norm);
    field("qk_norm_eps", self.qk_norm_eps, at_least(0),
          only_where(self.qk_norm != QkNorm::none, "qk_norm is not none"));
    field("score_scale", self.score_scale, is_positive.or_zero());
    field("soft_cap", self.soft_cap, is_positive.or_zero());
    field("alibi", self.alibi);
  }
  void check() const {
    require(n_heads % n_kv_heads == 0, "n_heads must be a multiple of n_kv_heads");
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    require(rotary_dim <= head_dim, "rotary_dim must not exceed head_dim");
    require(rotary_dim > 0 || rope_scaling.kind == RopeScaling::none,
            "rope_scaling needs rotary positions: rotary_dim");
    require(soft_cap == 0 || !alibi, "soft_cap and alibi exclude each other");
    rope_scaling.check(rope_theta);
  }
};

template <class Scalar>
struct AttentionWeights {
  Projection<Scalar> q_proj, k_proj, v_proj, o_proj;
  Parameter<Scalar, 1> q_norm, k_norm;

  static void visit(auto& self, const AttentionConfig& c, auto&& parameter) {
    const Index queries = c.n_heads * c.head_dim, keys = c.n_kv_heads * c.head_dim;
    parameter("q_proj.weight", self.q_proj.weight, {queries, c.d_model});
    parameter("k_proj.weight", self.k_proj.weight, {keys, c.d_model});
    parameter("v_proj.weight", self.v_proj.weight, {keys, c.d_model});
    if (c.qkv_bias) {
      parameter("q_proj.bias", self.q_proj.bias, {queries}, init::zeros);
      parameter("k_proj.bias", self.k_proj.bias, {keys}, init::zeros);
      parameter("v_proj.bias", self.v_proj.bias, {keys}, init::zeros);
    }
    if (c.qk_norm != QkNorm::none) {
      const bool shared = c.qk_norm == QkNorm::head;
      parameter("q_norm.weight", self.q_norm, {shared ? c.head_dim : queries}, init::ones);
      parameter("k_norm.weight", self.k_norm, {shared ? c.head_dim : keys}, init::ones);
    }
    parameter("o_proj.weight", self.o_proj.weight, {c.d_model, queries});
    if (c.o_bias) parameter("o_proj.bias", self.o_proj.bias, {c.d_model}, init::zeros);
  }
};

/// The base of a definition whose queries, keys and values come from one x.
template <class Scalar, class Config, class Weights = AttentionWeights<Scalar>>
struct AttentionHeads {
  Config c;
  Weights w;
  RotaryFrequencies frequencies;
  std::vector<double> slopes;  // [H], of ALiBi

  AttentionHeads(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        frequencies(c.rotary_dim, c.rope_theta, c.rope_scaling) {
    if (c.alibi) slopes = alibi_slopes(c.n_heads);
  }

  /// q [T, H, K], k and v [T, G, K] of x, normalised but not rotated.
  void project_heads(View<const Scalar, 2> x, View<Scalar, 3> q, View<Scalar, 3> k,
                     View<Scalar, 3> v, const Call& call) const {
    project(x, {{w.q_proj, q}, {w.k_proj, k}, {w.v_proj, v}}, call);
    const auto normalise = [&](auto heads, const Parameter<Scalar, 1>& weight) {
      rms_norm(heads, weight.view(), c.qk_norm_eps, heads, call);
    };
    if (c.qk_norm == QkNorm::head) normalise(q, w.q_norm), normalise(k, w.k_norm);
    if (c.qk_norm == QkNorm::projection) {
      normalise(q.merge(axis::head), w.q_norm), normalise(k.merge(axis::head), w.k_norm);
    }
  }

  /// Rotates heads [T, H, K] to their positions, none of which counts beyond `last`.
  void rotate(View<Scalar, 3> heads, View<const Index, 1> past, const Call& call,
              Index last = std::numeric_limits<Index>::max()) const {
    const auto layout = c.rope_interleaved ? RotaryLayout::interleaved : RotaryLayout::half_split;
    rope(heads, frequencies, past, layout, call, last);
  }

  /// Calls `body` with the score that the config asks for.
  void with_score(auto&& body) const {
    const double scale = c.score_scale > 0 ? c.score_scale : inverse_sqrt(c.head_dim);
    if (c.alibi) return body(Alibi{scale, slopes});
    if (c.soft_cap > 0) return body(SoftCap(scale, c.soft_cap));
    body(PlainScore{scale});
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
