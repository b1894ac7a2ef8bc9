#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/attention/adaptive_biases.hpp"
#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/block_masks.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/contextual_positions.hpp"
#include "seqmix/kernels/attention/forget_gates.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/relative_products.hpp"
#include "seqmix/kernels/attention/rings.hpp"
#include "seqmix/kernels/attention/xpos.hpp"
#include "seqmix/layers/attention/detail/biases.hpp"
#include "seqmix/layers/attention/detail/content_biases.hpp"
#include "seqmix/layers/attention/detail/heads.hpp"
#include "seqmix/layers/attention/detail/merge.hpp"
#include "seqmix/layers/attention/detail/positions.hpp"
#include "seqmix/layers/attention/detail/scores.hpp"
#include "seqmix/layers/attention/detail/sees.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What stays of the past: all of it, up to a capacity, or a ring of what a window can see.
struct StoreConfig {
  Index max_rollback = 0;  // tokens that a ring can take back

  static void visit(auto& self, auto&& field) {
    field("max_rollback", self.max_rollback, zero_is_legal);
  }
};

/// What the parts of attention demand of each other. A layer may lack some of them.
struct AttentionDemands {
  HeadsConfig heads;
  ScoresConfig scores;
  PositionsConfig positions = {};
  DistanceBiasConfig bias = {};
  SeesConfig sees = {};
  StoreConfig store = {};
  ContentBiasConfig content = {};

  bool commutes =
      heads.qk_norm_weight == QkNormWeight::none && heads.qk_norm_kind != QkNormKind::layer;
  Demand late_norm{heads.qk_norm_rotated, "heads.qk_norm_rotated",
                   "rotations last: heads.qk_norm_rotated false"};
  Demand fixed_norm{heads.qk_norm_rotated && !commutes, "heads.qk_norm_rotated",
                    "rotations last, or a norm that they commute with: heads.qk_norm_weight none, "
                    "heads.qk_norm_kind rms or l2"};
  Demand normaliser{scores.normaliser != Normaliser::softmax, "scores.normaliser",
                    "scores.normaliser softmax"};
  Demand ordered_normaliser{
      scores.normaliser == Normaliser::stick_breaking || scores.normaliser == Normaliser::geometric,
      "scores.normaliser stick_breaking or geometric"};
  Demand temperature{scores.temperature != Temperature::none, "scores.temperature"};
  Demand given{positions.given > 0, "positions.given", "positions.given to be 0"};
  Demand xpos{positions.rope_xpos > 0, "positions.rope_xpos"};
  Demand remap{positions.remap.kind != Remap::none, "positions.remap", "positions.remap none"};
  Demand remap_of_all{remap.made && positions.remap.kind != Remap::lm_infinite,
                      "positions.remap other than lm_infinite"};
  Demand turned_chunks{positions.remap.kind == Remap::rpe_3d, "positions.remap rpe_3d"};
  Demand biases{bias.kind != DistanceBiasKind::none, "bias.kind", "bias.kind none"};
  Demand uneven_biases{biases.made && bias.kind != DistanceBiasKind::alibi, "bias.kind",
                       "bias.kind none or alibi"};
  Demand contents{content.kind != ContentBiasKind::none, "content.kind", "content.kind none"};
  Demand fixed_contents{contents.made && content.kind != ContentBiasKind::forget_gate,
                        "content.kind", "content.kind none or forget_gate"};
  Demand cope{content.kind == ContentBiasKind::cope, "content.kind cope"};
  Demand cape{content.kind == ContentBiasKind::cape, "content.kind cape"};
  Demand forget_gate{content.kind == ContentBiasKind::forget_gate, "content.kind forget_gate"};
  Demand distance_contents{content.by_distance(), "content.kind transformer_xl or deberta"};
  Demand cap{scores.soft_cap > 0, "scores.soft_cap", "scores.soft_cap to be 0"};
  Demand pair_weights{scores.weighs_pairs(), "scores.normaliser",
                      "a scores.normaliser other than sigmoid, relu and relu_squared"};
  Demand divisor{scores.score_divisor != 1, "scores.score_divisor", "scores.score_divisor to be 1"};
  Demand uneven_heads{heads.n_key_heads + heads.n_value_heads > 0,
                      "heads.n_key_heads and heads.n_value_heads",
                      "heads.n_key_heads and heads.n_value_heads to be 0"};
  Demand bound{sees.is_bounded(), "sees",
               "all of the past: no sees.window, sees.windows, sees.chunk or sees.segments"};
  Demand dilation{sees.dilation > 1, "sees.dilation"};
  Demand segments{!sees.segments.empty(), "sees.segments"};
  Demand heads_apart{!sees.windows.empty() || sees.chunk_shift > 0,
                     "sees.windows or sees.chunk_shift", "heads that see the same keys"};
  Demand sinks{sees.n_sinks > 0, "sees.n_sinks", "sees.n_sinks to be 0"};
  Demand moved_sinks{sinks.made && !sees.sinks_in_place,
                     "sees.n_sinks without sees.sinks_in_place"};
  Demand convolutions{heads.conv.kernel > 0, "heads.conv_kernel", "heads.conv_kernel to be 0"};
  Demand rollback{store.max_rollback > 0, "store.max_rollback"};

