#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/core/error.hpp"
#include "seqmix/core/numeric.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/simd/math.hpp"

// What is added to a score because of where its query and key are. A distance is query minus key.
//
// Biases of H heads are any type with
//
//   of(head, pairs)         of a register of pairs, and
//   rising<S>(head, d)      of the distances d, d + 1, ..., where the distance alone decides: tiles
//                           of products are then biased as they are computed; or in place of both
//   narrowed(head, queries, keys)   what has `of(pairs)` for these positions.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class Biases, class S>
concept BiasesByDistance = requires(const Biases& biases) {
  biases.template rising<S>(Index{}, Index{});
};
template <class Biases>
concept NarrowedBiases = requires(const Biases& biases) {
  biases.narrowed(Index{}, Span{}, Span{});
};

/// The biases of H heads by distance at `least` to `most`; beyond, those of the end.
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
    return pairs.step > 0 ? read(head, 0, pairs.distance - least_)
                          : read(head, 1, least_ + count_ - 1 - pairs.distance);
  }
  template <class>
  SEQMIX_ALWAYS_INLINE simd::Batch<S> rising(Index head, Index distance) const {
    return read(head, 0, distance - least_);
  }

 private:
  simd::Batch<S> read(Index head, Index direction, Index at) const {
    return simd::load<S>(&rows_(head, direction, std::clamp<Index>(at + L, 0, count_ + L)));
  }

  Index least_, count_;
  Parameter<S, 3> rows_;  // [H, {rising, falling}, L + count + L]
};

/// Biases that are a formula of the distance, `at(head, distances)`: no distance is too far, and
/// one that changes with every token costs a register once a tile.
template <class Formula>
struct DistanceFormula {
  template <class S>
  SEQMIX_ALWAYS_INLINE simd::Batch<S> of(Index head, const Pairs<S>& pairs) const {
    return formula().template at<S>(head, pairs.query - pairs.key);
  }
  template <class S>
  SEQMIX_ALWAYS_INLINE simd::Batch<S> rising(Index head, Index distance) const {
    return formula().template at<S>(head, simd::counting_from<S>(distance));
  }

 private:
  const Formula& formula() const { return static_cast<const Formula&>(*this); }
};

namespace detail {

/// A number of one head in all lanes.
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> of_head(const std::vector<double>& numbers, Index head) {
  return simd::Batch<S>(static_cast<S>(numbers[static_cast<std::size_t>(head)]));
}

}  // namespace detail

/// -slope_h |d|: attention with linear biases. Press et al. 2021, arXiv:2108.12409.
///
/// BLOOM adds slope_h j of the key's position j in place of it, which differs by a number of the
/// query alone: softmax does not see it.
struct LinearBiases : DistanceFormula<LinearBiases> {
  std::vector<double> slopes;  // [H]

  explicit LinearBiases(std::vector<double> of_heads) : slopes(std::move(of_heads)) {}
  template <class S>
  simd::Batch<S> at(Index head, const simd::Batch<S>& distance) const {
    return -(detail::of_head<S>(slopes, head) * simd::abs<S>(distance));
  }
};

/// -p_h ln(1 + a_h |d|): KERPLE, logarithmic. Chi et al. 2022, arXiv:2205.09921.
struct KerpleLogBiases : DistanceFormula<KerpleLogBiases> {
  std::vector<double> p, a;  // [H]

  KerpleLogBiases(std::vector<double> factors, std::vector<double> rates)
      : p(std::move(factors)), a(std::move(rates)) {}
  template <class S>
  simd::Batch<S> at(Index head, const simd::Batch<S>& distance) const {
    const simd::Batch<S> rate = detail::of_head<S>(a, head);
    const simd::Batch<S> grown = simd::fma<S>(rate, simd::abs<S>(distance), simd::Batch<S>(S(1)));
    return -(detail::of_head<S>(p, head) * simd::log(grown));
  }
};

/// -a_h |d|^p_h: KERPLE, power. Chi et al. 2022, arXiv:2205.09921.
struct KerplePowerBiases : DistanceFormula<KerplePowerBiases> {
  std::vector<double> p, a;  // [H]

  KerplePowerBiases(std::vector<double> exponents, std::vector<double> factors)
      : p(std::move(exponents)), a(std::move(factors)) {}
  template <class S>
  simd::Batch<S> at(Index head, const simd::Batch<S>& distance) const {
    const simd::Batch<S> zero(S(0)), far = simd::abs<S>(distance);
    const simd::Batch<S> power =
        simd::exp(detail::of_head<S>(p, head) * simd::log(simd::max<S>(far, S(1))));
    return -(detail::of_head<S>(a, head) * simd::select<S>(far == zero, zero, power));
  }
};

