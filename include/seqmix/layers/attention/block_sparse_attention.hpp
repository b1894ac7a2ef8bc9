#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/selection.hpp"
#include "seqmix/kernels/attention/strided.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/detail/check_table.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct BlockSparseAttentionConfig {
  static constexpr bool causal = true;

  Index d_model = 0;
  std::string pattern = "dense";  // of the heads in turn: names of `SparsePattern`, comma-separated
  HeadsConfig heads = {};
  PositionsConfig positions = {};
  DistanceBiasConfig bias = {};
  ScoresConfig scores = {};
  MergeConfig merge = {};
  Index block = 64;           // tokens of a block of fixed, big_bird, stripes and layout
  Index span = 128;           // window of local, stride of strided, segment of row and fixed
  Index prefix = 0;           // local: first keys that every query sees besides (Longformer)
  Index n_verticals = 1;      // fixed: head h keeps group h mod n_verticals of each segment,
  Index vertical_blocks = 1;  // groups of so many blocks counted from its end
  Index n_global = 1;         // big_bird: first blocks that all see
  Index n_local = 3;          // big_bird and stripes: last blocks, the query's own among them
  Index stripe_stride = 4;    // stripes: blocks from one that all later queries see to the next
  Index stripe_step = 0;      // stripes: what a key head's lie before those of the last one; 0:
                              // stripe_stride / heads.n_heads, at least 1
  Index stripe_offset = 0;    // stripes: what all lie before multiples of stripe_stride
  Index n_random = 0;         // big_bird: draws among the blocks up to the query's own
  Index seed = 0;             // big_bird: of the draws
  Index layout_heads = 0;     // layout: tables, heads.n_heads or 1 for all heads
  Index layout_blocks = 0;    // layout: blocks that the tables cover; no stream is longer

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("heads", self.heads);
    field("positions", self.positions), field("bias", self.bias);
    field("scores", self.scores), field("merge", self.merge);
    const bool local = self.has(SparsePattern::local), fixed = self.has(SparsePattern::fixed);
    const bool big_bird = self.has(SparsePattern::big_bird);
    const bool stripes = self.has(SparsePattern::stripes);
    const auto of_blocks =
        only_where(fixed || big_bird || stripes || self.has(SparsePattern::layout),
                   "a pattern is fixed, big_bird, stripes or layout");
    const auto of_spans = only_where(
        local || fixed || self.has(SparsePattern::strided) || self.has(SparsePattern::row),
        "a pattern is local, strided, row or fixed");
    const auto of_stripes = only_where(stripes, "a pattern is stripes");
    const auto of_local = only_where(local, "a pattern is local");
    const auto of_fixed = only_where(fixed, "a pattern is fixed");
    const auto of_big_bird = only_where(big_bird, "a pattern is big_bird");
    const auto of_draws = only_where(big_bird && self.n_random > 0, "n_random is positive");
    field("pattern", self.pattern), field("block", self.block, of_blocks);
    field("span", self.span, of_spans), field("prefix", self.prefix, zero_is_legal, of_local);
    field("n_verticals", self.n_verticals, of_fixed);
    field("vertical_blocks", self.vertical_blocks, of_fixed);
    field("n_global", self.n_global, zero_is_legal, of_big_bird);
    field("n_local", self.n_local,
          only_where(big_bird || stripes, "a pattern is big_bird or stripes"));
    field("stripe_stride", self.stripe_stride, of_stripes);
    field("stripe_step", self.stripe_step, zero_is_legal, of_stripes);
    field("stripe_offset", self.stripe_offset, zero_is_legal, of_stripes);
    field("n_random", self.n_random, zero_is_legal, of_big_bird);
    field("seed", self.seed, zero_is_legal, unbounded, of_draws);
    field("layout_heads", self.layout_heads, zero_is_legal);
    field("layout_blocks", self.layout_blocks, zero_is_legal);
  }
  void check() const {
    check_parts();
    positions.rope_scaling.check_fixed();
  }
  /// What a bidirectional layer asks for, too.
  void check_parts() const {
    positions.check_fits(heads.head_dim);
    merge.check_fits(heads.n_heads);
    const AttentionDemands demands{heads, scores, positions, bias};
    demands.xpos.needs("dense attention"), demands.remap.needs("dense attention");
    if (has(SparsePattern::strided)) demands.biases.needs("a pattern that is not strided");
    demands.check();
    require(std::ssize(sparse_patterns(pattern)) <= heads.n_heads,
            "pattern must not have more names than there are heads, heads.n_heads");
    if (has(SparsePattern::fixed)) {
      require(span % block == 0, "span must be a multiple of block where a pattern is fixed");
      require(n_verticals * vertical_blocks <= span / block,
              "n_verticals groups of vertical_blocks blocks must fit in span");
    }
    const bool table = has(SparsePattern::layout);
    require(table == (layout_heads > 0) && table == (layout_blocks > 0),
            "layout_heads and layout_blocks must be positive where a pattern is layout, else 0");
    require(!table || layout_heads == 1 || layout_heads == heads.n_heads,
            "layout_heads must be 1 or heads.n_heads");
  }
  /// No name of a pattern is a part of another.
  bool has(SparsePattern wanted) const {
    return pattern.find(to_string(wanted)) != std::string::npos;
  }
};

