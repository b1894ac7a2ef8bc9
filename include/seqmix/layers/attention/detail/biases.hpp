#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/kernels/positions/distance_biases.hpp"
#include "seqmix/layers/mixer.hpp"

// The biases by distance of a layer of softmax attention.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

enum class DistanceBiasKind {
  none,
  alibi,
  falcon_alibi,
  t5,
  relative,
  kerple_log,
  kerple_power,
  sandwich,
  fire,
  inverse_square,
  log_square
};
constexpr std::array<std::string_view, 11> names_of(DistanceBiasKind) {
  return {"none",     "alibi",          "falcon_alibi", "t5",
          "relative", "kerple_log",     "kerple_power", "sandwich",
          "fire",     "inverse_square", "log_square"};
}

/// What is added to scores by the distance of query and key, of each head.
///
///   alibi           -2^(-alibi_bias_max (h + 1) / H) |i - j|; BLOOM's and MPT's, too
///   falcon_alibi    the same in Falcon's bfloat16, before products are scaled
///   t5              a learned number for each of num_buckets wider and wider ranges of distances
///   relative        a learned number for each distance, those beyond max_distance as at it
///   kerple_log      -p_h ln(1 + a_h |i - j|)
///   kerple_power    -a_h |i - j|^p_h
///   sandwich        inner products of sinusoidal positions
///   fire            a network of the distance's logarithm over that of the query's position
///   inverse_square, log_square    -2 ln n and -ln² n of n = |i - j| + 1
///
/// Sources beside their formulas in kernels/positions/distance_biases.hpp.
struct DistanceBiasConfig {
  using Kind = DistanceBiasKind;
  static constexpr Index largest_table = Index{1} << 20;

  Kind kind = Kind::none;
  double alibi_bias_max = 8;
  Index num_buckets = 32;      // of both directions together
  bool bidirectional = false;  // keys behind the query have buckets of their own
  Index max_distance = 128;    // farther ones are as near as it
  Index sandwich_dim = 128;    // numbers of a sinusoidal position
  Index max_positions = 0;     // that sandwich can tell apart, tokens of a stream at most
  Index fire_width = 32;
  double fire_initial_length = 512;  // times L_multiplier: queries before are as if at it
  double fire_eps = 1e-6;

  static void visit(auto& self, auto&& field) {
    const auto of_alibi = only_where(self.kind == Kind::alibi, "kind is alibi");
    const auto of_t5 = only_where(self.kind == Kind::t5, "kind is t5");
    const auto of_tables =
        only_where(self.kind == Kind::t5 || self.kind == Kind::relative, "kind is t5 or relative");
    const auto of_sandwich = only_where(self.kind == Kind::sandwich, "kind is sandwich");
    const auto of_fire = only_where(self.kind == Kind::fire, "kind is fire");
    field("kind", self.kind, flat_key("alibi"));
    field("alibi_bias_max", self.alibi_bias_max, is_positive, of_alibi);
    field("num_buckets", self.num_buckets, of_t5);
    field("bidirectional", self.bidirectional, of_t5);
    field("max_distance", self.max_distance, of_tables);
    field("sandwich_dim", self.sandwich_dim, of_sandwich);
    field("max_positions", self.max_positions, zero_is_legal, of_sandwich);
    field("fire_width", self.fire_width, of_fire);
    field("fire_initial_length", self.fire_initial_length, is_positive, of_fire);
    field("fire_eps", self.fire_eps, is_positive, of_fire);
  }
  void check() const {
    const Index own = bidirectional ? num_buckets / 2 : num_buckets;
    require(kind != Kind::t5 || own >= 2, "num_buckets must be at least 2 a direction");
    require(kind != Kind::t5 || max_distance > own / 2,
            "max_distance must exceed half of the num_buckets of a direction");
    require(max_distance <= largest_table && max_positions <= largest_table,
            "max_distance and max_positions must not exceed 2^20");
    require(sandwich_dim % 2 == 0, "sandwich_dim must be even");
    require(kind != Kind::sandwich || max_positions > 0, "sandwich needs max_positions");
  }
};

