#include <algorithm>
#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"
#include "support/ulp.hpp"

using namespace seqmix;
using seqmix::test::ulp_error;
using seqmix::test::Wide;

namespace {

#if defined(NDEBUG)
constexpr std::uint32_t pattern_step = 997;
constexpr Index double_samples = 1 << 19;
#else
constexpr std::uint32_t pattern_step = 997 * 61;
constexpr Index double_samples = 1 << 14;
#endif

/// A function on registers and what it computes, in a wider type.
template <class S>
struct Function {
  std::string name;
  double limit;  // in units in the last place
  simd::Batch<S> (*f)(const simd::Batch<S>&);
  Wide<S> (*exact)(Wide<S>);
};

template <class W>
W exact_sigmoid(W x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}
template <class W>
W exact_softplus(W x) {
  return std::isnan(x) ? x : std::fmax(x, W(0)) + std::log1p(std::exp(-std::fabs(x)));
}
/// x σ(u) where u has the sign of x: 0 at -infinity.
template <class W>
W exact_gated(W x, W u) {
  return std::isinf(x) && x < 0 ? W(0) : x * exact_sigmoid(u);
}

template <class S>
std::vector<Function<S>> functions() {
  using W = Wide<S>;
  return {
      {"exp", 2, simd::exp<S>, [](W x) { return std::exp(x); }},
      {"exp2", 2, simd::exp2<S>, [](W x) { return std::exp2(x); }},
      {"log", 2, simd::log<S>, [](W x) { return std::log(x); }},
      {"log1p", 4, simd::log1p<S>, [](W x) { return std::log1p(x); }},
      {"expm1", 4, simd::expm1<S>, [](W x) { return std::expm1(x); }},
      {"tanh", 4, simd::tanh<S>, [](W x) { return std::tanh(x); }},
      {"erf", 4, simd::erf<S>, [](W x) { return std::erf(x); }},
      {"rsqrt", 4, simd::rsqrt<S>, [](W x) { return 1 / std::sqrt(x); }},
      {"sigmoid", 4, simd::sigmoid<S>, exact_sigmoid<W>},
      {"softplus", 4, simd::softplus<S>, exact_softplus<W>},
      {"log_sigmoid", 4, simd::log_sigmoid<S>, [](W x) { return -exact_softplus(-x); }},
      {"silu", 4, simd::silu<S>, [](W x) { return exact_gated(x, x); }},
      {"quick_gelu", 4, simd::quick_gelu<S>,
       [](W x) { return exact_gated(x, static_cast<W>(1.702L) * x); }},
      {"gelu_tanh", 4, simd::gelu_tanh<S>,
       [](W x) {
         const W slope = static_cast<W>(1.59576912160573071175978423973752747L);  // sqrt(8 / π)
         return exact_gated(x, slope * (x + static_cast<W>(0.044715L) * x * x * x));
       }},
      {"gelu", 4, simd::gelu<S>,
       [](W x) {
         const W a = -x * static_cast<W>(0.707106781186547524400844362104849039L);
         return std::isinf(x) && x < 0 ? W(0) : x * std::erfc(a) / 2;
       }},
  };
}

template <class S>
std::vector<S> evaluate(const Function<S>& function, const std::vector<S>& x) {
  std::vector<S> y(x.size());
  simd::map<S>(static_cast<Index>(x.size()), y.data(), function.f, x.data());
  return y;
}

template <class S>
struct Worst {
  double error = 0;
  S at = 0;

