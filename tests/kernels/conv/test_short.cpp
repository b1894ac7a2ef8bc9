#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "seqmix/kernels/conv/grouped.hpp"
#include "seqmix/kernels/conv/short.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

template <class S>
struct Case {
  Tensor<S, 3> x, history;
  Tensor<S, 2> taps;
  Tensor<S, 1> bias;
  ShortConvActivation activation = ShortConvActivation::none;

  Case(Index B, Index T, Index D, Index W)
      : x(random_tensor<S, 3>({B, T, D}, 1)),
        history(random_tensor<S, 3>({B, W - 1, D}, 2)),
        taps(random_tensor<S, 2>({W, D}, 3)),
        bias(random_tensor<S, 1>({D}, 4)) {}

  void run(View<const S, 2> in, View<S, 3> carried, View<S, 2> out, const Call& call) const {
    short_conv<S>(in, taps, bias, activation, carried, out, call);
  }
  /// Input of token t, t < 0 being history.
  S input(Index b, Index t, Index d) const {
    return t < 0 ? history(b, history.extent(1) + t, d) : x(b, t, d);
  }
  /// The literal chain of fma, or the sum in long double, whose fma would be software.
  template <class Number>
  Tensor<Number, 3> expected() const {
    Tensor<Number, 3> y(x.shape());
    const Index W = taps.extent(0);
    for (Index b = 0; b < y.extent(0); ++b) {
      for (Index t = 0; t < y.extent(1); ++t) {
        for (Index d = 0; d < y.extent(2); ++d) {
          Number sum = bias.empty() ? 0 : static_cast<Number>(bias(d));
          for (Index w = 0; w < W; ++w) {
            const auto tap = static_cast<Number>(taps(w, d));
            const auto in = static_cast<Number>(input(b, t - (W - 1) + w, d));
            sum = std::is_same_v<Number, S> ? std::fma(tap, in, sum) : tap * in + sum;
          }
          if (activation == ShortConvActivation::silu) sum /= 1 + std::exp(-sum);
          y(b, t, d) = sum;
        }
      }
    }
    return y;
  }
};

