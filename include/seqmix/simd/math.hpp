#pragma once

#include <bit>
#include <limits>
#include <utility>

#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/coefficients.hpp"

// The functions of a layer on registers, over the whole range of float and double: at most 2 units
// in the last place for exp, exp2 and log, 4 for the others. NaN gives NaN; a result below the
// smallest normal number may be 0. No function branches on its input, so that a number does not
// depend on its neighbours, and each product that is rounded before a sum is an `fma`, which leaves
// the compiler nothing to contract.

SEQMIX_BEGIN_INTRINSICS

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {

/// The unevaluated sum hi + lo, |lo| at most half a unit in the last place of hi.
template <class S>
struct Pair {
  Batch<S> hi, lo;
};

/// a + b, exactly (Knuth 1997, 4.2.2 theorem B).
template <class S>
SEQMIX_ALWAYS_INLINE Pair<S> exact_sum(const Batch<S>& a, const Batch<S>& b) {
  const Batch<S> hi = a + b, from_b = hi - a;
  return {hi, (a - (hi - from_b)) + (b - from_b)};
}

/// a b, exactly with fused multiply-adds, else to the last bit or two of `lo` (Dekker 1971).
template <class S>
SEQMIX_ALWAYS_INLINE Pair<S> exact_product(const Batch<S>& a, const Batch<S>& b) {
  const Batch<S> hi = a * b;
  if constexpr (has_fma) {
    return {hi, simd::fma(a, b, -hi)};
  } else {
    using Bits = typename detail::Coefficients<S>::Bits;
    constexpr int dropped =
        (detail::Coefficients<S>::fraction_bits + 2) / 2;  // leaves half the digits
    const Batch<S> mask(std::bit_cast<S>(~Bits{0} << dropped));
    const Batch<S> a_hi = a & mask, b_hi = b & mask, a_lo = a - a_hi, b_lo = b - b_hi;
    return {hi, ((a_hi * b_hi - hi) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo};
  }
}

namespace detail {

/// Σ c_i x^i by Horner's rule: the fewest instructions, each of which waits for the last.
template <class S, std::size_t N>
SEQMIX_ALWAYS_INLINE Batch<S> horner(const Batch<S>& x, const S (&c)[N]) {
  Batch<S> sum(c[N - 1]);
  const auto steps = [&]<std::size_t... I>(std::index_sequence<I...>)
      __attribute__((always_inline)) {
    ((sum = simd::fma(sum, x, Batch<S>(c[N - 2 - I]))), ...);
  };
  steps(std::make_index_sequence<N - 1>{});
  return sum;
}

/// Σ c_i x^i as c_0 + x (Σ of pairs of terms by Horner's rule in x²): one more product than
/// `horner`, and little more than half of its latency, which is what bounds a single chain.
template <class S, std::size_t N>
SEQMIX_ALWAYS_INLINE Batch<S> polynomial(const Batch<S>& x, const S (&c)[N]) {
  static_assert(N >= 3);
  constexpr std::size_t pairs = (N - 1) / 2;
  const Batch<S> square = x * x;
  const auto pair = [&](std::size_t i) __attribute__((always_inline)) {
    return simd::fma(Batch<S>(c[2 * i + 2]), x, Batch<S>(c[2 * i + 1]));
  };
  Batch<S> sum = N % 2 == 0 ? Batch<S>(c[N - 1]) : pair(pairs - 1);
  const auto steps = [&]<std::size_t... I>(std::index_sequence<I...>)
      __attribute__((always_inline)) {
    ((sum = simd::fma(sum, square, pair(sizeof...(I) - 1 - I))), ...);
  };
  steps(std::make_index_sequence < N % 2 == 0 ? pairs : pairs - 1 > {});
  return simd::fma(sum, x, Batch<S>(c[0]));
}

/// 1.5 2^fraction_bits: a sum with it is rounded to an integer, which its low bits hold.
template <class S>
inline constexpr S rounder = S(3) * static_cast<S>(typename Coefficients<S>::Bits{1}
                                                   << (Coefficients<S>::fraction_bits - 1));

/// 2^(field - bias) of rounder + field; 0 for the field 0.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> power_of_two(const Batch<S>& rounded_field) {
  using Bits = typename Coefficients<S>::Bits;
  return xsimd::bitwise_cast<S>(xsimd::bitwise_cast<Bits>(rounded_field)
                                << Coefficients<S>::fraction_bits);
}

#if defined(__AVX512DQ__) && !defined(SEQMIX_SIMD_WIDTH)
/// Whether one instruction each gives x - floor(x) and p 2^floor(x), whatever x.
inline constexpr bool has_scale = true;
SEQMIX_ALWAYS_INLINE Batch<float> above_floor(const Batch<float>& x) {
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
SEQMIX_ALWAYS_INLINE Batch<double> above_floor(const Batch<double>& x) {
  return _mm512_reduce_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
/// x less the nearest integer.
SEQMIX_ALWAYS_INLINE Batch<float> beside_nearest(const Batch<float>& x) {
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SEQMIX_ALWAYS_INLINE Batch<double> beside_nearest(const Batch<double>& x) {
  return _mm512_reduce_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// p 2^floor(x); 0 for an x below every normal number's exponent: a subnormal result would take a
/// hundred times longer.
SEQMIX_ALWAYS_INLINE Batch<float> scale(const Batch<float>& p, const Batch<float>& x) {
  const __m512 least = _mm512_set1_ps(1 - Coefficients<float>::bias);
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), p, x);
}
SEQMIX_ALWAYS_INLINE Batch<double> scale(const Batch<double>& p, const Batch<double>& x) {
  const __m512d least = _mm512_set1_pd(1 - Coefficients<double>::bias);
  return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, least, _CMP_NLT_UQ), p, x);
}
#else
inline constexpr bool has_scale = false;
template <class S>
Batch<S> above_floor(const Batch<S>& x) = delete;
template <class S>
Batch<S> beside_nearest(const Batch<S>& x) = delete;
template <class S>
Batch<S> scale(const Batch<S>& p, const Batch<S>& x) = delete;
#endif

/// x = n + remainder (times ln 2 for e^x), and scale = 2^(n - shift).
///
/// n is the nearest integer to x - 7/16, so that the remainder is in [-1/16, 15/16]: then e^r is
/// seldom below 1, where its units in the last place are half as large, and 0 is well inside.
/// The largest exponent serves up to a remainder of 1 and, since the polynomials have no negative
/// coefficient, gives infinity beyond.
template <class S, int shift>
struct ExpScale {
  using C = Coefficients<S>;
  static constexpr S zero = rounder<S> + S(C::bias - shift), top = rounder<S> + S(2 * C::bias);
  static constexpr S lowest = S(shift - C::bias);  // has the scale 0
  static constexpr S offset = S(-7) / 16;

  Batch<S> n, scale;
  SEQMIX_ALWAYS_INLINE explicit ExpScale(const Batch<S>& x_plus_offset) {
    const Batch<S> field = simd::min(x_plus_offset + Batch<S>(zero), Batch<S>(top));
    n = field - Batch<S>(zero);
    scale = power_of_two(field);
  }
};

inline constexpr double ln2 = 0x1.62e42fefa39efp-1, log2e = 0x1.71547652b82fep+0;

/// e^(x + low) / 2^shift, where |low| is far below 1.
template <int shift = 0, class S, class... Low>
SEQMIX_ALWAYS_INLINE Batch<S> scaled_exp(const Batch<S>& any_x, const Low&... low) {
  static_assert(sizeof...(Low) <= 1);
  using C = Coefficients<S>;
  const auto remainder = [&](const Batch<S>& x, const Batch<S>& n) __attribute__((always_inline)) {
    const Batch<S> r = simd::fnma(n, Batch<S>(C::ln2_high), x);
    if constexpr (sizeof...(Low) == 0) {
      return simd::fnma(n, Batch<S>(C::ln2_low), r);
    } else {
      return r + simd::fnma(n, Batch<S>(C::ln2_low), low...);
    }
  };
  if constexpr (has_scale) {
    const Batch<S> x = simd::min(any_x, Batch<S>(S(4 * C::bias)));
    const Batch<S> field = simd::fma(x, Batch<S>(static_cast<S>(log2e)), Batch<S>(rounder<S>));
    const Batch<S> r = remainder(x, field - Batch<S>(rounder<S>));
    return scale(polynomial(r, C::centred_exp), field - Batch<S>(rounder<S> + S(shift)));
  } else {
    using Scale = ExpScale<S, shift>;
    const Batch<S> x = simd::max(any_x, Batch<S>(static_cast<S>(Scale::lowest * ln2)));
    const Scale s(simd::fma(x, Batch<S>(static_cast<S>(log2e)), Batch<S>(Scale::offset)));
    return polynomial(remainder(x, s.n), C::exp) * s.scale;
  }
}

/// (e^x - 1) / 2, which has no overflow where e^x - 1 has none.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> half_expm1(const Batch<S>& any_x) {
  using C = Coefficients<S>;
  constexpr S zero = rounder<S> + S(C::bias - 1);
  constexpr S highest = static_cast<S>((C::bias + 1.25) * ln2);
  // e^-40 is nothing beside 1; e^highest is past the largest number, by less than its double.
  const Batch<S> x = simd::min(simd::max(any_x, Batch<S>(S(-40))), Batch<S>(highest));
  const Batch<S> field = simd::fma(x, Batch<S>(static_cast<S>(log2e)), Batch<S>(zero));
  const Batch<S> n = field - Batch<S>(zero), half_scale = power_of_two(field);
  const Batch<S> r = simd::fnma(n, Batch<S>(C::ln2_low), simd::fnma(n, Batch<S>(C::ln2_high), x));
  const Batch<S> e = simd::fma(r * r, polynomial(r, C::expm1), r);
  return simd::fma(half_scale, e, half_scale - Batch<S>(S(0.5)));
}

/// log(2^k (1 + f)).
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> log_of_parts(const Batch<S>& k, const Batch<S>& f) {
  using C = Coefficients<S>;
  const Batch<S> low = simd::fma(k, Batch<S>(C::ln2_low), f);
  const Batch<S> high = simd::fma(f * f, polynomial(f, C::log1p), low);
  return simd::fma(k, Batch<S>(C::ln2_high), high);
}

/// x = 2^k m, m in [sqrt(1/2), sqrt(2)), for a normal positive x.
template <class S>
struct LogParts {
  Batch<S> k, m;
  SEQMIX_ALWAYS_INLINE explicit LogParts(const Batch<S>& x) {
    using C = Coefficients<S>;
    using Bits = typename C::Bits;
    using BitBatch = Batch<Bits>;
    constexpr Bits root = std::bit_cast<Bits>(static_cast<S>(0x1.6a09e667f3bcdp-1));
    constexpr Bits one = std::bit_cast<Bits>(S(1));
    constexpr S integers = static_cast<S>(Bits{1} << C::fraction_bits);  // its low bits count by 1
    const BitBatch bits = xsimd::bitwise_cast<Bits>(x) + BitBatch(one - root);
    const BitBatch field = (bits >> C::fraction_bits) | BitBatch(std::bit_cast<Bits>(integers));
    k = xsimd::bitwise_cast<S>(field) - Batch<S>(integers + S(C::bias));
    m = xsimd::bitwise_cast<S>((bits & BitBatch((Bits{1} << C::fraction_bits) - 1)) +
                               BitBatch(root));
  }
};

/// `result`, but what the logarithm of x is where x is not a positive finite number.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> log_domain(const Batch<S>& x, const Batch<S>& result) {
  using Limits = std::numeric_limits<S>;
  const Batch<S> zero(S(0)), infinity(Limits::infinity());
  const Batch<S> outside = simd::select(x == zero, -infinity, Batch<S>(Limits::quiet_NaN()));
  return simd::select(x > zero, simd::select(x < infinity, result, infinity), outside);
}