  void take(const Function<S>& function, const std::vector<S>& x) {
    const std::vector<S> y = evaluate(function, x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double e = ulp_error(y[i], function.exact(x[i]));
      if (!(e <= error)) error = e, at = x[i];
    }
  }
};

template <class S>
std::vector<S> special_values() {
  using Limits = std::numeric_limits<S>;
  std::vector<S> values;
  for (const S v : {S(0), Limits::denorm_min(), Limits::min() / 2, Limits::min(), Limits::epsilon(),
                    S(0.5), S(1), S(2), S(10), S(88), S(89), S(709), S(710), S(1000), Limits::max(),
                    Limits::infinity(), Limits::quiet_NaN()}) {
    values.push_back(v), values.push_back(-v);
  }
  return values;
}

template <class S>
bool same_number(S a, S b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

}  // namespace

TEST_CASE("the distance in units in the last place is one that can fail", "[simd][ulp]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(ulp_error(1.0F, 1.0) == 0);
  CHECK(ulp_error(std::nextafter(1.0F, 2.0F), 1.0) == 1);
  CHECK(ulp_error(1.0F, 1.0 + 0x1p-24) == 0.5);
  CHECK(ulp_error(-1.0F, 1.0) == 0x1p24);
  CHECK(ulp_error(0.0F, 1.0) == 0x1p23);
  CHECK(ulp_error(0.0F, 0x1p-126) == 0x1p23);
  CHECK(ulp_error(0.0F, 0x1p-127) == 0);
  CHECK(ulp_error(0x1p-126F, 0.0) == 0x1p23);
  CHECK(ulp_error(infinity, 0x1p200) == 0);
  CHECK(ulp_error(infinity, 0x1p127) == 0x1p23);
  CHECK(ulp_error(-infinity, 0x1p200) > 1e6);
  CHECK(ulp_error(nan, 1.0) > 1e6);
  CHECK(ulp_error(1.0F, static_cast<double>(nan)) > 1e6);
  CHECK(ulp_error(nan, static_cast<double>(nan)) == 0);
  CHECK(ulp_error(std::nextafter(3.0, 4.0), 3.0L) == 1);
}

TEST_CASE("a worse function does not pass", "[simd][ulp]") {
  Function<float> wrong = functions<float>().front();
  wrong.f = [](const simd::Batch<float>& x) {
    return simd::exp(x) * simd::Batch<float>(1 + 0x1p-21F);
  };
  Worst<float> worst;
  worst.take(wrong, {-1.0F, 0.25F, 3.0F});
  CHECK(worst.error > wrong.limit);
}

TEST_CASE("float functions are exact to a few units over all numbers", "[simd][ulp]") {
  for (const Function<float>& function : functions<float>()) {
    Worst<float> worst;
    worst.take(function, special_values<float>());
    std::vector<float> x;
    for (std::uint64_t pattern = 0; pattern < (std::uint64_t{1} << 32); pattern += pattern_step) {
      x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(pattern)));
      if (x.size() == 4096) worst.take(function, x), x.clear();
    }
    worst.take(function, x);
    INFO(function.name << " at " << worst.at);
    CHECK(worst.error <= function.limit);
  }
}

TEST_CASE("double functions are exact to a few units", "[simd][ulp]") {
  constexpr std::uint64_t stride = std::numeric_limits<std::uint64_t>::max() / double_samples;
  for (const Function<double>& function : functions<double>()) {
    Worst<double> worst;
    worst.take(function, special_values<double>());
    std::vector<double> x;
    for (Index i = 0; i < double_samples; ++i) {
      const double position = static_cast<double>(i) / static_cast<double>(double_samples);
      x.push_back(std::bit_cast<double>(static_cast<std::uint64_t>(i) * stride));
      for (const double range : {2.0, 30.0, 750.0}) x.push_back(range * (2 * position - 1));
      if (x.size() == 4096) worst.take(function, x), x.clear();
    }
    worst.take(function, x);
    INFO(function.name << " at " << worst.at);
    CHECK(worst.error <= function.limit);
  }
}

