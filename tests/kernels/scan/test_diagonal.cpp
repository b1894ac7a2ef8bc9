#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/scan/diagonal.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/parts.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"

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

/// The operands of each scan of a batch; the gated one sees [T, D], the complex one [T, 2, D].
template <class S>
struct Case {
  Tensor<S, 3> x, input_gate, recurrent_gate;
  Tensor<S, 1> rate;
  Tensor<S, 2> state, lambda;
  Tensor<S, 4> pairs;
  Tensor<S, 3> pair_state;
  Tensor<Index, 1> past;

  Case(Index B, Index T, Index D)
      : x(random_tensor<S, 3>({B, T, D}, 1)),
        input_gate(random_tensor<S, 3>({B, T, D}, 2)),
        recurrent_gate(random_tensor<S, 3>({B, T, D}, 3)),
        rate(random_tensor<S, 1>({D}, 5)),
        state(random_tensor<S, 2>({B, D}, 6)),
        lambda(random_tensor<S, 2>({2, D}, 7)),
        pairs(random_tensor<S, 4>({B, T, 2, D}, 8)),
        pair_state(random_tensor<S, 3>({B, 2, D}, 9)),
        past({B}) {
    for (Index i = 0; i < D; ++i) rate[i] = std::abs(rate[i]);
    for (Index i = 0; i < lambda.size(); ++i) lambda.data()[i] *= S(0.2);
    for (Index b = 0; b < B; ++b) past[b] = b % 2 == 0 ? 0 : 5;
  }
};

/// Outputs and final states of the scans, one behind the other.
template <class S>
struct Results {
  Tensor<S, 3> gated;
  Tensor<S, 4> complex;
  Tensor<S, 2> gated_state;
  Tensor<S, 3> complex_state;

  explicit Results(const Case<S>& c)
      : gated(c.x.shape()), complex(c.pairs), gated_state(c.state), complex_state(c.pair_state) {
    fill(gated.view(), std::numeric_limits<S>::quiet_NaN());
  }
  bool operator==(const Results& other) const {
    return same_bits(gated.view(), other.gated.view()) &&
           same_bits(complex.view(), other.complex.view()) &&
           same_bits(gated_state.view(), other.gated_state.view()) &&
           same_bits(complex_state.view(), other.complex_state.view());
  }
};

/// Runs the scans over parts of the rows.
template <class S>
void run(const Case<S>& c, const Parts& parts, Results<S>& r, Context& context) {
  const auto segments = support::segments_of(parts);
  const Call call(context, segments);
  Tensor<Index, 1> past = c.past;
  for (const support::Part& part : parts) past[part.row] += part.begin;
  auto gated = gather(r.gated, parts);
  auto complex = gather(r.complex, parts);
  rg_lru_scan<S>(gather(c.x, parts), gather(c.input_gate, parts), gather(c.recurrent_gate, parts),
                 c.rate, past, r.gated_state, gated.view(), call);
  complex_scan<S>(c.lambda, r.complex_state, complex.view(), call);
  support::scatter(gated, parts, r.gated.view());
  support::scatter(complex, parts, r.complex.view());
}

template <class S>
Results<S> whole(const Case<S>& c, Context& context) {
  Results<S> result(c);
  const Index B = c.x.extent(0), T = c.x.extent(1);
  const TestCall call(context, B, T);
  rg_lru_scan<S>(flat(c.x), flat(c.input_gate), flat(c.recurrent_gate), c.rate, c.past,
                 result.gated_state, flat(result.gated), call);
  complex_scan<S>(c.lambda, result.complex_state, flat(result.complex), call);
  return result;
}

/// The literal recurrences, in long double.
template <class S>
struct Expected {
  Tensor<long double, 3> gated;
  Tensor<long double, 4> complex;

