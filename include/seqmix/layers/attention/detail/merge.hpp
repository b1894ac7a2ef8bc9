#pragma once

#include <array>
#include <cmath>
#include <string_view>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/layers/mixer.hpp"

// How the heads of attention, or several maps of a head, become one.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What the outputs o_h of the heads, h < H, become: themselves, or
///   difference  (1 - lambda_init) w ⊙ d_p / rms(d_p),  d_p = o_p - λ o_{p + H/2},  p < H / 2,
///               λ = exp(lambda_q1 · lambda_k1) - exp(lambda_q2 · lambda_k2) + lambda_init,
///               rms(d)² = mean(d²) + sub_norm_eps, w = 1 without sub_norm_weight
enum class Merge { one, difference };
constexpr std::array<std::string_view, 2> names_of(Merge) { return {"one", "difference"}; }

/// Differential attention takes from one map of attention what another one sees, too. The maps are
/// heads p and p + H / 2, as in HF transformers; the paper's code has them beside each other. In
/// published models both see the same keys and look at the same values, of twice the width:
/// n_value_heads = n_kv_heads / 2, value_dim = 2 head_dim.
///
/// Source: Ye et al. 2024, arXiv:2410.05258, eq. 1-3; microsoft/unilm MultiheadDiffAttn; HF
/// transformers DiffLlamaAttention (no weight), whose value heads g and g + n_kv_heads / 2 are the
/// halves of one here.
struct MergeConfig {
  Merge kind = Merge::one;
  double lambda_init = 0.8;  // of layer l from 0 on: 0.8 - 0.6 exp(-0.3 l)
  bool sub_norm_weight = false;
  double sub_norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    const auto differing = only_where(self.kind == Merge::difference, "kind is difference");
    field("kind", self.kind, flat_key("difference"));
    field("lambda_init", self.lambda_init, at_least(0), differing);
    field("sub_norm_weight", self.sub_norm_weight, differing);
    field("sub_norm_eps", self.sub_norm_eps, at_least(0), differing);
  }
  void check() const { require(lambda_init < 1, "lambda_init must be below 1"); }
  void check_fits(Index n_heads) const {
    require(kind == Merge::one || n_heads % 2 == 0,
            "merge.kind difference needs pairs of heads: an even heads.n_heads");
  }
  /// What `heads` heads become.
  Index heads_of(Index heads) const { return kind == Merge::one ? heads : heads / 2; }
};

template <class Scalar>
struct MergeWeights {
  Parameter<Scalar, 1> lambda_q1, lambda_k1, lambda_q2, lambda_k2;  // [K]
  Parameter<Scalar, 1> sub_norm;                                    // [V]

  static void visit(auto& self, const MergeConfig& c, Index K, Index V, auto&& parameter) {
    if (c.kind == Merge::one) return;
    const auto of_lambda = init::normal(0, 0.1);
    parameter("lambda_q1", self.lambda_q1, {K}, of_lambda);
    parameter("lambda_k1", self.lambda_k1, {K}, of_lambda);
    parameter("lambda_q2", self.lambda_q2, {K}, of_lambda);
    parameter("lambda_k2", self.lambda_k2, {K}, of_lambda);
    if (c.sub_norm_weight) parameter("subln.weight", self.sub_norm, {V}, init::ones);
  }
};

/// λ; 0 where there are no differences.
template <class S>
S difference_lambda(const MergeConfig& c, const MergeWeights<S>& w) {
  if (c.kind == Merge::one) return 0;
  const auto exp_of_product = [](const Parameter<S, 1>& a, const Parameter<S, 1>& b) {
    double product = 0;
    for (Index i = 0; i < a.extent(0); ++i) product += static_cast<double>(a(i)) * b(i);
    return std::exp(product);
  };
  return static_cast<S>(exp_of_product(w.lambda_q1, w.lambda_k1) -
                        exp_of_product(w.lambda_q2, w.lambda_k2) + c.lambda_init);
}

/// What the outputs o [T, H, V] of the heads become, [T, H or H / 2, V], in their place.
template <class S>
View<S, 3> merge_heads(const MergeConfig& c, const MergeWeights<S>& w, S lambda, View<S, 3> o,
                       const Call& call) {
  if (c.kind == Merge::one) return o;
  const Index pairs = o.extent(axis::head) / 2;
  const auto first = o.slice(axis::head, 0, pairs), second = o.slice(axis::head, pairs, pairs);
  const auto difference = [lambda](auto a, auto b) { return a - lambda * b; };
  const auto scaled = [by = static_cast<S>(1 - c.lambda_init)](auto number) { return by * number; };
  elementwise(call, difference, first, first, second);
  rms_norm(first, w.sub_norm, c.sub_norm_eps, first, call);
  elementwise(call, scaled, first, first);
  return first;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
