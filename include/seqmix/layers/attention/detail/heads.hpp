#pragma once

#include <array>
#include <functional>
#include <string_view>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/layers/attention/detail/convolutions.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"
#include "seqmix/simd/math.hpp"

// From x to queries, keys and values, and from what attention makes of them to y.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which numbers of queries and keys are normalised together: none, those of each head, or the
/// whole projection.
enum class QkNorm { none, head, projection };
constexpr std::array<std::string_view, 3> names_of(QkNorm) {
  return {"none", "head", "projection"};
}

/// By what: RMSNorm, LayerNorm or their length, x / max(|x|, eps).
enum class QkNormKind { rms, layer, l2 };
constexpr std::array<std::string_view, 3> names_of(QkNormKind) { return {"rms", "layer", "l2"}; }

/// Whose weight a normalised head gets: none, one that all heads share, or its own.
enum class QkNormWeight { none, shared, by_head };
constexpr std::array<std::string_view, 3> names_of(QkNormWeight) {
  return {"none", "shared", "by_head"};
}

/// What a gate that the token chooses lets through of the heads' outputs: all, a part of each
/// head's, or of each number.
enum class OutputGate { none, head, channel };
constexpr std::array<std::string_view, 3> names_of(OutputGate) {
  return {"none", "head", "channel"};
}

/// What the outputs of all heads of a token, o [H V], become together: themselves, or
///   gated_rms  w ⊙ o / rms(o) ⊙ σ(g ⊙ o),  rms(o)² = mean(o²) + output_norm_eps. Zhang et al.
///   2021,
///              arXiv:2104.07012, eq. 6; bzhangGo/zero, modules/rela.py
enum class OutputNorm { none, gated_rms };
constexpr std::array<std::string_view, 2> names_of(OutputNorm) { return {"none", "gated_rms"}; }

/// The heads of attention.
///
///   q, k, v = W_q x + b_q, ...,  each number within ±qkv_clip where that is positive;
///         then through the short convolutions of `HeadConvolutionsConfig`;
///         v = k with values_are_keys, v / rms(v) of each head with value_norm
///   q, k normalised as qk_norm says, before their rotation by position or after (qk_norm_rotated)
///
///   y = W_o (σ(W_g x) ⊙ output_norm(o)) + b_o,  without the gate where output_gate is none
///
/// Query heads are n_kv_heads sets of as many heads, and set g reads key head g and value head g.
/// There may be fewer heads of either: then it reads key head g mod n_key_heads, or value head
/// g mod n_value_heads.
///
/// Source: OLMo-2 (projection, rms), Qwen3 (head, rms), Cohere (head, layer, weights by head),
/// Persimmon (head, layer with a bias), Llama-4 and HunYuan (after rotation), OLMo, DBRX and MPT
/// (clip), Gemma 4 (values that are keys, and their norm) of HF transformers; Qiu et al. 2025,
/// arXiv:2505.06708 (the gate), Qwen3-Next; He et al. 2024, arXiv:2410.06577, section 3.2 (one key
/// head).
struct HeadsConfig {
  Index n_heads = 1;
  Index n_kv_heads = 1;  // n_heads: multi-head; 1: multi-query; between: grouped-query
  Index n_key_heads = 0, n_value_heads = 0;  // 0: n_kv_heads
  Index head_dim = 0;
  Index value_dim = 0;  // of a value head; 0: head_dim
  bool q_bias = false, k_bias = false, v_bias = false, o_bias = false;
  double qkv_clip = 0;  // bound on the numbers of q, k and v; 0: none
  HeadConvolutionsConfig conv = {};
  bool values_are_keys = false;  // as they are before norm and rotation
  bool value_norm = false;
  double value_norm_eps = 1e-6;
  QkNorm qk_norm = QkNorm::none;
  QkNormKind qk_norm_kind = QkNormKind::rms;
  QkNormWeight qk_norm_weight = QkNormWeight::shared;
  bool qk_norm_bias = false;
  bool qk_norm_rotated = false;  // whether it comes after the rotation
  double qk_norm_eps = 1e-6;
  OutputGate output_gate = OutputGate::none;
  OutputNorm output_norm = OutputNorm::none;
  double output_norm_eps = 1e-8;

