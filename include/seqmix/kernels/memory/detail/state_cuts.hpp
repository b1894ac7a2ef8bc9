#pragma once

#include <algorithm>

#include "seqmix/core/call.hpp"
#include "seqmix/kernels/memory/decay.hpp"
#include "seqmix/kernels/memory/detail/state_units.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Heads that one unit takes through the same blocks of time: their rows of a token lie beside each
/// other, where those of one head alone are short and far apart.
inline constexpr Index heads_per_task = 4;
/// Where there are fewer units than this, they take fewer heads, then fewer columns.
inline constexpr Index enough_tasks = 4;

/// A cut between columns is a multiple of `slab`.
inline StateCut cut_by_heads(const Call& call, const Segment& segment, const Shape<4>& state,
                             Index slab) {
  const Index H = state[1], V = state[3], wanted = share_of(call, segment, enough_tasks);
  const Index heads = std::clamp<Index>(H / wanted, 1, heads_per_task);
  const Index slabs = ceil_div(V, slab);
  const Index panels = std::min(slabs, ceil_div(wanted, ceil_div(H, heads)));
  const Index columns = ceil_div(slabs, panels) * slab;
  return {1, H, heads, columns, ceil_div(V, columns)};
}

/// Whether a segment passes in chunks.
inline bool takes_chunks(const Call& call, const Segment& segment) {
  return segment.form == Form::parallel && call.algorithm() != Algorithm::recurrent;
}

/// Calls `body(head, first, tokens)` for the heads of a unit and blocks of its tokens.
void for_each_block_of_time(const StateUnit& unit, auto&& body) {
  const Index T = unit.tokens();
  for (Index first = 0; first < T; first += packed_tokens) {
    for (Index head = unit.head; head < unit.head + unit.heads; ++head) {
      body(head, first, std::min(packed_tokens, T - first));
    }
  }
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
