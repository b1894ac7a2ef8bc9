#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "seqmix/kernels/scan/selective_scan.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/parts.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"

using namespace seqmix;
using support::flat;
using support::gather;
using support::Parts;
using support::parts_of;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

template <class S>
struct Case {
  Tensor<S, 3> x, dt, keys, queries, gate, state;
  Tensor<S, 2> rates;
  Tensor<S, 1> skip;

  Case(Index B, Index T, Index D, Index N)
      : x(random_tensor<S, 3>({B, T, D}, 1)),
        dt(random_tensor<S, 3>({B, T, D}, 2)),
        keys(random_tensor<S, 3>({B, T, N}, 3)),
        queries(random_tensor<S, 3>({B, T, N}, 4)),
        gate(random_tensor<S, 3>({B, T, D}, 5)),
        state(random_tensor<S, 3>({B, N, D}, 6)),
        rates(random_tensor<S, 2>({N, D}, 7)),
        skip(random_tensor<S, 1>({D}, 8)) {
    for (Index i = 0; i < rates.size(); ++i) rates.data()[i] = -std::exp(rates.data()[i]);
  }
};

template <class S>
struct Result {
  Tensor<S, 3> y, state;
  explicit Result(const Case<S>& c) : y(c.x.shape()), state(c.state) {
    fill(y.view(), std::numeric_limits<S>::quiet_NaN());
  }
  bool operator==(const Result& other) const {
    return same_bits(y.view(), other.y.view()) && same_bits(state.view(), other.state.view());
  }
};

template <class S>
void run(const Case<S>& c, const Parts& parts, Result<S>& r, Context& context) {
  const auto segments = support::segments_of(parts);
  auto y = gather(r.y, parts);
  selective_scan<S>(gather(c.x, parts), gather(c.dt, parts), c.rates, gather(c.keys, parts),
                    gather(c.queries, parts), c.skip, gather(c.gate, parts), r.state, y.view(),
                    Call(context, segments));
  support::scatter(y, parts, r.y.view());
}

template <class S>
Result<S> whole(const Case<S>& c, Context& context) {
  Result<S> result(c);
  run(c, parts_of(0, c.x.extent(0), 0, c.x.extent(1)), result, context);
  return result;
}

