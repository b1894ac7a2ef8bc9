#include <algorithm>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>

#include "seqmix/core/numeric.hpp"

namespace seqmix {
namespace {

/// What a pattern of a binary format with `fraction_bits` means, in double, which holds it exactly.
double meaning(std::uint32_t bits, int fraction_bits, int exponent_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = ((bits >> (fraction_bits + exponent_bits)) & 1U) != 0 ? -1 : 1;
  const int exponent = static_cast<int>((bits >> fraction_bits) & ((1U << exponent_bits) - 1));
  const double fraction = bits & ((1U << fraction_bits) - 1);
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  const double implicit = exponent == 0 ? 0 : std::ldexp(1, fraction_bits);
  return sign * std::ldexp(fraction + implicit, std::max(exponent, 1) - bias - fraction_bits);
}

/// The nearest number of such a format, ties to even: every step here is exact in double.
double nearest(float value, int fraction_bits, int exponent_bits) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = std::max(std::ilogb(value), 1 - bias);
  const double unit = std::ldexp(1, exponent - fraction_bits);
  const double rounded = std::nearbyint(static_cast<double>(value) / unit) * unit;
  const double limit = std::ldexp(1, bias + 1);
  return std::abs(rounded) >= limit
             ? std::copysign(std::numeric_limits<double>::infinity(), rounded)
             : rounded;
}

/// The same number, the sign of zero included, or both NaN.
bool same(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b && std::signbit(a) == std::signbit(b);
}

template <class Small>
Small from_bits(std::uint32_t bits) {
  Small value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

/// Every pattern to float and back: the number is right, and only NaN may change (to a quiet one).
template <class Small>
int count_wrong_patterns(int fraction_bits, int exponent_bits) {
  const std::uint32_t quiet = 1U << (fraction_bits - 1);
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto wide = static_cast<float>(from_bits<Small>(bits));
    const std::uint32_t expected = std::isnan(wide) ? (bits | quiet) : bits;
    wrong += !same(wide, meaning(bits, fraction_bits, exponent_bits));
    wrong += Small(wide).bits != expected;
  }
  return wrong;
}

/// Floats at even steps over all patterns, and each midpoint of two neighbours with its neighbours.
template <class Small, class Body>
void for_each_float(Body body) {
  for (std::uint64_t word = 0; word < (std::uint64_t{1} << 32); word += 4099) {
    body(std::bit_cast<float>(static_cast<std::uint32_t>(word)));
  }
  for (std::uint32_t bits = 0; bits < 65535; ++bits) {
    const auto low = static_cast<float>(from_bits<Small>(bits));
    const auto high = static_cast<float>(from_bits<Small>(bits + 1));
    if (!std::isfinite(low)) continue;
    // Above the largest number lies the midpoint from which on infinity is nearer.
    const auto below = static_cast<float>(from_bits<Small>(bits - 1));
    const float middle = std::isfinite(high) ? low / 2 + high / 2 : low + (low - below) / 2;
    const float infinity = std::numeric_limits<float>::infinity();
    body(middle);
    body(std::nextafter(middle, infinity));
    body(std::nextafter(middle, -infinity));
  }
}

template <class Small>
int count_wrong_roundings(int fraction_bits, int exponent_bits) {
  int wrong = 0;
  for_each_float<Small>([&](float value) {
    const double rounded = static_cast<float>(Small(value));
    wrong += !same(rounded, nearest(value, fraction_bits, exponent_bits));
  });
  return wrong;
}

TEST_CASE("every float16 pattern is the right float and comes back") {
  CHECK(count_wrong_patterns<float16>(10, 5) == 0);
}

TEST_CASE("every bfloat16 pattern is the right float and comes back") {
  CHECK(count_wrong_patterns<bfloat16>(7, 8) == 0);
}

TEST_CASE("float to float16 rounds to nearest, ties to even") {
  CHECK(count_wrong_roundings<float16>(10, 5) == 0);
}

TEST_CASE("float to bfloat16 rounds to nearest, ties to even") {
  CHECK(count_wrong_roundings<bfloat16>(7, 8) == 0);
}

TEST_CASE("the check of roundings sees a wrong format") {
  CHECK(count_wrong_patterns<float16>(7, 8) > 1000);
  CHECK(count_wrong_roundings<float16>(7, 8) > 1000);
}

TEST_CASE("known float16 and bfloat16 patterns") {
  CHECK(float16(1.0F).bits == 0x3c00);
  CHECK(float16(-2.0F).bits == 0xc000);
  CHECK(float16(65504.0F).bits == 0x7bff);
  CHECK(float16(65519.996F).bits == 0x7bff);
  CHECK(float16(65520.0F).bits == 0x7c00);
  CHECK(float16(0x1p-24F).bits == 0x0001);
  CHECK(float16(0x1p-25F).bits == 0x0000);
  CHECK(float16(0x1.000002p-25F).bits == 0x0001);
  CHECK(float16(-0.0F).bits == 0x8000);
  CHECK(bfloat16(1.0F).bits == 0x3f80);
  CHECK(bfloat16(0x1.01p0F).bits == 0x3f80);
  CHECK(bfloat16(0x1.03p0F).bits == 0x3f82);
  CHECK(bfloat16(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(bfloat16(std::numeric_limits<float>::denorm_min()).bits == 0x0000);
}

#if defined(__GNUC__) && !defined(__clang__) && defined(__FLT16_MAX__)
TEST_CASE("float16 agrees with the compiler's own type") {
  int wrong = 0;
  for_each_float<float16>([&](float value) {
    const auto own = std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
    wrong += std::isnan(value) ? !std::isnan(static_cast<float>(float16(value)))
                               : float16(value).bits != own;
  });
  CHECK(wrong == 0);
}
#endif

TEST_CASE("products of sizes are checked") {
  CHECK(checked_product(3, 5) == 15);
  CHECK(checked_product(Index{1} << 31, Index{1} << 31) == Index{1} << 62);
  CHECK_THROWS_AS(checked_product(Index{1} << 32, Index{1} << 31), ShapeError);
  CHECK(ceil_div(7, 4) == 2);
  CHECK(ceil_div(8, 4) == 2);
  CHECK(round_up(65, 64) == 128);
  CHECK(round_up(0, 64) == 0);
}

}  // namespace
}  // namespace seqmix
