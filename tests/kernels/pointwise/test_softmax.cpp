#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/pointwise/softmax.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"

using namespace seqmix;
using support::random_tensor;
using support::TestCall;

namespace {

/// exp(x) / Σ exp(x) of each row in long double.
template <class S>
Tensor<double, 2> expected_softmax(const Tensor<S, 2>& x) {
  Tensor<double, 2> result(x.shape());
  for (Index row = 0; row < x.extent(0); ++row) {
    long double maximum = -std::numeric_limits<long double>::infinity(), sum = 0;
    for (Index i = 0; i < x.extent(1); ++i) {
      maximum = std::max(maximum, static_cast<long double>(x(row, i)));
    }
    for (Index i = 0; i < x.extent(1); ++i) sum += std::exp(x(row, i) - maximum);
    for (Index i = 0; i < x.extent(1); ++i) {
      result(row, i) = static_cast<double>(std::exp(x(row, i) - maximum) / sum);
    }
  }
  return result;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("softmax normalises each row at any width", "[softmax]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const double tolerance = 8 * static_cast<double>(std::numeric_limits<S>::epsilon());
  for (Index width = 1; width <= 3 * simd::lanes<S> + 1; ++width) {
    for (const S size : {S(1), S(1e4)}) {
      auto x = random_tensor<S, 2>({5, width}, static_cast<unsigned>(width));
      for (Index i = 0; i < x.size(); ++i) x.data()[i] *= size;
      const auto expected = expected_softmax(x);
      softmax(x.view(), TestCall(context));
      CHECK(support::relative_error(x.view(), expected.view()) <= tolerance);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("softmax of nothing visible is zero, and NaN stays in its row", "[softmax]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const S infinity = std::numeric_limits<S>::infinity();
  for (const Index width : {1, 2, 7, 33}) {
    auto x = random_tensor<S, 2>({4, width}, 1);
    for (Index i = 0; i < width; ++i) x(1, i) = -infinity;
    x(2, width - 1) = std::numeric_limits<S>::quiet_NaN();
    if (width > 1) x(3, 0) = -infinity;
    softmax(x.view(), TestCall(context));
    S sum = 0;
    for (Index i = 0; i < width; ++i) {
      CHECK(std::isfinite(x(0, i)));
      CHECK(x(1, i) == 0);
      CHECK(std::isnan(x(2, i)));
      sum += x(3, i);
    }
    CHECK(std::abs(sum - 1) < S(1e-5));
    if (width > 1) CHECK(x(3, 0) == 0);
  }
}

TEMPLATE_LIST_TEST_CASE("softmax takes strided rows of any rank and leaves the gaps alone",
                        "[softmax]", support::TestScalars) {
  using S = TestType;
  Context context;
  const Index width = 19;
  auto wide = random_tensor<S, 3>({3, 2, width + 5}, 2);
  const Tensor<S, 3> before = wide;
  softmax(wide.view().template slice<2>(2, width), TestCall(context));
  for (Index a = 0; a < 3; ++a) {
    for (Index b = 0; b < 2; ++b) {
      Tensor<S, 2> row({1, width});
      copy(before[a][b].template slice<0>(2, width), row[0]);
      softmax(row.view(), TestCall(context));
      CHECK(support::same_bits(row[0], wide[a][b].template slice<0>(2, width)));
      for (const Index i : {Index{0}, Index{1}, width + 2, width + 4}) {
        CHECK(wide(a, b, i) == before(a, b, i));
      }
    }
  }
}
