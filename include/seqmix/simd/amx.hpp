#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/transpose.hpp"

// Products of bfloat16 matrices on the matrix units of x86 processors (AMX), with float sums.
//
// A float becomes one bfloat16 (`terms` 1), or the sum of two, hi + lo (`terms` 2), each rounded to
// nearest. A product of two split numbers is then lo hi' + hi lo' + hi hi': what is left out,
// lo lo', is 2^-16 of it at most, and so are the roundings of lo. Zero stays zero, NaN stays NaN.
// An infinite number, or one above 3.38e38, gives NaN where there are two terms.
// Numbers and sums below 1.2e-38 count as zero.
//
// The unit of work is a step: 32 rows of A by 32 columns of B over 32 k, added to four tiles of
// 16 x 16 sums. A sum takes its k in ascending order and sees one row and one column, so that its
// bits depend on nothing else. An operand of a step is a pair of tiles, [2][terms][16][32], and
// both may have their own number of terms:
//
//   A   rows:   [row of 16][k of 32]
//   B   pairs:  [k / 2][column of 16][k mod 2]
//
// Where the target, the processor or the system lacks them, `matrix_units()` is false, and code
// that uses anything else of this header stands between `#if SEQMIX_MATRIX_UNITS` and `#endif`.

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && \
    defined(__AVX512BW__) && defined(__linux__) && !defined(SEQMIX_SIMD_WIDTH)
#define SEQMIX_MATRIX_UNITS 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define SEQMIX_MATRIX_UNITS 0
#endif

SEQMIX_BEGIN_INTRINSICS

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {

#if SEQMIX_MATRIX_UNITS

namespace detail {

inline bool processor_has_matrix_units() {
  constexpr unsigned bf16 = 1U << 22, tiles = 1U << 24;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & bf16) && (edx & tiles);
}

/// Linux grants the registers' state to a process that asks for it; threads share the permission.
inline bool request_matrix_units() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/// Eight tiles of 16 rows of 64 bytes. It is constant because the intrinsic of g++ 12 does not say
/// that it reads more than 8 bytes: stores to a local one would vanish.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline constexpr TileConfiguration tile_configuration;

}  // namespace detail

/// Whether this process may use matrix units. The first call asks the system.
inline bool matrix_units() {
  static const bool granted =
      detail::processor_has_matrix_units() && detail::request_matrix_units();
  return granted;
}

/// Rows (or columns) and k of a tile, and its numbers.
inline constexpr Index tile_rows = 16, tile_depth = 32, tile_size = tile_rows * tile_depth;
/// Rows, columns and numbers of the pair of tiles that a step reads of an operand.
inline constexpr Index pair_rows = 2 * tile_rows;
constexpr Index pair_size(Index terms) { return 2 * terms * tile_size; }

