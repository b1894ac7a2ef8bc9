#pragma once

#include <span>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct LongformerAttentionConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index window = 0;          // neighbours that a token sees, half of them on each side
  Index n_global = 0;        // first tokens, which see and are seen by all
  bool global_mask = false;  // whether others are marked by 1 beside x

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("window", self.window), field("n_global", self.n_global, zero_is_legal);
    field("global_mask", self.global_mask);
  }
  void check() const {
    require(d_model % n_heads == 0, "d_model must be a multiple of n_heads");
    require(window % 2 == 0, "window must be even");
  }
  Index head_dim() const { return d_model / n_heads; }
};

/// Longformer's self-attention: each token sees its neighbours and the global tokens, the set G of
/// the first ones and those that are marked; a global token sees all, by projections of its own.
///
///   q, k, v = W_q x + b_q, ...;  q', k', v' = W'_q x + b'_q, ... where the query is global
///   y_i = Σ softmax_j(K^{-1/2} q_i · k_j) v_j     over j in G and |i - j| <= window / 2
///   y_i = Σ softmax_j(K^{-1/2} q'_i · k'_j) v'_j  over all j, for i in G
///
/// It has `forward` alone: an output needs the tokens behind it. Decoders have the pattern local of
/// `block_sparse_attention` with a prefix. The output projection is a layer of its own.
/// forward: O(T D² + T (window + N) D) with N global tokens. State: none.
/// Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1; HF transformers
/// LongformerSelfAttention.
template <class S>
struct LongformerAttentionDefinition {
  using Scalar = S;
  using Config = LongformerAttentionConfig;
  static constexpr Traits traits{.name = "longformer_attention",
                                 .title = "Longformer attention (window and global tokens)",
                                 .paper = "Beltagy 2020, arXiv:2004.05150",
                                 .forward = "O(T D² + T (W + N) D)",
                                 .step = "none",
                                 .state = "none"};

  struct Weights {
    Projection<Scalar> query, key, value, query_global, key_global, value_global;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      visit_linear("query", self.query, c.d_model, true, parameter);
      visit_linear("key", self.key, c.d_model, true, parameter);
      visit_linear("value", self.value, c.d_model, true, parameter);
      visit_linear("query_global", self.query_global, c.d_model, true, parameter);
      visit_linear("key_global", self.key_global, c.d_model, true, parameter);
      visit_linear("value_global", self.value_global, c.d_model, true, parameter);
    }
  };

  struct Side {
    View<const Index, 2> global_attention_mask;  // [T, 1]

    static void visit(auto& self, const Config& c, auto&& side) {
      if (!c.global_mask) return;
      side("global_attention_mask", self.global_attention_mask, 1, SideRole::input, 2);
    }
  };

  Config c;
  Weights w;

  void run(View<const Scalar, 2> x, const Side& side, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), D = c.d_model, H = c.n_heads, K = c.head_dim();
    const Segments segments = call.segments();
    auto of_spans = call.scratch<Span>();
    auto of_indices = call.scratch<Index>();
    Span* const runs = of_spans(T).data();  // of global tokens, their positions
    Index* const ends = of_indices(std::ssize(segments)).data();
    const auto is_global = [&](const Segment& segment, Index t) {
      return t < c.n_global ||
             (c.global_mask && side.global_attention_mask(segment.first + t, 0) > 0);
    };
    const Index globals = find_runs(segments, is_global, runs, ends);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, H, K);               // [T, H, K]
    auto k = scratch(T, H, K);               // [T, H, K]
    auto v = scratch(T, H, K);               // [T, H, K]
    auto o = scratch(T, H, K);               // [T, H, K]
    auto global_x = scratch(globals, D);     // [N, D]
    auto global_q = scratch(globals, H, K);  // [N, H, K]
    const PlainScore score{inverse_sqrt(K)};

    project(x, {{w.query, q}, {w.key, k}, {w.value, v}}, call);
    const auto all = static_cast<std::size_t>(segments.empty() ? 0 : ends[segments.size() - 1]);
    const Band window{.back = c.window / 2, .ahead = c.window / 2};
    self_attention(q, k, v, WindowAndRuns{window, {runs, all}, segments, ends}, score, o, call, {},
                   {c.n_global, T});
    if (globals > 0) {
      const auto for_each_run = [&](auto&& body) {
        Index number = 0, i = 0;
        for (std::size_t s = 0; s < segments.size(); ++s) {
          for (; i < ends[s]; ++i) body(segments[s], runs[i], number), number += runs[i].size();
        }
      };
      for_each_run([&](const Segment& of, Span run, Index number) {
        copy(x.slice(axis::time, of.first + run.begin, run.size()),
             global_x.slice(axis::time, number, run.size()));
      });
      project(global_x, {{w.query_global, global_q}}, call);
      project(x, {{w.key_global, k}, {w.value_global, v}}, call);
      for_each_run([&](const Segment& of, Span run, Index number) {
        const auto own = [&](const auto& view) {
          return view.slice(axis::time, of.first, of.count);
        };
        const Segment alone{of.row, 0, of.count, of.form};
        copy(global_q.slice(axis::time, number, run.size()),
             own(q).slice(axis::time, run.begin, run.size()));
        self_attention(own(q), own(k), own(v), Band::everything(), score, own(o),
                       call.with(Segments(&alone, 1)), {}, run);
      });
    }
    copy(o.merge(axis::head), y);
  }
};

template <class Scalar = float>
using LongformerAttention = Mixer<LongformerAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(LongformerAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
