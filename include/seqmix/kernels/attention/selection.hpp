#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/attention/block_masks.hpp"
#include "seqmix/kernels/attention/masks.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which keys a head sees, at or before its query or, in what is not causal, behind it, too.
///
///   dense     every key
///   local     the last `span` keys, the query's own among them, and the first `prefix` ones
///   strided   every `span`-th key back from the query's own
///   row       the query's segment of `span` tokens
///   stripes   the last `n_local` blocks, and every `stripe_stride`-th one: key head g sees block j
///             where (j + g stripe_step + stripe_offset) mod stripe_stride = 0. In what is not
///             causal the n_local nearest on both sides, and those beyond whose distance is
///             n_local - 1 plus a multiple of stripe_stride, whatever the head
///   fixed     the query's segment of `span` tokens, and some blocks at the end of each one before
///   big_bird  the first blocks, the query's block and those right before it, and random ones
///   layout    the blocks that a table names
enum class SparsePattern { dense, local, strided, row, stripes, fixed, big_bird, layout };
constexpr std::array<std::string_view, 8> names_of(SparsePattern) {
  return {"dense", "local", "strided", "row", "stripes", "fixed", "big_bird", "layout"};
}

namespace detail {

/// Mixes a number into bits that depend on others already. Steele et al. 2014,
/// doi:10.1145/2660193.2660195, the finaliser of SplitMix64.
inline std::uint64_t mix(std::uint64_t bits, Index number) {
  bits += static_cast<std::uint64_t>(number) + 0x9e3779b97f4a7c15U;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebU;
  return bits ^ (bits >> 31);
}

}  // namespace detail

/// The patterns of a comma-separated list of names.
inline std::vector<SparsePattern> sparse_patterns(std::string_view text) {
  std::vector<SparsePattern> patterns;
  while (true) {
    const std::string_view name = text.substr(0, text.find(','));
    try {
      from_string(name, patterns.emplace_back());
    } catch (const ConfigError& error) {
      throw ConfigError(std::string("pattern: ") + error.what());
    }
    if (name.size() == text.size()) return patterns;
    text.remove_prefix(name.size() + 1);
  }
}

/// The pattern of each head, and the numbers that shape them.
struct SparsePatterns {
  std::vector<SparsePattern> of_heads{SparsePattern::dense};  // head h has number h mod size
  Index block = 1;             // tokens of a block of fixed, big_bird, stripes and layout
  Index span = 1;              // see `SparsePattern`
  Index prefix = 0;            // local: first keys that all see
  Index n_verticals = 1;       // fixed: head h keeps group h mod n_verticals of a segment's blocks,
  Index vertical_blocks = 1;   // groups of so many counted from the segment's end
  Index n_global = 1;          // big_bird: first blocks that all see
  Index n_local = 3;           // big_bird and stripes: last blocks, the query's own among them
  Index n_random = 0;          // big_bird: draws among the blocks up to the query's own,
  Index seed = 0;              // which it decides
  Parameter<Index, 3> layout;  // [H or 1, n, n], 1 where a query block sees a key block
  Index stripe_stride = 1;     // stripes: see `SparsePattern`
  Index stripe_step = 1;
  Index stripe_offset = 0;
  Index heads_per_group = 1;  // query heads of a key head
  bool causal = true;

