#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/core/error.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// scale · q · k, nothing more.
///
/// A score is any type with these members. It maps scaled products before the mask is applied, so
/// that a cap or a bias never makes a hidden key visible.
struct PlainScore {
  double scale = 1;

  /// The score of one query head of a segment, whose row of the state this is.
  PlainScore of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& /*pairs*/) const {
    return products;
  }
};

/// Another score, and a logit of each head that softmax counts beside the keys, with a value of
/// zero: o = Σ exp(s_j) v_j / (Σ exp(s_j) + exp(sink)). OpenAI 2025, arXiv:2508.10925; Miller 2023
/// (logits of 0).
template <class Score>
struct SinkLogits {
  Score score;
  std::span<const double> logits;  // [H]
  double sink = 0;                 // of one head
  double scale = 1;

  SinkLogits(Score others, std::span<const double> of_heads)
      : score(std::move(others)), logits(of_heads) {}
  SinkLogits of(Index row, Index head) const {
    SinkLogits result(score.of(row, head), logits);
    result.sink = logits[static_cast<std::size_t>(head)], result.scale = result.score.scale;
    return result;
  }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& pairs) const {
    return score(products, pairs);
  }
};

/// Whether a score is the scaled product itself.
template <class Score>
inline constexpr bool is_plain_score = false;
template <>
inline constexpr bool is_plain_score<PlainScore> = true;
template <>
inline constexpr bool is_plain_score<SinkLogits<PlainScore>> = true;

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

/// The biases of H heads by distance, query minus key, at `least` to `most`; beyond, those of the
/// end.
///
/// Each row is kept in both directions, with its ends repeated, so that a register of pairs whose
/// distances rise or fall by one reads its biases as they lie.
template <class S>
class DistanceTable {
  static constexpr Index L = simd::lanes<S>;

 public:
  /// `bias(head, distance)`.
  DistanceTable(Index heads, Index least, Index most, auto&& bias)
      : least_(least), count_(most - least + 1) {
    if (count_ < 1) {
      throw ShapeError("DistanceTable: distances " + std::to_string(least) + " to " +
                       std::to_string(most) + ", expected one at least");
    }
    Tensor<S, 3> rows({heads, 2, count_ + 2 * L});
    for (Index h = 0; h < heads; ++h) {
      for (Index i = 0; i < count_ + 2 * L; ++i) {
        const Index distance = std::clamp(least + i - L, least, most);
        const auto number = static_cast<S>(bias(h, distance));
        rows(h, 0, i) = number, rows(h, 1, count_ + 2 * L - 1 - i) = number;
      }
    }
    rows_ = std::move(rows);
  }
  Index heads() const { return rows_.extent(0); }

  SEQMIX_ALWAYS_INLINE simd::Batch<S> of(Index head, const Pairs<S>& pairs) const {
    const Index at =
        pairs.step > 0 ? pairs.distance - least_ : least_ + count_ - 1 - pairs.distance;
    return simd::load<S>(
        &rows_(head, pairs.step > 0 ? 0 : 1, std::clamp<Index>(at + L, 0, count_ + L)));
  }

 private:
  Index least_, count_;
  Parameter<S, 3> rows_;  // [H, {rising, falling}, L + count + L]
};

/// Another score plus a bias by distance.
template <class S, class Score>
struct DistanceBias {
  Score score;
  const DistanceTable<S>* table;
  Index head = 0;
  double scale = 1;

  DistanceBias(Score others, const DistanceTable<S>& biases)
      : score(std::move(others)), table(&biases) {}
  DistanceBias of(Index row, Index of_head) const {
    DistanceBias result(score.of(row, of_head), *table);
    result.head = of_head, result.scale = result.score.scale;
    return result;
  }
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& pairs) const {
    return score(products, pairs) + table->of(head, pairs);
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

SEQMIX_END_NAMESPACE
}  // namespace seqmix
