#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "seqmix/kernels/scan/wkv.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

template <class S>
struct Case {
  Tensor<S, 3> k, v;
  Tensor<S, 1> w, u;
  struct Result {
    Tensor<S, 3> o;
    Tensor<S, 2> num, den, top;
  };

  Case(Index B, Index T, Index D, double scale = 1)
      : k(random_tensor<S, 3>({B, T, D}, 1)),
        v(random_tensor<S, 3>({B, T, D}, 2)),
        w(random_tensor<S, 1>({D}, 3)),
        u(random_tensor<S, 1>({D}, 4)) {
    for (Index d = 0; d < D; ++d) w[d] = -std::exp(3 * w[d] - 3);
    for (Index i = 0; i < k.size(); ++i) k.data()[i] *= static_cast<S>(scale);
  }
  Result fresh() const {
    const Shape<2> rows{k.extent(0), k.extent(2)};
    Result r{Tensor<S, 3>(k.shape()), Tensor<S, 2>(rows), Tensor<S, 2>(rows), Tensor<S, 2>(rows)};
    fill(r.o.view(), std::numeric_limits<S>::quiet_NaN());
    fill(r.top.view(), static_cast<S>(wkv_initial_maximum));
    return r;
  }
  /// Tokens [first, first + count) of all rows, one row a call.
  void run(Result& r, Index first, Index count, Context& context) const {
    for (Index row = 0; row < k.extent(0); ++row) {
      const auto part = [&](auto& x) { return x.view()[row].slice(axis::time, first, count); };
      wkv4(part(k), part(v), w, u, r.num, r.den, r.top, part(r.o),
           TestCall(context, {{row, 0, count, Form::parallel}}));
    }
  }
  Result whole(Context& context) const {
    Result r = fresh();
    wkv4(flat(k), flat(v), w, u, r.num, r.den, r.top, flat(r.o),
         TestCall(context, k.extent(0), k.extent(1)));
    return r;
  }
  /// The sums as they stand in the paper; a long double holds their exponentials.
  Tensor<double, 3> expected() const {
    Tensor<double, 3> o(k.shape());
    for (Index b = 0; b < k.extent(0); ++b) {
      for (Index d = 0; d < k.extent(2); ++d) {
        for (Index t = 0; t < k.extent(1); ++t) {
          long double num = 0, den = 0;
          for (Index i = 0; i <= t; ++i) {
            const long double gain =
                i == t ? static_cast<long double>(u[d])
                       : static_cast<long double>(t - 1 - i) * static_cast<long double>(w[d]);
            const long double share = std::exp(gain + static_cast<long double>(k(b, i, d)));
            num += share * static_cast<long double>(v(b, i, d)), den += share;
          }
          o(b, t, d) = static_cast<double>(num / den);
        }
      }
    }
    return o;
  }
};

}  // namespace

