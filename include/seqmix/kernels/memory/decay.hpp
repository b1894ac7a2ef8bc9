#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

// How the states of linear recurrences forget, and the products of their factors.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Tokens of a chunk in plain arithmetic: what a sweep over the state keeps of them fits in the
/// registers.
inline constexpr Index chunk_length = 4;
/// Tokens of a chunk on matrix units, where products cost less than what surrounds them.
inline constexpr Index tile_chunk_length = 64;
/// Tokens that are prepared at a time, then pass through a piece of the state that stays near.
inline constexpr Index packed_tokens = 8 * chunk_length;

/// A running product of factors in {0} and [smallest normal number, 1]. It becomes zero where it
/// leaves that range and never passes through a subnormal number: it is kept too large by the
/// reciprocal of the smallest normal number, a power of two.
template <class S>
class DecayProduct {
 public:
  DecayProduct() = default;
  SEQMIX_ALWAYS_INLINE explicit DecayProduct(const simd::Batch<S>& factor)
      : scaled_(factor * simd::broadcast(1 / std::numeric_limits<S>::min())) {}

  SEQMIX_ALWAYS_INLINE void multiply(const simd::Batch<S>& factor) {
    const simd::Batch<S> product = scaled_ * factor;
    scaled_ = simd::select<S>(product < simd::broadcast(S(1)), simd::broadcast(S(0)), product);
  }
  /// Leaves the lanes as they are in which `mask` does not hold.
  SEQMIX_ALWAYS_INLINE void multiply(const simd::Batch<S>& factor, const simd::Mask<S>& mask) {
    const simd::Batch<S> before = scaled_;
    multiply(factor);
    scaled_ = simd::select<S>(mask, scaled_, before);
  }
  SEQMIX_ALWAYS_INLINE simd::Batch<S> value() const {
    return scaled_ * simd::broadcast(std::numeric_limits<S>::min());
  }

 private:
  simd::Batch<S> scaled_ = simd::broadcast(1 / std::numeric_limits<S>::min());
};

/// A product of factors, what its rounding took off, and what the totals before it left in `lost`.
/// A constant decay rounds its product in the same way in each chunk, which would add up over a
/// slow memory.
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> carried_total(const simd::Batch<S>& product,
                                                  const simd::Batch<S>& missing, S* lost) {
  const simd::Batch<S> rest = simd::select<S>(product < simd::broadcast(S(0.5)),
                                              simd::broadcast(S(0)), missing + simd::load(lost));
  const simd::Batch<S> total = product + rest;
  simd::store<S>(lost, (product - total) + rest);
  return total;
}

/// to[r, c] = f(from[r, c]) in rows of `stride` numbers, a multiple of the lanes, padded with f(0).
/// Packed rows do not evict each other as rows at a distance of 4 KB do.
template <class S>
void pack_padded(const View<const S, 2>& from, S* to, Index stride, auto&& f) {
  constexpr Index L = simd::lanes<S>;
  const Index columns = from.extent(1), whole = columns / L * L;
  for (Index row = 0; row < from.extent(0); ++row, to += stride) {
    const S* const source = from.data() + row * from.stride(0);
    for (Index c = 0; c < whole; c += L) simd::store<S>(to + c, f(simd::load(source + c)));
    for (Index c = whole; c < stride; c += L) {
      simd::store<S>(to + c, f(simd::load(source + c, std::max<Index>(columns - c, 0))));
    }
  }
}
template <class S>
void pack_padded(const View<const S, 2>& from, S* to, Index stride) {
  pack_padded<S>(from, to, stride, [](const simd::Batch<S>& x) { return x; });
}

/// to[r, c] = f(from[r, c]) out of rows of `stride` numbers.
template <class S>
void unpack_padded(const S* from, Index stride, const View<S, 2>& to, auto&& f) {
  for (Index row = 0; row < to.extent(0); ++row, from += stride) {
    simd::map<S>(to.extent(1), to.data() + row * to.stride(0), f, from);
  }
}
template <class S>
void unpack_padded(const S* from, Index stride, const View<S, 2>& to) {
  unpack_padded<S>(from, stride, to, [](const simd::Batch<S>& x) { return x; });
}

}  // namespace detail

