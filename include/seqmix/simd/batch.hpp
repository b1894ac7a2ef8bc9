#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <type_traits>

#if defined(SEQMIX_SIMD_WIDTH) && !defined(XSIMD_WITH_EMULATED)
#define XSIMD_WITH_EMULATED 1
#endif
#include <xsimd/xsimd.hpp>

#include "seqmix/core/numeric.hpp"

SEQMIX_BEGIN_INTRINSICS

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {

#if defined(SEQMIX_SIMD_WIDTH)
using Arch = xsimd::emulated<SEQMIX_SIMD_WIDTH>;
inline constexpr bool is_emulated = true;
#else
using Arch = xsimd::default_arch;
inline constexpr bool is_emulated = false;
#endif

/// A register of `lanes<S>` numbers.
template <class S>
using Batch = xsimd::batch<S, Arch>;
template <class S>
inline constexpr Index lanes = static_cast<Index>(Batch<S>::size);

/// One truth value a lane, as comparisons of registers give.
template <class S>
using Mask = xsimd::batch_bool<S, Arch>;

/// The count of a full register, as a type: `load` and `store` with it touch no mask.
template <class S>
using Full = std::integral_constant<Index, lanes<S>>;

/// An argument from which S is not deduced: a register, or a number that stands for all lanes.
template <class S>
using Operand = std::type_identity_t<Batch<S>>;

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> broadcast(S value) {
  return Batch<S>(value);
}

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> load(const S* from, Full<S> = {}) {
  return Batch<S>::load_unaligned(from);
}
template <class S>
SEQMIX_ALWAYS_INLINE void store(S* to, const Batch<S>& value, Full<S> = {}) {
  value.store_unaligned(to);
}

namespace detail {

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> masked_load(const S* from, Index count) {
  alignas(64) S buffer[static_cast<std::size_t>(lanes<S>)] = {};
  for (Index i = 0; i < lanes<S>; ++i) {
    if (i < count) buffer[i] = from[i];
  }
  return Batch<S>::load_aligned(buffer);
}
template <class S>
SEQMIX_ALWAYS_INLINE void masked_store(S* to, const Batch<S>& value, Index count) {
  alignas(64) S buffer[static_cast<std::size_t>(lanes<S>)];
  value.store_aligned(buffer);
  for (Index i = 0; i < lanes<S>; ++i) {
    if (i < count) to[i] = buffer[i];
  }
}

// xsimd has run-time masks from 14.3 on only, so that the masked moves of x86 stand here.
#if defined(__AVX512F__) && !defined(SEQMIX_SIMD_WIDTH)
SEQMIX_ALWAYS_INLINE unsigned first_bits(Index count) { return (1U << count) - 1U; }
SEQMIX_ALWAYS_INLINE Batch<float> masked_load(const float* from, Index count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(first_bits(count)), from);
}
SEQMIX_ALWAYS_INLINE Batch<double> masked_load(const double* from, Index count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(first_bits(count)), from);
}
SEQMIX_ALWAYS_INLINE void masked_store(float* to, const Batch<float>& value, Index count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(first_bits(count)), value);
}
SEQMIX_ALWAYS_INLINE void masked_store(double* to, const Batch<double>& value, Index count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(first_bits(count)), value);
}
#elif defined(__AVX__) && !defined(SEQMIX_SIMD_WIDTH)
/// A window on it has `count` words of ones, then zeros.
alignas(64) inline constexpr std::int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
SEQMIX_ALWAYS_INLINE __m256i first_words(Index count) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones_then_zeros + 8 - count));
}
SEQMIX_ALWAYS_INLINE Batch<float> masked_load(const float* from, Index count) {
  return _mm256_maskload_ps(from, first_words(count));
}
SEQMIX_ALWAYS_INLINE Batch<double> masked_load(const double* from, Index count) {
  return _mm256_maskload_pd(from, first_words(2 * count));
}
SEQMIX_ALWAYS_INLINE void masked_store(float* to, const Batch<float>& value, Index count) {
  _mm256_maskstore_ps(to, first_words(count), value);
}
SEQMIX_ALWAYS_INLINE void masked_store(double* to, const Batch<double>& value, Index count) {
  _mm256_maskstore_pd(to, first_words(2 * count), value);
}
#endif

}  // namespace detail