  void check() const {
    sinks.excludes({normaliser, contents}), moved_sinks.excludes({biases, given, fixed_norm});
    segments.excludes({normaliser, biases, contents, uneven_heads});
    rollback.excludes({sinks, convolutions});
    dilation.excludes({uneven_biases, contents});
    biases.excludes({given, remap});
    distance_contents.excludes({given});
    cope.excludes({biases, cap, pair_weights, divisor});
    cape.excludes({cap, pair_weights, divisor, heads_apart});
    if (!biases.made) cape.needs("a bias.kind that it adapts");
    xpos.excludes({bound, normaliser, contents});
    remap.excludes({normaliser, fixed_contents});
    remap_of_all.excludes({bound});
    turned_chunks.excludes({late_norm});
  }
};

/// Attention is made of parts: heads, positions, the keys that a query sees, scores, a store of the
/// past, and how heads become one. A flat file, which names no part, has the fields of all of them
/// side by side.
struct AttentionConfig {
  static constexpr bool causal = true;
  Index d_model = 0;
  HeadsConfig heads = {};
  PositionsConfig positions = {};
  DistanceBiasConfig bias = {};
  ContentBiasConfig content = {};
  SeesConfig sees = {};
  ScoresConfig scores = {};
  StoreConfig store = {};
  MergeConfig merge = {};

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model);
    field("heads", self.heads), field("positions", self.positions), field("bias", self.bias);
    field("content", self.content);
    field("sees", self.sees), field("scores", self.scores), field("store", self.store);
    field("merge", self.merge);
  }
  void check() const {
    check_parts();
    require(store.max_rollback == 0 || reach() > 0,
            "store.max_rollback needs a bound on what is seen, sees.window, sees.windows, "
            "sees.chunk or sees.segments, or positions.remap_window");
    require(reach() + store.max_rollback <= largest_size,
            "the tokens that sees.window, sees.windows, sees.dilation, sees.chunk, "
            "sees.chunks_back, sees.segments, positions.remap_window and store.max_rollback keep "
            "must not exceed 2^30");
    require(
        sees.segments.empty() || (sees.ring_step() <= largest_size && ring_rows() <= largest_size),
        "the rows that sees.segments and store.max_rollback keep, a multiple of each of "
        "sees.segment_dilations, must not exceed 2^30");
    positions.rope_scaling.check_fixed();
    require(positions.remap.kind != Remap::lm_infinite ||
                (sees.window > 0 && sees.n_sinks > 0 && !sees.sinks_in_place),
            "positions.remap lm_infinite needs sees.window, sees.n_sinks and sees.sinks_in_place "
            "false");
    for (const Demand& one : {Demand{sees.prefix > 0, "sees.prefix"},
                              Demand{sees.chunks_ahead > 0, "sees.chunks_ahead"},
                              Demand{sees.all_chunks_back, "sees.all_chunks_back"},
                              Demand{sees.key_mask, "sees.key_mask"},
                              Demand{content.kind == ContentBiasKind::deberta && content.key_term,
                                     "content.key_term"}}) {
      one.needs("bidirectional attention");
    }
  }
  /// What a bidirectional layer asks for, too.
  void check_parts() const {
    positions.check_fits(heads.head_dim);
    require(content.kind != ContentBiasKind::transformer_xl || d_model % 2 == 0,
            "content.kind transformer_xl needs an even d_model");
    require(!content.shared_projections || heads.key_heads() == heads.n_heads,
            "content.shared_projections needs a key head for each of heads.n_heads");
    merge.check_fits(heads.n_heads);
    require(sees.windows.empty() || heads.n_heads % std::ssize(sees.windows) == 0,
            "sees.windows needs a size for each equal share of heads.n_heads");
    require(sees.chunk_shift == 0 || heads.n_heads % 2 == 0,
            "sees.chunk_shift needs an even number of heads, heads.n_heads");
    demands().check();
  }
  AttentionDemands demands() const {
    return {heads, scores, positions, bias, sees, store, content};
  }
  /// Positions from a query back to the last key of a ring that it may see; 0: there is no ring.
  Index reach() const { return sees.is_bounded() ? sees.reach() : positions.remap.window; }
  Index ring_rows() const { return round_up(reach() + store.max_rollback, sees.ring_step()); }
};

