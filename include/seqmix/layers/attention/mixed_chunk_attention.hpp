#pragma once

#include <cmath>
#include <utility>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/block_masks.hpp"
#include "seqmix/kernels/attention/rings.hpp"
#include "seqmix/kernels/conv/token_shift.hpp"
#include "seqmix/kernels/memory/group_sums.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/layers/attention/detail/gated_unit.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct MixedChunkAttentionConfig : GatedUnitConfig {
  Index group = 256;          // g, tokens of a group
  bool token_shift = false;   // the first half of norm(x) is that of the token before
  Index rotary_dim = 0;       // first numbers of queries and keys that RoPE rotates; 0: none
  double rope_theta = 10000;  // base of the RoPE wavelengths

  static void visit(auto& self, auto&& field) {
    GatedUnitConfig::visit(self, field);
    field("group", self.group), field("token_shift", self.token_shift);
    field("rotary_dim", self.rotary_dim, zero_is_legal);
    field("rope_theta", self.rope_theta, is_positive,
          only_where(self.rotary_dim > 0, "rotary_dim is positive"));
  }
  void check() const { check_parts(false); }
  void check_parts(bool bidirectional) const {
    bias(bidirectional).check();
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    require(rotary_dim <= head_k, "rotary_dim must not exceed head_k");
  }
  Index shifted() const { return token_shift ? ceil_div(d_model, 2) : 0; }
};

template <class Scalar>
struct MixedChunkAttentionWeights : GatedUnitWeights<Scalar> {
  static void visit(auto& self, const GatedUnitConfig& c, auto&& parameter) {
    GatedUnitWeights<Scalar>::visit(self, c, 4, "qk_offset_scale", "to_out", parameter);
  }
};

template <class Scalar, class Config>
struct MixedChunkAttentionParts : GatedUnit<Scalar, Config, MixedChunkAttentionWeights<Scalar>> {
  using Weights = MixedChunkAttentionWeights<Scalar>;
  using Unit = GatedUnit<Scalar, Config, Weights>;
  using Unit::c;

  RotaryFrequencies frequencies;

  MixedChunkAttentionParts(Config config, Weights weights, bool bidirectional)
      : Unit(config, std::move(weights), bidirectional, 1 / static_cast<double>(config.group),
             std::sqrt(static_cast<double>(config.head_k))),
        frequencies(config.rotary_dim, config.rope_theta) {}

  /// `attend(q, k, v, o)` writes o [T, 1, V] of q, k [T, 1, K] and v [T, 1, V], what tokens see of
  /// their own group; `add(q, k, v, o)`, the same without the axis of heads, adds what they see by
  /// linear attention. `shift` [B, 1, shifted]: the last tokens before this call, or none.
  void run(View<const Scalar, 2> x, View<const Index, 1> past, View<Scalar, 3> shift,
           View<Scalar, 2> y, const Call& call, auto&& attend, auto&& add) const {
    const Index T = x.extent(axis::time), K = c.head_k, V = c.head_v;
    auto scratch = call.scratch<Scalar>();
    auto normed = scratch(T, c.d_model);  // [T, D]
    auto hidden = scratch(T, 2, V);       // [T, {v, gate}, V]
    auto qk = scratch(T, K);              // [T, K]
    auto uses = scratch(T, 4, K);         // [T, {q, linear q, k, linear k}, K]
    auto o = scratch(T, 1, V);            // [T, 1, V]

    this->normalise(x, normed, call);
    if (c.token_shift) {
      auto before = scratch(T, c.shifted());  // [T, shifted]
      const auto half = normed.slice(axis::channel, 0, c.shifted());
      shift_tokens(half, shift, before, call);
      copy(before, half);
    }
    this->project_inputs(normed, hidden, qk, call);
    this->scale(qk, uses, call);
    rope(uses, frequencies, past, RotaryLayout::interleaved, call);
    const auto one = [](const auto& view, Index i) { return view.slice(axis::head, i, 1); };
    const auto flat = [](const auto& view, Index i) { return view.at(axis::head, i); };
    attend(one(uses, 0), one(uses, 2), one(hidden, 0), o);
    add(flat(uses, 1), flat(uses, 3), flat(hidden, 0), flat(o, 0));
    this->project_outputs(x, o, one(hidden, 1), true, normed, y, call);
  }
};

/// Mixed chunk attention, FLASH's layer: the attention of GAU within groups of g tokens, and linear
/// attention to the groups before.
///
///   x̂ = norm(x),   (v, u) = silu(W_h x̂),   z = silu(W_z x̂)
///   q, q', k, k' = z ⊙ γ_i + β_i,  turned by position where rotary_dim is positive
///   o_t = Σ_{j <= t, in t's group} f(q_t · k_j / g + √K bias(t - j)) v_j
///         + q'_t Σ_{j in earlier groups} k'_jᵀ v_j / g,     f(s) = max(s, 0)² or Laplace's
///   y_t = x_t + W_o (u_t ⊙ o_t) + b_o
///
/// forward: O(T (D V + g (K + V) + K V)); step: O(D V + g (K + V) + K V). State: 2 K V accumulators
/// and the keys and values of g tokens a stream, with token_shift ⌈D / 2⌉ numbers more.
/// Source: Hua et al. 2022, arXiv:2202.10447, section 3.2; lucidrains/FLASH-pytorch FLASH, whose
/// group_size, shift_tokens and rotary_pos_emb these are.
template <class S>
struct MixedChunkAttentionDefinition : MixedChunkAttentionParts<S, MixedChunkAttentionConfig> {
  using Scalar = S;
  using Config = MixedChunkAttentionConfig;
  using Weights = MixedChunkAttentionWeights<Scalar>;
  static constexpr Traits traits{.name = "mixed_chunk_attention",
                                 .title = "Mixed chunk attention (FLASH)",
                                 .paper = "Hua 2022, arXiv:2202.10447",
                                 .forward = "O(T (D V + C (K + V) + K V))",
                                 .step = "O(D V + C (K + V) + K V)",
                                 .state = "2 K V + C (K + V)"};

