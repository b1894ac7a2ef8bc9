#pragma once

#include <algorithm>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/positions/xpos.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

inline constexpr Index xpos_tile =
    XPosDecay::run;  // calls are cut at its multiples: a cut changes no centre
inline constexpr Index xpos_block = 512;

/// As causal `attention`, of queries and keys that are turned by `rope` and lose what `decay` says
/// with distance; the pairs of a head begin at its number `offset`.
///
/// Each tile of queries has its first position as the centre: queries are multiplied by at most 1,
/// copies of earlier keys, of which there are `xpos_block` at a time, too, and keys within the tile
/// by little more. So nothing overflows at any length, what underflows is nothing beside the rest
/// of its score, and no copy grows with the past.
template <class S>
void xpos_attention(In<S, 3> q, CacheIn<S, 4> keys, CacheIn<S, 4> values, In<Index, 1> past,
                    const XPosDecay& decay, RotaryLayout layout, Index offset, AnyScore<S> score,
                    View<S, 3> o, const Call& call) {
  const Index H = q.extent(axis::head), G = keys.extent(axis::head);
  const Index K = q.extent(axis::channel), V = o.extent(axis::channel), pairs = decay.pairs();
  // Multiplies heads [N, heads, K] by the decay over `distance(i)`, which rises or falls by one a
  // token, a task a run of them.
  const auto scale = [&](const auto& heads_of, Index count, Index heads, auto&& distance) {
    call.parallel_for(ceil_div(count, xpos_tile), [&](Index task, const Call& worker) {
      const Index first = task * xpos_tile, last = std::min(count, first + xpos_tile) - 1;
      const Index least = std::min(distance(first), distance(last));
      auto scratch = worker.scratch<S>();
      auto factors = scratch(last - first + 1, pairs);
      decay.write<S>(least, last - first + 1, factors);
      for (Index i = first; i <= last; ++i) {
        for (Index h = 0; h < heads; ++h) {
          scale_pairs<S>(&factors(distance(i) - least, 0), pairs, layout, &heads_of(i, h)[offset]);
        }
      }
    });
  };
  auto scratch = call.scratch<S>();
  auto tile_q = scratch(xpos_tile, H, K);                   // [n, H, K], decayed
  auto block_k = scratch(1, G, xpos_block + xpos_tile, K);  // [1, G, m, K], decayed
  auto block_o = scratch(xpos_tile, H, V);                  // [n, H, V], of a block of keys
  auto total = scratch(xpos_tile, H);                       // [n, H], log Σ exp(s)
  auto block_total = scratch(xpos_tile, H);                 // [n, H]
  Index centre = 0, begin = 0, before = 0;
  // Attends to the keys of [begin, end) for `count` queries at `centre`.
  const auto attend = [&](const Segment& segment, Index end, Index count, const View<S, 3>& to,
                          const View<S, 2>& log_sum_exp) {
    const auto of_block = [&](const auto& cache) {
      return cache.slice(axis::row, segment.row, 1).slice(axis::slot, begin, end - begin);
    };
    const auto decayed = block_k.slice(axis::slot, 0, end - begin);
    load_entries<S>(of_block(keys), decayed);
    scale([&](Index j, Index g) { return decayed[0][g][j]; }, end - begin, G,
          [&](Index j) { return centre - begin - j; });
    before = centre - begin;
    const Segment alone{0, 0, count, segment.form};
    attention<S>(tile_q.slice(axis::time, 0, count), decayed, of_block(values),
                 View<const Index, 1>(&before, {1}), Band{.last = end - begin},
                 begin == 0 ? score : score.without_sinks(), to, call.with(Segments(&alone, 1)),
                 log_sum_exp);
  };
  for (const Segment& segment : call.segments()) {
    for (Index first = 0; first < segment.count; first += xpos_tile) {
      const Index count = std::min(segment.count - first, xpos_tile);
      const auto tokens = [&](const auto& view) {
        return view.slice(axis::time, segment.first + first, count);
      };
      const auto of_tile = [&](const auto& view) { return view.slice(axis::time, 0, count); };
      centre = past[segment.row] + first;
      copy(tokens(q), of_tile(tile_q));
      scale([&](Index i, Index h) { return tile_q[i][h]; }, count, H, [](Index i) { return i; });
      for (begin = 0; begin == 0 || begin < centre; begin += xpos_block) {
        const bool last = centre - begin <= xpos_block;
        const Index end = last ? centre + count : begin + xpos_block;
        if (begin == 0) {
          attend(segment, end, count, tokens(o), of_tile(total));
        } else {
          attend(segment, end, count, of_tile(block_o), of_tile(block_total));
          merge_attention(of_tile(block_o), of_tile(block_total), tokens(o), of_tile(total));
        }
        if (last) break;
      }
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
