#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/pointwise/softmax.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What linear attention makes of a query or key before their product.
enum class FeatureMap {
  identity,
  relu,
  elu_plus_one,
  softmax,
  taylor,
  cosformer,
  favor,
  elementwise_product
};
constexpr std::array<std::string_view, 8> names_of(FeatureMap) {
  return {"identity", "relu",      "elu_plus_one", "softmax",
          "taylor",   "cosformer", "favor",        "elementwise_product"};
}

namespace detail {
/// Throws unless the heads of `features` and of x [T, H, K] belong to each other.
template <class S>
void check_features(std::string_view map, const View<const S, 3>& x, const View<S, 3>& features,
                    Index width) {
  const Shape<3> expected{x.extent(0), x.extent(1), width};
  if (features.shape() != expected || (width > 1 && features.stride(2) != 1) ||
      (x.extent(2) > 1 && x.stride(2) != 1)) {
    throw ShapeError(std::string(map) + " features of " + x.shape().text() + " have shape " +
                     features.shape().text() + ", expected contiguous heads and " +
                     expected.text());
  }
}
template <class S>
S square_sum(Index count, const S* numbers) {
  return sum_of<S>(
      count, [](const simd::Batch<S>& v) { return v * v; }, numbers);
}

/// row = exp(row - most) + epsilon
template <class S>
void favor_exponentials(Index width, S* row, S most, double epsilon) {
  const simd::Batch<S> shift(most), floor(static_cast<S>(epsilon));
  simd::map<S>(
      width, row, [&](const simd::Batch<S>& v) { return simd::exp<S>(v - shift) + floor; }, row);
}
}  // namespace detail

/// features = x, relu(x), elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236, eq. 7) or the
/// softmax of each head; the other maps have functions of their own. x: [T, H, K].
template <class S>
void pointwise_features(FeatureMap map, In<S, 3> x, View<S, 3> features, const Call& call) {
  detail::check_features<S>(to_string(map), x, features, x.extent(axis::channel));
  if (map == FeatureMap::relu) {
    elementwise(call, activation::relu, features, x);
  } else if (map == FeatureMap::elu_plus_one) {
    const auto f = [](auto v) { return simd::select(v > 0, v + 1, simd::exp(simd::min(v, 0))); };
    elementwise(call, f, features, x);
  } else {
    elementwise(call, std::identity(), features, x);
    if (map == FeatureMap::softmax) softmax(features, call);
  }
}

/// The number of `taylor_features` of a head of width K.
constexpr Index taylor_width(Index K) { return 1 + K + K * (K + 1) / 2; }

/// φ(x) = [1, x_i K^{-1/4}, x_i² (2K)^{-1/2}, x_i x_j K^{-1/2} for i < j], so that φ(q) · φ(k) is
/// 1 + s + s² / 2, the start of exp(s), with s = q · k K^{-1/2}. Arora et al. 2024,
/// arXiv:2402.18668, each product once. x: [T, H, K].
template <class S>
void taylor_features(In<S, 3> x, View<S, 3> features, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index K = x.extent(axis::channel);
  detail::check_features<S>("taylor", x, features, taylor_width(K));
  const S root = static_cast<S>(inverse_sqrt(K));
  const Batch linear(static_cast<S>(std::sqrt(inverse_sqrt(K))));
  const Batch square(static_cast<S>(inverse_sqrt(2 * K)));
  for_each_row(
      call,
      [&](S* to, const S* from) {
        *to++ = 1;
        simd::map<S>(
            K, to, [&](const Batch& v) { return v * linear; }, from);
        simd::map<S>(
            K, to + K, [&](const Batch& v) { return v * v * square; }, from);
        to += 2 * K;
        for (Index i = 0; i + 1 < K; to += K - 1 - i, ++i) {
          const Batch scaled(from[i] * root);
          simd::map<S>(
              K - 1 - i, to, [&](const Batch& v) { return v * scaled; }, from + i + 1);
        }
      },
      features, x);
}

/// φ(x_p) = [relu(x) sin(a), relu(x) cos(a)], a = π p / (2 M), at position p = 1, 2, ...: products
/// of two are weighted by the cosine of their distance, positive up to M = `max_length`. Token t of
/// a segment is at position past[row] + t + 1. Qin et al. 2022, arXiv:2202.08791. x: [T, H, K];
/// past: [B].
template <class S>
void cosformer_features(In<S, 3> x, In<Index, 1> past, double max_length, View<S, 3> features,
                        const Call& call) {
  using Batch = simd::Batch<S>;
  const Index H = x.extent(axis::head), K = x.extent(axis::channel);
  detail::check_features<S>("cosformer", x, features, 2 * K);
  if (features.empty()) return;
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{segment.count, 2 * H * K};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call&) {
    const Index position = past[unit.row()] + unit.item + 1, t = unit.segment.first + unit.item;
    const double angle = std::numbers::pi / 2 * static_cast<double>(position) / max_length;
    const Batch sine(static_cast<S>(std::sin(angle))), cosine(static_cast<S>(std::cos(angle)));
    const Batch zero(S(0));
    for (Index h = 0; h < H; ++h) {
      const S* const from = &x(t, h, 0);
      S* const to = &features(t, h, 0);
      simd::map<S>(
          K, to, [&](const Batch& v) { return simd::max<S>(v, zero) * sine; }, from);
      simd::map<S>(
          K, to + K, [&](const Batch& v) { return simd::max<S>(v, zero) * cosine; }, from);
    }
  });
}

