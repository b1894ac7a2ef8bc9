#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <string_view>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/attention/detail/policies.hpp"
#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/pointwise/softmax.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"
#include "seqmix/simd/weight_exp.hpp"

// What makes weights of the scores of attention in place of softmax.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The weight of a pair with score s, whatever the others are:
///   sigmoid       σ(s + shift)
///   relu          max(s, 0)
///   relu_squared  max(factor s, 0)²
///   laplace       Φ((factor s - √½) √(4π)), Φ the normal distribution. Ma et al. 2022,
///                 arXiv:2209.10655, eq. 16: near max(s, 0)² with slopes and values in bounds
/// As the last map of a `ComposedScore`.
struct PairWeight {
  enum class Kind { sigmoid, relu, relu_squared, laplace };
  static constexpr bool is_weight = true;

  Kind kind = Kind::relu;
  double shift = 0, factor = 1;
  double scale = 1;

  PairWeight of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& scores, const Pairs<S>& /*pairs*/) const {
    using Batch = simd::Batch<S>;
    if (kind == Kind::sigmoid) return simd::sigmoid(scores + Batch(static_cast<S>(shift)));
    const Batch zero(S(0));
    if (kind == Kind::laplace) {
      constexpr double mean = 1 / std::numbers::sqrt2, half_slope = 2.506628274631000502;  // √(2π)
      const Batch offset(static_cast<S>(-mean * half_slope)), half(S(0.5));
      const Batch rise(static_cast<S>(factor * half_slope));
      return simd::fma<S>(simd::erf(simd::fma<S>(scores, rise, offset)), half, half);
    }
    const Batch positive = simd::select<S>(scores < zero, zero, scores);  // NaN stays NaN
    if (kind == Kind::relu) return positive;
    const Batch scaled = positive * Batch(static_cast<S>(factor));
    return scaled * scaled;
  }
};

namespace detail {

/// Makes scores the weights of softmax, which counts a sink of this score, or none, besides.
template <class S>
void softmax_row(const ScoreRow<S>& row, S sink) {
  using Batch = simd::Batch<S>;
  const S most = std::max(maximum_of(row.scores, row.size), sink);
  const Batch offset = softmax_offset(Batch(most));
  simd::map<S>(
      row.size, row.scores, [&](const Batch& s) { return simd::exp(s - offset); }, row.scores);
  const S keys = sum_of<S>(
      row.size, [](auto p) { return p; }, row.scores);
  const Batch total = Batch(keys) + simd::exp(Batch(sink) - offset);
  const Batch inverse = inverse_or_zero(total);
  simd::map<S>(
      row.size, row.scores, [&](const Batch& p) { return p * inverse; }, row.scores);
}

}  // namespace detail

/// What the key at a query's own position is to it: one of the keys that it sees; hidden; or
/// hidden, but its value gets what weight the others leave of 1.
enum class OwnKey { seen, hidden, remainder };
constexpr std::array<std::string_view, 3> names_of(OwnKey) {
  return {"seen", "hidden", "remainder"};
}

/// The weights p of all scores s of a query, those of hidden keys 0:
///   layer_norm      gain_h (s - mean) / (deviation + eps) + bias_h. Richter & Wattenhofer 2020,
///                   arXiv:2005.09561; OliverRichter/normalized-attention, models.py
///   sparsemax       max(s - τ, 0), τ such that Σ p = 1. Martins & Astudillo 2016, arXiv:1602.02068
///   entmax15        max(s / 2 - τ, 0)², τ such that Σ p = 1. Peters et al. 2019, arXiv:1905.05702
///   stick_breaking  σ(s_j) Π_k (1 - σ(s_k)) over the keys k nearer to the query than j: of two at
///                   one distance the one behind the query is. Tan et al. 2024, arXiv:2410.17980
///   geometric       the same over its sum. Csordás et al. 2021, arXiv:2110.07732, eq. 7
struct RowNormaliser {
  enum class Kind { layer_norm, sparsemax, entmax15, stick_breaking, geometric };

  Kind kind = Kind::layer_norm;
  OwnKey own_key = OwnKey::seen;
  std::vector<double> gains = {}, biases = {};  // [H], of layer_norm
  double eps = 0;                               // of layer_norm

  template <class S>
  void weigh(Index head, const detail::ScoreRow<S>& row) const {
    const bool has_own = row.own >= 0 && row.own < row.size;
    if (own_key != OwnKey::seen && has_own) row.scores[row.own] = detail::minus_infinity<S>;
    switch (kind) {
      case Kind::layer_norm:
        return normalise(row, static_cast<S>(gains[static_cast<std::size_t>(head)]),
                         static_cast<S>(biases[static_cast<std::size_t>(head)]));
      case Kind::sparsemax:
        return cut_off(row, false);
      case Kind::entmax15:
        return cut_off(row, true);
      case Kind::stick_breaking: {
        const S rest = break_stick(row);
        if (own_key == OwnKey::remainder && has_own) row.scores[row.own] = rest;
        return;
      }
      case Kind::geometric: {
        break_stick(row);
        const S sum = detail::sum_of<S>(
            row.size, [](auto p) { return p; }, row.scores);
        const S factor = 1 / std::max(sum, S(1e-12));
        simd::map<S>(
            row.size, row.scores, [factor](auto p) { return p * factor; }, row.scores);
      }
    }
  }