/// The first `count` lanes (0 <= count <= lanes), the rest 0. Reads nothing past them.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> load(const S* from, Index count) {
  return detail::masked_load(from, count);
}
/// Writes the first `count` lanes (0 <= count <= lanes) and nothing past them.
template <class S>
SEQMIX_ALWAYS_INLINE void store(S* to, const Batch<S>& value, Index count) {
  detail::masked_store(to, value, count);
}

/// Brings what lies at `address` near; reads nothing and never faults.
SEQMIX_ALWAYS_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

/// Whether `fma` rounds once.
#if defined(__FMA__) || defined(__AVX512F__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMA)
inline constexpr bool has_fma = true;
#else
inline constexpr bool has_fma = false;
#endif

/// a b + c, rounded once where the target has fused multiply-adds, else twice.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> fma(const Batch<S>& a, const Operand<S>& b, const Operand<S>& c) {
  if constexpr (is_emulated && has_fma) {
    // Here xsimd multiplies and adds: the compiler would choose from place to place what to fuse.
    Batch<S> result;
    for (std::size_t i = 0; i < Batch<S>::size; ++i) {
      result.data[i] = std::fma(a.data[i], b.data[i], c.data[i]);
    }
    return result;
  } else {
    return xsimd::fma(a, b, c);
  }
}

/// c - a b, rounded as `fma`.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> fnma(const Batch<S>& a, const Batch<S>& b, const Batch<S>& c) {
#if defined(__FMA__) && !defined(SEQMIX_SIMD_WIDTH)
  return xsimd::fnma(a, b, c);
#else
  return simd::fma(-a, b, c);  // elsewhere xsimd multiplies and subtracts
#endif
}

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> select(const Mask<S>& mask, const Operand<S>& a,
                                     const Operand<S>& b) {
  return xsimd::select(mask, a, b);
}

// Before 14, xsimd left an unordered pair to the target: the second operand on x86.
#if XSIMD_VERSION_MAJOR >= 14 || defined(SEQMIX_SIMD_WIDTH)
inline constexpr bool ordered_extrema = true;
#else
inline constexpr bool ordered_extrema = false;
#endif

/// The larger number; NaN where `a` is NaN.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> max(const Batch<S>& a, const Operand<S>& b) {
  return ordered_extrema ? xsimd::max(a, b) : xsimd::max(b, a);
}
/// The smaller number; NaN where `a` is NaN.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> min(const Batch<S>& a, const Operand<S>& b) {
  return ordered_extrema ? xsimd::min(a, b) : xsimd::min(b, a);
}

template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> abs(const Batch<S>& a) {
  return xsimd::abs(a);
}
/// Rounded correctly.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> sqrt(const Batch<S>& a) {
#if defined(__aarch64__) && !defined(SEQMIX_SIMD_WIDTH)
  // Here xsimd takes two Newton steps from an estimate, and fails at infinity.
  if constexpr (std::is_same_v<S, float>) return Batch<S>(vsqrtq_f32(a));
#endif
  return xsimd::sqrt(a);
}

/// The sum of all lanes, in an order that is fixed by the width alone.
template <class S>
SEQMIX_ALWAYS_INLINE S reduce_add(const Batch<S>& a) {
  return xsimd::reduce_add(a);
}
template <class S>
SEQMIX_ALWAYS_INLINE S reduce_max(const Batch<S>& a) {
  return xsimd::reduce_max(a);
}

/// first, first + 1, ...
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> counting_from(Index first) {
  constexpr auto steps = [] {
    std::array<S, static_cast<std::size_t>(lanes<S>)> numbers{};
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<S>(i);
    return numbers;
  }();
  return load<S>(steps.data()) + broadcast(static_cast<S>(first));
}

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix

SEQMIX_END_INTRINSICS
