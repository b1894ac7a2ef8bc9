#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "seqmix/simd/map.hpp"

using namespace seqmix;

TEMPLATE_TEST_CASE("the blocks cover a range once, in order, the last one short", "[simd]", float,
                   double) {
  const Index width = simd::lanes<TestType>;
  for (Index count = 0; count <= 3 * width + 1; ++count) {
    Index next = 0;
    simd::for_each_block<TestType>(count, [&](Index offset, auto lane_count) {
      const Index size = lane_count;
      CHECK(offset == next);
      CHECK(size == std::min(width, count - offset));
      const bool is_full = std::is_same_v<decltype(lane_count), simd::Full<TestType>>;
      CHECK(is_full == (size == width));
      next += size;
    });
    CHECK(next == count);
  }
}

TEMPLATE_TEST_CASE("map computes each number alone, at any count and alignment", "[simd]", float,
                   double) {
  const Index width = simd::lanes<TestType>;
  const auto f = [](auto a, auto b) { return simd::fma(a, b, a); };
  for (Index count = 0; count <= 3 * width + 1; ++count) {
    for (Index start = 1; start <= width; ++start) {
      // The inputs end with the range, so that a sanitizer sees a read past it.
      std::vector<TestType> a(static_cast<std::size_t>(start + count)), b(a.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        a[i] = static_cast<TestType>(i) + TestType(0.5);
        b[i] = static_cast<TestType>(3 * i);
      }
      std::vector<TestType> out(a.size() + static_cast<std::size_t>(width), TestType(-7));
      simd::map<TestType>(count, out.data() + start, f, a.data() + start, b.data() + start);
      bool right = true;
      for (std::size_t i = 0; i < out.size(); ++i) {
        const bool inside = i >= static_cast<std::size_t>(start) && i < a.size();
        right &= out[i] == (inside ? a[i] * b[i] + a[i] : TestType(-7));
      }
      CHECK(right);
    }
  }
}

TEMPLATE_TEST_CASE("map may write on its input", "[simd]", float, double) {
  std::vector<TestType> x(static_cast<std::size_t>(2 * simd::lanes<TestType> + 3));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<TestType>(i);
  simd::map<TestType>(
      static_cast<Index>(x.size()), x.data(), [](auto v) { return v + v; }, x.data());
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(x[i] == static_cast<TestType>(2 * i));
}

TEMPLATE_TEST_CASE("an input of map may be one number", "[simd]", float, double) {
  std::vector<TestType> x(static_cast<std::size_t>(2 * simd::lanes<TestType> + 3));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<TestType>(i);
  const auto f = [](auto v, auto by) { return v * by; };
  simd::map<TestType>(static_cast<Index>(x.size()), x.data(), f, x.data(), TestType(3));
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(x[i] == static_cast<TestType>(3 * i));
}