  static void visit(auto& self, auto&& field) {
    const auto normed = only_where(self.qk_norm != QkNorm::none, "qk_norm is not none");
    field("n_heads", self.n_heads), field("n_kv_heads", self.n_kv_heads);
    field("n_key_heads", self.n_key_heads, zero_is_legal);
    field("n_value_heads", self.n_value_heads, zero_is_legal);
    field("head_dim", self.head_dim), field("value_dim", self.value_dim, zero_is_legal);
    field("q_bias", self.q_bias, flat_key("qkv_bias").or_own());
    field("k_bias", self.k_bias, flat_key("qkv_bias").or_own());
    field("v_bias", self.v_bias, flat_key("qkv_bias").or_own());
    field("o_bias", self.o_bias);
    field("qkv_clip", self.qkv_clip, is_positive.or_zero());
    HeadConvolutionsConfig::visit(self.conv, field);
    field("values_are_keys", self.values_are_keys), field("value_norm", self.value_norm);
    field("value_norm_eps", self.value_norm_eps, at_least(0),
          only_where(self.value_norm, "value_norm is true"));
    field("qk_norm", self.qk_norm), field("qk_norm_kind", self.qk_norm_kind, normed);
    field("qk_norm_weight", self.qk_norm_weight, normed);
    field("qk_norm_bias", self.qk_norm_bias,
          only_where(self.qk_norm_kind == QkNormKind::layer, "qk_norm_kind is layer"));
    field("qk_norm_rotated", self.qk_norm_rotated, normed);
    field("qk_norm_eps", self.qk_norm_eps, at_least(0), normed);
    field("output_gate", self.output_gate), field("output_norm", self.output_norm);
    field("output_norm_eps", self.output_norm_eps, at_least(0),
          only_where(self.output_norm != OutputNorm::none, "output_norm is not none"));
  }
  void check() const {
    require(n_heads % n_kv_heads == 0, "n_heads must be a multiple of n_kv_heads");
    require(qk_norm_weight != QkNormWeight::by_head || qk_norm == QkNorm::head,
            "qk_norm_weight by_head needs qk_norm head");
    require(!qk_norm_bias || qk_norm_weight != QkNormWeight::none,
            "qk_norm_bias needs a qk_norm_weight");
    require(n_key_heads == 0 || n_value_heads == 0,
            "n_key_heads and n_value_heads exclude each other");
    require(n_kv_heads % key_heads() == 0, "n_kv_heads must be a multiple of n_key_heads");
    require(n_kv_heads % value_heads() == 0, "n_kv_heads must be a multiple of n_value_heads");
    require(!values_are_keys || (key_heads() == value_heads() && head_v() == head_dim),
            "values_are_keys needs value_dim, n_key_heads and n_value_heads to be 0, or what keys "
            "have");
    require(!values_are_keys || !v_bias, "values_are_keys needs v_bias false");
    require(!values_are_keys || conv.kernel == 0, "values_are_keys needs conv_kernel to be 0");
  }
  Index query_width() const { return n_heads * head_dim; }
  Index key_width() const { return key_heads() * head_dim; }
  Index value_width() const { return value_heads() * head_v(); }
  Index key_heads() const { return n_key_heads > 0 ? n_key_heads : n_kv_heads; }
  Index value_heads() const { return n_value_heads > 0 ? n_value_heads : n_kv_heads; }
  Index head_v() const { return value_dim > 0 ? value_dim : head_dim; }
  /// Numbers of the weight of a norm for `heads` heads.
  Index norm_width(Index heads) const {
    const bool one = qk_norm == QkNorm::head && qk_norm_weight == QkNormWeight::shared;
    return one ? head_dim : heads * head_dim;
  }
};

template <class Scalar>
struct HeadsWeights {
  Projection<Scalar> q_proj, k_proj, v_proj, g_proj, o_proj;
  HeadConvolutionsWeights<Scalar> conv;
  Parameter<Scalar, 1> q_norm, k_norm, q_norm_bias, k_norm_bias, o_norm, o_norm_gate;

  /// `n_outputs`: heads whose outputs y is made of; `d_source`: numbers of what keys and values are
  /// made of.
  static void visit(auto& self, const HeadsConfig& c, Index n_outputs, Index d_model,
                    Index d_source, auto&& parameter) {
    const Index queries = c.query_width(), keys = c.key_width(), values = c.value_width();
    parameter("q_proj.weight", self.q_proj.weight, {queries, d_model});
    parameter("k_proj.weight", self.k_proj.weight, {keys, d_source});
    if (!c.values_are_keys) parameter("v_proj.weight", self.v_proj.weight, {values, d_source});
    if (c.q_bias) parameter("q_proj.bias", self.q_proj.bias, {queries}, init::zeros);
    if (c.k_bias) parameter("k_proj.bias", self.k_proj.bias, {keys}, init::zeros);
    if (c.v_bias) parameter("v_proj.bias", self.v_proj.bias, {values}, init::zeros);
    HeadConvolutionsWeights<Scalar>::visit(self.conv, c.conv, queries, keys, values, parameter);
    if (c.qk_norm != QkNorm::none && c.qk_norm_weight != QkNormWeight::none) {
      const Index of_q = c.norm_width(c.n_heads), of_k = c.norm_width(c.key_heads());
      parameter("q_norm.weight", self.q_norm, {of_q}, init::ones);
      parameter("k_norm.weight", self.k_norm, {of_k}, init::ones);
      if (c.qk_norm_bias) {
        parameter("q_norm.bias", self.q_norm_bias, {of_q}, init::zeros);
        parameter("k_norm.bias", self.k_norm_bias, {of_k}, init::zeros);
      }
    }
    visit_outputs(self, c, n_outputs, d_model, parameter);
  }
  /// What `project_outputs` reads.
  static void visit_outputs(auto& self, const HeadsConfig& c, Index n_outputs, Index d_model,
                            auto&& parameter) {
    const Index outputs = n_outputs * c.head_v();
    if (c.output_gate != OutputGate::none) {
      const bool by_head = c.output_gate == OutputGate::head;
      parameter("g_proj.weight", self.g_proj.weight, {by_head ? n_outputs : outputs, d_model});
    }
    if (c.output_norm != OutputNorm::none) {
      parameter("o_norm.weight", self.o_norm, {outputs}, init::ones);
      parameter("o_norm.gate", self.o_norm_gate, {outputs}, init::uniform(-1, 1));
    }
    parameter("o_proj.weight", self.o_proj.weight, {d_model, outputs});
    if (c.o_bias) parameter("o_proj.bias", self.o_proj.bias, {d_model}, init::zeros);
  }
};