/// How a state forgets: a type with
///
///   by_channel       whether each key channel of a head has its own factor
///   check(keys)      throws `ShapeError` unless it fits keys of the shape [T, H, K]
///   write_factors    writes the factors exp(log) in [0, 1] of `count` tokens of a head, a row of
///                    `stride` numbers a token, the head's own in all places
///   of_head(h)       where `by_channel`: what `write_factors` reads, [T, K]
///
/// `ReadBefore`, its `bonus` and the powers of `ConstantDecay` are the only things more that
/// kernels ask for. Where each value channel has its own factor, `check_values(values)` and
/// `of_columns` take the places of `check` and `of_head`, and there is no bonus: see `ValueDecay`.
///
/// The state forgets nothing.
struct NoDecay {
  static constexpr bool by_channel = false;

  void check(const Shape<3>&) const {}
  template <class S>
  void write_factors(Index, Index, Index count, S* rows, Index stride) const {
    std::fill_n(rows, count * stride, S(1));
  }
};

/// One log decay a token and head, <= 0; -infinity forgets all.
template <class S>
struct ScalarDecay {
  static constexpr bool by_channel = false;
  View<const S, 2> log;  // [T, H]

  void check(const Shape<3>& keys) const { Expect{"decay"}.shape("log", log, {keys[0], keys[1]}); }
  void write_factors(Index h, Index first, Index count, S* rows, Index stride) const {
    constexpr Index L = simd::lanes<S>;
    for (Index t = 0; t < count; t += L) {
      const Index tokens = std::min(L, count - t);
      S factors[L] = {};
      for (Index i = 0; i < tokens; ++i) factors[i] = log(first + t + i, h);
      simd::store<S>(factors, simd::flush_subnormal<S>(simd::exp(simd::load(factors))));
      for (Index i = 0; i < tokens; ++i) std::fill_n(rows + (t + i) * stride, stride, factors[i]);
    }
  }
};

/// One log decay a token, head and key channel, <= 0; -infinity forgets all.
template <class S>
struct VectorDecay {
  static constexpr bool by_channel = true;
  View<const S, 3> log;  // [T, H, K]

  void check(const Shape<3>& keys) const { Expect{"decay"}.rows("log", log, keys); }
  /// [T, K]
  View<const S, 2> of_head(Index h) const { return log.at(axis::head, h); }
  void write_factors(Index h, Index first, Index count, S* rows, Index stride) const {
    const View<const S, 2> logs = of_head(h).slice(axis::time, first, count);
    detail::pack_padded<S>(logs, rows, stride, [](const simd::Batch<S>& x) {
      return simd::flush_subnormal<S>(simd::exp(x));
    });
  }
};

/// One factor γ a head in [0, 1], the same for each token: factors [H]. Made once, as it computes
/// the powers of γ that a chunk on matrix units takes.
///
/// Each power is rounded once. But the state takes γ^C at every such chunk, and its rounding would
/// be the same error each time and add up over the memory of a slow head: it is split into 0 or 1,
/// which is nearer, and a rest, which is small where the head is slow, and so is its rounding.
template <class S>
class ConstantDecay {
 public:
  static constexpr bool by_channel = false;

  explicit ConstantDecay(In<S, 1> factors) {
    constexpr Index C = detail::tile_chunk_length;
    Tensor<S, 3> table({factors.extent(0), 2, 2 * C});
    for (Index h = 0; h < factors.extent(0); ++h) {
      table(h, 0, C) = 1;
      const double factor = static_cast<double>(factors[h]), log = std::log1p(factor - 1);
      for (Index n = 1; n <= C; ++n) {
        const double exponent = static_cast<double>(n);
        const S rounded = static_cast<S>(std::pow(factor, exponent));
        const S power = rounded < std::numeric_limits<S>::min() ? S(0) : rounded;
        table(h, 0, C - n) = power;
        // The digits of power - 1, which a subtraction would lose.
        const S from_one = static_cast<S>(std::expm1(exponent * log));
        table(h, 1, C - n) = nearest(power) == S(0) ? power : from_one;
      }
    }
    table_ = std::move(table);
  }