/// ln b_n, n = |d| + 1, of a series Σ b_n that converges: b_n = n^-2. The same for all heads. Qin
/// et al. 2023, arXiv:2307.10156.
struct InverseSquareBiases : DistanceFormula<InverseSquareBiases> {
  template <class S>
  simd::Batch<S> at(Index /*head*/, const simd::Batch<S>& distance) const {
    return simd::Batch<S>(S(-2)) * simd::log(simd::abs<S>(distance) + simd::Batch<S>(S(1)));
  }
};

/// As `InverseSquareBiases`, of b_n = exp(-ln² n).
struct LogSquareBiases : DistanceFormula<LogSquareBiases> {
  template <class S>
  simd::Batch<S> at(Index /*head*/, const simd::Batch<S>& distance) const {
    const simd::Batch<S> log = simd::log(simd::abs<S>(distance) + simd::Batch<S>(S(1)));
    return -(log * log);
  }
};

/// factor · slope_h j of the key's position j, where slope, j and their product are rounded to
/// bfloat16, whatever the type of the rest: Falcon's ALiBi. The roundings of j make it no function
/// of the distance.
struct FalconBiases {
  std::vector<double> slopes;  // [H]
  double factor = 1;           // the scale of products: Falcon adds before it scales

  FalconBiases(std::vector<double> of_heads, double scale)
      : slopes(std::move(of_heads)), factor(scale) {
    for (double& slope : slopes) slope = rounded(slope);
  }
  template <class S>
  simd::Batch<S> of(Index head, const Pairs<S>& pairs) const {
    constexpr auto lanes = static_cast<std::size_t>(simd::lanes<S>);
    const double slope = slopes[static_cast<std::size_t>(head)];
    alignas(alignment) std::array<S, lanes> keys;
    simd::store<S>(keys.data(), pairs.key);
    const auto bias = [&](S key) {
      const double position = static_cast<double>(pairs.origin) + static_cast<double>(key);
      return static_cast<S>(factor * rounded(slope * rounded(position)));
    };
    if (pairs.step > 0) return simd::Batch<S>(bias(keys[0]));  // lanes are queries
    for (S& key : keys) key = bias(key);
    return simd::load<S>(keys.data());
  }

 private:
  static double rounded(double number) {
    return static_cast<float>(bfloat16(static_cast<float>(number)));
  }
};

/// f_h(ln(c |d| + 1) / (ln(c max(i, L) + 1) + eps)) at query position i, f a network of one hidden
/// layer of W rectified units: FIRE. Li et al. 2023, arXiv:2310.04418.
///
/// A rectified network of one number is linear between the kinks of its units. The pairs of a tile
/// reach few of them: what a pair costs is one multiply-add, and a choice for each of those.
template <class S>
class FireBiases {
 public:
  struct Network {
    View<const S, 1> weight, bias;  // [W], of the hidden layer
    View<const S, 2> out_weight;    // [H, W]
    View<const S, 1> out_bias;      // [H]
  };

  FireBiases(const Network& net, double c, double threshold, double eps)
      : c_(std::abs(c)), threshold_(std::abs(threshold)), eps_(eps) {
    const Index H = net.out_weight.extent(0), W = net.weight.extent(0);
    struct Kink {
      Index unit;
      double at;
    };
    std::vector<Kink> bends;  // of the units that have one at a positive number
    for (Index u = 0; u < W; ++u) {
      const double kink = -static_cast<double>(net.bias[u]) / static_cast<double>(net.weight[u]);
      if (std::isfinite(kink) && kink > 0) bends.push_back({u, kink});
    }
    std::ranges::sort(bends, {}, &Kink::at);
    const auto pieces = static_cast<Index>(bends.size()) + 1;
    Tensor<S, 1> kinks({pieces - 1});
    Tensor<S, 3> lines({H, 2, pieces});
    for (Index i = 0; i + 1 < pieces; ++i) {
      kinks(i) = static_cast<S>(bends[static_cast<std::size_t>(i)].at);
    }
    // Next to zero; where a unit's bias is zero, its weight decides.
    std::vector<bool> active(static_cast<std::size_t>(W));
    for (Index u = 0; u < W; ++u) {
      const S at_zero = net.bias[u], weight = net.weight[u];
      active[static_cast<std::size_t>(u)] = at_zero != 0 ? at_zero > 0 : weight > 0;
    }
    for (Index piece = 0; piece < pieces; ++piece) {
      if (piece > 0) {
        active[static_cast<std::size_t>(bends[static_cast<std::size_t>(piece - 1)].unit)].flip();
      }
      for (Index h = 0; h < H; ++h) {
        double slope = 0, offset = static_cast<double>(net.out_bias[h]);
        for (Index u = 0; u < W; ++u) {
          if (!active[static_cast<std::size_t>(u)]) continue;
          const auto out = static_cast<double>(net.out_weight(h, u));
          slope += out * static_cast<double>(net.weight[u]);
          offset += out * static_cast<double>(net.bias[u]);
        }
        lines(h, 0, piece) = static_cast<S>(slope), lines(h, 1, piece) = static_cast<S>(offset);
      }
    }
    kinks_ = std::move(kinks), lines_ = std::move(lines);
  }
  Index heads() const { return lines_.extent(0); }

