#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <limits>
#include <utility>
#include <vector>

#include "seqmix/kernels/pointwise/rows.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using support::same_bits;
using support::TestCall;
using test::error_of;

namespace {

/// [B, H, T, K] of the memory of a [B, T, H, K]: rows that do not lie in order.
template <class T>
View<T, 4> heads_first(const View<T, 4>& x) {
  return {x.data(),
          {x.extent(0), x.extent(2), x.extent(1), x.extent(3)},
          {x.stride(0), x.stride(2), x.stride(1), x.stride(3)}};
}

}  // namespace

TEST_CASE("each row is visited once, with its own address in every view", "[rows]") {
  Tensor<float, 4> wide({2, 7, 3, 5});
  Tensor<Index, 4> visits({2, 3, 7, 1});
  const auto narrow = heads_first(wide.view().slice<3>(1, 3));
  for (const Index workers : {1, 2, 3}) {
    support::ThreadExecutor executor(workers);
    Context context(executor);
    std::vector<std::pair<float*, Index*>> seen(2 * 3 * 7);
    fill(visits.view(), 0);
    for_each_row(
        TestCall(context),
        [&](float* row, Index* visit) {
          ++*visit;
          seen[static_cast<std::size_t>(visit - visits.data())] = {row, visit};
        },
        narrow, visits.view());
    for (Index b = 0; b < 2; ++b) {
      for (Index h = 0; h < 3; ++h) {
        for (Index t = 0; t < 7; ++t) {
          CHECK(visits(b, h, t, 0) == 1);
          const auto& [row, visit] = seen[static_cast<std::size_t>((b * 3 + h) * 7 + t)];
          CHECK(row == &wide(b, t, h, 1));
          CHECK(visit == &visits(b, h, t, 0));
        }
      }
    }
  }
}

TEST_CASE("rows that fill several tasks are all visited", "[rows]") {
  for (const Index width :
       {Index{1}, Index{1000}, numbers_per_task - 1, numbers_per_task, numbers_per_task + 1}) {
    const Index rows = 2 * numbers_per_task / width + 3;
    Tensor<float, 2> x({rows, width});
    support::ThreadExecutor executor(2);
    Context context(executor);
    for_each_row(
        TestCall(context), [](float* row) { *row += 1; }, x.view());
    Index once = 0;
    for (Index row = 0; row < rows; ++row) once += x(row, 0) == 1 ? 1 : 0;
    CHECK(once == rows);
  }
}

TEST_CASE("nothing is visited where there is nothing", "[rows]") {
  Context context;
  int visits = 0;
  for (const Shape<3> shape : {Shape<3>{0, 5, 4}, Shape<3>{2, 0, 4}, Shape<3>{2, 5, 0}}) {
    Tensor<double, 3> x(shape);
    for_each_row(
        TestCall(context), [&](double*, const double*) { ++visits; }, x.view(),
        std::as_const(x).view());
  }
  CHECK(visits == 0);
}

TEST_CASE("views whose rows do not belong together are named", "[rows]") {
  Context context;
  Tensor<float, 3> x({2, 3, 4});
  const auto error = [&](const auto& first, const auto& second) {
    int visits = 0;
    const auto text = error_of<ShapeError>([&] {
      for_each_row(
          TestCall(context), [&](auto*, auto*) { ++visits; }, first, second);
    });
    CHECK(visits == (text.empty() ? 6 : 0));
    return text;
  };
  Tensor<float, 3> other({2, 4, 4});
  CHECK_THAT(
      error(x.view(), other.view()),
      ContainsSubstring("got [2, 4, 4]") &&
          ContainsSubstring("expected contiguous rows and the leading extents of [2, 3, 4]"));
  const View<float, 3> gaps(x.data(), {2, 3, 2}, {12, 4, 2});
  CHECK_THAT(error(x.view(), gaps), ContainsSubstring("got [2, 3, 2]"));
  CHECK_THAT(error(gaps, x.view()), ContainsSubstring("got [2, 3, 2]"));
  // One number a row has no stride to be wrong, and rows of another width are the body's business.
  CHECK(error(x.view(), View<float, 3>(x.data(), {2, 3, 1}, {12, 4, 4})) == "");
  CHECK(error(x.view(), x.view().slice<2>(1, 2)) == "");
}