template <class Scalar>
struct AttentionWeights : HeadsWeights<Scalar>, ScoresWeights<Scalar>, MergeWeights<Scalar> {
  DistanceBiasWeights<Scalar> bias;
  ContentBiasWeights<Scalar> content;

  /// `c` has the parts that have weights.
  static void visit(auto& self, const auto& c, auto&& parameter) {
    HeadsWeights<Scalar>::visit(self, c.heads, c.merge.heads_of(c.heads.n_heads), c.d_model,
                                c.d_model, parameter);
    ScoresWeights<Scalar>::visit(self, c.scores, c.heads.n_heads, parameter);
    DistanceBiasWeights<Scalar>::visit(self.bias, c.bias, c.heads.n_heads,
                                       Prefixed("bias", parameter));
    MergeWeights<Scalar>::visit(self, c.merge, c.heads.head_dim, c.heads.head_v(), parameter);
    if constexpr (requires { c.content; }) {
      ContentBiasWeights<Scalar>::visit(self.content, c.content, c.heads, c.d_model,
                                        Prefixed("content", parameter));
    }
  }
};

/// What the layers of softmax attention are before they see any token. A config has heads,
/// positions, bias, scores and merge, and may have content.
template <class Scalar, class Config, class Weights = AttentionWeights<Scalar>>
struct AttentionParts {
  Config c;
  Weights w;
  Rotation rotate;
  XPosDecay decay;
  ComposedScore<Scalar> score;
  Scalar lambda;              // of the second map where one is the difference of two
  Parameter<Scalar, 2> taps;  // [W, channels], of short convolutions
  DistanceTerms<Scalar> by_distance;

  /// `distance`: between neighbours in the eyes of the scores.
  AttentionParts(Config config, Weights weights, Index distance = 1)
      : c(std::move(config)),
        w(std::move(weights)),
        rotate(c.positions),
        decay(c.positions.decay()),
        score(make_score<Scalar>(c.scores, w, c.bias, w.bias, content(), c.heads, distance)),
        lambda(difference_lambda(c.merge, w)),
        taps(w.conv.taps()) {
    if constexpr (requires { c.content; }) {
      by_distance = {c.content, w.content, c.heads, w, score.scale({}), c.d_model, !Config::causal};
    }
  }

  PositionLimit position_limit() const {
    if (c.bias.kind != DistanceBiasKind::sandwich) return {};
    return {c.bias.max_positions, "bias.max_positions"};
  }

  /// [B, W - 1, channels]: what a state remembers for short convolutions.
  Shape<3> history_shape(Index batch) const {
    const HeadsConfig& heads = c.heads;
    const Index width = heads.query_width() + heads.key_width() + heads.value_width();
    return {batch, heads.conv.past(), heads.conv.kernel > 0 ? width : 0};
  }