TEMPLATE_TEST_CASE("zeros, infinities and NaN give what the functions tend to", "[simd]", float,
                   double) {
  using S = TestType;
  const S infinity = std::numeric_limits<S>::infinity();
  const S nan = std::numeric_limits<S>::quiet_NaN();
  struct Expected {
    std::string name;
    S at_minus_infinity, at_zero, at_infinity;
  };
  const std::vector<Expected> table = {
      {"exp", 0, 1, infinity},
      {"exp2", 0, 1, infinity},
      {"log", nan, -infinity, infinity},
      {"log1p", nan, 0, infinity},
      {"expm1", -1, 0, infinity},
      {"tanh", -1, 0, 1},
      {"erf", -1, 0, 1},
      {"rsqrt", nan, infinity, 0},
      {"sigmoid", 0, S(0.5), 1},
      {"softplus", 0, static_cast<S>(0x1.62e42fefa39efp-1), infinity},
      {"log_sigmoid", -infinity, static_cast<S>(-0x1.62e42fefa39efp-1), 0},
      {"silu", 0, 0, infinity},
      {"quick_gelu", 0, 0, infinity},
      {"gelu_tanh", 0, 0, infinity},
      {"gelu", 0, 0, infinity},
  };
  const std::vector<Function<S>> all = functions<S>();
  REQUIRE(table.size() == all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    INFO(all[i].name);
    REQUIRE(all[i].name == table[i].name);
    const std::vector<S> y = evaluate<S>(all[i], {-infinity, 0, infinity, nan, -nan});
    CHECK(same_number(y[0], table[i].at_minus_infinity));
    CHECK(same_number(y[1], table[i].at_zero));
    CHECK(same_number(y[2], table[i].at_infinity));
    CHECK(std::isnan(y[3]));
    CHECK(std::isnan(y[4]));
  }
}

TEMPLATE_TEST_CASE("powers of two and odd functions keep what they promise", "[simd]", float,
                   double) {
  using S = TestType;
  using Limits = std::numeric_limits<S>;
  for (int n = Limits::min_exponent - 1; n < Limits::max_exponent; ++n) {
    const simd::Batch<S> x(static_cast<S>(n));
    CHECK(simd::exp2(x).get(0) == std::ldexp(S(1), n));
  }
  for (const Function<S>& function : functions<S>()) {
    if (function.name != "tanh" && function.name != "erf") continue;
    for (const S v : special_values<S>()) {
      const std::vector<S> y = evaluate<S>(function, {v, -v});
      CHECK(same_number(y[0], -y[1]));
      if (!std::isnan(v)) CHECK(std::signbit(y[0]) == std::signbit(v));
    }
  }
}

TEMPLATE_TEST_CASE("a quotient by zero is zero where that is asked for", "[simd]", float, double) {
  using S = TestType;
  const auto quotient = [](S a, S b) {
    return simd::divide_or_zero(simd::Batch<S>(a), simd::Batch<S>(b)).get(0);
  };
  CHECK(quotient(3, 7) == S(3) / S(7));
  CHECK(quotient(3, 0) == 0);
  CHECK(quotient(0, 0) == 0);
  CHECK(quotient(3, S(-0.0)) == 0);
  CHECK(std::isnan(quotient(std::numeric_limits<S>::quiet_NaN(), 1)));
}

TEMPLATE_TEST_CASE("a number does not depend on its lane or its neighbours", "[simd]", float,
                   double) {
  using S = TestType;
  const Index width = simd::lanes<S>;
  std::vector<S> numbers = special_values<S>();
  for (int i = -40; i <= 40; ++i) numbers.push_back(static_cast<S>(i) * S(0.3));
  for (const Function<S>& function : functions<S>()) {
    bool same = true;
    for (const S number : numbers) {
      const std::vector<S> alone = evaluate<S>(function, {number});
      for (Index place = 0; place < width; ++place) {
        for (const S neighbour : special_values<S>()) {
          std::vector<S> x(static_cast<std::size_t>(width), neighbour);
          x[static_cast<std::size_t>(place)] = number;
          const std::vector<S> y = evaluate<S>(function, x);
          same &= same_number(y[static_cast<std::size_t>(place)], alone[0]);
        }
      }
    }
    INFO(function.name);
    CHECK(same);
  }
}

TEMPLATE_TEST_CASE("flush_subnormal takes subnormal numbers and nothing else", "[simd]", float,
                   double) {
  using S = TestType;
  using Limits = std::numeric_limits<S>;
  const auto flushed = [](S x) { return simd::flush_subnormal<S>(simd::Batch<S>(x)).get(0); };
  for (const S sign : {S(1), S(-1)}) {
    for (const S kept : {Limits::min(), S(1), Limits::max(), Limits::infinity()}) {
      CHECK(flushed(sign * kept) == sign * kept);
    }
    for (const S gone : {S(0), Limits::denorm_min(), Limits::min() / 2}) {
      CHECK(flushed(sign * gone) == 0);
    }
  }
  CHECK(std::isnan(flushed(Limits::quiet_NaN())));
}
