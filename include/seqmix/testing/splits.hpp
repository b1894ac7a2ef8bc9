#pragma once

#include <algorithm>
#include <iterator>
#include <numeric>
#include <random>
#include <vector>

#include "seqmix/core/segment.hpp"

// Ways to cut sequences into calls, which the law says nobody can see in the outputs.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace testing {

/// The tokens [first, first + count) of a sequence, by steps or by one prefill.
struct Piece {
  Index first = 0, count = 0;
  bool by_steps = false;
};

/// A random split of `tokens` tokens into short and long pieces.
inline std::vector<Piece> random_split(Index tokens, std::mt19937& random) {
  std::vector<Piece> pieces;
  for (Index first = 0; first < tokens; first += pieces.back().count) {
    const Index longest = random() % 2 == 0 ? 4 : 90;
    const Index count = std::min(1 + static_cast<Index>(random()) % longest, tokens - first);
    pieces.push_back({first, count, random() % 2 == 0});
  }
  return pieces;
}

/// Some of `rows` rows in any order, each with one of these numbers of tokens, at most `longest`.
/// 64 n + 1 are what finds a form that is settled too late.
inline std::vector<Segment> random_company(Index rows, Index longest, std::mt19937& random) {
  constexpr Index counts[] = {0, 1, 7, 64, 65, 129, 257, 300};
  std::vector<Index> order(static_cast<std::size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<Segment> segments;
  Index first = 0;
  for (const Index row : order) {
    if (random() % 5 == 0) continue;
    const Index count = std::min(counts[random() % std::size(counts)], longest);
    segments.push_back({row, first, count});
    first += count;
  }
  return segments;
}

/// The tokens of a call of these segments.
inline Index tokens_of(Segments segments) {
  return segments.empty() ? 0 : segments.back().first + segments.back().count;
}

}  // namespace testing
SEQMIX_END_NAMESPACE
}  // namespace seqmix
