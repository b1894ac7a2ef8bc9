#include <array>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include "seqmix/simd/reduce.hpp"
#include "support/scalars.hpp"

using namespace seqmix;

TEMPLATE_LIST_TEST_CASE("registers are summed together, each in its own lane", "",
                        support::TestScalars) {
  using S = TestType;
  constexpr Index lanes = simd::lanes<S>;
  std::array<S, static_cast<std::size_t>(lanes * lanes)> numbers;
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<S>(i * i % 97);
  simd::Batch<S> rows[static_cast<std::size_t>(lanes)];
  for (Index i = 0; i < lanes; ++i) rows[i] = simd::load<S>(numbers.data() + i * lanes);
  std::array<S, static_cast<std::size_t>(lanes)> sums;
  simd::store<S>(sums.data(), simd::reduce_add_each<S>(rows));
  for (Index i = 0; i < lanes; ++i) {
    S expected = 0;
    for (Index j = 0; j < lanes; ++j) expected += numbers[static_cast<std::size_t>(i * lanes + j)];
    CHECK(sums[static_cast<std::size_t>(i)] == expected);
  }
}
