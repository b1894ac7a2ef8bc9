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
#include "seqmix/kernels/norm.hpp"
#include "seqmix/kernels/rows.hpp"
#include "seqmix/kernels/softmax.hpp"
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
/// Throws unless the heads of `features` and of x [B, T, H, K] belong to each other.
template <class S>
void check_features(std::string_view map, const View<const S, 4>& x, const View<S, 4>& features,
                    Index width) {
  Shape<4> expected = x.shape();
  expected[3] = width;
  if (features.shape() != expected || (width > 1 && features.stride(3) != 1) ||
      (x.extent(3) > 1 && x.stride(3) != 1)) {
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
/// softmax of each head; the other maps have functions of their own. x: [B, T, H, K].
template <class S>
void pointwise_features(FeatureMap map, In<S, 4> x, View<S, 4> features, Context& context) {
  using Batch = simd::Batch<S>;
  detail::check_features<S>(to_string(map), x, features, x.extent(3));
  const Batch zero(S(0)), one(S(1));
  if (map == FeatureMap::relu) {
    elementwise(
        context, [&](const Batch& v) { return simd::max<S>(v, zero); }, features, x);
  } else if (map == FeatureMap::elu_plus_one) {
    const auto f = [&](const Batch& v) {
      return simd::select<S>(v > zero, v + one, simd::exp<S>(simd::min<S>(v, zero)));
    };
    elementwise(context, f, features, x);
  } else {
    elementwise(
        context, [](const Batch& v) { return v; }, features, x);
    if (map == FeatureMap::softmax) softmax(features, context);
  }
}

/// The number of `taylor_features` of a head of width K.
constexpr Index taylor_width(Index K) { return 1 + K + K * (K + 1) / 2; }

/// φ(x) = [1, x_i K^{-1/4}, x_i² (2K)^{-1/2}, x_i x_j K^{-1/2} for i < j], so that φ(q) · φ(k) is
/// 1 + s + s² / 2, the start of exp(s), with s = q · k K^{-1/2}. Arora et al. 2024,
/// arXiv:2402.18668, each product once. x: [B, T, H, K].
template <class S>
void taylor_features(In<S, 4> x, View<S, 4> features, Context& context) {
  using Batch = simd::Batch<S>;
  const Index K = x.extent(3);
  detail::check_features<S>("taylor", x, features, taylor_width(K));
  const S root = static_cast<S>(inverse_sqrt(K));
  const Batch linear(static_cast<S>(std::sqrt(inverse_sqrt(K))));
  const Batch square(static_cast<S>(inverse_sqrt(2 * K)));
  for_each_row(
      context,
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
/// row b is at position past[b] + t + 1. Qin et al. 2022, arXiv:2202.08791. x: [B, T, H,
/// K].
template <class S>
void cosformer_features(In<S, 4> x, In<Index, 1> past, double max_length, View<S, 4> features,
                        Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      cosformer_features<S>(x.template slice<1>(piece.first, piece.count),
                            past.template slice<0>(piece.row, 1), max_length,
                            features.template slice<1>(piece.first, piece.count), context);
    });
  }
  using Batch = simd::Batch<S>;
  const Index B = x.extent(0), T = x.extent(1), H = x.extent(2), K = x.extent(3);
  detail::check_features<S>("cosformer", x, features, 2 * K);
  if (past.extent(0) != B) {
    throw ShapeError("cosformer features of " + std::to_string(B) + " rows got past " +
                     past.shape().text());
  }
  if (features.empty()) return;
  const Index tokens_per_task = std::max<Index>(numbers_per_task / (2 * H * K), 1);
  context.parallel_for(ceil_div(B * T, tokens_per_task), [&](Index task, Context&) {
    const Index end = std::min(B * T, (task + 1) * tokens_per_task);
    for (Index token = task * tokens_per_task; token < end; ++token) {
      const Index b = token / T, t = token % T;
      const double angle = std::numbers::pi / 2 * static_cast<double>(past[b] + t + 1) / max_length;
      const Batch sine(static_cast<S>(std::sin(angle))), cosine(static_cast<S>(std::cos(angle)));
      const Batch zero(S(0));
      for (Index h = 0; h < H; ++h) {
        const S* const from = &x(b, t, h, 0);
        S* const to = &features(b, t, h, 0);
        simd::map<S>(
            K, to, [&](const Batch& v) { return simd::max<S>(v, zero) * sine; }, from);
        simd::map<S>(
            K, to + K, [&](const Batch& v) { return simd::max<S>(v, zero) * cosine; }, from);
      }
    }
  });
}

/// The exponentials of FAVOR+, up to a factor of each query, which the denominator has too. With
/// s = K^{-1/4} features, the products W q with the projection, and n = K^{-1/2} |q|² / 2,
///
///   features = exp(s - max(s))                             where epsilon is 0: [B, T, H, F]
///   features = exp(s - n - max(s)) + epsilon, and their sum as one number more: [B, T, H, F + 1]
template <class S>
void favor_queries(In<S, 4> q, View<S, 4> features, double epsilon, Context& context) {
  using Batch = simd::Batch<S>;
  const Index K = q.extent(3), F = features.extent(3) - (epsilon > 0 ? 1 : 0);
  const S half = static_cast<S>(inverse_sqrt(K) / 2);
  const Batch factor(static_cast<S>(std::sqrt(inverse_sqrt(K))));
  for_each_row(
      context,
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
/// k: [B, T, H, K]; features: W k, becomes
///
///   exp(s_t - n_t - m_t), m_t the maximum of all s - n up to t, [B, T, H, F], epsilon 0; or
///   exp(s_t - n_t - m_t), m_t the maximum of all s up to t, and epsilon, [B, T, H, F + 1], which
///   meets the sum of the query's features
///
/// maximum: [B, H], m, read, then advanced; log_decay: [B, T, H], m_{t-1} - m_t, by which a sum
/// over older features is to be rescaled; the last of F + 1 is not.
template <class S>
void favor_keys(In<S, 4> k, View<S, 4> features, Out<S, 2> maximum, Out<S, 3> log_decay,
                double epsilon, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      favor_keys<S>(k.template slice<1>(piece.first, piece.count),
                    features.template slice<1>(piece.first, piece.count),
                    maximum.template slice<0>(piece.row, 1),
                    log_decay.template slice<1>(piece.first, piece.count), epsilon, context);
    });
  }
  using Batch = simd::Batch<S>;
  const Index B = k.extent(0), T = k.extent(1), H = k.extent(2), K = k.extent(3);
  const Index width = features.extent(3), F = width - (epsilon > 0 ? 1 : 0);
  detail::check_features<S>("favor", k, features, width);
  if (maximum.shape() != Shape<2>{B, H} || log_decay.shape() != Shape<3>{B, T, H}) {
    throw ShapeError("favor features of " + k.shape().text() + " got maximum " +
                     maximum.shape().text() + " and log_decay " + log_decay.shape().text());
  }
  if (features.empty()) return;
  const S half = static_cast<S>(inverse_sqrt(K) / 2);
  const Batch factor(static_cast<S>(std::sqrt(inverse_sqrt(K))));
  context.parallel_for(B * H, [&](Index unit, Context&) {
    const Index b = unit / H, h = unit % H;
    S m = maximum(b, h);
    for (Index t = 0; t < T; ++t) {
      S* const row = &features(b, t, h, 0);
      const S norm = half * detail::square_sum<S>(K, &k(b, t, h, 0));
      const Batch before_maximum(epsilon > 0 ? S(0) : norm);
      simd::map<S>(
          F, row, [&](const Batch& v) { return v * factor - before_maximum; }, row);
      const S before = m;
      m = std::max(m, *std::max_element(row, row + F));
      log_decay(b, t, h) = before - m;
      detail::favor_exponentials<S>(F, row, epsilon > 0 ? m + norm : m, 0);
      if (epsilon > 0) row[F] = static_cast<S>(epsilon);
    }
    maximum(b, h) = m;
  });
}

/// The log decays of all features of `favor_keys` with an epsilon, [B, T, H, F + 1], from
/// log_decay [B, T, H]: the sum of the epsilons does not decay.
template <class S>
void favor_decays(In<S, 3> log_decay, View<S, 4> decays, Context& context) {
  const Index F = decays.extent(3) - 1;
  for_each_row(
      context,
      [F](S* row, const S* decay) {
        std::fill_n(row, F, *decay);
        row[F] = 0;
      },
      decays, log_decay.template insert<3>());
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
