#pragma once

#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/normalisers.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/attention/detail/biases.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

// What the gated attention unit and mixed chunk attention have in common. Hua et al. 2022,
// arXiv:2202.10447.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The norm of x before all else: layer norm, or g x / max(|x| / √D, norm_eps) of one learned
/// number g (ScaleNorm. Nguyen & Salazar 2019, arXiv:1910.05895).
enum class UnitNorm { layer, scale };
constexpr std::array<std::string_view, 2> names_of(UnitNorm) { return {"layer", "scale"}; }

/// What makes weights of scores, see `PairWeight`.
enum class UnitActivation { relu_squared, laplace };
constexpr std::array<std::string_view, 2> names_of(UnitActivation) {
  return {"relu_squared", "laplace"};
}

struct GatedUnitConfig {
  Index d_model = 0;
  Index head_k = 128;  // K, width of the one head of queries and keys
  Index head_v = 0;    // V, width of the one head of values and of their gate
  UnitActivation activation = UnitActivation::relu_squared;
  Index num_buckets = 32;    // of T5's biases by distance
  Index max_distance = 128;  // farther keys are as near as it
  UnitNorm norm = UnitNorm::layer;
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("head_k", self.head_k), field("head_v", self.head_v);
    field("activation", self.activation), field("num_buckets", self.num_buckets);
    field("max_distance", self.max_distance), field("norm", self.norm);
    field("norm_eps", self.norm_eps, at_least(0));
  }
  DistanceBiasConfig bias(bool bidirectional) const {
    return {.kind = DistanceBiasKind::t5,
            .num_buckets = num_buckets,
            .bidirectional = bidirectional,
            .max_distance = max_distance};
  }
};

template <class Scalar>
struct GatedUnitWeights {
  Parameter<Scalar, 1> norm, norm_bias;  // [D], or norm alone, [1]
  Projection<Scalar> to_hidden;          // [2 V, D], values, gate
  Projection<Scalar> to_qk;              // [K, D]
  Projection<Scalar> to_out;             // [D, V]
  Parameter<Scalar, 2> gamma, beta;      // [2 or 4, K]: a scale and an offset of each use of qk
  DistanceBiasWeights<Scalar> bias;

  /// `uses` of qk; `scaled` and `out` are what the published classes call them.
  static void visit(auto& self, const GatedUnitConfig& c, Index uses, std::string_view scaled,
                    std::string_view out, auto&& parameter) {
    const Index D = c.d_model, K = c.head_k, V = c.head_v;
    const bool layer = c.norm == UnitNorm::layer;
    parameter(layer ? "norm.weight" : "norm.g", self.norm, {layer ? D : 1}, init::ones);
    if (layer) parameter("norm.bias", self.norm_bias, {D}, init::zeros);
    DistanceBiasWeights<Scalar>::visit(self.bias, c.bias(false), 1,
                                       Prefixed("rel_pos_bias", parameter));
    parameter("to_hidden.0.weight", self.to_hidden.weight, {2 * V, D});
    parameter("to_hidden.0.bias", self.to_hidden.bias, {2 * V}, init::zeros);
    parameter("to_qk.0.weight", self.to_qk.weight, {K, D});
    parameter("to_qk.0.bias", self.to_qk.bias, {K}, init::zeros);
    const Prefixed of_scales(scaled, parameter), of_out(out, parameter);
    of_scales("gamma", self.gamma, {uses, K}, init::uniform(-1, 1));
    of_scales("beta", self.beta, {uses, K}, init::uniform(-1, 1));
    of_out("weight", self.to_out.weight, {D, V});
    of_out("bias", self.to_out.bias, {D}, init::zeros);
  }
};

/// A unit before it sees any token.
template <class Scalar, class Config, class Weights>
struct GatedUnit {
  Config c;
  Weights w;
  ComposedScore<Scalar> score;

  /// Pairs weigh activation((q · k) product_scale + bias bias_scale).
  GatedUnit(Config config, Weights weights, bool bidirectional, double product_scale,
            double bias_scale)
      : c(std::move(config)),
        w(std::move(weights)),
        score(make_score(c.bias(bidirectional), product_scale, bias_scale)) {}

  /// normed [T, D] = norm(x).
  void normalise(View<const Scalar, 2> x, View<Scalar, 2> normed, const Call& call) const {
    if (c.norm == UnitNorm::layer) {
      return layer_norm(x, w.norm, w.norm_bias, c.norm_eps, normed, call);
    }
    const double length = std::sqrt(static_cast<double>(c.d_model));
    copy(x, normed);
    clamped_l2_norm(normed, c.norm_eps * length, call);
    const auto scaled = [factor = w.norm(0) * static_cast<Scalar>(length)](auto value) {
      return value * factor;
    };
    elementwise(call, scaled, normed, normed);
  }

  /// hidden [T, 2, V] (values, gate) and qk [T, K] of normed [T, D].
  void project_inputs(View<const Scalar, 2> normed, View<Scalar, 3> hidden, View<Scalar, 2> qk,
                      const Call& call) const {
    project(normed, {{w.to_hidden, hidden}, {w.to_qk, qk}}, call);
    activate(Activation::silu, hidden, call), activate(Activation::silu, qk, call);
  }

  /// Each use u of qk [T, K]: uses [T, u, K] = qk ⊙ gamma_u + beta_u.
  void scale(View<const Scalar, 2> qk, View<Scalar, 3> uses, const Call& call) const {
    const auto scaled = [](auto value, auto by, auto more) { return simd::fma(value, by, more); };
    for (Index u = 0; u < uses.extent(axis::head); ++u) {
      elementwise(call, scaled, uses.at(axis::head, u), qk, by_channel(w.gamma.view()[u]),
                  by_channel(w.beta.view()[u]));
    }
  }

  /// y = W_out (o ⊙ gate), with x added where `residual`; o and gate [T, 1, V], spare [T, D].
  void project_outputs(View<const Scalar, 2> x, View<Scalar, 3> o, View<const Scalar, 3> gate,
                       bool residual, View<Scalar, 2> spare, View<Scalar, 2> y,
                       const Call& call) const {
    elementwise(
        call, [](auto value, auto by) { return value * by; }, o, o, gate);
    if (!residual) return project(o, {{w.to_out, y}}, call);
    project(o, {{w.to_out, spare}}, call);
    elementwise(
        call, [](auto a, auto b) { return a + b; }, y, x, spare);
  }

 private:
  ComposedScore<Scalar> make_score(const DistanceBiasConfig& bias, double product_scale,
                                   double bias_scale) const {
    using Score = ComposedScore<Scalar>;
    using Kind = PairWeight::Kind;
    const bool laplace = c.activation == UnitActivation::laplace;
    typename Score::Maps maps;
    make_distance_biases(bias, w.bias, 1, 1, 1, [&]<class B>(B numbers) {
      maps.push_back(Score::map(OwnedBiases<B>{std::move(numbers)}));
    });
    maps.push_back(
        Score::map(PairWeight{laplace ? Kind::laplace : Kind::relu_squared, 0, bias_scale}));
    return {product_scale / bias_scale, std::move(maps)};
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
