#pragma once

#include <variant>
#include <vector>

#include "seqmix/kernels/attention/block_masks.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/positions/position_rule.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Where the keys of a band are kept: in the ring of the last ones, among all of them, or as the
/// first ones of the stream.
enum class BandStore { ring, all, leading };

/// Keys that a query sees all from one position of its own. The bands of one softmax, merged by
/// their log Σ exp(s), begin one behind the other; the nearest keys are in the first one, and what
/// is no ring has one rule for keys, the last one's.
struct KeyBand {
  BandStore store;
  PositionRule query, key;          // where both are turned to
  std::variant<Band, Chunks> keys;  // which they are
  Index begin = 0;                  // the first position of a query that sees one of them
  Index chunks_before = 0;          // from its own chunk to that whose angle turns a query
};

/// The last `window` keys, and earlier ones of groups that have one position each. Jin et al. 2024,
/// arXiv:2401.01325.
inline std::vector<KeyBand> self_extend_bands(Index window, Index group) {
  const PositionRule far{.divide = group, .shift = window - window / group};
  return {{BandStore::ring, {}, {}, Band::window(window)},
          {BandStore::all, far, {.divide = group}, Band{.ahead = -window}, window}};
}

/// The keys of the query's own chunk of `size` tokens, of the one before and of earlier ones, at
/// distances of at most `most`. An et al. 2024, arXiv:2402.17463.
inline std::vector<KeyBand> dual_chunk_bands(Index most, Index size) {
  const PositionRule own{.modulo = size};
  const PositionRule next{.modulo = size, .shift = size, .last = most};
  const PositionRule later{.modulo = 1, .shift = 2 * size - 1, .last = most};
  return {{BandStore::all, own, own, Chunks{size}},
          {BandStore::all, next, own, Chunks{size, 1, -1}, size, 1},
          {BandStore::all, later, own, Chunks{size, Band::unlimited, -2}, 2 * size, 1}};
}

/// The last `window` keys and the first `n`, which stand right before them once both are there.
/// Xiao et al. 2023, arXiv:2309.17453, section 3.2.
inline std::vector<KeyBand> sink_bands(Index window, Index n) {
  return {{BandStore::ring, {}, {}, Band::window(window, n)},
          {BandStore::leading, {.last = n + window - 1}, {}, Band::leading(n)}};
}

/// The keys that `last` shows, none of the first `n`, and those where they stand.
inline std::vector<KeyBand> sink_bands_in_place(const std::variant<Band, Chunks>& last, Index n) {
  return {{BandStore::ring, {}, {}, last}, {BandStore::leading, {}, {}, Band::leading(n)}};
}

/// The last `window` keys and the first `n`, which are at distance `window` beyond it. Han et al.
/// 2023, arXiv:2308.16137.
inline std::vector<KeyBand> lm_infinite_bands(Index window, Index n) {
  const Band first{.last = n, .ahead = -window};
  return {{BandStore::ring, {}, {}, Band::window(window)},
          {BandStore::leading, {.modulo = 1, .shift = window}, {.modulo = 1}, first, window}};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
