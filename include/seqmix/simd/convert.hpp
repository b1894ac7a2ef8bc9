#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "seqmix/simd/batch.hpp"

SEQMIX_BEGIN_INTRINSICS

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {

/// A type in which numbers are stored but not computed with. An 8-bit integer stands for itself:
/// its scale is the caller's.
template <class T>
concept Narrow =
    std::same_as<T, bfloat16> || std::same_as<T, float16> || std::same_as<T, std::int8_t>;

/// The largest finite number of a narrow floating type.
template <class Number>
inline constexpr float largest_of = std::same_as<Number, float16> ? 65504.0F : 0x1.FEp127F;

/// The nearest `To` of a number, ties to even. Integers stay in [-127, 127].
template <class To>
inline To narrow(float value) {
  if constexpr (std::same_as<To, std::int8_t>) {
    return static_cast<std::int8_t>(std::nearbyint(std::min(127.0F, std::max(-127.0F, value))));
  } else {
    return To(value);
  }
}

namespace detail {

/// A register from as many narrow numbers.
template <class S, class From>
SEQMIX_ALWAYS_INLINE Batch<S> widened(const From* from) {
  alignas(64) S wide[static_cast<std::size_t>(lanes<S>)];
  for (Index i = 0; i < lanes<S>; ++i) wide[i] = static_cast<S>(static_cast<float>(from[i]));
  return Batch<S>::load_aligned(wide);
}

#if !defined(SEQMIX_SIMD_WIDTH) && defined(__AVX512F__)
template <>
SEQMIX_ALWAYS_INLINE Batch<float> widened(const bfloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
template <>
SEQMIX_ALWAYS_INLINE Batch<float> widened(const float16* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
template <>
SEQMIX_ALWAYS_INLINE Batch<float> widened(const std::int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
template <>
SEQMIX_ALWAYS_INLINE Batch<double> widened(const bfloat16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
  return _mm512_cvtps_pd(_mm256_castsi256_ps(words));
}
template <>
SEQMIX_ALWAYS_INLINE Batch<double> widened(const float16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m512 floats = _mm512_cvtph_ps(_mm256_zextsi128_si256(bits));
  return _mm512_cvtps_pd(_mm512_castps512_ps256(floats));
}
template <>
SEQMIX_ALWAYS_INLINE Batch<double> widened(const std::int8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(bytes));
}
#elif !defined(SEQMIX_SIMD_WIDTH) && defined(__AVX2__)
template <>
SEQMIX_ALWAYS_INLINE Batch<float> widened(const bfloat16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#if defined(__F16C__)
template <>
SEQMIX_ALWAYS_INLINE Batch<float> widened(const float16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#endif
template <>
SEQMIX_ALWAYS_INLINE Batch<float> widened(const std::int8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
#endif

/// The numbers of a register at most.
inline constexpr std::size_t most_lanes = 16;

/// Copies `count` narrow numbers to the first of `to`. Reads nothing past them.
template <class From>
SEQMIX_ALWAYS_INLINE void copy_first(const From* from, Index count, From (&to)[most_lanes]) {
#if !defined(SEQMIX_SIMD_WIDTH) && defined(__AVX512BW__) && defined(__AVX512VL__)
  const auto mask = static_cast<__mmask16>(first_bits(count));
  if constexpr (sizeof(From) == 1) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_maskz_loadu_epi8(mask, from));
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_loadu_epi16(mask, from));
  }
#else
  for (Index i = 0; i < count; ++i) to[i] = from[i];
#endif
}

}  // namespace detail

/// As `load`, from numbers that may be stored in a narrower type.
template <class S, class From>
SEQMIX_ALWAYS_INLINE Batch<S> load_as(const From* from, Full<S> = {}) {
  if constexpr (std::same_as<From, S>) {
    return simd::load<S>(from);
  } else {
    return detail::widened<S>(from);
  }
}
/// The first `count` lanes (0 <= count <= lanes), the rest 0. Reads nothing past them.
template <class S, class From>
SEQMIX_ALWAYS_INLINE Batch<S> load_as(const From* from, Index count) {
  if constexpr (std::same_as<From, S>) {
    return simd::load<S>(from, count);
  } else {
    From buffer[detail::most_lanes] = {};
    detail::copy_first(from, count, buffer);
    return detail::widened<S>(static_cast<const From*>(buffer));
  }
}

/// As `store`, to numbers that may be stored in a narrower type, each rounded to the nearest.
template <class S, class To, class Count = Full<S>>
SEQMIX_ALWAYS_INLINE void store_as(To* to, const Batch<S>& value, Count count = {}) {
  if constexpr (std::same_as<To, S>) {
    simd::store<S>(to, value, count);
  } else {
    alignas(64) S wide[static_cast<std::size_t>(lanes<S>)];
    value.store_aligned(wide);
    for (Index i = 0; i < lanes<S>; ++i) {
      if (i < count) to[i] = simd::narrow<To>(static_cast<float>(wide[i]));
    }
  }
}

/// What is beyond the largest number of `To` becomes that; NaN stays NaN.
template <class To, class S>
SEQMIX_ALWAYS_INLINE Batch<S> saturate(const Batch<S>& value) {
  const Batch<S> bound(static_cast<S>(largest_of<To>));
  return simd::min<S>(simd::max<S>(value, -bound), bound);
}

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix

SEQMIX_END_INTRINSICS
