#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/short_conv.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::random_tensor;
using support::same_bits;

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

  void run(View<const S, 3> in, View<S, 3> carried, View<S, 3> out, Context& context) const {
    short_conv<S>(in, taps, bias, activation, carried, out, context);
  }
  /// Input of token t, t < 0 being history.
  S input(Index b, Index t, Index d) const {
    return t < 0 ? history(b, history.extent(1) + t, d) : x(b, t, d);
  }
  /// The literal chain of fma, or the sum in long double.
  template <class Number>
  Tensor<Number, 3> expected() const {
    Tensor<Number, 3> y(x.shape());
    const Index W = taps.extent(0);
    for (Index b = 0; b < y.extent(0); ++b) {
      for (Index t = 0; t < y.extent(1); ++t) {
        for (Index d = 0; d < y.extent(2); ++d) {
          Number sum = bias.empty() ? 0 : static_cast<Number>(bias(d));
          for (Index w = 0; w < W; ++w) {
            sum = std::fma(static_cast<Number>(taps(w, d)),
                           static_cast<Number>(input(b, t - (W - 1) + w, d)), sum);
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
  c.run(c.x, history, y, context);
  return {y, history};
}

}  // namespace

TEMPLATE_TEST_CASE("short_conv is the literal sum and carries the last inputs", "[short_conv]",
                   float, double) {
  using S = TestType;
  Context context;
  context.set_poison(true);
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

TEMPLATE_TEST_CASE("short_conv in pieces has the bits of the whole", "[short_conv]", float,
                   double) {
  using S = TestType;
  Context context;
  context.set_poison(true);
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
          c.run(std::as_const(c.x).view().template slice<1>(first, count), history,
                y.view().template slice<1>(first, count), context);
          first += count;
        }
        CAPTURE(W, D, pieces);
        CHECK(same_bits(y.view(), expected.view()));
        CHECK(same_bits(history.view(), last.view()));
      }
    }
  }
}

TEMPLATE_TEST_CASE("short_conv in place, strided, threaded and alone has the same bits",
                   "[short_conv]", float, double) {
  using S = TestType;
  Context context;
  const S guard = 777;
  for (const Index W : {3, 4, 7}) {
    const Index B = 3, T = 29, D = 1035;
    const Case<S> c(B, T, D, W);
    const auto [expected, last] = whole(c, context);

    // A slice of wider rows with the batch second.
    Tensor<S, 3> wide({T + 2, B, D + 5});
    fill(wide.view(), guard);
    const View<S, 3> y(&wide(1, 0, 2), {B, T, D}, {D + 5, B * (D + 5), 1});
    copy(c.x.view(), y);
    Tensor<S, 3> history = c.history;
    c.run(y, history, y, context);
    CHECK(same_bits(y, expected.view()));
    CHECK(same_bits(history.view(), last.view()));
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
      c.run(std::as_const(c.x).view().template slice<0>(b, 1), row_history, alone, context);
      CHECK(same_bits(alone.view(), expected.view().template slice<0>(b, 1)));
    }
  }
}

TEMPLATE_TEST_CASE("short_conv in place and threaded is the sum across chunks and groups",
                   "[short_conv]", float, double) {
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
      c.run(x.view(), carried, x, threaded);
      CHECK(same_bits(x.view(), y.view()));
      CHECK(same_bits(carried.view(), history.view()));
    }
  }
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
  const auto call = [&](View<const float, 3> x, View<const float, 2> taps,
                        View<const float, 1> bias, View<float, 3> carried) {
    short_conv<float>(x, taps, bias, none, carried, y, context);
  };
  CHECK_NOTHROW(call(c.x, c.taps, c.bias, history));
  CHECK_THROWS_AS(call(c.x.view().slice<1>(0, 4), c.taps, c.bias, history), ShapeError);
  CHECK_THROWS_AS(call(c.x, narrow, c.bias, history), ShapeError);
  CHECK_THROWS_AS(call(c.x, c.taps.view().slice<0>(0, 0), c.bias, history), ShapeError);
  CHECK_THROWS_AS(call(c.x, c.taps, short_bias, history), ShapeError);
  CHECK_THROWS_AS(call(c.x, c.taps, c.bias, short_history), ShapeError);
  const View<const float, 3> transposed(c.x.data(), {2, 5, 8}, {40, 1, 5});
  CHECK_THROWS_AS(call(transposed, c.taps, c.bias, history), ShapeError);
}