/// The exponentials of FAVOR+, up to a factor of each query, which the denominator has too. With
/// s = K^{-1/4} features, the products W q with the projection, and n = K^{-1/2} |q|² / 2,
///
///   features = exp(s - max(s))                             where epsilon is 0: [T, H, F]
///   features = exp(s - n - max(s)) + epsilon, and their sum as one number more: [T, H, F + 1]
template <class S>
void favor_queries(In<S, 3> q, View<S, 3> features, double epsilon, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index K = q.extent(axis::channel);
  const Index F = features.extent(axis::channel) - (epsilon > 0 ? 1 : 0);
  const S half = static_cast<S>(inverse_sqrt(K) / 2);
  const Batch factor(static_cast<S>(std::sqrt(inverse_sqrt(K))));
  for_each_row(
      call,
      [&](S* row, const S* query) {
        simd::map<S>(
            F, row, [&](const Batch& v) { return v * factor; }, row);
        S most = *std::max_element(row, row + F);
        if (epsilon > 0) most += half * detail::square_sum<S>(K, query);
        detail::favor_exponentials<S>(F, row, most, epsilon);
        if (epsilon > 0) row[F] = detail::sum_of<S>(F, std::identity(), row);
      },
      features, q);
}

/// The keys of FAVOR+, φ(k) = exp(s - n) with s = K^{-1/4} W k and n = K^{-1/2} |k|² / 2, and with
/// an epsilon added to each: relative to the largest exponent so far, as a query at t meets the
/// keys up to t. Choromanski et al. 2020, arXiv:2009.14794, lemma 1; performer_pytorch
/// softmax_kernel, where the maximum is over the call.
///
/// k: [T, H, K]; features: W k, becomes
///
///   exp(s_t - n_t - m_t), m_t the maximum of all s - n up to t, [T, H, F], epsilon 0; or
///   exp(s_t - n_t - m_t), m_t the maximum of all s up to t, and epsilon, [T, H, F + 1], which
///   meets the sum of the query's features
///
/// maximum: [B, H], m, whose rows the segments read, then advance; log_decay: [T, H], m_{t-1} -
/// m_t, by which a sum over older features is to be rescaled; the last of F + 1 is not.
template <class S>
void favor_keys(In<S, 3> k, View<S, 3> features, Out<S, 2> maximum, Out<S, 2> log_decay,
                double epsilon, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index T = k.extent(axis::time), H = k.extent(axis::head), K = k.extent(axis::channel);
  const Index width = features.extent(axis::channel), F = width - (epsilon > 0 ? 1 : 0);
  detail::check_features<S>("favor", k, features, width);
  if (maximum.extent(axis::head) != H || log_decay.shape() != Shape<2>{T, H}) {
    throw ShapeError("favor features of " + k.shape().text() + " got maximum " +
                     maximum.shape().text() + " and log_decay " + log_decay.shape().text());
  }
  if (features.empty()) return;
  const S half = static_cast<S>(inverse_sqrt(K) / 2);
  const Batch factor(static_cast<S>(std::sqrt(inverse_sqrt(K))));
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{H, segment.count * (K + width)};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call&) {
    const Index h = unit.item, first = unit.segment.first, end = first + unit.tokens();
    S m = maximum(unit.row(), h);
    for (Index t = first; t < end; ++t) {
      S* const row = &features(t, h, 0);
      const S norm = half * detail::square_sum<S>(K, &k(t, h, 0));
      const Batch before_maximum(epsilon > 0 ? S(0) : norm);
      simd::map<S>(
          F, row, [&](const Batch& v) { return v * factor - before_maximum; }, row);
      const S before = m;
      m = std::max(m, *std::max_element(row, row + F));
      log_decay(t, h) = before - m;
      detail::favor_exponentials<S>(F, row, epsilon > 0 ? m + norm : m, 0);
      if (epsilon > 0) row[F] = static_cast<S>(epsilon);
    }
    maximum(unit.row(), h) = m;
  });
}

/// The log decays of all features of `favor_keys` with an epsilon, [T, H, F + 1], from log_decay
/// [T, H]: the sum of the epsilons does not decay.
template <class S>
void favor_decays(In<S, 2> log_decay, View<S, 3> decays, const Call& call) {
  const Index F = decays.extent(axis::channel) - 1;
  for_each_row(
      call,
      [F](S* row, const S* decay) {
        std::fill_n(row, F, *decay);
        row[F] = 0;
      },
      decays, log_decay.split(axis::head, log_decay.extent(axis::head), 1));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
