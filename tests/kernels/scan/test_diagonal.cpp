#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <complex>
#include <functional>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "seqmix/kernels/scan/diagonal.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/parts.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
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
  diagonal_scan(c.lambda, complex, r.complex_state, complex.view(), call);
  support::scatter(gated, parts, r.gated.view());
  support::scatter(complex, parts, r.complex.view());
}

template <class S>
Results<S> whole(const Case<S>& c, Context& context) {
  Results<S> result(c);
  run(c, parts_of(0, c.x.extent(0), 0, c.x.extent(1)), result, context);
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

TEMPLATE_LIST_TEST_CASE("scans are the literal recurrences", "[scan]", support::TestScalars) {
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

TEMPLATE_LIST_TEST_CASE("scans in pieces, threaded, in any company and in place have the same bits",
                        "[scan]", support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index D : {5, 1035}) {
    const Index B = 4, T = 70;
    const Case<S> c(B, T, D);
    const auto expected = whole(c, context);
    support::check_parts(
        T, Results<S>(c), expected,
        [&](const Parts& parts, Results<S>& r, Context& by) { run(c, parts, r, by); });

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
      diagonal_scan(c.lambda, flat(c.pairs), short_state.view().insert<0>(), flat(c.pairs), call),
      ShapeError);
}

namespace {

/// The operands of `diagonal_scan`, of `planes` planes, for rows of T tokens: factors below 1 in
/// magnitude, of each token [B, T, planes, D] or of all [planes, D].
template <class S>
struct Diagonal {
  Index planes;
  bool each;
  Tensor<S, 4> a, b;
  Tensor<S, 2> constant;
  Tensor<S, 3> state;  // [B, planes, D]

  Diagonal(Index number_planes, bool each_token, Index B, Index T, Index D)
      : planes(number_planes),
        each(each_token),
        a(random_tensor<S, 4>({B, T, planes, D}, 11)),
        b(random_tensor<S, 4>({B, T, planes, D}, 12)),
        constant(random_tensor<S, 2>({planes, D}, 13)),
        state(random_tensor<S, 3>({B, planes, D}, 14)) {
    const auto shrink = [](auto& factors) {
      for (Index i = 0; i < factors.size(); ++i)
        factors.data()[i] = std::tanh(factors.data()[i]) / S(1.5);
    };
    shrink(a), shrink(constant);
  }

  /// h may be a or b.
  void scan(View<const S, 3> factors, View<const S, 3> in, View<S, 3> last, View<S, 3> h,
            const Call& call) const {
    if (planes == 2) {
      if (each) return diagonal_scan(factors, in, last, h, call);
      return diagonal_scan(constant, in, last, h, call);
    }
    const auto real = [](const auto& view) { return view.template at<1>(0); };
    if (each) return diagonal_scan(real(factors), real(in), real(last), real(h), call);
    diagonal_scan(constant.view()[0], real(in), real(last), real(h), call);
  }
  /// The recurrence as it is written, in double.
  Tensor<double, 4> literal() const {
    using Number = std::complex<double>;
    Tensor<double, 4> h(b.shape());
    const auto number = [&](auto&& at) { return Number(at(0), planes == 2 ? at(1) : 0); };
    for (Index row = 0; row < b.extent(0); ++row) {
      for (Index d = 0; d < b.extent(3); ++d) {
        Number last = number([&](Index p) { return double{state(row, p, d)}; });
        for (Index t = 0; t < b.extent(1); ++t) {
          const Number factor =
              number([&](Index p) { return double{each ? a(row, t, p, d) : constant(p, d)}; });
          last = factor * last + number([&](Index p) { return double{b(row, t, p, d)}; });
          h(row, t, 0, d) = last.real();
          if (planes == 2) h(row, t, 1, d) = last.imag();
        }
      }
    }
    return h;
  }
};

template <class S>
struct Scanned {
  Tensor<S, 4> h;
  Tensor<S, 3> state;

  bool operator==(const Scanned& other) const {
    return same_bits(h.view(), other.h.view()) && same_bits(state.view(), other.state.view());
  }
};

template <class S>
Scanned<S> scan_all(const Diagonal<S>& c) {
  Scanned<S> result{Tensor<S, 4>(c.b.shape()), c.state};
  fill(result.h.view(), std::numeric_limits<S>::quiet_NaN());
  Context context = support::poisoned();
  c.scan(flat(c.a), flat(c.b), result.state, flat(result.h),
         TestCall(context, c.b.extent(0), c.b.extent(1)));
  return result;
}

/// `f(planes, each)` for all kinds of factors.
void for_each_diagonal(auto&& f) {
  for (const Index planes : {1, 2}) {
    for (const bool each : {false, true}) {
      CAPTURE(planes, each);
      f(planes, each);
    }
  }
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("a diagonal scan is h = a h + b", "[scan]", support::TestScalars) {
  using S = TestType;
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for_each_diagonal([&](Index planes, bool each) {
    for (const Index T : {1, 2, 37}) {
      for (const Index D : {1, 3, 16, 37, 517, 1035}) {
        CAPTURE(T, D);
        const Diagonal<S> c(planes, each, 2, T, D);
        const auto got = scan_all(c);
        CHECK(relative_error(got.h.view(), c.literal().view()) <= 4 * epsilon);
        CHECK(same_bits(got.state.view(), got.h.view().template at<1>(T - 1)));
        Diagonal<S> wrong = c;
        (each ? wrong.a.data() : wrong.constant.data())[0] *= S(1.001);
        wrong.state.data()[0] = S(2);
        CHECK(relative_error(got.h.view(), wrong.literal().view()) > 4 * epsilon);
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a diagonal scan has the same bits in any pieces, company and place",
                        "[scan]", support::TestScalars) {
  using S = TestType;
  std::mt19937 random(3);
  for_each_diagonal([&](Index planes, bool each) {
    for (const Index D : {5, 530}) {
      const Index B = 3, T = 130;
      const Diagonal<S> c(planes, each, B, T, D);
      const Scanned<S> expected = scan_all(c);
      for (int trial = 0; trial < 4; ++trial) {
        support::ThreadExecutor executor(1 + trial % 3);
        Context context(executor);
        // Over its input or, where they are a token's own, its factors.
        const bool over_factors = each && trial % 2 == 1;
        Scanned<S> got{over_factors ? c.a : c.b, c.state};
        std::vector<Index> done(B);
        while (*std::min_element(done.begin(), done.end()) < T) {
          Parts parts;
          for (Index row = B - 1; row >= 0; --row) {
            Index& first = done[static_cast<std::size_t>(row)];
            const Index count = std::min<Index>(static_cast<Index>(random() % 40), T - first);
            if (count == 0) continue;
            parts.push_back({row, first, count, count == 1 ? Form::recurrent : Form::parallel});
            first += count;
          }
          const auto segments = support::segments_of(parts);
          const auto a = gather(over_factors ? got.h : c.a, parts);
          const auto b = gather(over_factors ? c.b : got.h, parts);
          auto h = over_factors ? a : b;
          c.scan(over_factors ? h : a, over_factors ? b : h, got.state, h.view(),
                 Call(context, segments));
          support::scatter(h, parts, got.h.view());
        }
        CHECK(got == expected);
      }
    }
  });
}

TEST_CASE("a diagonal scan in company is that of each segment alone", "[scan]") {
  for_each_diagonal([&](Index planes, bool each) {
    const Index D = 70;
    const Diagonal<float> c(planes, each, 1, support::company_tokens, D);
    const Scanned<float> fresh{Tensor<float, 4>(c.b.shape()),
                               random_tensor<float, 3>({support::company_rows, planes, D}, 5)};
    const auto run = [&](Index first, Index count, Scanned<float>& result, const Call& call) {
      const auto part = [&](auto& x) { return flat(x).slice(axis::time, first, count); };
      c.scan(part(c.a), part(c.b), result.state, part(result.h), call);
    };
    const auto got = support::check_company(fresh, run, std::equal_to<>());
    CHECK(same_bits(got.state.view()[support::row_without_company],
                    fresh.state.view()[support::row_without_company]));
    CHECK(!(got == fresh));
  });
}

TEST_CASE("a diagonal scan reads and writes rows at any stride and nothing beside them", "[scan]") {
  for_each_diagonal([&](Index planes, bool each) {
    const Index B = 2, T = 9, D = 21;
    const Diagonal<float> c(planes, each, B, T, D);
    const Scanned<float> expected = scan_all(c);
    constexpr float guard = 1234.5F;
    Tensor<float, 3> rows({B * T, 3 * planes, D + 5}), states({B, planes + 1, D + 2});
    fill(rows.view(), guard), fill(states.view(), guard);
    const auto operand = [&](Index at) {
      return rows.view().slice<1>(at * planes, planes).slice(axis::channel, 2, D);
    };
    const auto state = states.view().slice<1>(1, planes).slice(axis::channel, 1, D);
    copy(flat(c.a), operand(0)), copy(flat(c.b), operand(1)), copy(c.state.view(), state);
    const Tensor<float, 3> rows_before = rows, states_before = states;
    Context context;
    c.scan(operand(0), operand(1), state, operand(2), TestCall(context, B, T));
    CHECK(same_bits(operand(2), flat(expected.h)));
    CHECK(same_bits(state, expected.state.view()));
    fill(operand(2), guard), copy(c.state.view(), state);
    CHECK(same_bits(rows.view(), rows_before.view()));
    CHECK(same_bits(states.view(), states_before.view()));
  });
}

TEST_CASE("a diagonal scan of silence ends in zeros, never in subnormal numbers", "[scan]") {
  for_each_diagonal([&](Index planes, bool each) {
    Diagonal<float> c(planes, each, 1, 3000, 21);
    fill(c.b.view(), 0.0F), fill(c.a.view(), 0.7F), fill(c.constant.view(), 0.7F);
    if (planes == 2) {  // of magnitude 0.96, turning
      fill(c.a.view().slice<2>(1, 1), 0.66F), fill(c.constant.view().slice<0>(1, 1), 0.66F);
    }
    const auto got = scan_all(c);
    CHECK(std::none_of(got.h.data(), got.h.data() + got.h.size(),
                       [](float x) { return std::fpclassify(x) == FP_SUBNORMAL; }));
    CHECK(std::all_of(got.state.data(), got.state.data() + got.state.size(),
                      [](float x) { return x == 0; }));
    CHECK(std::abs(got.h(0, 20, 0, 3)) > 0);
  });
}

TEST_CASE("a diagonal scan of nothing is nothing, and wrong shapes are named", "[scan]") {
  using Catch::Matchers::ContainsSubstring;
  for_each_diagonal([&](Index planes, bool each) {
    for (const Shape<3> shape : {Shape<3>{0, 4, 8}, Shape<3>{2, 0, 8}, Shape<3>{2, 4, 0}}) {
      const Diagonal<float> c(planes, each, shape[0], shape[1], shape[2]);
      CHECK(same_bits(scan_all(c).state.view(), c.state.view()));
    }
    Diagonal<float> c(planes, each, 2, 5, 8);
    Scanned<float> result = scan_all(c);
    Context context;
    const TestCall call(context, 2, 5);
    const auto a = flat(std::as_const(c.a)), b = flat(std::as_const(c.b));
    const auto h = flat(result.h);
    const auto state = result.state.view();
    const auto narrow = [](const auto& view) { return view.slice(axis::channel, 0, 7); };
    const auto names = [](const char* name) { return ContainsSubstring(name); };
    CHECK_THROWS_WITH(c.scan(a, narrow(b), state, h, call), names(": b has shape"));
    CHECK_THROWS_WITH(c.scan(a, b.slice(axis::time, 0, 9), state, h, call), names(": b has shape"));
    CHECK_THROWS_WITH(c.scan(a, b, narrow(state), h, call), names(": state has shape"));
    if (each) {
      const View<float, 3> gaps(h.data(), {10, planes, 4}, {planes * 8, 8, 2});
      CHECK_THROWS_WITH(c.scan(a, b, state, gaps, call),
                        names("the last dimension of h has stride 2"));
      CHECK_THROWS_WITH(c.scan(narrow(a), b, state, h, call), names(": a has shape"));
      CHECK_THROWS_AS(c.scan(narrow(a), b, state, h, call), ShapeError);
    } else {
      c.constant = Tensor<float, 2>({planes, 7});
      CHECK_THROWS_WITH(c.scan(a, b, state, h, call), names(": a has shape"));
      CHECK_THROWS_AS(c.scan(a, b, state, h, call), ShapeError);
    }
  });
}