  void check(const Shape<3>& keys) const {
    Expect{"decay"}.shape("factors", table_, {keys[1], table_.extent(1), table_.extent(2)});
  }
  void write_factors(Index h, Index, Index count, S* rows, Index stride) const {
    std::fill_n(rows, count * stride, *powers(h, 1));
  }
  /// γ^n, γ^(n-1), ..., 1, then zeros up to `tile_chunk_length` numbers at least, n <= that.
  const S* powers(Index h, Index n) const { return &table_(h, 0, detail::tile_chunk_length - n); }
  /// γ^n as the sum of 0 or 1 and a rest, 1 <= n <= tile_chunk_length.
  std::array<S, 2> split_power(Index h, Index n) const {
    return {nearest(*powers(h, n)), table_(h, 1, detail::tile_chunk_length - n)};
  }

 private:
  static S nearest(S power) { return power < S(0.5) ? S(0) : S(1); }

  Parameter<S, 3> table_;  // [H, 2, 2 C]: at C - n the power n, and its rest; zeros behind
};

/// One factor in [0, 1] a token, head and key channel: a `VectorDecay` whose exponentials are
/// taken.
template <class S>
struct VectorFactors {
  static constexpr bool by_channel = true;
  View<const S, 3> factors;  // [T, H, K]

  void check(const Shape<3>& keys) const { Expect{"decay"}.rows("factors", factors, keys); }
  /// [T, K]
  View<const S, 2> of_head(Index h) const { return factors.at(axis::head, h); }
  void write_factors(Index h, Index first, Index count, S* rows, Index stride) const {
    detail::pack_padded<S>(of_head(h).slice(axis::time, first, count), rows, stride,
                           [](const simd::Batch<S>& x) { return simd::flush_subnormal<S>(x); });
  }
};

/// One log decay a token, head and value column, <= 0; -infinity forgets all:
///
///   S_t[k, v] = exp(g_t[v]) S_{t-1}[k, v] + k_t[k] v_t[v]
///
/// Only `linear_state` takes it, as what it scales are not keys. Slots that forget on their own are
/// the value columns of a first pass: Zhang et al. 2024, arXiv:2409.07146; Peng et al. 2021,
/// arXiv:2110.02488.
template <class S>
struct ValueDecay {
  static constexpr bool by_channel = false;
  View<const S, 3> log;  // [T, H, V]

  void check_values(const Shape<3>& values) const { Expect{"decay"}.rows("log", log, values); }
  /// That of `count` value columns as the decay of as many channels.
  VectorDecay<S> of_columns(Index first, Index count) const {
    return {log.slice(axis::channel, first, count)};
  }
};

/// A decay that comes after the read: o_t = scale q_t S_{t-1}.
template <class Decay>
struct ReadBefore : Decay {
  using ReadsBefore = void;
};

/// Where what a token reads of its own counts by `bonus` too, as RWKV-6 has it:
/// o_t = scale (q_t S_{t-1} + (Σ_j q_tj bonus_j k_tj) v_t).
template <class S>
struct ReadBeforeWithBonus : ReadBefore<VectorDecay<S>> {
  View<const S, 2> bonus;  // [H, K]

  void check(const Shape<3>& keys) const {
    VectorDecay<S>::check(keys);
    Expect{"decay"}.rows("bonus", bonus, {keys[1], keys[2]});
  }
};

namespace detail {

/// o += (Σ_j r_j bonus_j k_j) v of one token, K keys and V values: its own share.
template <class S>
void add_own_share(Index K, Index V, const S* r, const S* bonus, const S* k, const S* v, S* o) {
  using Batch = simd::Batch<S>;
  const auto product = [](Batch a, Batch b, Batch c) { return a * b * c; };
  const Batch share(sum_of<S>(K, product, r, bonus, k));
  simd::map<S>(
      V, o, [share](Batch sum, Batch x) { return simd::fma<S>(share, x, sum); }, o, v);
}

/// Whether a token reads the state that it finds.
template <class Decay>
inline constexpr bool reads_before = requires {
  typename Decay::ReadsBefore;
};

/// Whether each value column of a head has its own factor.
template <class Decay>
inline constexpr bool by_value = requires(const Decay& decay) {
  decay.of_columns(0, 0);
};

/// Whether the decays of a chunk are powers that the policy has.
template <class Decay>
inline constexpr bool by_powers = requires(const Decay& decay) {
  decay.powers(0, 0);
};

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