  SparsePattern of(Index head) const {
    return of_heads[static_cast<std::size_t>(head % static_cast<Index>(of_heads.size()))];
  }
  /// Whether query block i of a head sees something of key block j, where causal j <= i.
  bool sees(SparsePattern pattern, Index head, Index i, Index j) const {
    if (causal && j > i) return false;
    switch (pattern) {
      case SparsePattern::row:
        return i == j;
      case SparsePattern::stripes: {
        if (causal) {
          const Index place = j + head / heads_per_group * stripe_step + stripe_offset;
          return i - j < n_local || place % stripe_stride == 0;
        }
        const Index beyond = std::max<Index>((i > j ? i - j : j - i) - n_local + 1, 0);
        return beyond % stripe_stride == 0;
      }
      case SparsePattern::fixed: {
        const Index segment = span / block, from_end = segment - 1 - j % segment;
        return i / segment == j / segment || from_end / vertical_blocks == head % n_verticals;
      }
      case SparsePattern::big_bird: {
        bool seen = j < n_global || i - j < n_local;
        if (seen || n_random == 0) return seen;
        const std::uint64_t bits = detail::mix(detail::mix(detail::mix(0, seed), head), i);
        for (Index draw = 0; draw < n_random && !seen; ++draw) {
          const std::uint64_t fraction = detail::mix(bits, draw) >> 32;  // of 2^32
          seen = static_cast<Index>(fraction * static_cast<std::uint64_t>(i + 1) >> 32) == j;
        }
        return seen;
      }
      case SparsePattern::layout:
        return i < layout.extent(1) && j < layout.extent(2) &&
               layout(head % layout.extent(0), i, j) != 0;
      default:
        return pattern == SparsePattern::dense;
    }
  }
};

/// The mask of `SparsePatterns` for all heads but the strided ones, which see nothing here: see
/// `strided_attention`.
struct SparseMask {
  const SparsePatterns& patterns;
  SparsePattern pattern = SparsePattern::dense;  // of one head
  Index head = 0;

  SparseMask of(Index /*row*/, Index of_head) const {
    return {patterns, patterns.of(of_head), of_head};
  }
  Span reach(Span queries) const {
    if (pattern == SparsePattern::strided) return {queries.begin, queries.begin};
    if (pattern == SparsePattern::local) return window().reach(queries);
    const Index end = patterns.causal ? queries.end : Band::unlimited;
    if (pattern != SparsePattern::row) return {0, end};
    const Index span = patterns.span, last = ceil_div(queries.end, span) * span;
    return {queries.begin / span * span, std::min(last, end)};
  }
  Visibility visibility(Span queries, Span keys) const {
    if (pattern == SparsePattern::strided) return Visibility::none;
    if (pattern == SparsePattern::local) return window().visibility(queries, keys);
    if (pattern == SparsePattern::dense) return bound().visibility(queries, keys);
    return blocks().visibility(queries, keys, [&](Index i, Index j) { return sees(i, j); });
  }
  /// Dense where all of the blocks are seen.
  SparseMask narrowed(Span queries, Span keys) const {
    const auto every = blocks().of_blocks(queries, keys, [&](Index i, Index j) {
      // the causal mask hides later blocks
      return (patterns.causal && j > i) || sees(i, j);
    });
    const bool by_blocks = pattern != SparsePattern::local && pattern != SparsePattern::strided;
    if (by_blocks && every == Visibility::all) return {patterns, SparsePattern::dense, head};
    return *this;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    if (pattern == SparsePattern::local) return window().allows(pairs);
    if (pattern == SparsePattern::dense) return bound().allows(pairs);
    return blocks().allows(pairs, [&](Index i, Index j) { return sees(i, j); });
  }

 private:
  /// Keys up to the query's own, or all.
  struct Bound {
    bool causal = true;

    Visibility visibility(Span queries, Span keys) const {
      return causal ? Causal{}.visibility(queries, keys) : Visibility::all;
    }
    template <class S>
    simd::Mask<S> allows(const Pairs<S>& pairs) const {
      return causal ? Causal{}.allows(pairs) : pairs.key == pairs.key;
    }
  };
  Bound bound() const { return {patterns.causal}; }
  WindowAndPrefix window() const {
    const Index near = patterns.span - 1;
    return {.back = near, .ahead = patterns.causal ? 0 : near, .prefix = patterns.prefix};
  }
  BlockMask<Bound> blocks() const {
    return {pattern == SparsePattern::row ? patterns.span : patterns.block, bound()};
  }
  bool sees(Index i, Index j) const { return patterns.sees(pattern, head, i, j); }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
