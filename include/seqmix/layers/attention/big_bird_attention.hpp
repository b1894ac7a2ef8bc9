#pragma once

#include <string>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/block_masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/layers/detail/check_table.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct BigBirdAttentionConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index block = 64;    // tokens of a block
  Index n_random = 0;  // random blocks that a block sees
  Index n_blocks = 2;  // blocks of the longest sequence, for which `random_blocks` has rows
  bool bias = true;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads), field("block", self.block);
    field("n_random", self.n_random, zero_is_legal);
    field("n_blocks", self.n_blocks, only_where(self.n_random > 0, "n_random is positive"));
    field("bias", self.bias);
  }
  void check() const {
    require(d_model % n_heads == 0, "d_model must be a multiple of n_heads");
    require(n_random == 0 || n_blocks > 2, "n_blocks must exceed 2 where n_random is positive");
  }
  Index head_dim() const { return d_model / n_heads; }
};

/// BigBird's block-sparse self-attention: the first and the last of n = ceil(T / block) blocks see
/// all and are seen by all, every other block sees itself, its neighbours and random ones.
///
///   A_i = {0, i - 1, i, i + 1, n - 1} and random_blocks[h, i - 1, r] for each r,   0 < i < n - 1
///   y_t = Σ softmax_j(K^{-1/2} q_t · k_j) v_j   over the tokens j of the blocks of A_{t / block}
///
/// A random block counts once more each time that it is listed, as in the published code: one that
/// A_i has already weighs double (Hugging Face lists block 0 throughout unless in training). A
/// block that a shorter sequence does not have is left out; a longer one than n_blocks throws.
/// It has `forward` alone: an output needs the tokens behind it. `block_sparse_attention` has a
/// causal pattern of this kind. The output projection is a layer of its own.
/// forward: O(T D² + T (5 + n_random) block D). State: none.
/// Source: Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D; HF transformers
/// BigBirdBlockSparseAttention.
template <class S>
struct BigBirdAttentionDefinition {
  using Scalar = S;
  using Config = BigBirdAttentionConfig;
  static constexpr Traits traits{.name = "big_bird_attention",
                                 .title = "BigBird attention (window, edge and random blocks)",
                                 .paper = "Zaheer 2020, arXiv:2007.14062",
                                 .forward = "O(T D² + T (5 + r) C D)",
                                 .step = "none",
                                 .state = "none",
                                 .has_position_limit = true};

  struct Weights {
    Projection<Scalar> query, key, value;
    Parameter<Index, 3> random_blocks;  // [H, n_blocks - 2, n_random]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      visit_linear("query", self.query, c.d_model, c.bias, parameter);
      visit_linear("key", self.key, c.d_model, c.bias, parameter);
      visit_linear("value", self.value, c.d_model, c.bias, parameter);
      if (c.n_random == 0) return;
      parameter("random_blocks", self.random_blocks, {c.n_heads, c.n_blocks - 2, c.n_random},
                init::choices(c.n_blocks));
    }
  };

  Config c;
  Weights w;

  BigBirdAttentionDefinition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)) {
    const Index n = c.n_blocks;
    check_table(traits.name, "random_blocks", w.random_blocks, [n](Index, Index, Index block) {
      const bool exists = block >= 0 && block < n;
      return exists ? std::string() : "a block, 0 to " + std::to_string(n - 1);
    });
  }

  /// `random_blocks` has no rows for later blocks.
  PositionLimit position_limit() const {
    if (c.n_random == 0) return {};
    return {c.n_blocks * c.block, "n_blocks * block"};
  }

  void run(View<const Scalar, 2> x, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), H = c.n_heads, K = c.head_dim();
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, H, K);          // [T, H, K]
    auto k = scratch(T, H, K);          // [T, H, K]
    auto v = scratch(T, H, K);          // [T, H, K]
    auto o = scratch(T, H, K);          // [T, H, K]
    auto total = scratch(T, H);         // [T, H], log Σ exp(s)
    auto random_o = scratch(T, H, K);   // [T, H, K], of one random block
    auto random_total = scratch(T, H);  // [T, H]

    project(x, {{w.query, q}, {w.key, k}, {w.value, v}}, call);
    const auto attend = [&](Index draw, const auto& to, const auto& log_sum_exp) {
      self_attention(q, k, v, BigBirdMask{c.block, draw, w.random_blocks.view()},
                     PlainScore{inverse_sqrt(K)}, to, call, log_sum_exp);
    };
    attend(-1, o, total);
    for (Index draw = 0; draw < c.n_random; ++draw) {
      attend(draw, random_o, random_total);
      merge_attention(random_o, random_total, o, total);
    }
    copy(o.merge(axis::head), y);
  }
};

template <class Scalar = float>
using BigBirdAttention = Mixer<BigBirdAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BigBirdAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