template <class S>
struct BlockSparseAttentionWeights : AttentionWeights<S> {
  Parameter<Index, 3> layout;  // [layout_heads, n, n], 0 or 1

  /// `c` says whether it is causal.
  static void visit(auto& self, const auto& c, auto&& parameter) {
    AttentionWeights<S>::visit(self, c, parameter);
    if (c.layout_heads == 0) return;
    parameter("layout", self.layout, {c.layout_heads, c.layout_blocks, c.layout_blocks},
              c.causal ? init::causal_blocks : init::choices(2));
  }
};

/// What block-sparse attention is before it sees any token.
template <class S, class Config>
struct BlockSparseAttentionParts : AttentionParts<S, Config, BlockSparseAttentionWeights<S>> {
  using Weights = BlockSparseAttentionWeights<S>;
  using Parts = AttentionParts<S, Config, Weights>;
  using Parts::c;
  using Parts::w;
  SparsePatterns patterns;

  BlockSparseAttentionParts(std::string_view name, Config config, Weights weights)
      : Parts(std::move(config), std::move(weights)),
        patterns{.of_heads = sparse_patterns(c.pattern),
                 .block = c.block,
                 .span = c.span,
                 .prefix = c.prefix,
                 .n_verticals = c.n_verticals,
                 .vertical_blocks = c.vertical_blocks,
                 .n_global = c.n_global,
                 .n_local = c.n_local,
                 .n_random = c.n_random,
                 .seed = c.seed,
                 .layout = w.layout,
                 .stripe_stride = c.stripe_stride,
                 .stripe_step = c.stripe_step > 0
                                    ? c.stripe_step
                                    : std::max<Index>(c.stripe_stride / c.heads.n_heads, 1),
                 .stripe_offset = c.stripe_offset,
                 .heads_per_group = c.heads.n_heads / c.heads.n_kv_heads,
                 .causal = c.causal} {
    check_table(name, "layout", w.layout, [](Index i, Index j, Index seen) {
      if (Config::causal && j > i && seen != 0) return "0: a block sees no later one";
      return seen == 0 || seen == 1 ? "" : "0 or 1";
    });
  }

  PositionLimit position_limit() const {
    const PositionLimit parts = Parts::position_limit();
    if (c.layout_blocks == 0) return parts;
    return std::min(parts, PositionLimit{c.layout_blocks * c.block, "layout_blocks * block"});
  }
};