  /// y of what `attend(q, k, v, o)` makes of the heads of x, which have no position yet. `history`:
  /// of short convolutions.
  void run_heads(View<const Scalar, 2> x, Out<Scalar, 3> history, View<Scalar, 2> y,
                 const Call& call, auto&& attend) const {
    const Index T = x.extent(axis::time), K = c.heads.head_dim, V = c.heads.head_v();
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.heads.n_heads, K);        // [T, H, K]
    auto k = scratch(T, c.heads.key_heads(), K);    // [T, G, K]
    auto v = scratch(T, c.heads.value_heads(), V);  // [T, G, V]
    auto o = scratch(T, c.heads.n_heads, V);        // [T, H, V]
    project_queries<Scalar>(c.heads, w, x, q, call);
    project_keys<Scalar>(c.heads, w, x, k, v, call);
    convolve_heads<Scalar>(c.heads.conv, w.conv, taps, history, q, k, v, call);
    finish_queries<Scalar>(c.heads, w, q, call), finish_keys<Scalar>(c.heads, w, k, v, call);
    attend(q, k, v, o);
    call.trace("o", o);
    project_outputs<Scalar>(c.heads, w, x, merge_heads<Scalar>(c.merge, w, lambda, o, call), y,
                            call);
  }

  /// Turns queries and keys to where their tokens are.
  void place(View<Scalar, 3> q, View<Scalar, 3> k, const TokenPlaces& at, const Call& call) const {
    place_queries(q, at, call), place_keys(k, at, call);
  }
  /// Calls `body` with what queries and keys, which are at their places, add to the scores of
  /// their pairs, or with `other` where that is nothing.
  void with_content(View<Scalar, 3> q, View<const Scalar, 3> k, const PairTerm<Scalar>* other,
                    const Call& call, auto&& body) const {
    if (content().kind == ContentBiasKind::cope) {
      auto scratch = call.scratch<Scalar>();
      auto logits = scratch(q.extent(axis::time), q.extent(axis::head), content().n_positions);
      project(q.merge(axis::time), {{w.content.pos_emb, logits.merge(axis::time)}}, call);
      const ContextualPositions<Scalar> term(logits);
      return body(&term);
    }
    if (content().kind == ContentBiasKind::cape) {
      const AdaptiveBiases<Scalar> term(score, {w.content.hidden_weight, w.content.hidden_bias,
                                                w.content.out_weight, w.content.out_bias});
      return body(&term);
    }
    if (!content().by_distance()) return body(other);
    const RelativeProducts<Scalar> term(q, w.content.r_r_bias, by_distance.for_queries, k,
                                        c.heads.n_kv_heads, by_distance.for_keys, call);
    if (w.content.r_w_bias) {
      const auto numbers = w.content.r_w_bias.view().merge(axis::row);
      elementwise(call, std::plus(), q.merge(axis::head), q.merge(axis::head), by_channel(numbers));
    }
    body(&term);
  }

  /// Turns queries [T, H, K] to where `rule` says and sharpens them as the scores say.
  void place_queries(View<Scalar, 3> q, const TokenPlaces& at, const Call& call,
                     const PositionRule& rule = {}) const {
    rotate(q, at, call, rule);
    if (c.heads.qk_norm_rotated) normalise_heads(c.heads, q, w.q_norm, w.q_norm_bias, call);
    sharpen_queries<Scalar>(c.scores, w, q, at.past, call);
  }
  void place_keys(View<Scalar, 3> k, const TokenPlaces& at, const Call& call,
                  const PositionRule& rule = {}) const {
    rotate(k, at, call, rule);
    if (c.heads.qk_norm_rotated) normalise_heads(c.heads, k, w.k_norm, w.k_norm_bias, call);
  }

 private:
  ContentBiasConfig content() const {
    if constexpr (requires { c.content; }) {
      return c.content;
    } else {
      return {};
    }
  }
};

