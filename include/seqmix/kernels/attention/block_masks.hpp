#pragma once

#include <algorithm>

#include "seqmix/core/view.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/reduce.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A mask of pairs of blocks of `block` tokens: query block i sees key block j where `sees(i, j)`,
/// and of the keys there those that `bound`, another mask, allows. Block 0 is `shift` < `block`
/// tokens shorter.
template <class Bound>
struct BlockMask {
  Index block = 1;
  Bound bound;
  Index shift = 0;

  /// How many of the pairs of blocks are seen.
  Visibility of_blocks(Span queries, Span keys, auto&& sees) const {
    bool some = false, all = true;
    for (Index i = block_of(queries.begin); begin_of(i) < queries.end; ++i) {
      for (Index j = block_of(keys.begin); begin_of(j) < keys.end; ++j) {
        const bool seen = sees(i, j);
        some |= seen, all &= seen;
        if (some && !all) return Visibility::partial;
      }
    }
    return some ? Visibility::all : Visibility::none;
  }
  Visibility visibility(Span queries, Span keys, auto&& sees) const {
    const Visibility bounded = bound.visibility(queries, keys);
    if (bounded == Visibility::none) return Visibility::none;
    const Visibility seen = of_blocks(queries, keys, sees);
    return seen == Visibility::all ? bounded : seen;
  }

  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs, auto&& sees) const {
    using Batch = simd::Batch<S>;
    const auto blocks_of = [&](const Batch& positions) {
      const Index low = pairs.origin - static_cast<Index>(simd::reduce_max(-positions));
      const Index high = pairs.origin + static_cast<Index>(simd::reduce_max(positions));
      return Span{block_of(low), block_of(high) + 1};
    };
    // A register touches few blocks, and all of its lanes are compared with each.
    const auto within = [&](const Batch& positions, Index i) {
      return positions >= Batch(static_cast<S>(begin_of(i) - pairs.origin)) &&
             positions < Batch(static_cast<S>(begin_of(i + 1) - pairs.origin));
    };
    const Span query_blocks = blocks_of(pairs.query), key_blocks = blocks_of(pairs.key);
    auto seen = pairs.query != pairs.query;  // none
    for (Index i = query_blocks.begin; i < query_blocks.end; ++i) {
      for (Index j = key_blocks.begin; j < key_blocks.end; ++j) {
        if (sees(i, j)) seen = seen || (within(pairs.query, i) && within(pairs.key, j));
      }
    }
    return seen && bound.allows(pairs);
  }

 private:
  Index block_of(Index position) const { return (position + shift) / block; }
  Index begin_of(Index i) const { return i * block - shift; }
};

/// A query of chunk i, `size` positions each, sees the keys of the chunks i - back to i + ahead,
/// and of them those that it may see at all: none before `first` or, with `causal`, behind itself.
/// Where ahead is negative, it is chunks before its own alone. Chunked attention with back = 0
/// (Llama-4), local attention that looks back (Parmar et al. 2018, arXiv:1802.05751), and without
/// `causal` but with every chunk before block-causal attention (block diffusion). The heads from
/// `shifted_head` on have a first chunk that is `shift` positions shorter (Chen et al. 2023,
/// arXiv:2309.12307).
struct Chunks {
  Index size = 1, back = 0, ahead = 0;
  bool causal = true;
  Index shift = 0, shifted_head = 0;
  Index first = 0;

  Chunks of(Index /*row*/, Index head) const {
    Chunks own = *this;
    if (head < shifted_head) own.shift = 0;
    return own;
  }
  BlockMask<Band> chunks() const {
    return {size, Band{.first = first, .ahead = causal ? 0 : Band::unlimited}, shift};
  }
  auto near() const {
    return [b = back, a = ahead](Index i, Index j) { return i - j <= b && j - i <= a; };
  }
  Span reach(Span queries) const {
    const Index own = (queries.begin + shift) / size, last = (queries.end - 1 + shift) / size;
    const Index behind = (last + ahead + 1) * size - shift;
    return {std::max(std::max<Index>(own - back, 0) * size - shift, first),
            causal ? std::min(behind, queries.end) : behind};
  }
  Visibility visibility(Span queries, Span keys) const {
    return chunks().visibility(queries, keys, near());
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    return chunks().allows(pairs, near());
  }
};

/// BigBird's blocks that are not random: the first and the last block see all and are seen by all,
/// every other one sees itself and its neighbours. `draw` >= 0: the one random block of that number
/// instead, of query blocks 1 to n - 2 alone.
struct BigBirdMask {
  Index block = 1;  // tokens of a block
  Index draw = -1;
  View<const Index, 3> random_blocks;  // [H, rows, draws], row i - 1 for query block i
  Index head = 0, last = 0;            // of one head: the last block of all

  BigBirdMask of(Index /*row*/, Index of_head, Index count) const {
    return {block, draw, random_blocks, of_head, ceil_div(count, block) - 1};
  }
  Visibility visibility(Span queries, Span keys) const {
    return blocks().visibility(queries, keys, [&](Index i, Index j) { return sees(i, j); });
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    return blocks().allows(pairs, [&](Index i, Index j) { return sees(i, j); });
  }

 private:
  /// All keys, of which the kernel looks at those that exist.
  struct Everything {
    Visibility visibility(Span, Span) const { return Visibility::all; }
    template <class S>
    simd::Mask<S> allows(const Pairs<S>& pairs) const {
      return pairs.key == pairs.key;
    }
  };
  BlockMask<Everything> blocks() const { return {block, {}}; }
  bool sees(Index i, Index j) const {
    if (draw >= 0) return i > 0 && i < last && random_blocks(head, i - 1, draw) == j;
    return i == 0 || j == 0 || i == last || j == last || (i - j <= 1 && j - i <= 1);
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
