#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/conv/online.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/long_taps.hpp"
#include "support/parts.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::gather;
using support::literal_conv;
using support::Parts;
using support::parts_of;
using support::random_taps;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

/// Streams of either form that have not seen a token.
template <class S>
struct Stream {
  LongFilter<S> filter;
  SpreadFilter<S> spread_filter;
  bool spread;
  Tensor<S, 3> history, sums;
  Tensor<Index, 1> past;

  Stream(LongFilter<S> long_filter, Index longest_block, bool spread_form, Index B, Index capacity)
      : filter(long_filter),
        spread_filter(filter, longest_block),
        spread(spread_form),
        history({B, capacity, filter.channels()}),
        sums({B, spread ? spread_filter.rows() : capacity, filter.channels()}),
        past({B}) {
    fill(history.view(), std::numeric_limits<S>::quiet_NaN());
    if (!spread) fill(sums.view(), std::numeric_limits<S>::quiet_NaN());
  }
  /// Goes on by parts of u [B, T, D], y of them in their place.
  void advance(View<const S, 3> u, const Parts& parts, View<S, 3> y, Context& context) {
    const auto segments = support::segments_of(parts);
    const Call call(context, segments);
    auto some = gather(u, parts);
    for (const support::Part& part : parts) {
      copy(u[part.row].slice(axis::time, part.begin, part.count),
           history.view()[part.row].slice(axis::time, past[part.row], part.count));
    }
    if (spread) {
      spread_conv<S>(some, history, past, spread_filter, sums, some.view(), call);
    } else {
      online_conv<S>(some, history, past, filter, sums, some.view(), call);
    }
    for (const support::Part& part : parts) past[part.row] += part.count;
    support::scatter(some, parts, y);
  }
  void prefill(View<const S, 3> u, View<S, 3> y, Context& context) {
    advance(u, parts_of(0, u.extent(0), 0, u.extent(1)), y, context);
  }
};

/// Steps through all tokens of u.
template <class S>
void run(Stream<S>& stream, View<const S, 3> u, View<S, 3> y, Context& context) {
  for (Index t = 0; t < u.extent(1); ++t) {
    stream.advance(u, parts_of(0, u.extent(0), t, 1, Form::recurrent), y, context);
  }
}

template <class S>
constexpr double tolerance = 40 * static_cast<double>(std::numeric_limits<S>::epsilon());

}  // namespace