  /// Of one head, for the pairs of a register of queries with some keys, or of a query with
  /// registers of them.
  class OfTile {
    using Batch = simd::Batch<S>;
    static constexpr Index L = simd::lanes<S>;
    static constexpr Index most_keys = 64;  // whose logarithms are shared by the queries

   public:
    OfTile(const FireBiases& of, Index head, Span queries, Span keys)
        : c_(static_cast<S>(of.c_)),
          kinks_(of.kinks_.view()),
          slopes_(of.lines_.view()[head][0]),
          offsets_(of.lines_.view()[head][1]) {
      const auto scale = [&](const Batch& position) {
        const Batch far = simd::max<S>(position, static_cast<S>(of.threshold_));
        return Batch(S(1)) / (log(far) + Batch(static_cast<S>(of.eps_)));
      };
      simd::store<S>(scales_.data(), scale(simd::counting_from<S>(queries.begin)));
      first_distance_ = queries.begin - keys.end + 1;
      if (queries.size() > 1 && keys.size() <= most_keys) {
        for (Index i = 0; i < keys.size() + L - 1; i += L) {
          simd::store<S>(logs_.data() + i, log(simd::counting_from<S>(first_distance_ + i)));
        }
        has_logs_ = true;
      }
      // The pieces that these pairs may reach, some too many rather than too few.
      const Index least = first_distance_, most = queries.end - 1 - keys.begin;
      const Index near = least <= 0 && most >= 0 ? 0 : std::min(std::abs(least), std::abs(most));
      const Index far = std::max(std::abs(least), std::abs(most));
      const auto argument = [&](Index distance, Index position) {
        const double last = std::max(static_cast<double>(position), of.threshold_);
        return std::log1p(of.c_ * static_cast<double>(distance)) /
               (std::log1p(of.c_ * last) + of.eps_);
      };
      const auto pieces_below = [&](double number) {
        const S* const begin = kinks_.data();
        return std::upper_bound(begin, begin + kinks_.extent(0), static_cast<S>(number)) - begin;
      };
      constexpr double slack = 1e-5;
      first_ = pieces_below(argument(near, queries.end - 1) * (1 - slack) - slack);
      last_ = pieces_below(argument(far, queries.begin) * (1 + slack) + slack);
    }

    Batch of(const Pairs<S>& pairs) const {
      const Batch logs = has_logs_ ? simd::load<S>(&logs_[index(pairs)])
                                   : log(simd::abs<S>(pairs.query - pairs.key));
      const Batch scale = pairs.step > 0 ? simd::load<S>(scales_.data()) : Batch(scales_[0]);
      const Batch x = logs * scale;
      Batch slope(slopes_[first_]), offset(offsets_[first_]);
      for (Index piece = first_; piece < last_; ++piece) {
        const auto beyond = x > Batch(kinks_[piece]);
        slope = simd::select<S>(beyond, Batch(slopes_[piece + 1]), slope);
        offset = simd::select<S>(beyond, Batch(offsets_[piece + 1]), offset);
      }
      return simd::fma<S>(slope, x, offset);
    }

   private:
    Batch log(const Batch& number) const {
      return simd::log(simd::fma<S>(Batch(c_), simd::abs<S>(number), Batch(S(1))));
    }
    std::size_t index(const Pairs<S>& pairs) const {
      return static_cast<std::size_t>(pairs.distance - first_distance_);
    }