/// Normalises queries [T, H, K] or keys [T, G, K], if there is a norm, by their weight and bias,
/// which may be empty.
template <class S>
void normalise_heads(const HeadsConfig& c, View<S, 3> heads, In<S, 1> weight, In<S, 1> bias,
                     const Call& call) {
  if (c.qk_norm == QkNorm::none) return;
  const auto flat = heads.merge(axis::head);  // [T, H K]
  const double eps = c.qk_norm_eps;
  const bool whole = c.qk_norm == QkNorm::projection;
  const bool by_head = c.qk_norm_weight == QkNormWeight::by_head;
  const auto norm_by = [&](auto rows, const View<const S, 1>& by) {
    if (c.qk_norm_kind == QkNormKind::rms) return rms_norm(rows, by, eps, rows, call);
    clamped_l2_norm(rows, eps, call);
    if (by.data() != nullptr) elementwise(call, std::multiplies(), rows, rows, by_channel(by));
  };
  if (c.qk_norm_kind == QkNormKind::layer) {
    if (by_head) return group_norm(flat, weight, bias, c.head_dim, eps, flat, call);
    return whole ? layer_norm(flat, weight, bias, eps, flat, call)
                 : layer_norm(heads, weight, bias, eps, heads, call);
  }
  if (whole) return norm_by(flat, weight);
  if (!by_head) return norm_by(heads, weight);
  norm_by(heads, {});
  elementwise(call, std::multiplies(), flat, flat, by_channel(weight));
}

/// Bounds the numbers of what was projected.
template <class S>
void clip_heads(const HeadsConfig& c, View<S, 3> heads, const Call& call) {
  if (c.qkv_clip == 0) return;
  const auto clip = [bound = static_cast<S>(c.qkv_clip)](auto number) {
    return simd::min(simd::max(number, -bound), bound);
  };
  elementwise(call, clip, heads, heads);
}
template <class S>
void project_queries(const HeadsConfig& c, const HeadsWeights<S>& w, In<S, 2> x, View<S, 3> q,
                     const Call& call) {
  project(x, {{w.q_proj, q}}, call);
  clip_heads(c, q, call);
}
template <class S>
void project_keys(const HeadsConfig& c, const HeadsWeights<S>& w, In<S, 2> x, View<S, 3> k,
                  View<S, 3> v, const Call& call) {
  project(x, {{w.k_proj, k}}, call);
  clip_heads(c, k, call);
  if (c.values_are_keys) return;
  project(x, {{w.v_proj, v}}, call);
  clip_heads(c, v, call);
}
/// Normalises queries if that comes before the rotation.
template <class S>
void finish_queries(const HeadsConfig& c, const HeadsWeights<S>& w, View<S, 3> q,
                    const Call& call) {
  if (!c.qk_norm_rotated) normalise_heads<S>(c, q, w.q_norm, w.q_norm_bias, call);
}
/// The same of keys, of which values may be made.
template <class S>
void finish_keys(const HeadsConfig& c, const HeadsWeights<S>& w, View<S, 3> k, View<S, 3> v,
                 const Call& call) {
  if (c.values_are_keys) copy(k, v);
  if (c.value_norm) rms_norm(v, {}, c.value_norm_eps, v, call);
  if (!c.qk_norm_rotated) normalise_heads<S>(c, k, w.k_norm, w.k_norm_bias, call);
}

/// y of x and of what attention made, o [T, H, V], which changes.
template <class S>
void project_outputs(const HeadsConfig& c, const HeadsWeights<S>& w, View<const S, 2> x,
                     View<S, 3> o, View<S, 2> y, const Call& call) {
  const auto gated = [](auto number, auto by) { return number * simd::sigmoid(by); };
  if (c.output_norm == OutputNorm::gated_rms) {
    self_gated_rms_norm<S>(o.merge(axis::head), w.o_norm, w.o_norm_gate, c.output_norm_eps, call);
  }
  auto scratch = call.scratch<S>();
  if (c.output_gate == OutputGate::channel) {
    auto gate = scratch(o.extent(axis::time), o.extent(axis::head), c.head_v());  // [T, H, V]
    project(x, {{w.g_proj, gate}}, call);
    elementwise(call, gated, o, o, gate);
  } else if (c.output_gate == OutputGate::head) {
    auto gate = scratch(o.extent(axis::time), o.extent(axis::head));  // [T, H]
    project(x, {{w.g_proj, gate}}, call);
    elementwise(call, gated, o, o, by_row(gate));
  }
  project(o, {{w.o_proj, y}}, call);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