  struct State {
    Position position;          // [B]
    Ring<Scalar, 4, 2> keys;    // [B, 1, g, K], of the open group
    Ring<Scalar, 4, 2> values;  // [B, 1, g, V]
    Tensor<Scalar, 3> memory;   // [B, K, V], of the groups that ended
    Tensor<Scalar, 3> open;     // [B, K, V], the sum of the open group
    Tensor<Scalar, 3> shift;    // [B, 1, ⌈D / 2⌉], only where tokens are shifted

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position);
      tensor("keys", self.keys), tensor("values", self.values);
      tensor("memory", self.memory), tensor("open", self.open);
      if (self.shift.extent(2) > 0) tensor("shift", self.shift);
    }
  };

  using Parts = MixedChunkAttentionParts<S, Config>;
  using Parts::c;
  using Parts::score;

  MixedChunkAttentionDefinition(Config config, Weights weights)
      : Parts(std::move(config), std::move(weights), false) {}

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    const Storage storage = memory.caches();
    return {.position = {batch, memory},
            .keys = {{batch, 1, c.group, c.head_k}, c.group, memory, storage},
            .values = {{batch, 1, c.group, c.head_v}, c.group, memory, storage},
            .memory = {{batch, c.head_k, c.head_v}, memory},
            .open = {{batch, c.head_k, c.head_v}, memory},
            .shift = {{batch, 1, c.shifted()}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const View<const Index, 1> past = state.position.tokens;
    const auto attend = [&](auto q, auto k, auto v, auto o) {
      ring_attention(q, k, v, past, Chunks{c.group}, AnyScore<Scalar>(score), state.keys.view(),
                     state.values.view(), o, call);
    };
    const auto add = [&](auto q, auto k, auto v, auto o) {
      add_earlier_groups(q, k, v, past, c.group, 1 / static_cast<double>(c.group),
                         state.memory.view(), state.open.view(), o, call);
    };
    Parts::run(x, past, state.shift.view(), y, call, attend, add);
  }
};

template <class Scalar = float>
using MixedChunkAttention = Mixer<MixedChunkAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(MixedChunkAttentionDefinition);

struct BidirectionalMixedChunkAttentionConfig : MixedChunkAttentionConfig {
  bool linear_by_group = false;  // linear attention, too, sees a token's own group alone

  static void visit(auto& self, auto&& field) {
    MixedChunkAttentionConfig::visit(self, field);
    field("linear_by_group", self.linear_by_group);
  }
  void check() const { check_parts(true); }
};

/// `mixed_chunk_attention` in both directions: attention sees all of a token's group, linear
/// attention all tokens, n of them:
///
///   o_t = Σ_{j in t's group} f(q_t · k_j / g + √K bias(t - j)) v_j + q'_t Σ_j k'_jᵀ v_j / n
///
/// with the j of t's group alone in the second sum, too, where linear_by_group is true: divided by
/// n, as published.
///
/// It has `forward` alone: each output needs the whole sequence.
/// forward: O(T (D V + g (K + V) + K V)). State: none.
/// Source: Hua et al. 2022, arXiv:2202.10447, section 3.2; lucidrains/FLASH-pytorch FLASH, without
/// `causal`; linear_by_group is its reduce_group_non_causal_attn, negated.
template <class S>
struct BidirectionalMixedChunkAttentionDefinition
    : MixedChunkAttentionParts<S, BidirectionalMixedChunkAttentionConfig> {
  using Scalar = S;
  using Config = BidirectionalMixedChunkAttentionConfig;
  using Weights = MixedChunkAttentionWeights<Scalar>;
  static constexpr Traits traits{.name = "bidirectional_mixed_chunk_attention",
                                 .title = "Bidirectional mixed chunk attention (FLASH)",
                                 .paper = "Hua 2022, arXiv:2202.10447",
                                 .forward = "O(T (D V + C (K + V) + K V))",
                                 .step = "none",
                                 .state = "none"};

  using Parts = MixedChunkAttentionParts<S, Config>;
  using Parts::c;
  using Parts::score;

  BidirectionalMixedChunkAttentionDefinition(Config config, Weights weights)
      : Parts(std::move(config), std::move(weights), true) {}

  void run(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call) const {
    const auto attend = [&](auto q, auto k, auto v, auto o) {
      self_attention(q, k, v, Chunks{.size = c.group, .causal = false}, AnyScore<Scalar>(score), o,
                     call);
    };
    const auto add = [&](auto q, auto k, auto v, auto o) {
      add_own_groups(q, k, v, c.linear_by_group ? c.group : 0, o, call);
    };
    Parts::run(x, {}, {}, y, call, attend, add);
  }
};

template <class Scalar = float>
using BidirectionalMixedChunkAttention = Mixer<BidirectionalMixedChunkAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BidirectionalMixedChunkAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