template <class Scalar>
struct DistanceBiasWeights {
  Parameter<Scalar, 2> table;           // [num_buckets or 2 max_distance + 1, H]
  Parameter<Scalar, 3> bias_p, bias_a;  // [H, 1, 1], of KERPLE
  Parameter<Scalar, 2> hidden_weight;   // [W, 1], of FIRE, as those below
  Parameter<Scalar, 1> hidden_bias;     // [W]
  Parameter<Scalar, 2> out_weight;      // [H, W]
  Parameter<Scalar, 1> out_bias;        // [H]
  Parameter<Scalar, 1> c;               // [1]
  Parameter<Scalar, 1> length;          // [1]

  static void visit(auto& self, const DistanceBiasConfig& of, Index n_heads, auto&& parameter) {
    using Kind = DistanceBiasKind;
    if (of.kind == Kind::t5) {
      parameter("relative_attention_bias.weight", self.table, {of.num_buckets, n_heads},
                init::uniform(-1, 1));
    }
    if (of.kind == Kind::relative) {
      parameter("relative_position_bias_table", self.table, {2 * of.max_distance + 1, n_heads},
                init::uniform(-1, 1));
    }
    if (of.kind == Kind::kerple_log || of.kind == Kind::kerple_power) {
      parameter("bias_p", self.bias_p, {n_heads, 1, 1}, init::uniform(0, 2));
      parameter("bias_a", self.bias_a, {n_heads, 1, 1}, init::uniform(0, 1));
    }
    if (of.kind == Kind::fire) {
      parameter("mlp.0.weight", self.hidden_weight, {of.fire_width, 1});
      parameter("mlp.0.bias", self.hidden_bias, {of.fire_width}, init::uniform(-1, 1));
      parameter("mlp.2.weight", self.out_weight, {n_heads, of.fire_width});
      parameter("mlp.2.bias", self.out_bias, {n_heads}, init::zeros);
      parameter("c", self.c, {1}, init::uniform(0.05, 0.15));
      parameter("L_multiplier", self.length, {1}, init::uniform(0.5, 1.5));
    }
  }
};

/// Calls `body` with the biases of `n_heads` heads unless the kind is none. `score_scale` is that
/// of products; `distance` (of alibi alone) that of neighbours.
template <class S>
void make_distance_biases(const DistanceBiasConfig& of, const DistanceBiasWeights<S>& w,
                          Index n_heads, double score_scale, Index distance, auto&& body) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  // KERPLE's numbers are clamped where they are used.
  const auto clamped = [](const Parameter<S, 3>& numbers, double most) {
    std::vector<double> result;
    for (Index h = 0; h < numbers.extent(0); ++h) {
      result.push_back(std::clamp<double>(numbers(h, 0, 0), 1e-2, most));
    }
    return result;
  };
  switch (of.kind) {
    case DistanceBiasKind::none:
      return;
    case DistanceBiasKind::alibi: {
      std::vector<double> slopes = alibi_slopes(n_heads, of.alibi_bias_max);
      for (double& slope : slopes) slope *= static_cast<double>(distance);
      return body(LinearBiases(std::move(slopes)));
    }
    case DistanceBiasKind::falcon_alibi:
      return body(FalconBiases(alibi_slopes(n_heads), score_scale));
    case DistanceBiasKind::t5:
      return body(t5_biases<S>(w.table, of.bidirectional, of.max_distance));
    case DistanceBiasKind::relative:
      return body(relative_biases<S>(w.table));
    case DistanceBiasKind::kerple_log:
      return body(KerpleLogBiases(clamped(w.bias_p, infinity), clamped(w.bias_a, infinity)));
    case DistanceBiasKind::kerple_power:
      return body(KerplePowerBiases(clamped(w.bias_p, 2), clamped(w.bias_a, infinity)));
    case DistanceBiasKind::sandwich:
      return body(sandwich_biases<S>(n_heads, of.sandwich_dim, of.max_positions));
    case DistanceBiasKind::fire:
      return body(FireBiases<S>({.weight = w.hidden_weight.view().merge(axis::row),
                                 .bias = w.hidden_bias,
                                 .out_weight = w.out_weight,
                                 .out_bias = w.out_bias},
                                w.c(0), of.fire_initial_length * static_cast<double>(w.length(0)),
                                of.fire_eps));
    case DistanceBiasKind::inverse_square:
      return body(InverseSquareBiases{});
    case DistanceBiasKind::log_square:
      return body(LogSquareBiases{});
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