/// The functions x σ(u(x)) are x above `gate_bound` and 0 below its negative, so that they need u
/// only at the bounded x.
inline constexpr int gate_bound = 1024;
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> gate_bounded(const Batch<S>& x) {
  return simd::min(simd::max(x, Batch<S>(S(-gate_bound))), Batch<S>(S(gate_bound)));
}

/// x / (1 + e^minus_u), minus_u an unevaluated sum. The denominator is scaled down: the quotient
/// may be a normal number where e^minus_u overflows.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> gated(const Batch<S>& x, const auto&... minus_u) {
  constexpr int shift = std::is_same_v<S, float> ? 8 : 12;
  const Batch<S> one(S(1) / S(1 << shift));
  const Batch<S> inside = gate_bounded(x) / (one + scaled_exp<shift>(minus_u...)) * one;
  return simd::select(x > Batch<S>(S(gate_bound)), x, inside);
}

/// (Φ(t) - 1/2) / t for |t| <= slope_end, Φ the normal distribution.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> normal_slope(const Batch<S>& t) {
  return polynomial(t * t, Coefficients<S>::slope);
}

/// a - t (1 - Φ(t)) for t >= slope_end.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> less_normal_tail(const Batch<S>& a, const Batch<S>& any_t) {
  using C = Coefficients<S>;
  const Batch<S> t = simd::min(any_t, Batch<S>(C::tail_end)), pole(C::pole), minus_half(S(-0.5));
  const Pair<S> square = exact_product(t, t);
  const Batch<S> e = scaled_exp(minus_half * square.hi, minus_half * square.lo);
  return simd::fnma(polynomial((t - pole) / (t + pole), C::tail), e, a);
}

}  // namespace detail

