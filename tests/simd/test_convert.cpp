#include <algorithm>
#include <array>
#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "seqmix/simd/convert.hpp"

using namespace seqmix;

namespace {

template <class S, class N>
struct Pair {
  using Scalar = S;
  using Stored = N;
};
using Pairs = std::tuple<Pair<float, bfloat16>, Pair<float, float16>, Pair<float, std::int8_t>,
                         Pair<double, bfloat16>, Pair<double, float16>, Pair<double, std::int8_t>>;

std::uint32_t bits(bfloat16 number) { return number.bits; }
std::uint32_t bits(float16 number) { return number.bits; }
std::uint32_t bits(std::int8_t number) { return static_cast<std::uint8_t>(number); }

/// Normal numbers of every size, subnormal ones, ties, zeros and infinities.
std::vector<float> samples() {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> result{0.0F, -0.0F,    infinity, -infinity, 1e-41F, 6e-8F,
                            2e5F, 65519.0F, 65520.0F, 0.5F,      1.5F,   -2.5F};
  std::uint32_t word = 1;
  while (result.size() < 4096) {
    word = word * 1664525U + 1013904223U;
    const auto number = std::bit_cast<float>(word);
    if (std::isfinite(number)) result.push_back(number);
    result.push_back(static_cast<float>(word >> 20) / 14.0F - 140.0F);
  }
  return result;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("narrow numbers are stored and loaded one for one", "[simd]", Pairs) {
  using S = typename TestType::Scalar;
  using Stored = typename TestType::Stored;
  constexpr Index lanes = simd::lanes<S>;
  const std::vector<float> numbers = samples();
  const Stored guard = simd::narrow<Stored>(77.0F);
  for (std::size_t first = 0; first + lanes <= numbers.size(); first += lanes) {
    std::array<S, lanes> in, out;
    for (std::size_t i = 0; i < lanes; ++i) in[i] = static_cast<S>(numbers[first + i]);
    for (Index count = 0; count <= lanes; ++count) {
      std::array<Stored, lanes + 1> stored;
      stored.fill(guard);
      const auto batch = simd::load<S>(in.data());
      if (count == lanes) {
        simd::store_as<S>(stored.data(), batch);
        simd::store<S>(out.data(), simd::load_as<S>(stored.data()));
      } else {
        simd::store_as<S>(stored.data(), batch, count);
        simd::store<S>(out.data(), simd::load_as<S>(stored.data(), count));
      }
      bool same = true;
      for (std::size_t i = 0; i < lanes + 1; ++i) {
        const bool written = static_cast<Index>(i) < count;
        const Stored expected = written ? simd::narrow<Stored>(numbers[first + i]) : guard;
        same &= bits(stored[i]) == bits(expected);
        if (i == lanes) continue;
        const S wide = written ? static_cast<S>(static_cast<float>(expected)) : S(0);
        same &= out[i] == wide && std::signbit(out[i]) == std::signbit(wide);
      }
      CHECK(same);
    }
  }
}

TEST_CASE("integers are rounded to the nearest, ties to even, within 127", "[simd]") {
  CHECK(simd::narrow<std::int8_t>(2.5F) == 2);
  CHECK(simd::narrow<std::int8_t>(3.5F) == 4);
  CHECK(simd::narrow<std::int8_t>(-2.6F) == -3);
  CHECK(simd::narrow<std::int8_t>(1e9F) == 127);
  CHECK(simd::narrow<std::int8_t>(-1e9F) == -127);
}

TEMPLATE_TEST_CASE("the largest number of a narrow type is its last before infinity", "[simd]",
                   bfloat16, float16) {
  const float largest = simd::largest_of<TestType>;
  const TestType stored(largest);
  CHECK(static_cast<float>(stored) == largest);
  auto next = stored;
  ++next.bits;
  CHECK(std::isinf(static_cast<float>(next)));
}

TEMPLATE_LIST_TEST_CASE("saturated numbers stay finite, and NaN stays NaN", "[simd]", Pairs) {
  using S = typename TestType::Scalar;
  using Stored = typename TestType::Stored;
  if constexpr (!std::is_same_v<Stored, std::int8_t>) {
    const S largest(simd::largest_of<Stored>);
    const auto saturated = [](S value) {
      std::array<S, simd::lanes<S>> out;
      simd::store<S>(out.data(), simd::saturate<Stored, S>(simd::Batch<S>(value)));
      return out.back();
    };
    for (const S value : {S(1e5), S(3.4e38), std::numeric_limits<S>::max(),
                          std::numeric_limits<S>::infinity(), S(65519), S(0.1), S(0)}) {
      CHECK(saturated(value) == std::min(value, largest));
      CHECK(saturated(-value) == -std::min(value, largest));
      CHECK(std::isfinite(static_cast<float>(Stored(static_cast<float>(saturated(value))))));
    }
    CHECK(std::isnan(saturated(std::numeric_limits<S>::quiet_NaN())));
  }
}

TEMPLATE_TEST_CASE("a type that is not narrow is loaded and stored as it is", "[simd]", float,
                   double) {
  using S = TestType;
  std::array<S, simd::lanes<S>> in, out{};
  in.fill(S(1) / S(3));
  simd::store_as<S>(out.data(), simd::load_as<S>(in.data()));
  CHECK(in == out);
  out.fill(S(0));
  simd::store_as<S>(out.data(), simd::load_as<S>(in.data(), Index{1}), Index{1});
  CHECK(out[0] == in[0]);
  CHECK(out.back() == S(0));
}