/// The case's output at once, into NaN; also its final history.
template <class S>
std::pair<Tensor<S, 3>, Tensor<S, 3>> whole(const Case<S>& c, Context& context) {
  Tensor<S, 3> y(c.x.shape()), history = c.history;
  fill(y.view(), std::numeric_limits<S>::quiet_NaN());
  c.run(flat(c.x), history, flat(y), TestCall(context, c.x.extent(0), c.x.extent(1)));
  return {y, history};
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("short_conv is the literal sum and carries the last inputs", "[short_conv]",
                        support::TestScalars) {
  using S = TestType;
  Context context = support::poisoned();
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index W : {1, 2, 3, 4, 5, 9}) {
    for (const Index T : {1, 2, 3, 4, 5, 7, 8, 37}) {
      for (const Index D : {1, 3, 16, 37, 517}) {
        Case<S> c(2, T, D, W);
        const auto [y, history] = whole(c, context);
        CAPTURE(W, T, D);
        CHECK(support::relative_error(y.view(), c.template expected<long double>().view()) <=
              2 * epsilon);
#if defined(__FP_FAST_FMA)
        CHECK(same_bits(y.view(), c.template expected<S>().view()));
#endif
        bool carried = true;
        for (Index w = 0; w < W - 1; ++w) {
          for (Index d = 0; d < D; ++d)
            carried &= history(1, w, d) == c.input(1, T - (W - 1) + w, d);
        }
        CHECK(carried);

        c.activation = ShortConvActivation::silu;
        c.bias = Tensor<S, 1>();
        CHECK(support::relative_error(whole(c, context).first.view(),
                                      c.template expected<long double>().view()) <= 8 * epsilon);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("short_conv in pieces has the bits of the whole", "[short_conv]",
                        support::TestScalars) {
  using S = TestType;
  Context context = support::poisoned();
  for (const Index W : {1, 2, 3, 4, 6}) {
    for (const Index D : {5, 67}) {
      Case<S> c(3, 41, D, W);
      c.activation = ShortConvActivation::silu;
      const auto [expected, last] = whole(c, context);
      for (const std::vector<Index>& pieces :
           {std::vector<Index>(41, 1), std::vector<Index>{0, 2, 1, 38, 0},
            std::vector<Index>{20, 21}, std::vector<Index>{3, 5, 7, 11, 15}}) {
        Tensor<S, 3> y(c.x.shape()), history = c.history;
        Index first = 0;
        for (const Index count : pieces) {
          const auto part = [&](const auto& view) { return view.template slice<1>(first, count); };
          Tensor<S, 3> in({3, count, D}), out({3, count, D});
          copy(part(c.x.view()), in.view());
          c.run(flat(in), history, flat(out), TestCall(context, 3, count));
          copy(out.view(), part(y.view()));
          first += count;
        }
        CAPTURE(W, D, pieces);
        CHECK(same_bits(y.view(), expected.view()));
        CHECK(same_bits(history.view(), last.view()));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("short_conv in place, strided, threaded and alone has the same bits",
                        "[short_conv]", support::TestScalars) {
  using S = TestType;
  Context context;
  const S guard = 777;
  for (const Index W : {3, 4, 7}) {
    const Index B = 3, T = 29, D = 1035;
    const Case<S> c(B, T, D, W);
    const auto [expected, last] = whole(c, context);

    // A slice of wider rows, as are those of the history.
    Tensor<S, 2> wide({B * T + 2, D + 5});
    Tensor<S, 3> wide_history({B + 1, W + 2, D + 3});
    fill(wide.view(), guard), fill(wide_history.view(), guard);
    const auto y = wide.view().slice(axis::time, 1, B * T).slice(axis::channel, 2, D);
    const auto history = wide_history.view()
                             .slice(axis::row, 0, B)
                             .template slice<1>(1, W - 1)
                             .slice(axis::channel, 2, D);
    copy(flat(c.x), y), copy(c.history.view(), history);
    c.run(y, history, y, TestCall(context, B, T));
    CHECK(same_bits(y, flat(expected)));
    CHECK(same_bits(history, last.view()));
    fill(history, guard);
    for (Index i = 0; i < wide_history.size(); ++i) CHECK(wide_history.data()[i] == guard);
    fill(y, guard);
    bool untouched = true;
    for (Index i = 0; i < wide.size(); ++i) untouched &= wide.data()[i] == guard;
    CHECK(untouched);

    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      const auto [got, carried] = whole(c, threaded);
      CHECK(same_bits(got.view(), expected.view()));
      CHECK(same_bits(carried.view(), last.view()));
    }
    for (Index b = 0; b < B; ++b) {
      Tensor<S, 3> alone({1, T, D}), row_history({1, W - 1, D});
      copy(std::as_const(c.history).view().template slice<0>(b, 1), row_history.view());
      c.run(c.x.view()[b], row_history, flat(alone), TestCall(context, 1, T));
      CHECK(same_bits(alone.view(), expected.view().template slice<0>(b, 1)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("short_conv in place and threaded is the sum across chunks and groups",
                        "[short_conv]", support::TestScalars) {
  using S = TestType;
  constexpr Index chunk = seqmix::detail::short_conv_chunk;
  support::ThreadExecutor threads(3);
  Context serial, threaded(threads);
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index T : {chunk - 1, chunk, chunk + 1, chunk + 2, 2 * chunk + 3}) {
    for (const Index D : {Index{3}, seqmix::detail::short_conv_channels + 5}) {
      const Case<S> c(2, T, D, 4);
      const auto [y, history] = whole(c, serial);
      CAPTURE(T, D);
      CHECK(support::relative_error(y.view(), c.template expected<long double>().view()) <=
            2 * epsilon);
      Tensor<S, 3> x = c.x, carried = c.history;
      c.run(flat(x), carried, flat(x), TestCall(threaded, 2, T));
      CHECK(same_bits(x.view(), y.view()));
      CHECK(same_bits(carried.view(), history.view()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("segments of short_conv keep their bits in any company", "[short_conv]",
                        support::TestScalars) {
  using S = TestType;
  struct Result {
    Tensor<S, 2> y;
    Tensor<S, 3> history;
  };
  const auto same = [](const Result& a, const Result& b) {
    return same_bits(a.y.view(), b.y.view()) && same_bits(a.history.view(), b.history.view());
  };
  for (const Index W : {1, 3, 4, 9}) {
    for (const Index D : {5, 1035}) {
      const Index T = support::company_tokens;
      Case<S> c(support::company_rows, 1, D, W);
      c.activation = ShortConvActivation::silu;
      const auto x = random_tensor<S, 2>({T, D}, 5);
      const auto run = [&](Index first, Index count, Result& result, const Call& call) {
        const auto y = result.y.view().slice(axis::time, first, count);
        c.run(y, result.history, y, call);
      };
      const Result result = support::check_company(Result{x, c.history}, run, same);
      CHECK(same_bits(result.history.view()[support::row_without_company],
                      c.history.view()[support::row_without_company]));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("long segments of short_conv behind each other keep their bits in place",
                        "[short_conv]", support::TestScalars) {
  using S = TestType;
  constexpr Index chunk = seqmix::detail::short_conv_chunk, D = 300;
  const Index counts[] = {chunk + 1, 3, 2 * chunk, chunk, 1, 3 * chunk - 1};
  std::vector<Segment> segments;
  Index T = 0;
  for (const Index count : counts) {
    segments.push_back({5 - std::ssize(segments), T, count, Form::parallel});
    T += count;
  }
  const Case<S> c(6, 1, D, 4);
  const auto x = random_tensor<S, 2>({T, D}, 5);
  Tensor<S, 2> expected({T, D});
  Tensor<S, 3> last = c.history;
  Context serial;
  for (const Segment& s : segments) {
    const Segment alone[] = {{s.row, 0, s.count, s.form}};
    c.run(x.view().slice(axis::time, s.first, s.count), last,
          expected.view().slice(axis::time, s.first, s.count), Call(serial, alone));
  }
  for (const Index workers : {1, 3}) {
    support::ThreadExecutor executor(workers);
    Context threads(executor);
    Tensor<S, 2> y = x;
    Tensor<S, 3> history = c.history;
    c.run(y, history, y, Call(threads, segments));
    CHECK(same_bits(y.view(), expected.view()));
    CHECK(same_bits(history.view(), last.view()));
  }
}

TEST_CASE("grouped_conv is short_conv of each group", "[short_conv]") {
  const Index T = support::company_tokens, G = 3, D = 7, W = 4;
  const auto x = random_tensor<float, 3>({T, G, D}, 1);
  const auto taps = random_tensor<float, 3>({W, G, D}, 2);
  const auto before = random_tensor<float, 4>({support::company_rows, W - 1, G, D}, 3);
  Tensor<float, 3> y = x, expected({T, G, D});
  Tensor<float, 4> history = before, last = before;
  support::ThreadExecutor executor(3);
  Context context, threads(executor);
  const auto silu = ShortConvActivation::silu;
  for (Index g = 0; g < G; ++g) {
    short_conv<float>(x.view().at<1>(g), taps.view().at<1>(g), {}, silu, last.view().at<2>(g),
                      expected.view().at<1>(g), Call(context, support::company));
  }
  grouped_conv<float>(y, taps, silu, history, y.view(), Call(threads, support::company));
  CHECK(same_bits(y.view(), expected.view()));
  CHECK(same_bits(history.view(), last.view()));
  CHECK_THROWS_AS(grouped_conv<float>(y, taps.view().slice<1>(0, 2), silu, history, y.view(),
                                      Call(context, support::company)),
                  ShapeError);
}

TEST_CASE("NaN reaches only the tokens and the row that see it", "[short_conv]") {
  Context context;
  Case<float> c(2, 11, 19, 4);
  const Tensor<float, 3> clean = whole(c, context).first;
  c.x(0, 5, 17) = std::numeric_limits<float>::quiet_NaN();
  const Tensor<float, 3> y = whole(c, context).first;
  for (Index t = 0; t < 11; ++t) {
    for (Index d = 0; d < 19; ++d) {
      const bool reached = d == 17 && t >= 5 && t < 9;
      CHECK(std::isnan(y(0, t, d)) == reached);
      if (!reached) CHECK(y(0, t, d) == clean(0, t, d));
    }
  }
  CHECK(same_bits(y.view()[1], clean.view()[1]));
}

TEST_CASE("short_conv of nothing is nothing, and wrong shapes throw", "[short_conv]") {
  Context context;
  for (const Shape<3> shape : {Shape<3>{0, 4, 8}, Shape<3>{2, 0, 8}, Shape<3>{2, 4, 0}}) {
    const Case<float> c(shape[0], shape[1], shape[2], 4);
    CHECK(same_bits(whole(c, context).second.view(), c.history.view()));
  }
  const Case<float> c(2, 5, 8, 4);
  Tensor<float, 3> y(c.x.shape()), history = c.history, short_history({2, 2, 8});
  const Tensor<float, 2> narrow({4, 7});
  const Tensor<float, 1> short_bias({7});
  const auto none = ShortConvActivation::none;
  const View<const float, 2> x = flat(c.x);
  const auto call = [&](View<const float, 2> in, View<const float, 2> taps,
                        View<const float, 1> bias, View<float, 3> carried) {
    short_conv<float>(in, taps, bias, none, carried, flat(y), TestCall(context, 2, 5));
  };
  CHECK_NOTHROW(call(x, c.taps, c.bias, history));
  CHECK_THROWS_AS(call(x.slice(axis::time, 0, 8), c.taps, c.bias, history), ShapeError);
  CHECK_THROWS_AS(call(x, narrow, c.bias, history), ShapeError);
  CHECK_THROWS_AS(call(x, c.taps.view().slice<0>(0, 0), c.bias, history), ShapeError);
  CHECK_THROWS_AS(call(x, c.taps, short_bias, history), ShapeError);
  CHECK_THROWS_AS(call(x, c.taps, c.bias, short_history), ShapeError);
  const View<const float, 2> transposed(c.x.data(), {10, 8}, {1, 10});
  CHECK_THROWS_AS(call(transposed, c.taps, c.bias, history), ShapeError);
}