TEMPLATE_LIST_TEST_CASE("elementwise maps every element and nothing else", "[rows]",
                        support::TestScalars) {
  using S = TestType;
  constexpr Index lanes = simd::lanes<S>;
  const auto f = [](auto a, auto b) { return a * a - b; };
  for (const Index width : {Index{1}, lanes - 1, lanes, lanes + 1, 3 * lanes + 5}) {
    if (width == 0) continue;
    INFO("width " << width);
    const auto x = random_tensor<S, 3>({2, 5, width + 3}, 1),
               z = random_tensor<S, 3>({2, 5, width}, 2);
    const auto in = x.view().template slice<2>(2, width);
    Tensor<S, 3> expected({2, 5, width});
    for (Index b = 0; b < 2; ++b) {
      for (Index t = 0; t < 5; ++t) {
        for (Index i = 0; i < width; ++i) {
          expected(b, t, i) = in(b, t, i) * in(b, t, i) - z(b, t, i);
        }
      }
    }
    // The compiler may fuse the loop above and the registers' product differently.
    const double tolerance = 4 * static_cast<double>(std::numeric_limits<S>::epsilon());

    Context context;
    Tensor<S, 3> guarded({2, 6, width + 2});
    fill(guarded.view(), S(42));
    const auto out = guarded.view().template slice<1>(0, 5).template slice<2>(1, width);
    elementwise(TestCall(context), f, out, in, z.view());
    CHECK(support::relative_error(out, expected.view()) <= tolerance);
    for (Index b = 0; b < 2; ++b) {
      for (Index t = 0; t < 6; ++t) {
        CHECK(guarded(b, t, 0) == 42);
        CHECK(guarded(b, t, width + 1) == 42);
        for (Index i = 0; t == 5 && i < width; ++i) CHECK(guarded(b, t, 1 + i) == 42);
      }
    }

    auto both = x;
    const auto same = both.view().template slice<2>(2, width);
    elementwise(TestCall(context), f, same, same, z.view());
    CHECK(same_bits(same, out));

    Tensor<S, 1> line({width});
    elementwise(TestCall(context), f, line.view(), in[1][4], z.view()[1][4]);
    CHECK(same_bits(line.view(), out[1][4]));

    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context parallel(executor);
      Tensor<S, 3> again({2, 5, width});
      elementwise(TestCall(parallel), f, again.view(), in, z.view());
      CHECK(same_bits(again.view(), out));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a number can serve a channel, a head or a row", "[rows]",
                        support::TestScalars) {
  using S = TestType;
  constexpr Index lanes = simd::lanes<S>;
  const Index T = 4, H = 3;
  const auto f = [](auto a, auto channel, auto head, auto row) {
    return (a - channel) * head + row;
  };
  for (const Index width : {Index{1}, lanes, lanes + 1, 3 * lanes + 5, numbers_per_task}) {
    INFO("width " << width);
    const auto x = random_tensor<S, 3>({T, H, width}, 3);
    const auto channel = random_tensor<S, 1>({width}, 4), head = random_tensor<S, 1>({H}, 5);
    const auto row = random_tensor<S, 2>({T, H}, 6);
    Tensor<S, 3> channels(x.shape()), heads(x.shape()), rows(x.shape());
    for (Index t = 0; t < T; ++t) {
      for (Index h = 0; h < H; ++h) {
        copy(channel.view(), channels.view()[t][h]);
        fill(heads.view()[t][h], head[h]), fill(rows.view()[t][h], row(t, h));
      }
    }
    Context context;
    Tensor<S, 3> expected(x.shape());
    elementwise(TestCall(context), f, expected.view(), x.view(), channels.view(), heads.view(),
                rows.view());

    // Of a row's and a head's numbers any stride will do.
    Tensor<S, 2> apart({H, 2 * T});
    const View<S, 2> strided(apart.data(), {T, H}, {1, 2 * T});
    copy(row.view(), strided);
    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context parallel(executor);
      Tensor<S, 3> got(x.shape());
      elementwise(TestCall(parallel), f, got.view(), x.view(), by_channel(channel), by_head(head),
                  by_row(row.view()));
      CHECK(same_bits(got.view(), expected.view()));
      got = x;
      elementwise(TestCall(parallel), f, got.view(), got.view(),
                  by_channel(Parameter<S, 1>(channel)), by_head(Parameter<S, 1>(head)),
                  by_row(strided));
      CHECK(same_bits(got.view(), expected.view()));
    }
  }
}

TEST_CASE("numbers that do not fit the output are named", "[rows]") {
  Context context;
  Tensor<float, 3> y({2, 3, 4});
  const auto error = [&](const auto& in) {
    return error_of<ShapeError>([&] {
      elementwise(
          TestCall(context), [](auto v) { return v; }, y.view(), in);
    });
  };
  const auto numbers = random_tensor<float, 3>({4, 4, 8}, 1);
  const float* const data = numbers.data();
  CHECK_THAT(
      error(View<const float, 3>(data, {2, 3, 3})),
      ContainsSubstring("elementwise: got [2, 3, 3], expected contiguous rows of [2, 3, 4]"));
  CHECK_THAT(error(View<const float, 3>(data, {2, 3, 4}, {32, 8, 2})),
             ContainsSubstring("contiguous"));
  CHECK_THAT(error(by_channel(View<const float, 1>(data, {3}))),
             ContainsSubstring("by_channel: got [3], expected contiguous [4] for [2, 3, 4]"));
  CHECK_THAT(error(by_channel(View<const float, 1>(data, {4}, {2}))),
             ContainsSubstring("contiguous"));
  CHECK_THAT(error(by_head(View<const float, 1>(data, {2}))),
             ContainsSubstring("by_head: got [2], expected [3] for [2, 3, 4]"));
  CHECK_THAT(error(by_row(View<const float, 2>(data, {3, 2}))),
             ContainsSubstring("by_row: got [3, 2], expected [2, 3] for [2, 3, 4]"));
  CHECK(error(by_row(View<const float, 2>(data, {2, 3}))) == "");
  CHECK_THAT(error_of<ShapeError>([&] {
               elementwise(
                   TestCall(context), [](auto v) { return v; },
                   View<float, 3>(y.data(), {2, 3, 2}, {12, 4, 2}),
                   View<const float, 3>(data, {2, 3, 2}));
             }),
             ContainsSubstring("contiguous"));

  // Nothing is read for an output of nothing.
  CHECK(error_of<ShapeError>([&] {
          elementwise(
              TestCall(context), [](auto v) { return v; }, y.view().slice<0>(0, 0),
              by_channel(View<const float, 1>()));
        }) == "");
}
