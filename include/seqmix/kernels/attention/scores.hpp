#pragma once

#include <utility>

#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/kernels/positions/distance_biases.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// scale · q · k, nothing more.
///
/// A score is any type with these members. It maps scaled products before the mask is applied, so
/// that a cap or a bias never makes a hidden key visible. It may have `bias<S>(distance)`, where
/// scores are the scaled products plus biases by distance, those of distance, distance + 1, ...:
/// then tiles of products are biased as they are computed. And `narrowed(Span queries, Span keys)
/// const`, what maps the products of these positions and may be cheaper to ask. Where its
/// `is_weight` is true, what it gives are the weights of attention, and there is no softmax. Logits
/// of sinks are a `ComposedScore`'s.
struct PlainScore {
  double scale = 1;

  /// The score of one query head of a segment, whose row of the state this is.
  PlainScore of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& /*pairs*/) const {
    return products;
  }
};

/// Whether what a score gives are weights.
template <class Score>
inline constexpr bool is_pair_weight = false;
template <class Score>
requires Score::is_weight inline constexpr bool is_pair_weight<Score> = true;

/// Whether a score is the scaled product itself.
template <class Score>
inline constexpr bool is_plain_score = false;
template <>
inline constexpr bool is_plain_score<PlainScore> = true;

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

/// cap · tanh(score / cap) of a score that is more than a scaled product.
struct Capped {
  double cap = 1;
  static constexpr double scale = 1;

  Capped of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& scores, const Pairs<S>& /*pairs*/) const {
    const simd::Batch<S> bound(static_cast<S>(cap));
    return bound * simd::tanh(scores * simd::Batch<S>(static_cast<S>(1 / cap)));
  }
};

/// score / divisor of a score that is more than a scaled product.
struct Divided {
  double divisor = 1;
  static constexpr double scale = 1;

  Divided of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& scores, const Pairs<S>& /*pairs*/) const {
    return scores * simd::Batch<S>(static_cast<S>(1 / divisor));
  }
};

/// Another score plus what `Biases` of its heads (kernels/positions/distance_biases.hpp) add.
template <class Score, class Biases>
struct DistanceBias {
  Score score;
  const Biases* biases;
  Index head = 0;
  double scale = 1;

  DistanceBias(Score others, const Biases& of_heads)
      : score(std::move(others)), biases(&of_heads) {}
  DistanceBias of(Index row, Index of_head) const {
    DistanceBias result(score.of(row, of_head), *biases);
    result.head = of_head, result.scale = result.score.scale;
    return result;
  }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& pairs) const {
    return score(products, pairs) + biases->of(head, pairs);
  }
  template <class S>
  simd::Batch<S> bias(Index distance) const requires is_plain_score<Score> &&
      BiasesByDistance<Biases, S> {
    return biases->template rising<S>(head, distance);
  }
  auto narrowed(Span queries, Span keys) const requires NarrowedBiases<Biases> {
    return [others = score, own = biases->narrowed(head, queries, keys)](const auto& products,
                                                                         const auto& pairs) {
      return others(products, pairs) + own.of(pairs);
    };
  }
};

/// A bias as a score of its own, which others may follow.
template <class Biases>
struct OwnedBiases {
  Biases biases;

  auto of(Index row, Index head) const { return DistanceBias(PlainScore{}, biases).of(row, head); }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
