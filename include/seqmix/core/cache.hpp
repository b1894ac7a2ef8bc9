#pragma once

#include "seqmix/core/context.hpp"
#include "seqmix/core/tensor.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The number of tokens that each batch row of a state has seen, [B]. The mixer advances it.
struct Position {
  Tensor<Index, 1> tokens;  // [B]

  Position() = default;
  Position(Index batch, Memory memory = {}) : tokens({batch}, memory) {}
  Index operator[](Index row) const { return tokens[row]; }
  Index& operator[](Index row) { return tokens[row]; }
};

/// An append-only cache: batch first, one entry a token along `Axis`, whose extent is the capacity.
///
/// The valid entries of a row are the first `position[row]`; the state's `Position` says how many.
template <class Scalar, Index Rank, Index Axis>
struct Appended {
  static_assert(Axis > 0 && Axis < Rank);
  static constexpr Index axis = Axis;
  Tensor<Scalar, Rank> entries;

  Appended() = default;
  Appended(Shape<Rank> shape, Memory memory = {}) : entries(shape, memory) {}
  Index capacity() const { return entries.extent(Axis); }
  View<Scalar, Rank> view() { return entries; }
  View<const Scalar, Rank> view() const { return entries; }
};

/// The last entries of a stream, batch first: position p lies in slot p mod rows along `Axis`.
///
/// A layer looks back on `window` positions. Of what the other rows hold, that many tokens can be
/// taken back. Slots that no token has reached are undefined.
template <class Scalar, Index Rank, Index Axis>
struct Ring {
  static_assert(Axis > 0 && Axis < Rank);
  static constexpr Index ring_axis = Axis;
  Tensor<Scalar, Rank> entries;
  Index window = 0;

  Ring() = default;
  Ring(Shape<Rank> shape, Index visible, Memory memory = {})
      : entries(shape, memory), window(visible) {}
  Index rows() const { return entries.extent(Axis); }
  View<Scalar, Rank> view() { return entries; }
  View<const Scalar, Rank> view() const { return entries; }
};

/// Writes the heads x [B, T, G, K] behind the first `past` [B] entries of a cache [B, G, capacity,
/// K].
template <class Scalar>
void append(In<Scalar, 4> x, In<Index, 1> past, View<Scalar, 4> cache, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      append<Scalar>(x.template slice<1>(piece.first, piece.count),
                     past.template slice<0>(piece.row, 1), cache.template slice<0>(piece.row, 1),
                     context);
    });
  }
  for (Index row = 0; row < x.extent(0); ++row) {
    for (Index t = 0; t < x.extent(1); ++t) {
      copy(x[row][t], cache[row].template at<1>(past[row] + t));
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