TEMPLATE_LIST_TEST_CASE("wkv4 is the weighted mean of the paper", "[wkv]", support::TestScalars) {
  using S = TestType;
  Context context;
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index T : {1, 2, 33}) {
    for (const Index D : {1, 7, 64, 131}) {
      const Case<S> c(2, T, D);
      CAPTURE(T, D);
      CHECK(relative_error(c.whole(context).o.view(), c.expected().view()) < 8 * epsilon);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("wkv4 has the same bits for any cut, threads and row", "[wkv]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const Index B = 3, T = 29, D = 587;
  const Case<S> c(B, T, D, 3);
  const auto expected = c.whole(context);
  const auto same = [&](const auto& r) {
    return same_bits(r.o.view(), expected.o.view()) &&
           same_bits(r.num.view(), expected.num.view()) &&
           same_bits(r.den.view(), expected.den.view()) &&
           same_bits(r.top.view(), expected.top.view());
  };
  auto pieces = c.fresh();
  for (Index t = 0; t < T; t += 3) c.run(pieces, t, std::min<Index>(3, T - t), context);
  CHECK(same(pieces));
  for (const int workers : {2, 3}) {
    support::ThreadExecutor executor(workers);
    Context threaded(executor);
    CHECK(same(c.whole(threaded)));
  }
}

TEST_CASE("segments of wkv4 keep their bits in any company", "[wkv]") {
  for (const Index D : {7, 587}) {
    const Case<float> c(1, support::company_tokens, D, 3);
    using Result = Case<float>::Result;
    Result fresh = c.fresh();
    fresh.num = random_tensor<float, 2>({support::company_rows, D}, 5), fresh.den = fresh.num;
    fresh.top = Tensor<float, 2>(fresh.num.shape());
    for (Index i = 0; i < fresh.den.size(); ++i)
      fresh.den.data()[i] = static_cast<float>(1 + i % 3);
    const auto same = [](const Result& a, const Result& b) {
      return same_bits(a.o.view(), b.o.view()) && same_bits(a.num.view(), b.num.view()) &&
             same_bits(a.den.view(), b.den.view()) && same_bits(a.top.view(), b.top.view());
    };
    const auto run = [&](Index first, Index count, Result& r, const Call& call) {
      const auto part = [&](auto& x) { return x.view()[0].slice(axis::time, first, count); };
      wkv4(part(c.k), part(c.v), c.w, c.u, r.num, r.den, r.top, part(r.o), call);
    };
    const Result got = support::check_company(fresh, run, same);
    CHECK(same_bits(got.num.view()[support::row_without_company],
                    fresh.num.view()[support::row_without_company]));
  }
}

TEMPLATE_LIST_TEST_CASE("wkv4 is finite for extreme keys, and NaN stays in its channel", "[wkv]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  Case<S> c(2, 40, 19, 1e4);
  c.w[3] = S(-1e4), c.w[4] = -std::numeric_limits<S>::infinity(), c.w[5] = 0;
  const auto clean = c.whole(context).o;
  for (Index i = 0; i < clean.size(); ++i) REQUIRE(std::isfinite(clean.data()[i]));
  c.k(0, 11, 7) = std::numeric_limits<S>::quiet_NaN();
  const auto sick = c.whole(context).o;
  for (Index t = 0; t < 40; ++t) {
    for (Index d = 0; d < 19; ++d) {
      REQUIRE(std::isnan(sick(0, t, d)) == (d == 7 && t >= 11));
      REQUIRE(sick(1, t, d) == clean(1, t, d));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("add_bonus adds each head's own share", "[wkv]", support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index N : {1, 5, 16, 33}) {
    const Shape<4> shape{2, 3, 4, N};
    const auto r = random_tensor<S, 4>(shape, 1), k = random_tensor<S, 4>(shape, 2),
               v = random_tensor<S, 4>(shape, 3), start = random_tensor<S, 4>(shape, 5);
    const auto u = random_tensor<S, 2>({4, N}, 4);
    Tensor<S, 4> o = start;
    Tensor<double, 4> expected(shape);
    add_bonus(flat(r), u, flat(k), flat(v), flat(o), TestCall(context));
    for (Index row = 0; row < 24; ++row) {
      double share = 0;
      for (Index j = 0; j < N; ++j) {
        const Index at = row * N + j;
        share += static_cast<double>(r.data()[at]) * static_cast<double>(u(row % 4, j)) *
                 static_cast<double>(k.data()[at]);
      }
      for (Index j = 0; j < N; ++j) {
        const Index at = row * N + j;
        expected.data()[at] =
            static_cast<double>(start.data()[at]) + share * static_cast<double>(v.data()[at]);
      }
    }
    CAPTURE(N);
    CHECK(relative_error(o.view(), expected.view()) <
          8 * static_cast<double>(std::numeric_limits<S>::epsilon()));
  }
}

TEST_CASE("wkv4 and add_bonus reject wrong shapes", "[wkv]") {
  Context context;
  const Case<float> c(2, 5, 8);
  auto r = c.whole(context);
  Tensor<float, 2> narrow({2, 7});
  const View<const float, 2> k = flat(c.k), v = flat(c.v);
  const TestCall call(context, 2, 5);
  CHECK_THROWS_AS(wkv4(k, v, c.w, c.u, narrow, r.den, r.top, flat(r.o), call), ShapeError);
  CHECK_THROWS_AS(wkv4(k, v, c.w, narrow.view()[0], r.num, r.den, r.top, flat(r.o), call),
                  ShapeError);
  CHECK_THROWS_AS(
      wkv4(k.slice(axis::time, 0, 8), v, c.w, c.u, r.num, r.den, r.top, flat(r.o), call),
      ShapeError);
  Tensor<float, 3> heads({1, 2, 4});
  CHECK_THROWS_AS(add_bonus(heads, narrow, heads, heads, heads.view(), call), ShapeError);
}