/// Causal attention with grouped key/value heads, made of parts: see `HeadsConfig`,
/// `PositionsConfig`, `DistanceBiasConfig`, `ContentBiasConfig`, `SeesConfig`, `ScoresConfig` and
/// `StoreConfig`.
///
///   q_t, k_t, v_t of x_t in heads, q and k turned by position (RoPE)
///   s_tj of `ScoresConfig`; with rope_xpos what the pairs of q_t · k_j add, each times
///         ζ_n^((t - j) / rope_xpos)
///   o_t = Σ_j p_tj v_j,  weights p_t = softmax(s_t) or those of another `Normaliser`, over the
///         keys j <= t that the query sees: all; or j = t, t - dilation, ...,
///         t - (window - 1) dilation; or j / chunk >= t / chunk - chunks_back; or what else
///         `SeesConfig` leaves; head h reads head h / (H / G), of key heads and of value heads each
///         modulo their number
///   y_t = W_o o_t,  or of the differences of pairs of heads: `MergeConfig`
///
/// Where a window ends the past, the memory does not grow with the stream. With n_sinks = n > 0 the
/// first n tokens stay visible, and RoPE sees slots in place of positions (StreamingLLM): once
/// n + window tokens are there, the sinks stand right before the window. A window of keys that move
/// together with their query looks the same from everywhere, so that keys keep the rotation of
/// their position, and it is the query that is rotated a second time, to min(t, n + window - 1),
/// for the sinks alone; sinks_in_place leaves them where they are. A state with sinks cannot be
/// rewound.
///
/// Where positions are remapped, the keys of one softmax lie in bands, for each of which queries
/// are turned once more. Keys are not: self_extend keeps them as far ones, and beside them a ring
/// of those within its window as near ones; dual_chunk and rpe_3d keep them as their chunk sees
/// them; lm_infinite keeps the first ones as they are.
///
/// Forget gates add a logarithm of each token and head to the state.
///
/// forward: O(T D² + T² H K); step: O(D² + t H K). State: 2 t G K numbers a stream after t tokens.
/// With a window W: T W and W in place of T² and t, and a ring of (W - 1) dilation + 1 +
/// max_rollback tokens and the sinks; self_extend has its ring beside all tokens. Rows of rings are
/// a multiple of dilations, with segments of the least number that all of them divide. Short
/// convolutions add their last inputs. Biases by content cost T² H K more a term, adapted ones
/// T² H mlp_width.
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, arXiv:2305.13245;
/// Su et al. 2021, arXiv:2104.09864, eq. 34; Jiang et al. 2023, arXiv:2310.06825, section 2 (window
/// counts the query's own key); Xiao et al. 2023, arXiv:2309.17453, section 3.2, pos_shift of
/// mit-han-lab/streaming-llm; Beltagy et al. 2020, arXiv:2004.05150, figure 2c (dilation); HF
/// transformers LlamaAttention, Qwen3Attention, Olmo2Attention, Gemma2Attention, MptAttention,
/// MistralAttention, GptOssAttention, CohereAttention, Llama4TextAttention.
template <class S>
struct AttentionDefinition : AttentionParts<S, AttentionConfig> {
  using Scalar = S;
  using Config = AttentionConfig;
  using Weights = AttentionWeights<Scalar>;
  using Side = GivenPositions;
  static constexpr Traits traits{
      .name = "attention",
      .title = "Softmax attention (MHA, GQA, MQA; positions, biases, windows, norms, gates, sinks)",
      .paper = "Vaswani 2017, arXiv:1706.03762; Ainslie 2023, arXiv:2305.13245",
      .forward = "O(T D² + T² H K)",
      .step = "O(D² + t H K)",
      .state = "2 t G K",
      .has_position_limit = true};
  static constexpr Traits sliding_window_traits{
      .name = "sliding_window_attention",
      .title = "Sliding-window attention (sinks, dilation)",
      .paper = "Jiang 2023, arXiv:2310.06825; Xiao 2023, arXiv:2309.17453",
      .forward = "O(T D² + T W H K)",
      .step = "O(D² + W H K)",
      .state = "2 W G K",
      .has_position_limit = true};

