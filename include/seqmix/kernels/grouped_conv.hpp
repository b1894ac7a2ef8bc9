#pragma once

#include "seqmix/kernels/short_conv.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// `short_conv` without bias of channels that lie in G groups with other numbers between them.
///
/// x, y: [B, T, G, D]. taps: [W, G, D]. history: [B, W-1, G, D], the last inputs, oldest first;
/// read, then advanced by the T tokens. y may be x.
template <class S>
void grouped_conv(In<S, 4> x, In<S, 3> taps, ShortConvActivation activation, Out<S, 4> history,
                  View<S, 4> y, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      grouped_conv(x.template slice<1>(piece.first, piece.count), taps, activation,
                   history.template slice<0>(piece.row, 1),
                   y.template slice<1>(piece.first, piece.count), context);
    });
  }
  const Index G = y.extent(2);
  if (x.extent(2) != G || taps.extent(1) != G || history.extent(2) != G) {
    throw ShapeError("grouped_conv: x, taps and history have " + std::to_string(x.extent(2)) +
                     ", " + std::to_string(taps.extent(1)) + " and " +
                     std::to_string(history.extent(2)) + " groups, expected " + std::to_string(G));
  }
  context.parallel_for(G, [&](Index g, Context& worker) {
    short_conv<S>(x.template at<2>(g), taps.template at<1>(g), {}, activation,
                  history.template at<2>(g), y.template at<2>(g), worker);
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
