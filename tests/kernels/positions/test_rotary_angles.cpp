// The angles of longer contexts, by what their definitions say of them; what published code makes
// of them is in the golden files of attention.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_angles.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

constexpr Index d = 16;
constexpr double base = 10000;

std::vector<double> angles(const RopeScalingConfig& scaling, Index length = 0) {
  return rotary_angles(d, base, scaling, length);
}
bool near(const std::vector<double>& a, const std::vector<double>& b) {
  return std::ranges::equal(
      a, b, [](double x, double y) { return std::abs(x - y) <= 1e-14 * std::abs(y); });
}
std::vector<double> divided(std::vector<double> numbers, const std::vector<double>& by) {
  for (std::size_t n = 0; n < numbers.size(); ++n) numbers[n] /= by[n];
  return numbers;
}
std::string refusal(const RopeScalingConfig& scaling, Index rotary_dim = d,
                    bool forward_alone = false) {
  try {
    scaling.check(base, rotary_dim);
    if (!forward_alone) scaling.check_fixed();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

const std::vector<double> plain = angles({});
const std::vector<double> shorter{1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7};
const std::vector<double> longer{1, 2, 3, 4, 5, 6, 7, 8};

RopeScalingConfig longrope(Index length = 0) {
  return {.kind = RopeScaling::longrope,
          .factor = 8,
          .original_length = 64,
          .length = length,
          .short_factor = shorter,
          .long_factor = longer};
}

}  // namespace

TEST_CASE("dynamic scaling is none up to the original length and ntk of its factor at twice it",
          "[rope]") {
  const RopeScalingConfig dynamic{.kind = RopeScaling::dynamic, .factor = 3, .original_length = 64};
  CHECK(angles(dynamic) == plain);
  CHECK(angles(dynamic, 10) == plain);
  CHECK(angles(dynamic, 64) == plain);
  CHECK(near(angles(dynamic, 128), angles({.kind = RopeScaling::ntk, .factor = 4})));
  RopeScalingConfig fixed = dynamic;
  fixed.length = 100;
  CHECK(angles(fixed) == angles(dynamic, 100));
  CHECK(angles(fixed, 128) == angles(dynamic, 128));
  CHECK(angles(fixed)[0] == 1);
  CHECK(rotary_angles(2, base, fixed) == std::vector<double>{1});
}

TEST_CASE("longrope takes the table of its length", "[rope]") {
  CHECK(near(angles(longrope()), divided(plain, shorter)));
  CHECK(near(angles(longrope(64)), divided(plain, shorter)));
  CHECK(near(angles(longrope(65)), divided(plain, longer)));
  CHECK(near(angles(longrope(64), 100), divided(plain, longer)));
  CHECK(std::abs(longrope().amplitude() - std::sqrt(1 + std::log(8.0) / std::log(64.0))) < 1e-15);
  RopeScalingConfig given = longrope();
  given.attention_factor = 1.2;
  CHECK(given.amplitude() == 1.2);
  RopeScalingConfig one = longrope();
  one.factor = 1;
  one.short_factor = std::vector<double>(8, 1.0);
  CHECK(one.amplitude() == 1);
  CHECK(angles(one) == plain);
}

TEST_CASE("yarn between fractions of pairs and with two factors", "[rope]") {
  RopeScalingConfig yarn{
      .kind = RopeScaling::yarn, .factor = 4, .original_length = 64, .beta_fast = 8};
  const auto whole = angles(yarn);
  yarn.truncate = false;
  CHECK_FALSE(near(angles(yarn), whole));
  CHECK(near({angles(yarn)[0]}, {plain[0]}));
  CHECK(near({angles(yarn)[7]}, {plain[7] / 4}));
  // The pair in the middle of a ramp from pair 0, where beta_fast is beyond it, to `high`.
  const double high = d * std::log(64 / (2 * std::numbers::pi)) / (2 * std::log(base));
  const double low = d * std::log(64 / (16 * std::numbers::pi)) / (2 * std::log(base));
  const double ramp = (1 - low) / (high - low);
  CHECK(near({angles(yarn)[1]}, {plain[1] / 4 * ramp + plain[1] * (1 - ramp)}));

  CHECK(yarn.amplitude() == 0.1 * std::log(4.0) + 1);
  yarn.mscale = yarn.mscale_all_dim = 0.7;
  CHECK(yarn.amplitude() == 1);
  yarn.mscale = 1.4;
  CHECK(std::abs(yarn.amplitude() - (0.14 * std::log(4.0) + 1) / (0.07 * std::log(4.0) + 1)) <
        1e-15);
}

TEST_CASE("closed powers end at the inverse of the base", "[rope]") {
  const auto closed = angles({.closed = true});
  CHECK(closed[0] == 1);
  CHECK(near({closed[7]}, {1 / base}));
  CHECK(near({closed[1]}, {std::pow(base, -1.0 / 7)}));
  CHECK(rotary_angles(2, base, {.closed = true}) == std::vector<double>{1});
  const auto apart = angles({.kind = RopeScaling::linear, .factor = 2, .closed = true});
  CHECK(near(apart, divided(closed, std::vector<double>(8, 2.0))));
}

TEST_CASE("angles of a table and of a rule", "[rope]") {
  RopeScalingConfig table{.kind = RopeScaling::table, .angles = longer};
  CHECK(angles(table) == longer);
  const auto by_rule = [](Index n) { return static_cast<double>(n + 1); };
  CHECK(RotaryFrequencies(d, by_rule).angles() == longer);
  CHECK_THROWS_AS(RotaryFrequencies(5, by_rule), ConfigError);
  // A pair that does not turn stays as it is: what p-RoPE does with the slow ones.
  Context context;
  const auto before = random_tensor<double, 4>({1, 9, 1, d}, 1);
  auto x = before;
  rope(flat(x), RotaryFrequencies({1, 0.5, 0.25, 0, 0, 0, 0, 0}), {}, RotaryLayout::half_split,
       TestCall(context, 1, 9));
  for (Index t = 1; t < 9; ++t) {
    for (Index i = 0; i < d; ++i) CHECK((x(0, t, 0, i) == before(0, t, 0, i)) == (i % 8 >= 3));
  }
}

TEST_CASE("resonance makes wavelengths whole, and positions repeat bit for bit", "[rope]") {
  const RopeScalingConfig scaling{.kind = RopeScaling::linear, .factor = 2, .resonance = true};
  const RotaryFrequencies resonant(d, base, scaling);
  const auto unrounded = angles(scaling);
  for (std::size_t n = 0; n < unrounded.size(); ++n) {
    const double wavelength = std::nearbyint(2 * std::numbers::pi / unrounded[n]);
    CHECK(resonant.wavelengths()[n] == wavelength);
    CHECK(resonant.angles()[n] == 2 * std::numbers::pi / wavelength);
  }
  CHECK(resonant.wavelengths()[0] == 13);
  CHECK(RotaryFrequencies(d, base).wavelengths().empty());

  Context context;
  const auto before = random_tensor<double, 4>({1, 1, 2, d}, 2);
  const auto at = [&](const RotaryFrequencies& frequencies, Index position) {
    auto x = before;
    Tensor<Index, 1> past({1});
    past(0) = position;
    rope(flat(x), frequencies, past, RotaryLayout::interleaved, TestCall(context, 1, 1));
    return x;
  };
  for (const Index position : {0, 5, 12}) {
    for (const Index turns : {1, 2, 100000}) {
      const auto near_by = at(resonant, position), far = at(resonant, position + 13 * turns);
      for (Index h = 0; h < 2; ++h) {
        for (Index i = 0; i < 2; ++i) CHECK(far(0, 0, h, i) == near_by(0, 0, h, i));
      }
    }
  }
  // Without the remainder it is the rotation by those angles.
  const RotaryFrequencies direct(resonant.angles());
  for (const Index position : {0, 1, 37, 5000}) {
    const auto a = at(resonant, position), b = at(direct, position);
    for (Index i = 0; i < a.size(); ++i) CHECK(std::abs(a.data()[i] - b.data()[i]) < 1e-11);
  }
  CHECK_THROWS_AS(
      RotaryFrequencies(2, base, {.kind = RopeScaling::table, .angles = {0.0}, .resonance = true}),
      ConfigError);
  CHECK_THROWS_AS(
      RotaryFrequencies(2, base, {.kind = RopeScaling::table, .angles = {13.0}, .resonance = true}),
      ConfigError);
}

TEST_CASE("a scaling says what is wrong with it", "[rope]") {
  using Catch::Matchers::ContainsSubstring;
  CHECK(refusal(longrope()).empty());
  CHECK_THAT(refusal(longrope(), 12),
             ContainsSubstring("rope_short_factor has 8 numbers, expected 6, one a pair of"));
  RopeScalingConfig scaling = longrope();
  scaling.long_factor.pop_back();
  CHECK_THAT(refusal(scaling), ContainsSubstring("rope_long_factor has 7 numbers, expected 8"));
  scaling = longrope();
  scaling.original_length = 1;
  CHECK_THAT(refusal(scaling), ContainsSubstring("rope_original_length above 1"));
  scaling.original_length = 0;
  CHECK_THAT(refusal(scaling), ContainsSubstring("need rope_original_length"));
  scaling = longrope();
  scaling.by_call = true;
  CHECK(refusal(scaling, d, true).empty());
  CHECK_THAT(refusal(scaling), ContainsSubstring("rope_by_call turns a token by other angles"));
  CHECK_THAT(refusal({.kind = RopeScaling::table, .angles = {1.0}}),
             ContainsSubstring("rope_angles has 1 numbers, expected 8"));
  CHECK_THAT(refusal({.kind = RopeScaling::yarn, .original_length = 9, .mscale = 1}),
             ContainsSubstring("rope_mscale and rope_mscale_all_dim make a ratio"));
  CHECK_THAT(refusal({.closed = true}, 0),
             ContainsSubstring("rope_closed and rope_resonance need rotary positions"));
}
