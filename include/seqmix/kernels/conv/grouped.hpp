#pragma once

#include <algorithm>
#include <string>

#include "seqmix/kernels/conv/short.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// `short_conv` without bias of channels that lie in G groups with other numbers between them.
///
/// x, y: [T, G, D]. taps: [W, G, D]. history: [B, W-1, G, D], the last inputs, oldest first, whose
/// rows the segments read, then advance. y may be x.
template <class S>
void grouped_conv(In<S, 3> x, In<S, 3> taps, ShortConvActivation activation, Out<S, 4> history,
                  View<S, 3> y, const Call& call) {
  const Index T = y.extent(0), G = y.extent(1), D = y.extent(2);
  if (x.extent(1) != G || taps.extent(1) != G || history.extent(2) != G) {
    throw ShapeError("grouped_conv: x, taps and history have " + std::to_string(x.extent(1)) +
                     ", " + std::to_string(taps.extent(1)) + " and " +
                     std::to_string(history.extent(2)) + " groups, expected " + std::to_string(G));
  }
  const Index groups_per_task = std::max<Index>(numbers_per_task / std::max<Index>(T * D, 1), 1);
  call.parallel_for(ceil_div(G, groups_per_task), [&](Index task, const Call& worker) {
    const Index end = std::min(G, (task + 1) * groups_per_task);
    for (Index g = task * groups_per_task; g < end; ++g) {
      short_conv<S>(x.at(axis::head, g), taps.at(axis::head, g), {}, activation,
                    history.template at<2>(g), y.at(axis::head, g), worker);
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