/// x without its subnormal numbers, on which arithmetic is a hundred times slower and in which a
/// state that decays would stay.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> flush_subnormal(const Batch<S>& x) {
  const Batch<S> least(std::numeric_limits<S>::min());
  return simd::select<S>(simd::abs<S>(x) < least, Batch<S>(S(0)), x);
}

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> exp(const Batch<S>& x) {
  return detail::scaled_exp(x);
}

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> exp2(const Batch<S>& any_x) {
  using C = detail::Coefficients<S>;
  using Scale = detail::ExpScale<S, 0>;
  if constexpr (detail::has_scale) {
    return detail::scale(detail::polynomial(detail::above_floor(any_x), C::exp2), any_x);
  } else {
    const Batch<S> x = simd::max(any_x, Batch<S>(Scale::lowest));
    const Scale s(x + Batch<S>(Scale::offset));
    return detail::polynomial(x - s.n, C::exp2) * s.scale;
  }
}

/// 2^x of x <= 0 in the fewest instructions: the factors of states that forget, of which a scan has
/// many at a time. Near 0 its errors have no common sign, as they would add up over a slow memory.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> exp2_decay(const Batch<S>& any_x) {
  using C = detail::Coefficients<S>;
  if constexpr (detail::has_scale) {
    const Batch<S> r = detail::beside_nearest(any_x);
    return detail::scale(detail::horner(r, C::centred_exp2), any_x - r);
  } else {
    const Batch<S> zero(detail::rounder<S> + S(C::bias));
    const Batch<S> x = simd::max(any_x, Batch<S>(S(-C::bias)));  // 2^-bias counts as 0
    const Batch<S> field = x + zero, n = field - zero;
    return detail::horner(x - n, C::centred_exp2) * detail::power_of_two(field);
  }
}