  struct State {
    Position position;              // [B]
    Appended<Scalar, 4, 2> keys;    // [B, G, capacity, K], rotated
    Appended<Scalar, 4, 2> values;  // [B, G, capacity, V], G of their own
    // In their place where there is a window, or beside them where near keys are rotated otherwise:
    Ring<Scalar, 4, 2> ring_keys;    // [B, G, rows, K], rotated
    Ring<Scalar, 4, 2> ring_values;  // [B, G, rows, V]
    Cache<Scalar, 4> sink_keys;      // [B, G, n_sinks, K], rotated; only where there are sinks
    Cache<Scalar, 4> sink_values;    // [B, G, n_sinks, V]
    Tensor<Scalar, 3> conv;          // [B, W - 1, channels], last inputs of short convolutions
    // What forget gates let through, logarithms; one of both:
    Appended<Scalar, 4, 2> log_forget;   // [B, H, capacity, 1]
    Ring<Scalar, 4, 2> ring_log_forget;  // [B, H, rows, 1]
    bool keeps_all = true, has_ring = false, forgets = false;

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position);
      if (self.conv.extent(1) > 0) tensor("conv", self.conv);
      if (self.forgets && self.keeps_all) tensor("log_forget", self.log_forget);
      if (self.forgets && !self.keeps_all) tensor("log_forget", self.ring_log_forget);
      if (self.keeps_all) tensor("keys", self.keys), tensor("values", self.values);
      if (!self.has_ring) return;
      tensor(self.keeps_all ? "near_keys" : "keys", self.ring_keys);
      tensor(self.keeps_all ? "near_values" : "values", self.ring_values);
      if (self.sink_keys.extent(2) == 0) return;
      tensor("sink_keys", self.sink_keys), tensor("sink_values", self.sink_values);
    }
  };

  using Parts = AttentionParts<S, Config>;
  using Parts::c;
  using Parts::score;
  using Parts::w;
  std::vector<KeyBand> bands;  // where a query sees keys from several positions

  /// A dilated window counts distances in dilations.
  AttentionDefinition(Config config, Weights weights)
      : Parts(config, std::move(weights), config.sees.dilation),
        bands(bands_of(c.positions.remap, c.sees, c.heads.n_heads)) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    const auto keys_of = [&](Index rows) {
      return Shape<4>{batch, c.heads.key_heads(), rows, c.heads.head_dim};
    };
    const auto values_of = [&](Index rows) {
      return Shape<4>{batch, c.heads.value_heads(), rows, c.heads.head_v()};
    };
    const Index n_sinks = c.sees.n_sinks;
    const bool keeps_all = !c.sees.is_bounded(), has_ring = c.reach() > 0;
    const Index appended = keeps_all ? capacity : 0, rows = has_ring ? c.ring_rows() : 0;
    const bool forgets = c.content.kind == ContentBiasKind::forget_gate;
    const auto of_gates = [&](Index slots) {
      return Shape<4>{batch, c.heads.n_heads, forgets ? slots : 0, 1};
    };
    const Storage storage = memory.caches();
    return {.position = {batch, memory},
            .keys = {keys_of(appended), memory, storage},
            .values = {values_of(appended), memory, storage},
            .ring_keys = {keys_of(rows), c.reach(), memory, storage},
            .ring_values = {values_of(rows), c.reach(), memory, storage},
            .sink_keys = {keys_of(n_sinks), memory, storage},
            .sink_values = {values_of(n_sinks), memory, storage},
            .conv = {this->history_shape(batch), memory},
            .log_forget = {of_gates(appended), memory},
            .ring_log_forget = {of_gates(keeps_all ? 0 : rows), c.reach(), memory},
            .keeps_all = keeps_all,
            .has_ring = has_ring,
            .forgets = forgets};
  }

  void run(View<const Scalar, 2> x, State& state, const Side& side, View<Scalar, 2> y,
           const Call& call) const {
    const TokenPlaces at{state.position.tokens, side.positions};
    auto scratch = call.scratch<Scalar>();
    const auto logs = scratch(x.extent(axis::time), state.forgets ? c.heads.n_heads : 0);  // [T, H]
    std::optional<ForgetGates<Scalar>> gates;
    if (state.forgets) forget(x, logs, state, gates, call);
    const PairTerm<Scalar>* const of_gates = gates ? &*gates : nullptr;

    const auto attend_heads = [&](const auto& q, const auto& k, const auto& v, const auto& o) {
      const AnyScore<Scalar> scores(score);
      if (!bands.empty()) {
        return attend_in_bands(q, k, v, at, state, scores.with(of_gates), o, call);
      }
      this->place(q, k, at, call);
      call.trace("q", q), call.trace("k", k), call.trace("v", v);
      this->with_content(q, k, of_gates, call, [&](const PairTerm<Scalar>* term) {
        attend(q, k, v, state, scores.with(term), o, call);
      });
    };
    this->run_heads(x, state.conv.view(), y, call, attend_heads);
  }

 private:
  /// Makes the gates of x, and the state remember them.
  void forget(View<const Scalar, 2> x, View<Scalar, 2> logs, State& state,
              std::optional<ForgetGates<Scalar>>& gates, const Call& call) const {
    const View<const Index, 1> past = state.position.tokens;
    const auto of_heads = logs.split(axis::channel, c.heads.n_heads, 1);  // [T, H, 1]
    project(x, {{w.content.f_proj, logs}}, call);
    log_sigmoid(logs, 1, call);
    if (state.keeps_all) {
      gates.emplace(logs, state.log_forget.view(), past, 0, call);
      append<Scalar>(of_heads, past, state.log_forget.view(), call);
    } else {
      gates.emplace(logs, state.ring_log_forget.view(), past, c.reach(), call);
      append_to_ring<Scalar>(of_heads, past, state.ring_log_forget.view(), call);
    }
  }

  void attend(View<const Scalar, 3> q, View<const Scalar, 3> k, View<const Scalar, 3> v,
              State& state, const AnyScore<Scalar>& scores, View<Scalar, 3> o,
              const Call& call) const {
    const View<const Index, 1> past = state.position.tokens;
    if (c.sees.chunk > 0) {
      return ring_attention(q, k, v, past, c.sees.chunk_mask(c.heads.n_heads, true), scores,
                            state.ring_keys.view(), state.ring_values.view(), o, call);
    }
    if (!c.sees.segments.empty()) {
      return dilated_segment_ring_attention<Scalar>(q, k, v, past, c.sees.branches(), scores,
                                                    state.ring_keys.view(),
                                                    state.ring_values.view(), o, call);
    }
    if (state.has_ring) {
      return dilated_ring_attention(q, k, v, past, c.sees.window_mask(c.heads.n_heads, true),
                                    c.sees.dilation, scores, state.ring_keys.view(),
                                    state.ring_values.view(), o, call);
    }
    append<Scalar>(k, past, state.keys.view(), call);
    append<Scalar>(v, past, state.values.view(), call);
    if (c.positions.rope_xpos > 0) {
      return xpos_attention<Scalar>(q, state.keys.view(), state.values.view(), past, this->decay,
                                    c.positions.layout(), c.positions.rotary_offset, scores, o,
                                    call);
    }
    attention(q, state.keys.view(), state.values.view(), past, Causal{}, scores, o, call);
  }

  /// Bands of keys whose weights are merged. Queries and keys have no position yet.
  void attend_in_bands(View<Scalar, 3> q, View<Scalar, 3> k, View<const Scalar, 3> v,
                       const TokenPlaces& at, State& state, const AnyScore<Scalar>& scores,
                       View<Scalar, 3> o, const Call& call) const {
    const KeyBand &near = bands.front(), &far = bands.back();
    const bool leading = far.store == BandStore::leading;
    const auto keys = leading ? state.sink_keys.view() : state.keys.view();
    const auto values = leading ? state.sink_values.view() : state.values.view();
    const View<const Index, 1> past = at.past;
    auto scratch = call.scratch<Scalar>();
    const Index T = q.extent(axis::time), H = c.heads.n_heads;
    auto other_q = scratch(T, H, c.heads.head_dim);                    // [T, H, K]
    auto other_k = scratch(T, c.heads.key_heads(), c.heads.head_dim);  // [T, G, K]
    auto other_o = scratch(T, H, c.heads.head_v());                    // [T, H, V]
    auto total = scratch(T, H), other_total = scratch(T, H);           // [T, H], log Σ exp(s)

    if (far.key != near.key) {
      copy(k, other_k);
      this->place_keys(other_k, at, call, far.key);
    }
    this->place_keys(k, at, call, near.key);
    this->rotate.turn_by_chunk(k, past, 0, call);
    const auto kept = far.key != near.key ? other_k : k;
    if (leading) {
      append_leading<Scalar>(kept, past, keys, call), append_leading<Scalar>(v, past, values, call);
    } else {
      append<Scalar>(kept, past, keys, call), append<Scalar>(v, past, values, call);
    }

    const auto attend_to = [&](const KeyBand& band, const auto& mask, View<Scalar, 3> to,
                               View<Scalar, 2> log_sum_exp) {
      const bool last = &band == &far;
      const auto queries = last ? q : other_q;
      if (!last) copy(q, queries);
      this->place_queries(queries, at, call, band.query);
      this->rotate.turn_by_chunk(queries, past, band.chunks_before, call);
      if (band.store == BandStore::ring) {
        return ring_attention(queries, k, v, past, mask, scores, state.ring_keys.view(),
                              state.ring_values.view(), to, call, log_sum_exp);
      }
      const bool first = &band == &near;
      attention(queries, keys, values, past, mask, first ? scores : scores.without_sinks(), to,
                call, log_sum_exp);
    };
    for (const KeyBand& band : bands) {
      const auto reaches = [&](const Segment& segment) {
        return past[segment.row] + segment.count > band.begin;
      };
      if (std::ranges::none_of(call.segments(), reaches)) return;
      std::visit(
          [&](const auto& mask) {
            if (&band == &near && !c.sees.windows.empty()) {  // whose sizes a band cannot hold
              const Windows last = c.sees.window_mask(H, true, c.sees.n_sinks);
              return attend_to(band, last, o, total);
            }
            if (&band == &near) return attend_to(band, mask, o, total);
            attend_to(band, mask, other_o, other_total);
            merge_attention(other_o, other_total, o, total);
          },
          band.keys);
    }
  }
};

