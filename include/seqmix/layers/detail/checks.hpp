#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "seqmix/core/call.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/view.hpp"

// What the verbs of a layer refuse. Nothing here depends on the layer's type, so that it is
// compiled once for all layers, and nothing allocates unless it throws.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The most tokens that a stream may have, and the fields of the config that say so.
struct PositionLimit {
  Index tokens = std::numeric_limits<Index>::max();
  std::string_view fields;

  friend bool operator<(const PositionLimit& a, const PositionLimit& b) {
    return a.tokens < b.tokens;
  }
  /// Throws `CapacityError` unless `coming` tokens after `past` may be.
  void check(std::string_view layer, Index past, Index coming) const {
    if (coming <= tokens - past) return;
    throw CapacityError(std::string(layer) + ": " + std::to_string(coming) + " tokens after " +
                        std::to_string(past) + " exceed the " + std::to_string(tokens) +
                        " positions of " + std::string(fields));
  }
};

namespace detail {

/// `which` is [B, T, width] with contiguous rows.
inline void check_view(std::string_view layer, std::string_view which, const Shape<3>& shape,
                       const Shape<3>& strides, Index width) {
  if (shape[0] < 0 || shape[1] < 0 || shape[2] != width) {
    throw ShapeError(std::string(layer) + ": " + std::string(which) + " has shape " + shape.text() +
                     ", expected [B, T, " + std::to_string(width) + "]");
  }
  if (shape[2] > 1 && strides[2] != 1) {
    throw ShapeError(std::string(layer) + ": the last dimension of " + std::string(which) +
                     " has stride " + std::to_string(strides[2]) + ", expected 1");
  }
}

[[noreturn]] SEQMIX_COLD inline void refuse_output(std::string_view layer, const Shape<3>& x,
                                                   const Shape<3>& y) {
  throw ShapeError(std::string(layer) + ": y has shape " + y.text() +
                   ", expected the rows and tokens of x, " + x.text());
}
[[noreturn]] SEQMIX_COLD inline void refuse_overlap(std::string_view layer) {
  throw ShapeError(std::string(layer) + ": x and y overlap; they must be one view or disjoint");
}
/// No number of `which` belongs to two tokens.
inline void check_output(std::string_view layer, std::string_view which, const Shape<3>& shape,
                         const Shape<3>& strides) {
  if (overlaps_itself(shape, strides)) {
    throw ShapeError(std::string(layer) + ": " + std::string(which) + " overlaps itself; shape " +
                     shape.text() + " has strides " + strides.text());
  }
}

/// The side value `which` has the expected shape [tokens, width] and contiguous rows.
inline void check_side(std::string_view layer, std::string_view which, const Shape<2>& shape,
                       const Shape<2>& strides, const Shape<2>& expected) {
  if (shape != expected) {
    throw ShapeError(std::string(layer) + ": side value " + std::string(which) + " has shape " +
                     shape.text() + ", expected " + expected.text());
  }
  check_view(layer, which, {1, shape[0], shape[1]}, {0, strides[0], strides[1]}, expected[1]);
}

/// The indices of a side value are not negative, and below `bound`.
inline void check_indices(std::string_view layer, std::string_view which,
                          const View<const Index, 2>& indices, Index bound) {
  for (Index t = 0; t < indices.extent(0); ++t) {
    for (Index i = 0; i < indices.extent(1); ++i) {
      if (indices(t, i) >= 0 && indices(t, i) < bound) continue;
      throw ShapeError(std::string(layer) + ": side value " + std::string(which) + " of token " +
                       std::to_string(t) + " is " + std::to_string(indices(t, i)) +
                       ", expected 0 to " + std::to_string(bound - 1));
    }
  }
}

/// Segments lie behind each other from token 0 to the last of the `tokens` of `which` and, where
/// there are rows, name each at most once. Counts in `coming` [B] the tokens of each row.
inline void check_segments(std::string_view layer, std::string_view which, Segments segments,
                           Index tokens, bool has_rows, const View<Index, 1>& coming) {
  Index next = 0;
  const auto refuse = [&](const Segment& segment, const std::string& rule) {
    throw ShapeError(std::string(layer) + ": segment " +
                     std::to_string(&segment - segments.data()) + " is row " +
                     std::to_string(segment.row) + ", tokens " + std::to_string(segment.first) +
                     " to " + std::to_string(segment.first + segment.count) + ", expected " + rule);
  };
  for (Index row = 0; row < coming.extent(0); ++row) coming[row] = -1;
  for (const Segment& segment : segments) {
    if (segment.count < 0 || segment.count > tokens - next || segment.first != next) {
      refuse(segment, "one that begins at token " + std::to_string(next) + " and ends at " +
                          std::to_string(tokens) + " at most");
    }
    next += segment.count;
    if (!has_rows) continue;
    if (segment.row < 0 || segment.row >= coming.extent(0)) {
      refuse(segment, "one of " + std::to_string(coming.extent(0)) + " rows");
    }
    if (coming[segment.row] >= 0) refuse(segment, "a row that no other segment has");
    coming[segment.row] = segment.count;
  }
  if (next != tokens) {
    throw ShapeError(std::string(layer) + ": the segments have " + std::to_string(next) +
                     " tokens, expected those of " + std::string(which) + ", " +
                     std::to_string(tokens));
  }
  for (Index row = 0; row < coming.extent(0); ++row) coming[row] = std::max<Index>(coming[row], 0);
}

/// The form that a segment takes.
inline Form settled_form(const Context& context, Form wanted, Index count) {
  if (context.form() != Form::automatic) wanted = context.form();
  if (wanted != Form::automatic) return wanted;
  return count == 1 ? Form::recurrent : Form::parallel;
}
/// The segments that have tokens, their forms settled, in `to`.
inline Segments settle(const Context& context, Segments segments, Segment* to) {
  std::size_t n = 0;
  for (const Segment& segment : segments) {
    if (segment.count == 0) continue;
    to[n] = segment;
    to[n++].form = settled_form(context, segment.form, segment.count);
  }
  return {to, n};
}

/// The offsets cut `tokens` tokens into documents.
inline void check_offsets(std::string_view layer, const View<const Index, 1>& cu_seqlens,
                          Index tokens) {
  const Index offsets = cu_seqlens.extent(0);
  const auto expect = [&](bool holds, Index i, const char* rule, Index number) {
    if (holds) return;
    throw ShapeError(std::string(layer) + ": cu_seqlens[" + std::to_string(i) + "] is " +
                     (i < offsets ? std::to_string(cu_seqlens[i]) : "missing") + ", expected " +
                     rule + std::to_string(number));
  };
  expect(offsets > 0 && cu_seqlens[0] == 0, 0, "", 0);
  for (Index i = 1; i < offsets; ++i) {
    expect(cu_seqlens[i] >= cu_seqlens[i - 1], i, "at least the offset before, ",
           cu_seqlens[i - 1]);
  }
  expect(cu_seqlens[offsets - 1] == tokens, offsets - 1, "the number of tokens, ", tokens);
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
