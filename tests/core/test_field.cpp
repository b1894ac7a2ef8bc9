#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <string>

#include "seqmix/core/field.hpp"

namespace seqmix {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

TEST_CASE("a range has what float can hold, and never NaN") {
  for (const Range& range : {is_finite, is_positive, is_number, at_least(0), at_least(1),
                             is_positive.or_zero(), at_least(0).or_infinity()}) {
    CHECK(range.has(1));
    CHECK_FALSE(range.has(nan));
    CHECK(range.has(-infinity) == (range.text() == is_number.text()));
  }
  CHECK(is_finite.has(-3e38));
  CHECK_FALSE(is_finite.has(1e39));
  CHECK_FALSE(is_finite.has(infinity));
  CHECK(at_least(0).has(0));
  CHECK(at_least(0).has(1e-300));
  CHECK_FALSE(at_least(0).has(-1e-300));
  CHECK_FALSE(at_least(1).has(0.5));
  CHECK_FALSE(at_least(0).has(infinity));
  CHECK(at_least(0).or_infinity().has(infinity));
  CHECK(at_least(0).or_infinity().has(1e300));
  CHECK_FALSE(is_positive.has(0));
  CHECK_FALSE(is_positive.has(1e-300));  // 0 in float
  CHECK(is_positive.or_zero().has(0));
  CHECK_FALSE(is_positive.or_zero().has(1e-300));
  CHECK_FALSE(is_positive.or_zero().has(-1));
}

TEST_CASE("a range says what it expects") {
  CHECK(is_finite.text() == "finite in float");
  CHECK(is_number.text() == "a number");
  CHECK(is_positive.text() == "positive and finite in float");
  CHECK(is_positive.or_zero().text() == "0, or positive and finite in float");
  CHECK(at_least(0).text() == "at least 0 and finite in float");
  CHECK(at_least(0.5).or_infinity().text() == "at least 0.5");
  const auto error = [](double value) -> std::string {
    try {
      check_range("layer", "eps", value, at_least(0));
    } catch (const ConfigError& refused) {
      return refused.what();
    }
    return "";
  };
  CHECK(error(1e-5).empty());
  CHECK(error(-1) == "layer: eps is -1, expected at least 0 and finite in float");
  CHECK(error(-nan) == "layer: eps is NaN, expected at least 0 and finite in float");
  CHECK(error(infinity) == "layer: eps is inf, expected at least 0 and finite in float");
}

}  // namespace
}  // namespace seqmix