template <class Scalar = float>
using Attention = Mixer<AttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(AttentionDefinition);

/// `Attention` with a window.
template <class Scalar>
using SlidingWindowAttentionDefinition = AttentionDefinition<Scalar>;
template <class Scalar = float>
using SlidingWindowAttention = Attention<Scalar>;
using SlidingWindowAttentionConfig = AttentionConfig;

/// The parts of attention that ask for no past: none that follows the order of tokens.
struct BidirectionalAttentionConfig : AttentionConfig {
  static constexpr bool causal = false;

  void check() const {
    const AttentionDemands all = demands();
    for (const Demand& one : {all.dilation, all.sinks, all.rollback, all.xpos, all.remap,
                              all.convolutions, all.forget_gate, all.cope}) {
      one.needs("causal attention");
    }
    check_parts();
    require(scores.normaliser != Normaliser::stick_breaking,
            "scores.normaliser stick_breaking needs causal attention");
  }
};

/// Softmax attention in which tokens see the ones behind them, too: an encoder's. All else is
/// `attention`'s.
///
///   o_t = Σ_j softmax_j(s_tj) v_j  over all j, or those that `SeesConfig` leaves
///
/// It has `forward` alone: each output needs the whole sequence.
/// forward: O(T D² + T² H K), with a window O(T D² + T W H K). State: none.
/// Source: Devlin et al. 2018, arXiv:1810.04805, section 3; HF transformers BertSelfAttention,
/// T5Attention (score_scale 1), ModernBertAttention.
template <class S>
struct BidirectionalAttentionDefinition : AttentionParts<S, BidirectionalAttentionConfig> {
  using Scalar = S;
  using Config = BidirectionalAttentionConfig;
  using Weights = AttentionWeights<Scalar>;
  struct Side : GivenPositions, KeyMarks {
    static void visit(auto& self, const Config& c, auto&& side) {
      GivenPositions::visit(self, c, side), KeyMarks::visit(self, c, side);
    }
  };
  static constexpr Traits traits{.name = "bidirectional_attention",
                                 .title = "Bidirectional attention",
                                 .paper = "Devlin 2018, arXiv:1810.04805",
                                 .forward = "O(T D² + T² H K)",
                                 .step = "none",
                                 .state = "none",
                                 .has_position_limit = true};