/// Causal softmax attention in which each head sees a part of the past, chosen by position alone.
/// All else is `attention`'s.
///
///   o_t = Σ_{j in A_h(t)} softmax_j(s_tj) v_j,    A_h(t) a subset of {0 ... t}: `SparsePattern`
///
/// A pattern of blocks costs what the blocks cost that it sees: the others are never visited. Of a
/// layout, query block i of head h sees key block j <= i where layout[h, i, j] is 1. big_bird is
/// the causal part of BigBird's plan with draws that depend on seed, head and block alone, so that
/// they do not change as the stream grows; `big_bird_attention` is the published layer. Half of the
/// heads with row, half with strided are both axes of a picture of rows of `span` tokens.
///
/// forward: O(T D² + Σ |A_h(t)| K); step: O(D² + t + Σ |A_h| K). State: 2 t G K numbers a stream.
/// Source: Child et al. 2019, arXiv:1904.10509, section 4.2-4.3, attention.py of
/// openai/sparse_attention (its names: span local_attn_ctx, n_verticals num_verts, vertical_blocks
/// vertsize); Beltagy et al. 2020, arXiv:2004.05150, section 3.1 (local with a prefix); Zaheer et
/// al. 2020, arXiv:2007.14062, section 2; Lin et al. 2024, arXiv:2407.17678, linxihui/dkernel
/// (stripes; its names: n_local local_blocks, stripe_stride vert_stride, stripe_step
/// head_sliding_step); Ho et al. 2019, arXiv:1912.12180 (row, strided); HF transformers
/// LlamaAttention.
template <class S>
struct BlockSparseAttentionDefinition : BlockSparseAttentionParts<S, BlockSparseAttentionConfig> {
  using Scalar = S;
  using Config = BlockSparseAttentionConfig;
  using Weights = BlockSparseAttentionWeights<S>;
  using Side = GivenPositions;
  using Parts = BlockSparseAttentionParts<S, Config>;
  static constexpr Traits traits{
      .name = "block_sparse_attention",
      .title = "Block-sparse attention (Sparse Transformer, causal BigBird, layouts)",
      .paper = "Child 2019, arXiv:1904.10509; Zaheer 2020, arXiv:2007.14062",
      .forward = "O(T D² + Σ |A| K)",
      .step = "O(D² + t + Σ |A| K)",
      .state = "2 t G K",
      .has_position_limit = true};

  struct State {
    Position position;              // [B]
    Appended<Scalar, 4, 2> keys;    // [B, G, capacity, K], rotated
    Appended<Scalar, 4, 2> values;  // [B, G, capacity, V]
    Tensor<Scalar, 3> conv;         // [B, W - 1, channels], last inputs of short convolutions

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("keys", self.keys), tensor("values", self.values);
      if (self.conv.extent(1) > 0) tensor("conv", self.conv);
    }
  };

  using Parts::c;
  using Parts::patterns;
  using Parts::position_limit;
  using Parts::score;
  using Parts::w;

  BlockSparseAttentionDefinition(Config config, Weights weights)
      : Parts(traits.name, std::move(config), std::move(weights)) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    position_limit().check(traits.name, 0, capacity);
    const HeadsConfig& heads = c.heads;
    const Storage storage = memory.caches();
    return {.position = {batch, memory},
            .keys = {{batch, heads.key_heads(), capacity, heads.head_dim}, memory, storage},
            .values = {{batch, heads.value_heads(), capacity, heads.head_v()}, memory, storage},
            .conv = {this->history_shape(batch), memory}};
  }

  void run(View<const Scalar, 2> x, State& state, const Side& side, View<Scalar, 2> y,
           const Call& call) const {
    const View<const Index, 1> past = state.position.tokens;
    const AnyScore<Scalar> scores(score);
    const auto attend_heads = [&](const auto& q, const auto& k, const auto& v, const auto& o) {
      this->place(q, k, {past, side.positions}, call);
      append<Scalar>(k, past, state.keys.view(), call);
      append<Scalar>(v, past, state.values.view(), call);
      const auto keys = state.keys.view(), values = state.values.view();
      attention(q, keys, values, past, SparseMask{patterns}, scores, o, call);
      strided_attention(q, keys, values, past, patterns, scores, o, call);
    };
    this->run_heads(x, state.conv.view(), y, call, attend_heads);
  }
};