    S c_;
    View<const S, 1> kinks_, slopes_, offsets_;
    Index first_ = 0, last_ = 0;  // pieces
    Index first_distance_ = 0;
    bool has_logs_ = false;
    alignas(alignment) std::array<S, static_cast<std::size_t>(L)> scales_;  // of the queries
    alignas(alignment) std::array<S, static_cast<std::size_t>(most_keys + 2 * L)> logs_;
  };
  OfTile narrowed(Index head, Span queries, Span keys) const {
    return {*this, head, queries, keys};
  }

 private:
  double c_, threshold_, eps_;
  Parameter<S, 1> kinks_;  // [pieces - 1], rising
  Parameter<S, 3> lines_;  // [H, {slope, offset}, pieces]
};

/// The slopes of ALiBi's heads: 2^(-most (h + 1) / H) where H is a power of two; else those of the
/// next lower one, then every second of the next higher one. `most` is 8 except in MPT, whose name
/// for it is alibi_bias_max.
inline std::vector<double> alibi_slopes(Index heads, double most = 8) {
  Index power = 1;
  while (2 * power <= heads) power *= 2;
  std::vector<double> slopes;
  const auto slope = [&](Index h, Index of) {
    return std::exp2(-most * static_cast<double>(h + 1) / static_cast<double>(of));
  };
  for (Index h = 0; h < power; ++h) slopes.push_back(slope(h, power));
  for (Index h = 0; power + h < heads; ++h) slopes.push_back(slope(2 * h, 2 * power));
  return slopes;
}

/// The row of T5's table for a distance: one each for half of the distances of a direction, from
/// there to max_distance wider and wider ones, and the last one for all beyond. With both
/// directions, keys behind the query have the second half of the table; else they have row 0.
/// Raffel et al. 2019, arXiv:1910.10683; logarithms in float, as published.
inline Index t5_bucket(Index distance, bool both_directions, Index buckets, Index max_distance) {
  const Index own = both_directions ? buckets / 2 : buckets;
  const Index first = both_directions && distance < 0 ? own : 0;
  const Index far = both_directions ? std::abs(distance) : std::max<Index>(distance, 0);
  const Index exact = own / 2;
  if (far < exact) return first + far;
  const double octaves = std::log(static_cast<double>(max_distance) / static_cast<double>(exact));
  const float ratio = static_cast<float>(far) / static_cast<float>(exact);
  const float wider =
      std::log(ratio) / static_cast<float>(octaves) * static_cast<float>(own - exact);
  return first + std::min(exact + static_cast<Index>(wider), own - 1);
}

/// The biases of T5, of a table [buckets, H].
template <class S>
DistanceTable<S> t5_biases(In<S, 2> table, bool both_directions, Index max_distance) {
  const Index buckets = table.extent(0);
  const auto bucket = [&](Index distance) {
    return t5_bucket(distance, both_directions, buckets, max_distance);
  };
  // The rounded logarithm may reach the last row a bit later.
  Index most = max_distance;
  while (bucket(most) != bucket(2 * most)) ++most;
  return {table.extent(1), both_directions ? -most : 0, most,
          [&](Index h, Index distance) { return table(bucket(distance), h); }};
}

/// The biases of a table [2 m + 1, H] whose rows are for the keys from m before a query to m behind
/// it; farther ones have those of the end. Shaw et al. 2018, arXiv:1803.02155, with a number a
/// head in place of a vector.
template <class S>
DistanceTable<S> relative_biases(In<S, 2> table) {
  const Index most = table.extent(0) / 2;
  return {table.extent(1), -most, most,
          [&](Index h, Index distance) { return table(most - distance, h); }};
}

/// (Σ_{n < width / 2} cos(d / 10000^(2n / width)) - width / 2) H / (8 (h + 1)): Sandwich, the inner
/// products of sinusoidal positions, less that at distance 0. Chi et al. 2022, arXiv:2212.10356.
///
/// The sum has no end that repeats, and costs too much to be a formula: the table spans distances
/// below `positions`.
template <class S>
DistanceTable<S> sandwich_biases(Index heads, Index width, Index positions) {
  std::vector<double> sums(static_cast<std::size_t>(positions));
  for (Index n = 0; n < width / 2; ++n) {
    const double angle = std::pow(10000, -2 * static_cast<double>(n) / static_cast<double>(width));
    for (std::size_t d = 0; d < sums.size(); ++d) {
      sums[d] += std::cos(static_cast<double>(d) * angle) - 1;
    }
  }
  return {heads, 1 - positions, positions - 1, [&](Index h, Index distance) {
            return sums[static_cast<std::size_t>(std::abs(distance))] * static_cast<double>(heads) /
                   static_cast<double>(8 * (h + 1));
          }};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
