#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "seqmix/kernels/scan/running_softmax.hpp"
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
  Tensor<S, 3> s;  // [B, T, H]
  Tensor<S, 4> v;  // [B, T, H, V]
  struct Result {
    Tensor<S, 4> o;
    Tensor<S, 3> num;
    Tensor<S, 2> den, top;
  };

  Case(Index B, Index T, Index H, Index V, double scale = 1)
      : s(random_tensor<S, 3>({B, T, H}, 1)), v(random_tensor<S, 4>({B, T, H, V}, 2)) {
    for (Index i = 0; i < s.size(); ++i) s.data()[i] *= static_cast<S>(scale);
  }
  Result fresh() const {
    const Index B = v.extent(0), H = v.extent(2);
    Result r{Tensor<S, 4>(v.shape()), Tensor<S, 3>({B, H, v.extent(3)}), Tensor<S, 2>({B, H}),
             Tensor<S, 2>({B, H})};
    fill(r.o.view(), std::numeric_limits<S>::quiet_NaN());
    fill(r.top.view(), static_cast<S>(running_softmax_initial_maximum));
    return r;
  }
  /// Tokens [first, first + count) of row 0.
  void run(Result& r, Index first, Index count, const Call& call) const {
    const auto part = [&](auto& x) { return x.view()[0].slice(axis::time, first, count); };
    running_softmax(part(s), part(v), r.num.view(), r.den.view(), r.top.view(), part(r.o), call);
  }
  Result whole(Context& context) const {
    Result r = fresh();
    running_softmax(flat(s), flat(v), r.num.view(), r.den.view(), r.top.view(), flat(r.o),
                    TestCall(context, s.extent(0), s.extent(1)));
    return r;
  }
  /// The softmax of all scores so far as it stands in books.
  Tensor<double, 4> expected() const {
    Tensor<double, 4> o(v.shape());
    for (Index b = 0; b < s.extent(0); ++b) {
      for (Index h = 0; h < s.extent(2); ++h) {
        for (Index t = 0; t < s.extent(1); ++t) {
          double sum = 0, most = s(b, 0, h);
          for (Index i = 0; i <= t; ++i) most = std::max(most, static_cast<double>(s(b, i, h)));
          for (Index i = 0; i <= t; ++i) sum += std::exp(static_cast<double>(s(b, i, h)) - most);
          for (Index i = 0; i <= t; ++i) {
            const double weight = std::exp(static_cast<double>(s(b, i, h)) - most) / sum;
            for (Index e = 0; e < v.extent(3); ++e) {
              o(b, t, h, e) += weight * static_cast<double>(v(b, i, h, e));
            }
          }
        }
      }
    }
    return o;
  }
};

bool same(const auto& a, const auto& b) {
  return same_bits(a.o.view(), b.o.view()) && same_bits(a.num.view(), b.num.view()) &&
         same_bits(a.den.view(), b.den.view()) && same_bits(a.top.view(), b.top.view());
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("running_softmax is the softmax of all scores so far", "[running_softmax]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index T : {1, 2, 33, 64, 131}) {
    for (const Index V : {1, 7, 64}) {
      const Case<S> c(2, T, 3, V, 4);
      CAPTURE(T, V);
      CHECK(relative_error(c.whole(context).o.view(), c.expected().view()) < 16 * epsilon);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("running_softmax has the same bits for any cut and threads",
                        "[running_softmax]", support::TestScalars) {
  using S = TestType;
  Context context;
  const Case<S> c(1, 150, 5, 187, 3);
  const auto expected = c.whole(context);
  auto pieces = c.fresh();
  for (Index t = 0; t < 150; t += 7) {
    const Index count = std::min<Index>(7, 150 - t);
    c.run(pieces, t, count, TestCall(context, {{0, 0, count, Form::parallel}}));
  }
  CHECK(same(pieces, expected));
  for (const int workers : {2, 3}) {
    support::ThreadExecutor executor(workers);
    Context threaded(executor);
    CHECK(same(c.whole(threaded), expected));
  }
}

TEST_CASE("segments of running_softmax keep their bits in any company", "[running_softmax]") {
  const Case<float> c(1, support::company_tokens, 3, 11, 3);
  using Result = Case<float>::Result;
  Result fresh = c.fresh();
  fresh.num = random_tensor<float, 3>({support::company_rows, 3, 11}, 5);
  fresh.den = Tensor<float, 2>({support::company_rows, 3}), fresh.top = fresh.den;
  fill(fresh.den.view(), 1.5F);
  const Result got = support::check_company(
      fresh,
      [&](Index first, Index count, Result& r, const Call& call) { c.run(r, first, count, call); },
      [](const Result& a, const Result& b) { return same(a, b); });
  CHECK(same_bits(got.num.view()[support::row_without_company],
                  fresh.num.view()[support::row_without_company]));
}

TEMPLATE_LIST_TEST_CASE("running_softmax is finite for extreme scores, and NaN stays in its head",
                        "[running_softmax]", support::TestScalars) {
  using S = TestType;
  Context context;
  Case<S> c(2, 40, 3, 19, 1e4);
  const auto clean = c.whole(context).o;
  for (Index i = 0; i < clean.size(); ++i) REQUIRE(std::isfinite(clean.data()[i]));
  c.s(0, 11, 1) = std::numeric_limits<S>::quiet_NaN();
  const auto sick = c.whole(context).o;
  for (Index t = 0; t < 40; ++t) {
    for (Index h = 0; h < 3; ++h) {
      for (Index e = 0; e < 19; ++e) {
        REQUIRE(std::isnan(sick(0, t, h, e)) == (h == 1 && t >= 11));
        REQUIRE(sick(1, t, h, e) == clean(1, t, h, e));
      }
    }
  }
}
