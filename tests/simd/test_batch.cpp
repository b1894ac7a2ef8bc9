#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/simd/batch.hpp"

using namespace seqmix;

namespace {

template <class S>
std::vector<S> ascending(Index count) {
  std::vector<S> numbers(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<S>(i + 1);
  return numbers;
}

template <class S>
S lane(const simd::Batch<S>& batch, Index i) {
  return batch.get(static_cast<std::size_t>(i));
}

}  // namespace

TEMPLATE_TEST_CASE("a partial load reads the first lanes and zeros the rest", "[simd]", float,
                   double, std::int32_t) {
  const Index width = simd::lanes<TestType>;
  for (Index count = 0; count <= width; ++count) {
    // The vector ends where the load must: a sanitizer sees a read past it.
    const std::vector<TestType> from = ascending<TestType>(count);
    const simd::Batch<TestType> loaded = simd::load<TestType>(from.data(), count);
    for (Index i = 0; i < width; ++i) {
      CHECK(lane<TestType>(loaded, i) == (i < count ? static_cast<TestType>(i + 1) : TestType(0)));
    }
  }
}

TEMPLATE_TEST_CASE("a partial store writes the first lanes and nothing else", "[simd]", float,
                   double, std::int32_t) {
  const Index width = simd::lanes<TestType>;
  const std::vector<TestType> numbers = ascending<TestType>(width);
  const simd::Batch<TestType> value = simd::load<TestType>(numbers.data());
  for (Index count = 0; count <= width; ++count) {
    for (Index start = 1; start <= width; ++start) {
      std::vector<TestType> to(static_cast<std::size_t>(3 * width), TestType(-7));
      simd::store<TestType>(to.data() + start, value, count);
      for (Index i = 0; i < 3 * width; ++i) {
        const bool written = i >= start && i < start + count;
        CHECK(to[static_cast<std::size_t>(i)] ==
              (written ? static_cast<TestType>(i - start + 1) : TestType(-7)));
      }
    }
  }
}

TEMPLATE_TEST_CASE("full loads and stores need no alignment", "[simd]", float, double) {
  const Index width = simd::lanes<TestType>;
  const std::vector<TestType> from = ascending<TestType>(3 * width);
  for (Index start = 0; start < width; ++start) {
    std::vector<TestType> to(static_cast<std::size_t>(3 * width), TestType(-7));
    simd::store<TestType>(to.data() + start, simd::load<TestType>(from.data() + start));
    for (Index i = 0; i < 3 * width; ++i) {
      const bool written = i >= start && i < start + width;
      CHECK(to[static_cast<std::size_t>(i)] ==
            (written ? from[static_cast<std::size_t>(i)] : TestType(-7)));
    }
  }
}

TEMPLATE_TEST_CASE("fma and fnma round once where the target can", "[simd]", float, double) {
  // (1 + e)(1 - e) - 1 = -e²: lost where the product is rounded first.
  const TestType e = std::numeric_limits<TestType>::epsilon();
  const auto a = simd::broadcast<TestType>(1 + e), b = simd::broadcast<TestType>(1 - e),
             one = simd::broadcast<TestType>(1);
  const TestType expected = simd::has_fma ? -e * e : TestType(0);
  CHECK(lane<TestType>(simd::fma(a, b, -one), 0) == expected);
  CHECK(lane<TestType>(simd::fnma(a, b, one), 0) == -expected);
}

TEMPLATE_TEST_CASE("min and max keep a NaN in their first operand", "[simd]", float, double) {
  const TestType nan = std::numeric_limits<TestType>::quiet_NaN();
  const auto unordered = simd::broadcast(nan), one = simd::broadcast<TestType>(1),
             two = simd::broadcast<TestType>(2);
  CHECK(std::isnan(lane<TestType>(simd::max(unordered, one), 0)));
  CHECK(std::isnan(lane<TestType>(simd::min(unordered, one), 0)));
  CHECK(lane<TestType>(simd::max(one, two), 0) == 2);
  CHECK(lane<TestType>(simd::max(two, one), 0) == 2);
  CHECK(lane<TestType>(simd::min(one, two), 0) == 1);
  CHECK(lane<TestType>(simd::min(two, one), 0) == 1);
}

TEMPLATE_TEST_CASE("select, abs and sqrt work lane by lane", "[simd]", float, double) {
  const Index width = simd::lanes<TestType>;
  const std::vector<TestType> numbers = ascending<TestType>(width);
  const auto x = simd::load<TestType>(numbers.data()), two = simd::broadcast<TestType>(2);
  const auto chosen = simd::select(x > two, -x, x);
  for (Index i = 0; i < width; ++i) {
    const TestType number = numbers[static_cast<std::size_t>(i)];
    CHECK(lane<TestType>(chosen, i) == (number > 2 ? -number : number));
    CHECK(lane<TestType>(simd::abs(chosen), i) == number);
    // A number stands for a register of it.
    CHECK(lane<TestType>(simd::select(x > 2, 1, x), i) == (number > 2 ? 1 : number));
    CHECK(lane<TestType>(simd::max(x, 2), i) == std::max<TestType>(number, 2));
    CHECK(lane<TestType>(simd::min(x, 2), i) == std::min<TestType>(number, 2));
    CHECK(lane<TestType>(simd::fma(x, 2, 1), i) == 2 * number + 1);
    CHECK(lane<TestType>(simd::sqrt(x), i) == std::sqrt(number));
  }
  const TestType infinity = std::numeric_limits<TestType>::infinity();
  CHECK(lane<TestType>(simd::sqrt(simd::broadcast(infinity)), 0) == infinity);
}

TEMPLATE_TEST_CASE("reductions take every lane", "[simd]", float, double) {
  const Index width = simd::lanes<TestType>;
  for (Index place = 0; place < width; ++place) {
    std::vector<TestType> numbers = ascending<TestType>(width);
    numbers[static_cast<std::size_t>(place)] = 100;
    const auto x = simd::load<TestType>(numbers.data());
    CHECK(simd::reduce_max(x) == 100);
    CHECK(simd::reduce_max(-x) == (place == 0 ? TestType(-2) : TestType(-1)));
    CHECK(simd::reduce_add(x) ==
          static_cast<TestType>(width * (width + 1) / 2 + 100 - (place + 1)));
  }
}