/// The tile registers of this thread: configured here, released at the end. One for each task:
/// another library may have left another configuration. Scopes do not nest.
class TileScope {
 public:
  TileScope() { _tile_loadconfig(&detail::tile_configuration); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
  ~TileScope() { _tile_release(); }
};

namespace detail {

/// Places of the 32 bfloat16 of two registers: the first as float, the second, and both by turns.
struct HalfOrder {
  alignas(64) std::array<std::uint16_t, 32> lower, upper, by_turns;
};
inline constexpr HalfOrder half_order = [] {
  HalfOrder order = {};
  for (std::uint16_t i = 0; i < 16; ++i) {
    const auto second = static_cast<std::uint16_t>(16 + i);
    order.lower[2 * i + 1U] = order.by_turns[2 * i] = i;
    order.upper[2 * i + 1U] = order.by_turns[2 * i + 1U] = second;
  }
  return order;
}();

SEQMIX_ALWAYS_INLINE __m512i permuted(const std::array<std::uint16_t, 32>& order, __m512i halves) {
  return _mm512_permutexvar_epi16(_mm512_load_si512(order.data()), halves);
}
SEQMIX_ALWAYS_INLINE Batch<float> floats_of(const std::array<std::uint16_t, 32>& order,
                                            __m512i halves) {
  constexpr __mmask32 upper_halves = 0xaaaaaaaaU;
  return _mm512_castsi512_ps(
      _mm512_maskz_permutexvar_epi16(upper_halves, _mm512_load_si512(order.data()), halves));
}

/// The 32 numbers of two registers, each rounded to bfloat16: those of `first`, then of `second`.
SEQMIX_ALWAYS_INLINE __m512i rounded(const Batch<float>& first, const Batch<float>& second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

/// Calls `put(term, halves)` for each term of the 32 numbers of two registers.
SEQMIX_ALWAYS_INLINE void split(const Batch<float>& first, const Batch<float>& second, Index terms,
                                auto&& put) {
  const __m512i hi = rounded(first, second);
  put(0, hi);
  if (terms == 2) {
    put(1,
        rounded(first - floats_of(half_order.lower, hi), second - floats_of(half_order.upper, hi)));
  }
}

}  // namespace detail

/// One row of an A tile from 32 consecutive k, in two registers; each term to its own tile.
SEQMIX_ALWAYS_INLINE void split_row(const Batch<float>& first, const Batch<float>& second,
                                    Index terms, bfloat16* to) {
  detail::split(first, second, terms, [&](Index term, __m512i halves) {
    _mm512_store_si512(to + term * tile_size, halves);
  });
}

/// One row of a B tile, two consecutive k of 16 columns; each term to its own tile.
SEQMIX_ALWAYS_INLINE void split_pairs(const Batch<float>& even, const Batch<float>& odd,
                                      Index terms, bfloat16* to) {
  detail::split(even, odd, terms, [&](Index term, __m512i halves) {
    _mm512_store_si512(to + term * tile_size,
                       detail::permuted(detail::half_order.by_turns, halves));
  });
}

/// As `split_pairs`, of numbers >= 0 and in fewer instructions: the first of two terms is cut off.
/// The second is at most 2^-7 of the number then, and rounded.
SEQMIX_ALWAYS_INLINE void cut_pairs(const Batch<float>& even, const Batch<float>& odd, Index terms,
                                    bfloat16* to) {
  if (terms == 1) return split_pairs(even, odd, 1, to);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  const __m512i half = _mm512_set1_epi32(0x8000);
  constexpr int select_by_c = 0xe4;  // c ? a : b, bit by bit
  const auto put = [&](const __m512i& first, const __m512i& second, bfloat16* at) {
    _mm512_store_si512(
        at, _mm512_ternarylogic_epi32(second, _mm512_srli_epi32(first, 16), upper, select_by_c));
  };
  const __m512i a = _mm512_castps_si512(even), b = _mm512_castps_si512(odd);
  const auto rest = [&](const Batch<float>& x, const __m512i& bits) {
    const Batch<float> first(_mm512_castsi512_ps(_mm512_and_si512(bits, upper)));
    return _mm512_add_epi32(_mm512_castps_si512(x - first), half);
  };
  put(a, b, to);
  put(rest(even, a), rest(odd, b), to + tile_size);
}

/// Turns a tile of rows into one of pairs, or back, where it lies: 16 x 16 words of 32 bits.
inline void transpose_tile(bfloat16* tile) {
  Square<std::int32_t, tile_rows> words;
  auto* const to = reinterpret_cast<std::int32_t*>(tile);
  words.load(to, tile_rows);
  words.transpose();
  words.store(to, tile_rows);
}

/// Starts 32 x 32 sums from zero, or from C, whose rows are `stride` floats apart. What the steps
/// read is written before: the tile loads of g++ 12 do not say that they read memory.
SEQMIX_ALWAYS_INLINE void zero_sums() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
SEQMIX_ALWAYS_INLINE void load_sums(const float* c, Index stride) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const float* const lower = c + tile_rows * stride;
  const Index bytes = stride * static_cast<Index>(sizeof(float));
  _tile_loadd(0, c, bytes);
  _tile_loadd(1, c + tile_rows, bytes);
  _tile_loadd(2, lower, bytes);
  _tile_loadd(3, lower + tile_rows, bytes);
}
SEQMIX_ALWAYS_INLINE void store_sums(float* c, Index stride) {
  float* const lower = c + tile_rows * stride;
  const Index bytes = stride * static_cast<Index>(sizeof(float));
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + tile_rows, bytes);
  _tile_stored(2, lower, bytes);
  _tile_stored(3, lower + tile_rows, bytes);
}

namespace detail {

/// One term of a pair of tiles of A, of B, and the products of what is loaded. Tiles of B leave the
/// nearest cache to those of A, which the next blocks of B meet again: were both kept there,
/// neither would be found.
template <Index terms>
SEQMIX_ALWAYS_INLINE void load_a(const bfloat16* pair, Index term) {
  _tile_loadd(4, pair + term * tile_size, 64);
  _tile_loadd(5, pair + (terms + term) * tile_size, 64);
}
template <Index terms>
SEQMIX_ALWAYS_INLINE void load_b(const bfloat16* pair, Index term) {
  _tile_stream_loadd(6, pair + term * tile_size, 64);
  _tile_stream_loadd(7, pair + (terms + term) * tile_size, 64);
}
SEQMIX_ALWAYS_INLINE void multiply_loaded() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

}  // namespace detail

/// A step: the sums += A B for a pair of tiles of each, in a `TileScope`.
template <Index a_terms, Index b_terms>
SEQMIX_ALWAYS_INLINE void multiply_pairs(const bfloat16* a, const bfloat16* b) {
  detail::load_b<b_terms>(b, 0);
  if constexpr (a_terms == 2) {
    detail::load_a<a_terms>(a, 1);
    detail::multiply_loaded();
  }
  detail::load_a<a_terms>(a, 0);
  detail::multiply_loaded();
  if constexpr (b_terms == 2) {
    detail::load_b<b_terms>(b, 1);
    detail::multiply_loaded();
  }
}

#else

constexpr bool matrix_units() { return false; }

#endif

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix

SEQMIX_END_INTRINSICS