/// e^x - 1.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> expm1(const Batch<S>& x) {
  return xsimd::copysign(Batch<S>(S(2)) * detail::half_expm1(x), x);
}

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> log(const Batch<S>& x) {
  constexpr int up = detail::Coefficients<S>::fraction_bits + 1;
  const auto subnormal = x < Batch<S>(std::numeric_limits<S>::min());
  const Batch<S> scaled = x * Batch<S>(static_cast<S>(Index{1} << up));
  const detail::LogParts<S> parts(simd::select(subnormal, scaled, x));
  const Batch<S> k = parts.k - simd::select(subnormal, Batch<S>(S(up)), Batch<S>(S(0)));
  return detail::log_domain(x, detail::log_of_parts(k, parts.m - Batch<S>(S(1))));
}

/// log(1 + x).
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> log1p(const Batch<S>& x) {
  using C = detail::Coefficients<S>;
  const Batch<S> one(S(1)), u = one + x;
  const detail::LogParts<S> parts(u);
  // u = 2^k (1 + f): f from x, not from u, which has lost the low bits of a small x.
  const Batch<S> down = detail::power_of_two(Batch<S>(detail::rounder<S> + S(C::bias)) - parts.k);
  const Batch<S> f = simd::select(x < Batch<S>(static_cast<S>(Index{1} << 60)),
                                  simd::fma(x, down, down - one), parts.m - one);
  return xsimd::copysign(detail::log_domain(u, detail::log_of_parts(parts.k, f)), x);
}

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> tanh(const Batch<S>& x) {
  const Batch<S> h = detail::half_expm1(Batch<S>(S(-2)) * simd::abs(x));
  return xsimd::copysign(h / (Batch<S>(S(1)) + h), x);
}

