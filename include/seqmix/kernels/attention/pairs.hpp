#pragma once

#include "seqmix/core/numeric.hpp"
#include "seqmix/simd/batch.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Positions [begin, end), counted from the start of the stream.
struct Span {
  Index begin = 0, end = 0;
  Index size() const { return end - begin; }
};

/// How many pairs of a span of queries and a span of keys see each other. A policy that does not
/// know may answer `partial`.
enum class Visibility { none, partial, all };

/// A register of (query, key) pairs. Their positions are origin + query and origin + key with an
/// origin near the keys: whole numbers in S, so that policies compare and subtract them in
/// registers. In float, distances above 2^24 are rounded.
template <class S>
struct Pairs {
  Index origin;
  simd::Batch<S> query, key;
  // Query minus key: of the first lane, and from each lane to the next, 1 where lanes are queries
  // and -1 where they are keys.
  Index distance, step;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
