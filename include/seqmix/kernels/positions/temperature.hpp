#pragma once

#include <functional>

#include "seqmix/core/call.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Multiplies the heads [T, H, K] of each token by `factor(position)`, a double; token t of a
/// segment is at position past[row] + t, where `past` [B] may be none: zeros.
template <class S>
void scale_by_position(View<S, 3> x, In<Index, 1> past, auto&& factor, const Call& call) {
  auto scratch = call.scratch<S>();
  auto factors = scratch(x.extent(axis::time));  // [T]
  for (const Segment& segment : call.segments()) {
    const Index before = past.data() == nullptr ? 0 : past[segment.row];
    for (Index t = 0; t < segment.count; ++t) {
      factors[segment.first + t] = static_cast<S>(factor(before + t));
    }
  }
  const auto heads = x.merge(axis::head);  // [T, H K]
  elementwise(call, std::multiplies(), heads, heads, by_row(View<const S, 1>(factors)));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