/// a / b, 0 where b is 0, as sums of nothing are.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> divide_or_zero(const Batch<S>& a, const Batch<S>& b) {
  return simd::select(b == S(0), S(0), a / b);
}

/// 2 Φ(sqrt(2) x) - 1, Φ the normal distribution.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> erf(const Batch<S>& x) {
  const Batch<S> t = simd::abs(x) * Batch<S>(static_cast<S>(0x1.6a09e667f3bcdp+0)), two(S(2));
  const Batch<S> inner = two * t * detail::normal_slope(t);
  const Batch<S> minus_tail = detail::less_normal_tail(Batch<S>(S(0)), t) / t;
  const Batch<S> outer = simd::fma(two, minus_tail, Batch<S>(S(1)));
  const auto is_inner = t < Batch<S>(detail::Coefficients<S>::slope_end);
  return xsimd::copysign(simd::select(is_inner, inner, outer), x);
}

/// 1 / sqrt(x).
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> rsqrt(const Batch<S>& x) {
  return Batch<S>(S(1)) / simd::sqrt(x);
}

/// σ(x) = 1 / (1 + e^-x).
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> sigmoid(const Batch<S>& x) {
  const Batch<S> one(S(1));
  return one / (one + simd::exp(-x));
}

/// log(1 + e^x).
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> softplus(const Batch<S>& x) {
  const Batch<S> zero(S(0)), half(S(0.5)), e = simd::exp(-simd::abs(x));
  const auto large = e > Batch<S>(static_cast<S>(0x1.a827999fcef34p-2));  // sqrt(2) - 1
  const Batch<S> k = simd::select(large, Batch<S>(S(1)), zero);
  const Batch<S> f = simd::select(large, simd::fma(half, e, -half), e);
  return simd::max(x, zero) + detail::log_of_parts(k, f);
}

/// log σ(x).
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> log_sigmoid(const Batch<S>& x) {
  return -simd::softplus(-x);
}

/// x σ(x).
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> silu(const Batch<S>& x) {
  return detail::gated(x, -x);
}

/// x σ(1.702 x). Hendrycks & Gimpel 2016, arXiv:1606.08415.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> quick_gelu(const Batch<S>& x) {
  constexpr S slope = static_cast<S>(-1.702), rest = static_cast<S>(-1.702L - slope);
  const Batch<S> v = detail::gate_bounded(x);
  const Pair<S> u = exact_product(v, Batch<S>(slope));
  return detail::gated(x, u.hi, simd::fma(v, Batch<S>(rest), u.lo));
}

/// x (1 + tanh(sqrt(2 / π) (x + 0.044715 x³))) / 2 = x σ(x (c + d x²)). ibidem.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> gelu_tanh(const Batch<S>& x) {
  constexpr long double exact_c = -1.59576912160573071175978423973752747L;  // -sqrt(8 / π)
  constexpr long double exact_d = exact_c * 0.044715L;
  constexpr S c = static_cast<S>(exact_c), c_rest = static_cast<S>(exact_c - c);
  constexpr S d = static_cast<S>(exact_d), d_rest = static_cast<S>(exact_d - d);
  // -v (c + d v²) to twice the precision: an error of it is a relative error of the result.
  const Batch<S> v = detail::gate_bounded(x);
  const Pair<S> square = exact_product(v, v);
  const Pair<S> cubic = exact_product(square.hi, Batch<S>(d));
  const Pair<S> slope = exact_sum(cubic.hi, Batch<S>(c));
  const Pair<S> u = exact_product(v, slope.hi);
  Batch<S> rest = simd::fma(square.hi, Batch<S>(d_rest), cubic.lo + Batch<S>(c_rest));
  rest = simd::fma(square.lo, Batch<S>(d), rest) + slope.lo;
  return detail::gated(x, u.hi, simd::fma(v, rest, u.lo));
}

/// x Φ(x) = x (1 + erf(x / sqrt 2)) / 2. ibidem.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> gelu(const Batch<S>& x) {
  const Batch<S> t = simd::abs(x);
  const Batch<S> inner = x * simd::fma(x, detail::normal_slope(x), Batch<S>(S(0.5)));
  const Batch<S> outer = detail::less_normal_tail(simd::max(x, Batch<S>(S(0))), t);
  return simd::select(t < Batch<S>(detail::Coefficients<S>::slope_end), inner, outer);
}

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix

SEQMIX_END_INTRINSICS
