#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/conv/long.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/long_taps.hpp"
#include "support/parts.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::gather;
using support::literal_conv;
using support::Parts;
using support::parts_of;
using support::random_taps;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

constexpr Algorithm algorithms[] = {Algorithm::automatic, Algorithm::chunked, Algorithm::recurrent};

/// Errors grow with log2 of a transform's length, which is at least 64; over the whole output.
template <class S>
double tolerance(Index tokens) {
  return 2 * std::log2(static_cast<double>(std::max<Index>(tokens, 64))) *
         static_cast<double>(std::numeric_limits<S>::epsilon());
}

/// `long_conv` of u [B, T, D].
template <class S>
Tensor<S, 3> run(View<const S, 3> u, const LongFilter<S>& filter, Algorithm algorithm) {
  Context context = support::poisoned(algorithm);
  Tensor<S, 3> y(u.shape());
  fill(y.view(), std::numeric_limits<S>::quiet_NaN());
  long_conv<S>(flat(u), filter, flat(y), TestCall(context, u.extent(0), u.extent(1)));
  return y;
}

/// Continues parts of the rows of u [B, T, D] by themselves; u is its own history.
template <class S>
void run_parts(const Tensor<S, 3>& u, const LongFilter<S>& filter, const Parts& parts,
               Tensor<S, 3>& y, Context& context) {
  const auto segments = support::segments_of(parts);
  Tensor<Index, 1> past({u.extent(0)});
  for (const support::Part& part : parts) past[part.row] = part.begin;
  auto some = gather(u, parts);
  long_conv_continue<S>(some, u, past, filter, some.view(), Call(context, segments));
  support::scatter(some, parts, y.view());
}