TEMPLATE_LIST_TEST_CASE("online steps after any prefill are the defining sums", "[online_conv]",
                        support::TestScalars) {
  using S = TestType;
  const Index D = simd::lanes<S> + 3, B = 2;
  for (const bool spread : {false, true}) {
    for (const Index T : {1, 2, 31, 37, 64, 65, 300, 611}) {
      const auto taps = random_taps<S>(D, T);
      const LongFilter<S> filter(taps);
      const auto u = random_tensor<S, 3>({B, T, D}, 3);
      const auto expected = literal_conv<S>(u, taps);
      for (const Index block : {32, 64, 1024}) {
        for (const Index first : {0, 1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 299}) {
          if (first > T || (!spread && block > 32)) continue;
          CAPTURE(spread, T, block, first);
          Context context = support::poisoned();
          Stream<S> stream(filter, block, spread, B, T);
          Tensor<S, 3> y(u.shape());
          stream.prefill(u.view().template slice<1>(0, first), y.view().template slice<1>(0, first),
                         context);
          run<S>(stream, u.view().template slice<1>(first, T - first),
                 y.view().template slice<1>(first, T - first), context);
          CHECK(support::relative_error(y.view(), expected.view()) <= tolerance<S>);
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("the sums follow from the tokens, however they came", "[online_conv]",
                        support::TestScalars) {
  using S = TestType;
  const Index D = 21, T = 420;
  const LongFilter<S> filter(random_taps<S>(D, 500));
  const auto u = random_tensor<S, 3>({1, T, D}, 5);
  for (const bool spread : {false, true}) {
    for (const Index block : {32, 128}) {
      Context context = support::poisoned();
      Tensor<S, 3> y(u.shape());
      Stream<S> stepped(filter, block, spread, 1, T);
      Index seen = 0;
      for (const Index count : {1, 31, 32, 33, 100, 128, 127, 190, 255, 256, 257, 384, 420}) {
        Stream<S> whole(filter, block, spread, 1, T), pieces(filter, block, spread, 1, T);
        run<S>(stepped, u.view().template slice<1>(seen, std::max<Index>(count - seen, 0)),
               y.view().template slice<1>(seen, std::max<Index>(count - seen, 0)), context);
        seen = std::max(seen, count);
        whole.prefill(u.view().template slice<1>(0, seen), y.view().template slice<1>(0, seen),
                      context);
        for (Index first = 0; first < seen; first += 45) {
          const Index piece = std::min<Index>(45, seen - first);
          pieces.prefill(u.view().template slice<1>(first, piece),
                         y.view().template slice<1>(first, piece), context);
        }
        const Index rows = spread ? stepped.sums.extent(1) : seen;
        const auto valid = [rows](const Stream<S>& stream) {
          return stream.sums.view().template slice<1>(0, rows);
        };
        CAPTURE(spread, block, seen);
        CHECK(same_bits(valid(stepped), valid(whole)));
        CHECK(same_bits(valid(stepped), valid(pieces)));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("rows at their own positions, threads and NaN", "[online_conv]",
                        support::TestScalars) {
  using S = TestType;
  const Index D = 2 * simd::lanes<S> + 1, T = 100;
  const LongFilter<S> filter(random_taps<S>(D, 400));
  const auto u = random_tensor<S, 3>({3, 300, D}, 7);
  for (const bool spread : {false, true}) {
    const auto run_rows = [&](std::vector<Index> rows, Context& context, bool sick) {
      const Index B = static_cast<Index>(rows.size());
      Stream<S> stream(filter, 64, spread, B, 400);
      Tensor<S, 3> y({B, T, D}), next({B, T, D});
      for (Index b = 0; b < B; ++b) {
        // Row r has seen 67 r tokens before.
        const Index r = rows[static_cast<std::size_t>(b)], before = 67 * r;
        Stream<S> alone(filter, 64, spread, 1, 400);
        Tensor<S, 3> ignored({1, before, D});
        alone.prefill(u.view().template slice<0>(r, 1).template slice<1>(0, before), ignored,
                      context);
        copy(alone.history.view()[0], stream.history.view()[b]);
        copy(alone.sums.view()[0], stream.sums.view()[b]);
        stream.past[b] = before;
        copy(u.view()[r].template slice<0>(before, T), next.view()[b]);
        if (sick && r == 1) next(b, 2, 3) = std::numeric_limits<S>::quiet_NaN();
      }
      run<S>(stream, next, y, context);
      return y;
    };
    Context context = support::poisoned();
    const auto expected = run_rows({0, 1, 2}, context, false);
    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      CHECK(same_bits(run_rows({0, 1, 2}, threaded, false).view(), expected.view()));
    }
    const auto turned = run_rows({2, 0}, context, false);
    CHECK(same_bits(turned.view()[0], expected.view()[2]));
    CHECK(same_bits(turned.view()[1], expected.view()[0]));
    const auto sick = run_rows({0, 1, 2}, context, true);
    CHECK(same_bits(sick.view()[0], expected.view()[0]));
    CHECK(same_bits(sick.view()[2], expected.view()[2]));
    CHECK(std::isnan(sick(1, T - 1, 3)));
    CHECK(same_bits(sick.view()[1].template at<1>(4), expected.view()[1].template at<1>(4)));
  }
}

TEMPLATE_LIST_TEST_CASE("streams of an online convolution do not see each other", "[online_conv]",
                        support::TestScalars) {
  using S = TestType;
  const Index B = 4, T = 260, D = 2 * simd::lanes<S> + 1;
  const LongFilter<S> filter(random_taps<S>(D, 400));
  const auto u = random_tensor<S, 3>({B, T, D}, 9);
  const std::vector<Parts> calls{
      {{3, 0, 65}, {0, 0, 1, Form::recurrent}, {2, 0, 7}},
      {{1, 0, 130}, {2, 7, 1, Form::recurrent}, {0, 1, 2, Form::recurrent}, {3, 65, 1}},
      {{2, 8, 40, Form::recurrent}, {3, 66, 100, Form::recurrent}},
      {{0, 3, 257}, {3, 166, 94}, {1, 130, 1, Form::recurrent}, {2, 48, 3}}};
  for (const bool spread : {false, true}) {
    Context context = support::poisoned();
    Stream<S> alone(filter, 64, spread, B, T), steps(filter, 64, spread, B, T);
    Tensor<S, 3> expected(u.shape()), stepped(u.shape());
    for (const Parts& parts : calls) {
      for (const support::Part& part : parts) alone.advance(u, {part}, expected, context);
    }
    // A recurrent segment of many tokens is as many of one.
    for (const Parts& parts : calls) {
      for (const support::Part& part : parts) {
        const bool cut = part.form == Form::recurrent;
        for (Index t = 0; t < part.count; t += cut ? 1 : part.count) {
          steps.advance(u, {{part.row, part.begin + t, cut ? 1 : part.count, part.form}}, stepped,
                        context);
        }
      }
    }
    CHECK(same_bits(stepped.view(), expected.view()));
    CHECK(same_bits(steps.sums.view(), alone.sums.view()));
    for (const Index workers : {1, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      Stream<S> together(filter, 64, spread, B, T);
      Tensor<S, 3> y(u.shape());
      for (const Parts& parts : calls) together.advance(u, parts, y, threaded);
      CHECK(same_bits(y.view(), expected.view()));
      CHECK(same_bits(together.sums.view(), alone.sums.view()));
      CHECK(same_bits(together.history.view(), alone.history.view()));
    }
  }
}

TEST_CASE("an online convolution of wrong shapes throws", "[online_conv]") {
  Context context;
  const LongFilter<float> filter(random_taps<float>(5, 90));
  const SpreadFilter<float> spread(filter);
  Tensor<float, 3> history({2, 90, 5}), sums({2, 90, 5}), blocks({2, spread.rows(), 5});
  Tensor<float, 2> token({2, 5});
  Tensor<Index, 1> past({2});
  const TestCall call(context, 2, 1, Form::recurrent);
  const auto step = [&] {
    online_conv<float>(token, history, past, filter, sums, token.view(), call);
    spread_conv<float>(token, history, past, spread, blocks, token.view(), call);
  };
  CHECK_NOTHROW(step());
  past[1] = 90;
  CHECK_THROWS_AS(step(), ShapeError);
  past[1] = -1;
  CHECK_THROWS_AS(step(), ShapeError);
  past[1] = 0;
  sums = Tensor<float, 3>({2, 90, 4});
  CHECK_THROWS_AS(step(), ShapeError);
  sums = Tensor<float, 3>({2, 90, 5}), blocks = Tensor<float, 3>({2, spread.rows() + 1, 5});
  CHECK_THROWS_AS(step(), ShapeError);
}
