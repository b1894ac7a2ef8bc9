#pragma once

#include <algorithm>

#include "seqmix/core/call.hpp"
#include "seqmix/kernels/memory/detail/lines_ahead.hpp"
#include "seqmix/kernels/memory/detail/state_cuts.hpp"
#include "seqmix/kernels/memory/detail/state_slabs.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Calls `sweep(block, ahead, slabs)` for the heads of a unit and blocks of its tokens, where
/// `block_of(head, first, tokens)` makes a block: `ahead` are the rows of the one that follows,
/// `slabs` a copy of the state of the head.
template <class S>
void for_each_swept_block(const StateUnit& unit, const View<S, 4>& state, Index slab,
                          const Call& call, auto&& block_of, auto&& sweep) {
  const View<S, 3> heads = unit.state_of(state);
  const Index size = slabs_size(heads.extent(1), heads.extent(2), slab), T = unit.tokens();
  auto scratch = call.scratch<S>();
  S* const slabs = scratch(unit.heads, size).data();
  pack_slabs<S>(heads, slab, slabs);
  for_each_block_of_time(unit, [&](Index head, Index first, Index tokens) {
    const bool last = head + 1 == unit.head + unit.heads;
    const Index next = last ? unit.head : head + 1, from = last ? first + packed_tokens : first;
    LinesAhead<S> ahead;
    if (from < T) {
      const auto following = block_of(next, from, std::min(packed_tokens, T - from));
      for (const View<const S, 2>& rows : following.rows()) ahead.add(rows);
    }
    sweep(block_of(head, first, tokens), ahead, slabs + (head - unit.head) * size);
  });
  unpack_slabs<S>(slabs, slab, heads);
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
