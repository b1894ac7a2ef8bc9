#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/attention/attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which keys a head sees, all of them at or before its query.
///
///   dense     every key
///   local     the last `span` keys, the query's own among them, and the first `prefix` ones
///   strided   every `span`-th key back from the query's own
///   fixed     the query's segment of `span` tokens, and some blocks at the end of each one before
///   big_bird  the first blocks, the query's block and those right before it, and random ones
///   layout    the blocks that a table names
enum class SparsePattern { dense, local, strided, fixed, big_bird, layout };
constexpr std::array<std::string_view, 6> names_of(SparsePattern) {
  return {"dense", "local", "strided", "fixed", "big_bird", "layout"};
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

/// A query at i sees the keys j <= i + ahead that lie in its window, j >= i - back, or among the
/// first `prefix`.
struct WindowAndPrefix {
  Index back = 0, ahead = 0, prefix = 0;

  WindowAndPrefix of(Index /*row*/, Index /*head*/) const { return *this; }
  Span reach(Span queries) const {
    return {prefix > 0 ? 0 : std::max<Index>(queries.begin - back, 0), queries.end + ahead};
  }
  Visibility visibility(Span queries, Span keys) const {
    const bool passed = keys.begin >= prefix && keys.end + back <= queries.begin;
    if (passed || keys.begin >= queries.end + ahead) return Visibility::none;
    const bool all = keys.end <= queries.begin + ahead + 1 &&
                     (keys.end <= prefix || keys.begin + back + 1 >= queries.end);
    return all ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    using Batch = simd::Batch<S>;
    const Batch distance = pairs.query - pairs.key;
    return distance >= Batch(static_cast<S>(-ahead)) &&
           (distance <= Batch(static_cast<S>(back)) ||
            pairs.key < Batch(static_cast<S>(prefix - pairs.origin)));
  }
};

/// A mask of pairs of blocks of `block` tokens: query block i sees key block j where `sees(i, j)`,
/// and of the keys there those that `bound`, another mask, allows.
template <class Bound>
struct BlockMask {
  Index block = 1;
  Bound bound;

  /// How many of the pairs of blocks are seen.
  Visibility of_blocks(Span queries, Span keys, auto&& sees) const {
    bool some = false, all = true;
    for (Index i = queries.begin / block; i * block < queries.end; ++i) {
      for (Index j = keys.begin / block; j * block < keys.end; ++j) {
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
      return Span{low / block, high / block + 1};
    };
    // A register touches few blocks, and all of its lanes are compared with each.
    const auto within = [&](const Batch& positions, Index i) {
      return positions >= Batch(static_cast<S>(i * block - pairs.origin)) &&
             positions < Batch(static_cast<S>((i + 1) * block - pairs.origin));
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
};

/// The pattern of each head, and the numbers that shape them.
struct SparsePatterns {
  std::vector<SparsePattern> of_heads{SparsePattern::dense};  // head h has number h mod size
  Index block = 1;             // tokens of a block of fixed, big_bird and layout
  Index span = 1;              // see `SparsePattern`
  Index prefix = 0;            // local: first keys that all see
  Index n_verticals = 1;       // fixed: head h keeps group h mod n_verticals of a segment's blocks,
  Index vertical_blocks = 1;   // groups of so many counted from the segment's end
  Index n_global = 1;          // big_bird: first blocks that all see
  Index n_local = 3;           // big_bird: last blocks, the query's own among them
  Index n_random = 0;          // big_bird: draws among the blocks up to the query's own,
  Index seed = 0;              // which it decides
  Parameter<Index, 3> layout;  // [H or 1, n, n], 1 where a query block sees a key block

  SparsePattern of(Index head) const {
    return of_heads[static_cast<std::size_t>(head % static_cast<Index>(of_heads.size()))];
  }
  /// Whether query block i of a head sees something of key block j <= i.
  bool sees(SparsePattern pattern, Index head, Index i, Index j) const {
    if (j > i) return false;
    switch (pattern) {
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
        return i < layout.extent(1) && layout(head % layout.extent(0), i, j) != 0;
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
    return {0, queries.end};
  }
  Visibility visibility(Span queries, Span keys) const {
    if (pattern == SparsePattern::strided) return Visibility::none;
    if (pattern == SparsePattern::local) return window().visibility(queries, keys);
    if (pattern == SparsePattern::dense) return Causal{}.visibility(queries, keys);
    return blocks().visibility(queries, keys, [&](Index i, Index j) { return sees(i, j); });
  }
  /// Dense where all of the blocks are seen.
  SparseMask narrowed(Span queries, Span keys) const {
    const auto every = blocks().of_blocks(queries, keys, [&](Index i, Index j) {
      return j > i || sees(i, j);  // the causal mask hides later blocks
    });
    const bool by_blocks = pattern != SparsePattern::local && pattern != SparsePattern::strided;
    if (by_blocks && every == Visibility::all) return {patterns, SparsePattern::dense, head};
    return *this;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    if (pattern == SparsePattern::local) return window().allows(pairs);
    if (pattern == SparsePattern::dense) return Causal{}.allows(pairs);
    return blocks().allows(pairs, [&](Index i, Index j) { return sees(i, j); });
  }

 private:
  WindowAndPrefix window() const { return {.back = patterns.span - 1, .prefix = patterns.prefix}; }
  BlockMask<Causal> blocks() const { return {patterns.block, {}}; }
  bool sees(Index i, Index j) const { return patterns.sees(pattern, head, i, j); }
};

/// As `attention` for the heads whose pattern is strided; the others' o stays as it is. The tokens
/// of one residue modulo the stride are a dense causal sequence of their own, and run as one: they
/// are views on the same cache. Child et al. 2019, arXiv:1904.10509, section 4.3.
template <class S>
void strided_attention(In<S, 3> q, CacheIn<S, 4> keys, CacheIn<S, 4> values, In<Index, 1> past,
                       const SparsePatterns& patterns, double scale, View<S, 3> o,
                       const Call& call) {
  const Index H = q.extent(axis::head), stride = patterns.span;
  const Index heads_per_group = H / std::max<Index>(keys.extent(axis::head), 1);
  const Index width = q.extent(axis::channel) + o.extent(axis::channel);
  const auto residues = [&](const Segment& segment) { return std::min(stride, segment.count); };
  const auto work_of = [&](const Segment& segment) {
    const Index keys_of_query = past[segment.row] / stride + 1;
    const Index products = ceil_div(segment.count, stride) * keys_of_query * width;
    return SegmentWork{residues(segment),
                       std::clamp<Index>(products, 1, detail::attention_task_products)};
  };
  for (Index h = 0; h < H; ++h) {
    if (patterns.of(h) != SparsePattern::strided) continue;
    const auto attend = [&](const Unit& unit, const Call& worker) {
      const Index position = past[unit.row()] + unit.item, before = position / stride;
      const Segment residue{unit.row(), 0, ceil_div(unit.tokens() - unit.item, stride),
                            unit.segment.form};
      const auto entries = [&](const CacheView<const S, 4>& cache) {
        return detail::every(axis::slot, cache.slice(axis::head, h / heads_per_group, 1),
                             position % stride, stride, before + residue.count);
      };
      const auto tokens = [&](const auto& view) {
        return detail::every(axis::time, unit.tokens_of(view).slice(axis::head, h, 1), unit.item,
                             stride, residue.count);
      };
      attention<S>(tokens(q), entries(keys), entries(values),
                   detail::for_all_rows(before, keys.extent(axis::row)), Causal{},
                   PlainScore{scale}, tokens(o), worker.with(Segments(&residue, 1)));
    };
    for_each_unit(call, detail::attention_task_products, work_of, attend);
  }
}

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