 private:
  template <class S>
  void normalise(const detail::ScoreRow<S>& row, S gain, S bias) const {
    using Batch = simd::Batch<S>;
    const Batch hidden(detail::minus_infinity<S>), zero(S(0)), one(S(1));
    const auto sum_of = [&](auto&& f) {
      return detail::sum_of<S>(
          row.size, [&](const Batch& s) { return simd::select<S>(s == hidden, zero, f(s)); },
          row.scores);
    };
    const S count = std::max(sum_of([&](const Batch&) { return one; }), S(1));
    const S mean = sum_of([](const Batch& s) { return s; }) / count;
    const S square = sum_of([mean](const Batch& s) { return (s - mean) * (s - mean); }) / count;
    const S deviation = std::sqrt(square) + static_cast<S>(eps);
    const S factor = deviation == 0 ? S(0) : gain / deviation;  // of scores that are all the same
    simd::map<S>(
        row.size, row.scores,
        [&](const Batch& s) {
          return simd::select<S>(s == hidden, zero,
                                 simd::fma<S>(s - mean, Batch(factor), Batch(bias)));
        },
        row.scores);
  }

  /// τ by Newton's method from below, whose steps never pass it.
  template <class S>
  static void cut_off(const detail::ScoreRow<S>& row, bool squared) {
    using Batch = simd::Batch<S>;
    const Batch zero(S(0)), one(S(1));
    const S most = detail::maximum_of(row.scores, row.size);
    if (most == detail::minus_infinity<S>) {  // nothing is seen, or NaN alone
      return simd::map<S>(
          row.size, row.scores, [](const Batch& s) { return detail::weight_of<S>(s); }, row.scores);
    }
    const S unit = squared ? S(0.5) : S(1);
    simd::map<S>(
        row.size, row.scores, [&](const Batch& s) { return (s - most) * unit; }, row.scores);
    S threshold = -1, step = 1;
    const auto above = [&](const Batch& s) {
      const Batch rest = s - Batch(threshold);
      return simd::select<S>(rest < zero, zero, rest);  // NaN stays NaN
    };
    const auto sum_of = [&](auto&& f) { return detail::sum_of<S>(row.size, f, row.scores); };
    for (int i = 0; i < 64 && step > std::numeric_limits<S>::epsilon(); ++i) {
      const S sum = sum_of(above);
      if (squared) {
        const S squares = sum_of([&](const Batch& s) { return above(s) * above(s); });
        step = (squares - 1) / (2 * sum);
      } else {
        step = (sum - 1) / sum_of([&](const Batch& s) {
                 return simd::select<S>(s > Batch(threshold), one, zero);
               });
      }
      threshold += step;
    }
    simd::map<S>(
        row.size, row.scores,
        [&](const Batch& s) { return squared ? above(s) * above(s) : above(s); }, row.scores);
  }

  /// Breaks pieces off a stick of length 1, for the nearest keys first. Returns what is left.
  template <class S>
  static S break_stick(const detail::ScoreRow<S>& row) {
    constexpr Index lanes = simd::lanes<S>;
    const auto in_order = [&](auto&& visit) {
      Index rank = 0;
      const auto see = [&](Index i) {
        if (i >= 0 && i < row.size) visit(row.scores[i], row.spare[rank++]);
      };
      const Index farthest = std::max(row.own, row.size - 1 - row.own);
      see(row.own);
      for (Index d = 1; d <= farthest; ++d) see(row.own + d), see(row.own - d);
    };
    in_order([](S score, S& place) { place = score; });
    double broken = 0;  // -log of what is left
    alignas(alignment) std::array<S, static_cast<std::size_t>(lanes)> loss, before;
    // What is left for far keys is 0, so that no product with their values is subnormal.
    constexpr S least = std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();
    const simd::WeightExp<S> exp;
    for (Index i = 0; i < row.size; i += lanes) {
      const auto scores = simd::load<S>(row.spare + i);
      simd::store<S>(loss.data(), simd::softplus(scores));
      for (std::size_t lane = 0; lane < loss.size(); ++lane) {
        before[lane] = static_cast<S>(broken), broken += static_cast<double>(loss[lane]);
      }
      const auto before_each = simd::load<S>(before.data());
      const auto pieces = exp(simd::log_sigmoid(scores) - before_each);
      simd::store<S>(row.spare + i,
                     simd::select<S>(pieces < simd::Batch<S>(least), simd::Batch<S>(S(0)), pieces));
    }
    in_order([](S& weight, S piece) { weight = piece; });
    const double rest = std::exp(-broken);
    return rest < static_cast<double>(least) ? S(0) : static_cast<S>(rest);
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