  using Parts = AttentionParts<S, Config>;
  using Parts::c;
  using Parts::Parts;
  using Parts::score;
  using Parts::w;

  void run(View<const Scalar, 2> x, const Side& side, View<Scalar, 2> y, const Call& call) const {
    const auto attend_heads = [&](const auto& q, const auto& k, const auto& v, const auto& o) {
      this->place(q, k, {{}, side.positions}, call);
      const auto attend = [&](auto mask) {
        this->with_content(q, k, nullptr, call, [&](const PairTerm<Scalar>* term) {
          const AnyScore<Scalar> scores = AnyScore<Scalar>(score).with(term);
          if (!c.sees.key_mask) return self_attention(q, k, v, mask, scores, o, call);
          self_attention(q, k, v, MarkedKeys{mask, side.key_mask}, scores, o, call);
        });
      };
      const Index H = c.heads.n_heads;
      if (!c.sees.segments.empty()) {
        dilated_segment_self_attention<Scalar>(q, k, v, c.sees.branches(), score, o, call);
      } else if (c.sees.chunk > 0) {
        attend(c.sees.chunk_mask(H, false));
      } else if (c.sees.prefix > 0) {
        attend(Prefix{c.sees.prefix});
      } else if (c.sees.windowed()) {
        attend(c.sees.window_mask(H, false));
      } else {
        attend(Band::everything());
      }
    };
    this->run_heads(x, {}, y, call, attend_heads);
  }
};

template <class Scalar = float>
using BidirectionalAttention = Mixer<BidirectionalAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BidirectionalAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
