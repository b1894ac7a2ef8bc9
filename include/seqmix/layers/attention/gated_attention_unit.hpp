#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/layers/attention/detail/gated_unit.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct GatedAttentionUnitConfig : GatedUnitConfig {
  Index normaliser_length = 0;  // n, tokens that scores are divided by
  bool residual = true;         // adds x to y

  static void visit(auto& self, auto&& field) {
    GatedUnitConfig::visit(self, field);
    field("normaliser_length", self.normaliser_length), field("residual", self.residual);
  }
  void check() const { bias(false).check(); }
};

template <class Scalar>
struct GatedAttentionUnitWeights : GatedUnitWeights<Scalar> {
  static void visit(auto& self, const GatedUnitConfig& c, auto&& parameter) {
    GatedUnitWeights<Scalar>::visit(self, c, 2, "offsetscale", "to_out.0", parameter);
  }
};

template <class Scalar, class Config>
struct GatedAttentionUnitParts : GatedUnit<Scalar, Config, GatedAttentionUnitWeights<Scalar>> {
  using Weights = GatedAttentionUnitWeights<Scalar>;

  GatedAttentionUnitParts(Config config, Weights weights, bool bidirectional)
      : GatedUnit<Scalar, Config, Weights>(
            config, std::move(weights), bidirectional, 1 / length(config),
            std::sqrt(static_cast<double>(config.d_model)) / length(config)) {}

  static double length(const Config& config) {
    return static_cast<double>(std::max<Index>(config.normaliser_length, 1));
  }

  /// `attend(q, k, v, o)` writes o [T, 1, V] of q, k [T, 1, K] and v [T, 1, V].
  void run(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call, auto&& attend) const {
    const Index T = x.extent(axis::time), K = this->c.head_k, V = this->c.head_v;
    auto scratch = call.scratch<Scalar>();
    auto normed = scratch(T, this->c.d_model);  // [T, D]
    auto hidden = scratch(T, 2, V);             // [T, {v, gate}, V]
    auto qk = scratch(T, K);                    // [T, K]
    auto uses = scratch(T, 2, K);               // [T, {q, k}, K]
    auto o = scratch(T, 1, V);                  // [T, 1, V]

    this->normalise(x, normed, call);
    this->project_inputs(normed, hidden, qk, call);
    this->scale(qk, uses, call);
    const auto one = [](const auto& view, Index i) { return view.slice(axis::head, i, 1); };
    attend(one(uses, 0), one(uses, 1), one(hidden, 0), o);
    this->project_outputs(x, o, one(hidden, 1), this->c.residual, normed, y, call);
  }
};

/// The gated attention unit (GAU): attention and gated linear unit in one, of one narrow head of
/// queries and keys and one wide head of values, without softmax.
///
///   x̂ = norm(x),   (v, u) = silu(W_h x̂),   z = silu(W_z x̂)
///   q, k = z ⊙ γ_1 + β_1, z ⊙ γ_2 + β_2
///   o_t = Σ_{j <= t} f((q_t · k_j + √D bias(t - j)) / n) v_j,   f(s) = max(s, 0)² or Laplace's
///   y_t = x_t + W_o (u_t ⊙ o_t) + b_o
///
/// n, `normaliser_length`, is the length of a call in the published code, whose outputs change with
/// what follows them: here it is a number, that of the sequences it was trained on.
///
/// forward: O(T D V + T² (K + V)); step: O(D V + t (K + V)). State: t (K + V) numbers a stream
/// after t tokens.
/// Source: Hua et al. 2022, arXiv:2202.10447, section 3, figure 3; lucidrains/FLASH-pytorch GAU.
template <class S>
struct GatedAttentionUnitDefinition : GatedAttentionUnitParts<S, GatedAttentionUnitConfig> {
  using Scalar = S;
  using Config = GatedAttentionUnitConfig;
  using Weights = GatedAttentionUnitWeights<Scalar>;
  static constexpr Traits traits{.name = "gated_attention_unit",
                                 .title = "Gated attention unit (GAU)",
                                 .paper = "Hua 2022, arXiv:2202.10447",
                                 .forward = "O(T D V + T² (K + V))",
                                 .step = "O(D V + t (K + V))",
                                 .state = "t (K + V)"};