  explicit Expected(const Case<S>& c) : gated(c.x.shape()), complex(c.pairs.shape()) {
    using Number = long double;
    const auto sigmoid = [](Number x) { return 1 / (1 + std::exp(-x)); };
    for (Index b = 0; b < c.x.extent(0); ++b) {
      for (Index d = 0; d < c.x.extent(2); ++d) {
        Number g = c.state(b, d);
        Number re = c.pair_state(b, 0, d), im = c.pair_state(b, 1, d);
        for (Index t = 0; t < c.x.extent(1); ++t) {
          const Number log_a = -Number{c.rate[d]} * sigmoid(c.recurrent_gate(b, t, d));
          const Number in = sigmoid(c.input_gate(b, t, d)) * c.x(b, t, d);
          const Number decay = std::exp(log_a);
          g = c.past[b] + t == 0 ? in : decay * g + std::sqrt(1 - decay * decay) * in;
          gated(b, t, d) = g;
          const Number u = c.lambda(0, d), v = c.lambda(1, d), last = re;
          re = u * re - v * im + c.pairs(b, t, 0, d);
          im = u * im + v * last + c.pairs(b, t, 1, d);
          complex(b, t, 0, d) = re, complex(b, t, 1, d) = im;
        }
      }
    }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("scans are the literal recurrences", "[scan]", float, double) {
  using S = TestType;
  Context context;
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index T : {1, 2, 37}) {
    for (const Index D : {1, 3, 16, 37, 517}) {
      const Case<S> c(2, T, D);
      const auto got = whole(c, context);
      const Expected<S> expected(c);
      CAPTURE(T, D);
      CHECK(relative_error(got.gated.view(), expected.gated.view()) <= 8 * epsilon);
      CHECK(relative_error(got.complex.view(), expected.complex.view()) <= 4 * epsilon);
      CHECK(same_bits(got.gated_state.view(), got.gated.view().template at<1>(T - 1)));
      CHECK(same_bits(got.complex_state.view(), got.complex.view().template at<1>(T - 1)));
    }
  }
}

TEMPLATE_TEST_CASE("scans in pieces, threaded, in any company and in place have the same bits",
                   "[scan]", float, double) {
  using S = TestType;
  Context context;
  for (const Index D : {5, 1035}) {
    const Index B = 4, T = 70;
    const Case<S> c(B, T, D);
    const auto expected = whole(c, context);
    for (const std::vector<Index>& pieces :
         {std::vector<Index>(70, 1), std::vector<Index>{0, 3, 1, 66}}) {
      Results<S> result(c);
      Index first = 0;
      for (const Index count : pieces) {
        run(c, parts_of(0, B, first, count), result, context), first += count;
      }
      CHECK(result == expected);
    }
    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      CHECK(whole(c, threaded) == expected);
      Results<S> mixed(c);
      run(c, {{3, 0, 65}, {0, 0, 1, Form::recurrent}, {2, 0, 7}}, mixed, threaded);
      run(c, {{1, 0, 70}, {2, 7, 62}, {0, 1, 2, Form::recurrent}}, mixed, threaded);
      run(c, {{2, 69, 1, Form::recurrent}, {0, 3, 67}, {3, 65, 5}}, mixed, threaded);
      CHECK(mixed == expected);
    }
    Results<S> rows(c);
    for (Index b = 0; b < B; ++b) run(c, parts_of(b, 1, 0, T), rows, context);
    CHECK(rows == expected);

    Tensor<S, 3> h = c.x;
    Tensor<S, 2> state = c.state;
    rg_lru_scan<S>(flat(h), flat(c.input_gate), flat(c.recurrent_gate), c.rate, c.past, state,
                   flat(h), TestCall(context, B, T));
    CHECK(same_bits(h.view(), expected.gated.view()));
  }
}

TEST_CASE("a scan leaves the rows that no segment names", "[scan]") {
  Context context;
  const Case<float> c(3, 9, 19);
  Results<float> got(c);
  run(c, {{2, 0, 9}, {0, 0, 9}}, got, context);
  CHECK(same_bits(got.gated_state.view()[1], c.state.view()[1]));
  CHECK(same_bits(got.complex_state.view()[1], c.pair_state.view()[1]));
  CHECK(!same_bits(got.gated_state.view()[0], c.state.view()[0]));
}

TEST_CASE("scans stay finite and leave subnormal numbers", "[scan]") {
  Context context;
  Case<float> c(2, 200, 21);
  for (Index i = 0; i < c.x.size(); ++i) {
    c.x.data()[i] *= 1000;
    c.recurrent_gate.data()[i] *= 1e4F, c.input_gate.data()[i] *= 1e4F;
  }
  for (Index i = 0; i < 21; ++i) c.rate[i] = i % 2 == 0 ? 1e4F : 0;
  const auto y = whole(c, context);
  bool finite = true;
  for (Index i = 0; i < y.gated.size(); ++i) finite &= std::isfinite(y.gated.data()[i]);
  CHECK(finite);

  Case<float> quiet(1, 2000, 21);
  fill(quiet.x.view(), 0.0F), fill(quiet.rate.view(), 0.1F), fill(quiet.pairs.view(), 0.0F);
  quiet.past[0] = 1;
  const auto faded = whole(quiet, context);
  CHECK(faded.gated_state(0, 3) == 0);
  CHECK(faded.complex_state(0, 0, 3) == 0);
}

TEST_CASE("scans of nothing are nothing, and wrong shapes throw", "[scan]") {
  Context context;
  for (const Shape<3> shape : {Shape<3>{0, 4, 8}, Shape<3>{2, 0, 8}, Shape<3>{2, 4, 0}}) {
    const Case<float> c(shape[0], shape[1], shape[2]);
    const auto got = whole(c, context);
    CHECK(same_bits(got.gated_state.view(), c.state.view()));
    CHECK(same_bits(got.complex_state.view(), c.pair_state.view()));
  }
  Case<float> c(2, 5, 8);
  Tensor<float, 3> y(c.x.shape()), narrow({2, 5, 7});
  Tensor<float, 2> short_state({1, 8});
  const TestCall call(context, 2, 5);
  const auto gated = [&](View<const float, 2> x, View<float, 2> state) {
    rg_lru_scan<float>(x, flat(c.input_gate), flat(c.recurrent_gate), c.rate, c.past, state,
                       flat(y), call);
  };
  CHECK_THROWS_AS(gated(flat(narrow), c.state.view()), ShapeError);
  CHECK_THROWS_AS(gated(flat(c.x), short_state.view()), ShapeError);
  CHECK_THROWS_AS(
      complex_scan<float>(c.lambda, short_state.view().insert<0>(), flat(c.pairs), call),
      ShapeError);
}
