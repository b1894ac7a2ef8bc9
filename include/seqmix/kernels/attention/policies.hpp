#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "seqmix/kernels/attention/attention.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A query sees the keys of one stretch of positions that lie near enough: sliding windows, the
/// first tokens of a stream, all of another sequence.
struct Band {
  static constexpr Index unlimited = std::numeric_limits<Index>::max() / 4;

  Index first = 0, last = unlimited;  // the keys of [first, last),
  Index back = unlimited, ahead = 0;  // at most so far before and behind the query

  /// The last `width` keys, the query's own among them; of them those from `first` on.
  static Band window(Index width, Index first = 0) { return {.first = first, .back = width - 1}; }
  /// The first `count` keys of the stream up to the query's own.
  static Band leading(Index count) { return {.last = count}; }
  /// `count` keys, or all there are, whatever the position of the query.
  static Band everything(Index count = unlimited) { return {.last = count, .ahead = unlimited}; }

  Band of(Index /*row*/, Index /*head*/) const { return *this; }
  Span reach(Span queries) const {
    return {std::max({Index{0}, first, queries.begin - back}), std::min(last, queries.end + ahead)};
  }
  Visibility visibility(Span queries, Span keys) const {
    const Span near = reach(queries);
    if (keys.begin >= near.end || keys.end <= near.begin) return Visibility::none;
    const bool all = keys.begin >= first && keys.end <= last &&
                     keys.begin + back >= queries.end - 1 && keys.end - 1 <= queries.begin + ahead;
    return all ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    using Batch = simd::Batch<S>;
    const auto number = [](Index value) { return Batch(static_cast<S>(value)); };
    const Batch distance = pairs.query - pairs.key;
    return distance <= number(back) && distance >= number(-ahead) &&
           pairs.key >= number(first - pairs.origin) && pairs.key < number(last - pairs.origin);
  }
};

/// A query sees the first keys of its row, `of_rows[row]` of them, wherever it stands: those of
/// another sequence.
struct Lengths {
  View<const Index, 1> of_rows;  // [B]

  Band of(Index row, Index /*head*/) const { return Band::everything(of_rows[row]); }
};

/// cap · tanh(scale q · k / cap): scores whose size is bounded. Gemma team 2024, arXiv:2408.00118.
struct SoftCap {
  double scale = 1;  // of the products: 1 / cap is in it
  double cap = 1;

  SoftCap(double product_scale, double bound) : scale(product_scale / bound), cap(bound) {}
  SoftCap of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& /*pairs*/) const {
    return simd::Batch<S>(static_cast<S>(cap)) * simd::tanh(products);
  }
};

/// scale q · k - slope_h |i - j|: attention with linear biases. Press et al. 2021,
/// arXiv:2108.12409.
struct Alibi {
  double scale = 1;
  std::span<const double> slopes;  // [H]
  double slope = 0;                // of one head

  Alibi of(Index /*row*/, Index head) const {
    return {scale, slopes, slopes[static_cast<std::size_t>(head)]};
  }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& pairs) const {
    return simd::fnma<S>(simd::Batch<S>(static_cast<S>(slope)),
                         simd::abs<S>(pairs.query - pairs.key), products);
  }
};

/// The slopes of ALiBi's heads: 2^(-8 (h + 1) / H) where H is a power of two; else those of the
/// next lower one, then every second of the next higher one.
inline std::vector<double> alibi_slopes(Index heads) {
  Index power = 1;
  while (2 * power <= heads) power *= 2;
  std::vector<double> slopes;
  const auto slope = [](Index h, Index of) {
    return std::exp2(-8 * static_cast<double>(h + 1) / static_cast<double>(of));
  };
  for (Index h = 0; h < power; ++h) slopes.push_back(slope(h, power));
  for (Index h = 0; power + h < heads; ++h) slopes.push_back(slope(2 * h, 2 * power));
  return slopes;
}

namespace detail {

/// `attend_to_rings` for each remainder of the positions by `dilation`.
template <class S>
void attend_dilated(const AttentionOperands<S>& operands, Index dilation,
                    const CacheView<S, 4>& keys, const CacheView<S, 4>& values, const Call& call) {
  for (const Segment& segment : call.segments()) {
    for (Index first = 0; first < std::min(dilation, segment.count); ++first) {
      const Index position = operands.past[segment.row] + first, remainder = position % dilation;
      const Index before = position / dilation;  // tokens of this stream that are in the ring
      const Segment stream{segment.row, 0, ceil_div(segment.count - first, dilation), segment.form};
      const auto tokens = [&](const auto& view) {
        return every(axis::time, view, segment.first + first, dilation, stream.count);
      };
      const auto slots = [&](const CacheView<S, 4>& ring) {
        return every(axis::slot, ring, remainder, dilation, ring.extent(axis::slot) / dilation);
      };
      const auto ring_keys = slots(keys), ring_values = slots(values);
      attend_to_rings<S>({tokens(operands.q),
                          ring_keys,
                          ring_values,
                          for_all_rows(before, keys.extent(axis::row)),
                          tokens(operands.o),
                          {},
                          operands.policies,
                          tokens(operands.fresh_keys),
                          tokens(operands.fresh_values)},
                         ring_keys, ring_values, call.with(Segments(&stream, 1)));
    }
  }
}

}  // namespace detail

/// `ring_attention` where a query sees the last `width` of the tokens whose distance to it divides
/// by `dilation`. The positions of each remainder are a stream of their own, in which their window
/// has no gaps: distances that `score` sees count in dilations. The rows of the rings are a
/// multiple of `dilation`.
template <class S, class Score>
void dilated_ring_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, In<Index, 1> past, Index width,
                            Index dilation, Score score, CacheOut<S, 4> keys, CacheOut<S, 4> values,
                            View<S, 3> o, const Call& call) {
  if (dilation == 1) {
    return ring_attention(q, k, v, past, Band::window(width), score, keys, values, o, call);
  }
  const detail::PoliciesOf<S, Band, Score> policies(Band::window(width), std::move(score));
  detail::attend_dilated<S>({q, keys, values, past, o, {}, policies, k, v}, dilation, keys, values,
                            call);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