template <class Scalar = float>
using BlockSparseAttention = Mixer<BlockSparseAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BlockSparseAttentionDefinition);

/// A bidirectional layer has the patterns that do not follow the order of tokens.
struct BidirectionalBlockSparseAttentionConfig : BlockSparseAttentionConfig {
  static constexpr bool causal = false;

  void check() const {
    AttentionDemands{heads, scores}.convolutions.needs("causal attention");
    check_parts();
    require(!has(SparsePattern::fixed) && !has(SparsePattern::big_bird),
            "patterns fixed and big_bird need causal attention");
    require(prefix == 0, "prefix needs causal attention");
    require(stripe_step == 0 && stripe_offset == 0,
            "stripe_step and stripe_offset need causal attention");
    require(scores.normaliser != Normaliser::stick_breaking,
            "scores.normaliser stick_breaking needs causal attention");
  }
};

/// `block_sparse_attention` of an encoder: tokens see those behind them, too. With a layout query
/// block i of head h sees key block j where layout[h, i, j] is 1, whichever comes first: that of a
/// permutation π has layout[h, i, π_h(i)] = 1 alone (BlockBERT).
///
///   o_t = Σ_{j in A_h(t)} softmax_j(s_tj) v_j,    A_h(t) a subset of all tokens: `SparsePattern`
///
/// It has `forward` alone: each output needs the whole sequence.
/// forward: O(T D² + Σ |A_h(t)| K). State: none.
/// Source: Qiu et al. 2019, arXiv:1911.02972, section 3.1 (layout); Ho et al. 2019,
/// arXiv:1912.12180, lucidrains/axial-attention (row, strided); Lin et al. 2024, arXiv:2407.17678,
/// linxihui/dkernel (stripes).
template <class S>
struct BidirectionalBlockSparseAttentionDefinition
    : BlockSparseAttentionParts<S, BidirectionalBlockSparseAttentionConfig> {
  using Scalar = S;
  using Config = BidirectionalBlockSparseAttentionConfig;
  using Weights = BlockSparseAttentionWeights<S>;
  using Side = GivenPositions;
  using Parts = BlockSparseAttentionParts<S, Config>;
  static constexpr Traits traits{
      .name = "bidirectional_block_sparse_attention",
      .title = "Bidirectional block-sparse attention (BlockBERT, axial, layouts)",
      .paper = "Qiu 2019, arXiv:1911.02972; Ho 2019, arXiv:1912.12180",
      .forward = "O(T D² + Σ |A| K)",
      .step = "none",
      .state = "none",
      .has_position_limit = true};

  using Parts::c;
  using Parts::patterns;
  using Parts::position_limit;
  using Parts::score;
  using Parts::w;

  BidirectionalBlockSparseAttentionDefinition(Config config, Weights weights)
      : Parts(traits.name, std::move(config), std::move(weights)) {}

  void run(View<const Scalar, 2> x, const Side& side, View<Scalar, 2> y, const Call& call) const {
    const AnyScore<Scalar> scores(score);
    const auto attend_heads = [&](const auto& q, const auto& k, const auto& v, const auto& o) {
      this->place(q, k, {{}, side.positions}, call);
      self_attention(q, k, v, SparseMask{patterns}, scores, o, call);
      strided_self_attention<Scalar>(q, k, v, patterns, scores, o, call);
    };
    this->run_heads(x, {}, y, call, attend_heads);
  }
};

template <class Scalar = float>
using BidirectionalBlockSparseAttention =
    Mixer<BidirectionalBlockSparseAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BidirectionalBlockSparseAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
