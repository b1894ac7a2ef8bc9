#pragma once

#include <algorithm>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/positions/xpos.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// As `attention`, of queries and keys that are turned by `rope` and lose what `decay` says with
/// distance; the pairs of a head begin at its number `offset`.
///
/// Each tile of queries has its first position as the centre: queries are multiplied by at most 1,
/// earlier keys, of which each tile has a copy, too, and keys within the tile by little more. So
/// nothing overflows at any length, and what underflows is nothing beside the rest of its score.
template <class S, class Mask, class Score>
void xpos_attention(In<S, 3> q, CacheIn<S, 4> keys, CacheIn<S, 4> values, In<Index, 1> past,
                    const XPosDecay& decay, RotaryLayout layout, Index offset, const Mask& mask,
                    const Score& score, View<S, 3> o, const Call& call) {
  constexpr Index tile = 64;  // calls are cut at its multiples, so that a cut changes no centre
  const Index H = q.extent(axis::head), G = keys.extent(axis::head);
  const Index K = q.extent(axis::channel), pairs = decay.pairs();
  // Multiplies heads [N, heads, K] by the decay over `distance(i)`, a task a run of them.
  const auto scale = [&](const auto& heads_of, Index count, Index heads, auto&& distance) {
    call.parallel_for(ceil_div(count, tile), [&](Index task, const Call& worker) {
      auto scratch = worker.scratch<S>();
      auto factors = scratch(pairs);
      for (Index i = task * tile; i < std::min(count, (task + 1) * tile); ++i) {
        decay.write(distance(i), factors.data());
        for (Index h = 0; h < heads; ++h) {
          scale_pairs<S>(factors.data(), pairs, layout, &heads_of(i, h)[offset]);
        }
      }
    });
  };
  for (const Segment& segment : call.segments()) {
    const auto row = [&](const auto& view) { return view.slice(axis::row, segment.row, 1); };
    for (Index first = 0; first < segment.count; first += tile) {
      const Index count = std::min(segment.count - first, tile);
      const Index centre = past[segment.row] + first, seen = centre + count;
      const auto tokens = [&](const auto& view) {
        return view.slice(axis::time, segment.first + first, count);
      };
      auto scratch = call.scratch<S>();
      auto queries = scratch(count, H, K);  // [n, H, K]
      // Of the capacity, so that steps take no more memory from one to the next.
      const View<S, 4> decayed =
          scratch(1, G, keys.extent(axis::slot), K).slice(axis::slot, 0, seen);  // [1, G, S, K]
      auto indices = call.scratch<Index>();
      auto before = indices(1);
      before[0] = centre;
      copy(tokens(q), queries);
      load_entries<S>(row(keys).slice(axis::slot, 0, seen), decayed);
      scale([&](Index i, Index h) { return queries[i][h]; }, count, H, [](Index i) { return i; });
      scale([&](Index j, Index g) { return decayed[0][g][j]; }, seen, G,
            [&](Index j) { return centre - j; });
      const Segment alone{0, 0, count, segment.form};
      attention<S>(queries, decayed, row(values).slice(axis::slot, 0, seen), before, mask, score,
                   tokens(o), call.with(Segments(&alone, 1)));
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