Tensor<Index, 1> counts(const std::vector<Index>& values) {
  Tensor<Index, 1> result({static_cast<Index>(values.size())});
  std::copy(values.begin(), values.end(), result.data());
  return result;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("long_conv is the literal sum by every algorithm", "[long_conv]",
                        support::TestScalars) {
  using S = TestType;
  for (const Index T : {1, 2, 63, 64, 65, 127, 257, 1000}) {
    for (const Index L : {Index{1}, Index{2}, Index{63}, Index{200}, T, 2 * T + 3}) {
      for (const Index D : {1, 19}) {
        if (D == 19 && T == 1000 && L > 300) continue;  // the reference takes too long
        const auto taps = random_taps<S>(D, L);
        const LongFilter<S> filter(taps);
        const auto u = random_tensor<S, 3>({2, T, D}, 5);
        const auto expected = literal_conv<S>(u, taps);
        for (const Algorithm algorithm : algorithms) {
          CAPTURE(T, L, D, static_cast<int>(algorithm));
          const auto y = run<S>(u, filter, algorithm);
          CHECK(support::relative_error(y.view(), expected.view()) <= tolerance<S>(T));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("long_conv by several transforms is that by one", "[long_conv]",
                        support::TestScalars) {
  using S = TestType;
  // 3 and 100 taps: the input is many times the longest spectrum.
  for (const Index L : {3, 100}) {
    const Index T = 20000, D = 3;
    const LongFilter<S> filter(random_taps<S>(D, L));
    const auto u = random_tensor<S, 3>({1, T, D}, 5);
    REQUIRE(filter.spectra().back().tokens() < T / 2);
    const auto direct = run<S>(u, filter, Algorithm::recurrent);
    const auto transform = run<S>(u, filter, Algorithm::chunked);
    CHECK(support::relative_error(transform.view(), direct.view()) <= tolerance<S>(T));
  }
}

TEMPLATE_LIST_TEST_CASE("impulses", "[long_conv]", support::TestScalars) {
  using S = TestType;
  const Index T = 300, D = simd::lanes<S> + 1;
  const auto u = random_tensor<S, 3>({1, T, D}, 5);
  const double epsilon = static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Algorithm algorithm : algorithms) {
    // Only the current token.
    Tensor<S, 2> taps({D, T});
    fill(taps.view().template at<1>(0), 1);
    CHECK(support::relative_error(run<S>(u, LongFilter<S>(taps), algorithm).view(), u.view()) <=
          tolerance<S>(T));
    // Only the oldest: all but the last output are zero to the bound of a transform.
    fill(taps.view(), 0);
    fill(taps.view().template at<1>(T - 1), 1);
    const auto last = run<S>(u, LongFilter<S>(taps), algorithm);
    CHECK(support::relative_error(last.view()[0][T - 1], u.view()[0][0]) <= 20 * tolerance<S>(T));
    double rest = 0;
    for (Index t = 0; t < T - 1; ++t) {
      for (Index d = 0; d < D; ++d) {
        rest = std::max(rest, std::abs(static_cast<double>(last(0, t, d))));
      }
    }
    CHECK(rest <= 2 * epsilon * std::log2(2.0 * T) * std::sqrt(static_cast<double>(T)));
    // The response to one token is the filter.
    Tensor<S, 3> token({1, T, D});
    fill(token.view()[0][0], 1);
    const auto h = random_taps<S>(D, T);
    const View<const S, 3> response(h.data(), {1, T, D}, {0, 1, T});
    CHECK(support::relative_error(run<S>(token, LongFilter<S>(h), algorithm).view(), response) <=
          tolerance<S>(T));
  }
}

TEMPLATE_LIST_TEST_CASE("a continued long_conv is the whole one, rows at their own positions",
                        "[long_conv]", support::TestScalars) {
  using S = TestType;
  const Index D = simd::lanes<S> + 3, total = 420, capacity = 450;
  for (const Index L : {1, 40, 150, 1024}) {
    const auto taps = random_taps<S>(D, L);
    const LongFilter<S> filter(taps);
    const auto u = random_tensor<S, 3>({3, total, D}, 9);
    const auto expected = literal_conv<S>(u, taps);
    for (const Index T : {1, 2, 9, 64, 150}) {
      for (const std::vector<Index>& starts :
           {std::vector<Index>{0, 1, 2}, std::vector<Index>{64, 17, 200},
            std::vector<Index>{270, 0, 255}}) {
        // What a row has not yet seen is NaN in its history.
        const auto past = counts(starts);
        Tensor<S, 3> history({3, capacity, D}), fresh({3, T, D}), y({3, T, D});
        fill(history.view(), std::numeric_limits<S>::quiet_NaN());
        Tensor<long double, 3> wanted({3, T, D});
        for (Index b = 0; b < 3; ++b) {
          copy(u.view()[b].template slice<0>(0, past[b]),
               history.view()[b].template slice<0>(0, past[b]));
          copy(u.view()[b].template slice<0>(past[b], T), fresh.view()[b]);
          copy(expected.view()[b].template slice<0>(past[b], T), wanted.view()[b]);
        }
        for (const Algorithm algorithm : algorithms) {
          Context context = support::poisoned(algorithm);
          fill(y.view(), std::numeric_limits<S>::quiet_NaN());
          long_conv_continue<S>(flat(fresh), history, past, filter, flat(y),
                                TestCall(context, 3, T));
          CAPTURE(L, T, starts, static_cast<int>(algorithm));
          CHECK(support::relative_error(y.view(), wanted.view()) <= 4 * tolerance<S>(total));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("steps and direct sums have the same bits", "[long_conv]",
                        support::TestScalars) {
  using S = TestType;
  for (const Index D : {Index{1}, simd::lanes<S> + 1, Index{600}}) {
    const Index T = 75;
    for (const Index L : {1, 6, 50, 100}) {
      const LongFilter<S> filter(random_taps<S>(D, L));
      const auto u = random_tensor<S, 3>({2, T, D}, 3);
      const auto expected = run<S>(u, filter, Algorithm::recurrent);
      // A recurrent segment is direct all the same.
      Context context = support::poisoned(Algorithm::chunked);
      Tensor<S, 3> y({2, T, D});
      for (Index t = 0; t < T; ++t) {
        run_parts(u, filter, parts_of(0, 2, t, 1, Form::recurrent), y, context);
      }
      CAPTURE(D, L);
      CHECK(same_bits(y.view(), expected.view()));

      // Pieces too, whatever their length.
      for (const Form form : {Form::recurrent, Form::parallel}) {
        if (form == Form::parallel) context.set_algorithm(Algorithm::recurrent);
        fill(y.view(), std::numeric_limits<S>::quiet_NaN());
        Index first = 0;
        for (const Index count : {2, 0, 9, 64}) {
          run_parts(u, filter, parts_of(0, 2, first, count, form), y, context);
          first += count;
        }
        CHECK(same_bits(y.view(), expected.view()));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE(
    "long_conv in place, strided, threaded and in any company has the same bits", "[long_conv]",
    support::TestScalars) {
  using S = TestType;
  const S guard = 777;
  const Index B = 3, D = 2 * simd::lanes<S> + 1;
  struct Sizes {
    Index T, L;
  };
  for (const auto [T, L] : {Sizes{5, 9}, Sizes{300, 300}, Sizes{1500, 20}}) {
    const LongFilter<S> filter(random_taps<S>(D, L));
    const auto u = random_tensor<S, 3>({B, T, D}, 21);
    const auto history = random_tensor<S, 3>({B, 40, D}, 22);
    const auto past = counts({0, 33, 40});
    for (const Algorithm algorithm : algorithms) {
      CAPTURE(T, L, static_cast<int>(algorithm));
      Context context = support::poisoned(algorithm);
      Tensor<S, 3> expected(u.shape());
      long_conv_continue<S>(flat(u), history, past, filter, flat(expected),
                            TestCall(context, B, T));

      // A slice of wider rows.
      Tensor<S, 2> wide({B * T + 2, D + 5});
      fill(wide.view(), guard);
      const View<S, 2> y(&wide(1, 2), {B * T, D}, {D + 5, 1});
      copy(flat(u), y);
      long_conv_continue<S>(y, history, past, filter, y, TestCall(context, B, T));
      CHECK(same_bits(y, flat(expected)));
      fill(y, guard);
      bool untouched = true;
      for (Index i = 0; i < wide.size(); ++i) untouched &= wide.data()[i] == guard;
      CHECK(untouched);

      for (const Index workers : {1, 2, 3}) {
        support::ThreadExecutor executor(workers);
        Context threaded(executor);
        threaded.set_algorithm(algorithm);
        Tensor<S, 3> got(u.shape());
        long_conv_continue<S>(flat(u), history, past, filter, flat(got), TestCall(threaded, B, T));
        CHECK(same_bits(got.view(), expected.view()));
      }
      for (Index b = 0; b < B; ++b) {
        Tensor<S, 2> alone({T, D});
        long_conv_continue<S>(u.view()[b], history, past, filter, alone.view(),
                              TestCall(context, {{b, 0, T, Form::parallel}}));
        CHECK(same_bits(alone.view(), expected.view()[b]));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("segments of long_conv do not see each other", "[long_conv]",
                        support::TestScalars) {
  using S = TestType;
  const Index B = 5, T = 200, D = 2 * simd::lanes<S> + 1;
  const LongFilter<S> filter(random_taps<S>(D, T));
  const auto u = random_tensor<S, 3>({B, T, D}, 23);
  const Parts mixed{{4, 0, 130},
                    {0, 199, 1, Form::recurrent},
                    {3, 20, 7},
                    {2, 7, 65},
                    {1, 100, 12, Form::recurrent}};
  for (const Algorithm algorithm : algorithms) {
    Tensor<S, 3> expected(u.shape());
    Context context = support::poisoned(algorithm);
    for (const support::Part& part : mixed) run_parts(u, filter, {part}, expected, context);
    for (const Index workers : {1, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      threaded.set_algorithm(algorithm);
      Tensor<S, 3> y(u.shape());
      run_parts(u, filter, mixed, y, threaded);
      CHECK(same_bits(y.view(), expected.view()));
    }
    // Without history, too.
    const auto fresh = random_tensor<S, 3>({B, 65, D}, 24);
    const auto whole = run<S>(fresh, filter, algorithm);
    for (Index b = 0; b < B; ++b) {
      const auto row = fresh.view().template slice<0>(b, 1);
      CHECK(same_bits(run<S>(row, filter, algorithm).view()[0], whole.view()[b]));
    }
  }
}

TEST_CASE("NaN stays in its batch row and channel", "[long_conv]") {
  const Index T = 200, D = 21;
  const LongFilter<float> filter(random_taps<float>(D, T));
  auto u = random_tensor<float, 3>({3, T, D}, 5);
  for (const Algorithm algorithm : algorithms) {
    u(1, 50, 4) = 1;
    const auto clean = run<float>(u, filter, algorithm);
    u(1, 50, 4) = std::numeric_limits<float>::quiet_NaN();
    const auto y = run<float>(u, filter, algorithm);
    CHECK(std::isnan(y(1, T - 1, 4)));
    CHECK(same_bits(y.view()[0], clean.view()[0]));
    CHECK(same_bits(y.view()[2], clean.view()[2]));
    for (Index d = 0; d < D; ++d) {
      CHECK(same_bits(y.view()[1].at<1>(d), clean.view()[1].at<1>(d)) == (d != 4));
    }
  }
}

TEST_CASE("the shape decides between direct sums and transforms", "[long_conv]") {
  const LongFilter<float> filter(random_taps<float>(3, 2000));
  const auto u = random_tensor<float, 3>({1, 2000, 3}, 5);
  const auto same_as = [&](Index T, Algorithm algorithm) {
    const auto piece = u.view().slice<1>(0, T);
    return same_bits(run<float>(piece, filter, Algorithm::automatic).view(),
                     run<float>(piece, filter, algorithm).view());
  };
  CHECK(same_as(16, Algorithm::recurrent));
  CHECK(!same_as(16, Algorithm::chunked));
  CHECK(same_as(2000, Algorithm::chunked));
  CHECK(!same_as(2000, Algorithm::recurrent));
}

TEST_CASE("long_conv of nothing is nothing, and wrong shapes throw", "[long_conv]") {
  Context context;
  for (const Shape<3> shape : {Shape<3>{0, 4, 8}, Shape<3>{2, 0, 8}, Shape<3>{2, 4, 0}}) {
    const LongFilter<float> filter(Tensor<float, 2>({shape[2], 5}).view());
    Tensor<float, 3> u(shape);
    CHECK_NOTHROW(
        long_conv<float>(flat(u), filter, flat(u), TestCall(context, shape[0], shape[1])));
  }
  CHECK_THROWS_AS(LongFilter<float>(Tensor<float, 2>({3, 0}).view()), ShapeError);

  const LongFilter<float> filter(random_taps<float>(6, 10)), copied = filter;
  CHECK(copied.taps().data() == filter.taps().data());
  CHECK(filter.length() == 10);
  CHECK(filter.channels() == 6);

  const auto u = random_tensor<float, 3>({2, 5, 6}, 1);
  const auto history = random_tensor<float, 3>({2, 7, 6}, 2);
  Tensor<float, 3> y({2, 5, 6});
  const auto run_with = [&](View<const float, 2> x, View<const float, 3> old,
                            View<const Index, 1> past) {
    long_conv_continue<float>(x, old, past, filter, flat(y), TestCall(context, 2, 5));
  };
  CHECK_NOTHROW(run_with(flat(u), history, counts({0, 7})));
  CHECK_THROWS_AS(run_with(flat(u), history, counts({0, 8})), ShapeError);
  CHECK_THROWS_AS(run_with(flat(u), history, counts({0, -1})), ShapeError);
  CHECK_THROWS_AS(run_with(flat(u), history, counts({0})), ShapeError);
  CHECK_THROWS_AS(run_with(flat(u).slice<0>(0, 9), history, counts({0, 0})), ShapeError);
  CHECK_THROWS_AS(run_with(flat(u), history.view().slice<2>(0, 5), counts({0, 0})), ShapeError);
  CHECK_THROWS_AS(run_with(flat(u), history.view().slice<0>(0, 1), counts({0, 0})), ShapeError);
  const View<const float, 2> transposed(u.data(), {10, 6}, {1, 10});
  CHECK_THROWS_AS(run_with(transposed, history, counts({0, 0})), ShapeError);
  const LongFilter<float> wider(random_taps<float>(7, 10));
  CHECK_THROWS_AS(long_conv<float>(flat(u), wider, flat(y), TestCall(context, 2, 5)), ShapeError);
}