  struct State {
    Position position;              // [B]
    Appended<Scalar, 4, 2> keys;    // [B, 1, capacity, K]
    Appended<Scalar, 4, 2> values;  // [B, 1, capacity, V]

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position);
      tensor("keys", self.keys), tensor("values", self.values);
    }
  };

  using Parts = GatedAttentionUnitParts<S, Config>;
  using Parts::c;
  using Parts::score;

  GatedAttentionUnitDefinition(Config config, Weights weights)
      : Parts(std::move(config), std::move(weights), false) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    const Storage storage = memory.caches();
    return {.position = {batch, memory},
            .keys = {{batch, 1, capacity, c.head_k}, memory, storage},
            .values = {{batch, 1, capacity, c.head_v}, memory, storage}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    Parts::run(x, y, call, [&](auto q, auto k, auto v, auto o) {
      const View<const Index, 1> past = state.position.tokens;
      append<Scalar>(k, past, state.keys.view(), call);
      append<Scalar>(v, past, state.values.view(), call);
      attention(q, state.keys.view(), state.values.view(), past, Causal{}, AnyScore<Scalar>(score),
                o, call);
    });
  }
};

template <class Scalar = float>
using GatedAttentionUnit = Mixer<GatedAttentionUnitDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(GatedAttentionUnitDefinition);

/// With a `normaliser_length` of 0 each sequence has its own length for n, as published.
struct BidirectionalGatedAttentionUnitConfig : GatedAttentionUnitConfig {
  static void visit(auto& self, auto&& field) {
    GatedUnitConfig::visit(self, field);
    field("normaliser_length", self.normaliser_length, zero_is_legal);
    field("residual", self.residual);
  }
  void check() const {
    bias(true).check();
    require(normaliser_length > 0 || activation == UnitActivation::relu_squared,
            "activation laplace needs a positive normaliser_length");
  }
};

/// `gated_attention_unit` in which tokens see the ones behind them, too; biases tell both
/// directions apart.
///
/// It has `forward` alone: each output needs the whole sequence.
/// forward: O(T D V + T² (K + V)). State: none.
/// Source: Hua et al. 2022, arXiv:2202.10447, section 3; lucidrains/FLASH-pytorch GAU, without
/// `causal`.
template <class S>
struct BidirectionalGatedAttentionUnitDefinition
    : GatedAttentionUnitParts<S, BidirectionalGatedAttentionUnitConfig> {
  using Scalar = S;
  using Config = BidirectionalGatedAttentionUnitConfig;
  using Weights = GatedAttentionUnitWeights<Scalar>;
  static constexpr Traits traits{.name = "bidirectional_gated_attention_unit",
                                 .title = "Bidirectional gated attention unit (GAU)",
                                 .paper = "Hua 2022, arXiv:2202.10447",
                                 .forward = "O(T D V + T² (K + V))",
                                 .step = "none",
                                 .state = "none"};

  using Parts = GatedAttentionUnitParts<S, Config>;
  using Parts::c;
  using Parts::score;

  BidirectionalGatedAttentionUnitDefinition(Config config, Weights weights)
      : Parts(std::move(config), std::move(weights), true) {}

  void run(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call) const {
    Parts::run(x, y, call, [&](auto q, auto k, auto v, auto o) {
      self_attention(q, k, v, Band::everything(), AnyScore<Scalar>(score), o, call);
      if (c.normaliser_length > 0) return;
      for (const Segment& segment : call.segments()) {  // max(s / n, 0)² = max(s, 0)² / n²
        const auto of_segment = o.slice(axis::time, segment.first, segment.count);
        const auto n = static_cast<Scalar>(segment.count);
        elementwise(
            call, [n](auto sum) { return sum / (n * n); }, of_segment, of_segment);
      }
    });
  }
};

template <class Scalar = float>
using BidirectionalGatedAttentionUnit = Mixer<BidirectionalGatedAttentionUnitDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BidirectionalGatedAttentionUnitDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