/// The literal recurrence.
template <class Number, class S>
std::pair<Tensor<Number, 3>, Tensor<Number, 3>> literal(const Case<S>& c) {
  Tensor<Number, 3> y(c.x.shape()), state(c.state.shape());
  const Index N = c.rates.extent(0);
  for (Index b = 0; b < y.extent(0); ++b) {
    for (Index d = 0; d < y.extent(2); ++d) {
      for (Index n = 0; n < N; ++n) state(b, n, d) = c.state(b, n, d);
      for (Index t = 0; t < y.extent(1); ++t) {
        const Number dt = std::log1p(std::exp(Number{c.dt(b, t, d)})), x = c.x(b, t, d);
        Number sum = c.skip[d] * x;
        for (Index n = 0; n < N; ++n) {
          Number& h = state(b, n, d);
          h = std::exp2(dt * Number{c.rates(n, d)}) * h + dt * x * c.keys(b, t, n);
          sum += h * c.queries(b, t, n);
        }
        const Number gate = c.gate(b, t, d);
        y(b, t, d) = sum * gate / (1 + std::exp(-gate));
      }
    }
  }
  return {y, state};
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("selective_scan is the literal recurrence", "[selective_scan]",
                        support::TestScalars) {
  using S = TestType;
  Context context = support::poisoned();
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index T : {1, 2, 31, 33, 70}) {
    for (const Index D : {1, 16, 37, 130}) {
      for (const Index N : {1, 8, 16, 19}) {
        const Case<S> c(2, T, D, N);
        const auto got = whole(c, context);
        const auto [y, state] = literal<long double>(c);
        const auto [plain, plain_state] = literal<S>(c);
        CAPTURE(T, D, N);
        CHECK(relative_error(got.y.view(), y.view()) <=
              2 * relative_error(plain.view(), y.view()) + 4 * epsilon);
        CHECK(relative_error(got.state.view(), state.view()) <=
              2 * relative_error(plain_state.view(), state.view()) + 4 * epsilon);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE(
    "selective_scan in pieces, threaded, in any company and in place is the same",
    "[selective_scan]", support::TestScalars) {
  using S = TestType;
  Context context;
  const Index B = 4, T = 90, D = 150, N = 11;
  const Case<S> c(B, T, D, N);
  const auto expected = whole(c, context);
  support::check_parts(
      T, Result<S>(c), expected,
      [&](const Parts& parts, Result<S>& r, Context& by) { run(c, parts, r, by); });

  Tensor<S, 3> y = c.x, state = c.state;
  selective_scan<S>(flat(y), flat(c.dt), c.rates, flat(c.keys), flat(c.queries), c.skip,
                    flat(c.gate), state, flat(y), TestCall(context, B, T));
  CHECK(same_bits(y.view(), expected.y.view()));
  CHECK(same_bits(state.view(), expected.state.view()));
}

TEST_CASE("exp2_decay is 2^x of x <= 0", "[selective_scan]") {
  double worst = 0, worst_double = 0;
  for (int i = 0; i <= 200000; ++i) {
    const float x = -125.5F * static_cast<float>(i) / 200000;
    const float got = simd::exp2_decay<float>(simd::broadcast(x)).get(0);
    const double exact = std::exp2(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(got) - exact) / exact);
    const double z = -1020.0 * i / 200000;
    const double wide = simd::exp2_decay<double>(simd::broadcast(z)).get(0);
    const long double exact_wide = std::exp2(static_cast<long double>(z));
    worst_double =
        std::max(worst_double, static_cast<double>(std::abs((wide - exact_wide) / exact_wide)));
  }
  CHECK(worst <= 1.1920929e-07);
  CHECK(worst_double <= 2.220446049250313e-16);
  for (const float x : {-127.0F, -1e4F, -1e30F, -std::numeric_limits<float>::infinity()}) {
    CHECK(simd::exp2_decay<float>(simd::broadcast(x)).get(0) == 0);
  }
  CHECK(simd::exp2_decay<float>(simd::broadcast(0.0F)).get(0) == 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(simd::exp2_decay<float>(simd::broadcast(nan)).get(0)));
}

TEST_CASE("selective_scan stays finite, keeps NaN in its channel and checks shapes",
          "[selective_scan]") {
  Context context;
  Case<float> c(2, 70, 40, 16);
  for (Index i = 0; i < c.x.size(); ++i) c.x.data()[i] *= 1000, c.dt.data()[i] *= 1e4F;
  const auto clean = whole(c, context);
  bool finite = true;
  for (Index i = 0; i < clean.y.size(); ++i) finite &= std::isfinite(clean.y.data()[i]);
  CHECK(finite);
  c.x(0, 5, 17) = std::numeric_limits<float>::quiet_NaN();
  const auto y = whole(c, context);
  CHECK(std::isnan(y.y(0, 5, 17)));
  CHECK(same_bits(y.y.view()[1], clean.y.view()[1]));
  CHECK(y.y(0, 69, 16) == clean.y(0, 69, 16));

  Tensor<float, 3> out(c.x.shape()), narrow({2, 70, 39});
  const auto scan = [&](const Tensor<float, 3>& x, const Tensor<float, 3>& keys) {
    selective_scan<float>(flat(x), flat(c.dt), c.rates, flat(keys), flat(c.queries), c.skip,
                          flat(c.gate), c.state, flat(out), TestCall(context, 2, 70));
  };
  CHECK_NOTHROW(scan(c.x, c.keys));
  CHECK_THROWS_AS(scan(narrow, c.keys), ShapeError);
  CHECK_THROWS_AS(scan(c.x, narrow), ShapeError);
}
