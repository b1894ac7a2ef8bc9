#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "seqmix/core/error.hpp"
#include "seqmix/core/platform.hpp"

namespace seqmix {

using Index = std::ptrdiff_t;

namespace shape_errors {
[[noreturn]] SEQMIX_COLD inline void product(Index a, Index b) {
  throw ShapeError("size overflow: " + std::to_string(a) + " x " + std::to_string(b));
}
}  // namespace shape_errors

/// The product of two sizes, or a `ShapeError` where it does not fit in `Index`.
inline Index checked_product(Index a, Index b) {
  Index product = 0;
  if (__builtin_mul_overflow(a, b, &product)) shape_errors::product(a, b);
  return product;
}

/// 1 / sqrt(n): the scale of dot products over n numbers.
inline double inverse_sqrt(Index n) { return 1 / std::sqrt(static_cast<double>(n)); }

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index b) { return ceil_div(a, b) * b; }

/// How the numbers of a weight matrix or a cache are stored: as they are computed with, in one of
/// the narrower types below, or as 8-bit integers with one scale a row (an output of a weight, an
/// entry of a cache). All sums stay in the compute type, and so do states.
enum class Storage { native, bf16, f16, int8 };
constexpr std::array<std::string_view, 4> names_of(Storage) {
  return {"native", "bf16", "f16", "int8"};
}

/// Storage type: the upper half of an IEEE binary32 number (8 exponent bits, 7 fraction bits).
struct bfloat16 {
  std::uint16_t bits = 0;

  constexpr bfloat16() = default;
  /// Rounds to nearest, ties to even; NaN stays NaN.
  constexpr explicit bfloat16(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const bool nan = (word & 0x7fffffffU) > 0x7f800000U;
    const std::uint32_t rounded = word + 0x7fffU + ((word >> 16) & 1U);
    bits = static_cast<std::uint16_t>((nan ? (word | 0x400000U) : rounded) >> 16);
  }
  constexpr explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
};

/// Storage type: IEEE binary16 (5 exponent bits, 10 fraction bits).
struct float16 {
  std::uint16_t bits = 0;

  constexpr float16() = default;
  /// Rounds to nearest, ties to even, subnormals included; overflow gives infinity, NaN stays NaN.
  constexpr explicit float16(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (word >> 16) & 0x8000U, magnitude = word & 0x7fffffffU;
    std::uint32_t half = 0;
    if (magnitude > 0x7f800000U) {
      half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
    } else if (magnitude >= 0x47800000U) {  // 2^16 and above
      half = 0x7c00U;
    } else if (magnitude >= 0x38800000U) {  // normal: 2^-14 and above
      const std::uint32_t rebiased = magnitude - (112U << 23);
      half = (rebiased + 0xfffU + ((rebiased >> 13) & 1U)) >> 13;
    } else if (magnitude >= 0x33000000U) {  // subnormal: 2^-25 and above
      const std::uint32_t exponent = magnitude >> 23;
      const std::uint32_t fraction = (magnitude & 0x7fffffU) | 0x800000U;
      const std::uint32_t shift = 126U - exponent;
      const std::uint32_t kept = fraction >> shift, lost = fraction & ((1U << shift) - 1U);
      const std::uint32_t tie = 1U << (shift - 1U);
      half = kept + ((lost > tie || (lost == tie && (kept & 1U))) ? 1U : 0U);
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }
  constexpr explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fU, fraction = bits & 0x3ffU;
    if (exponent == 0x1fU) {
      return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 13));
    }
    if (exponent == 0) {  // zero or subnormal: fraction times 2^-24, exact in binary32
      const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
      return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
    }
    return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (fraction << 13));
  }
};

}  // namespace seqmix
