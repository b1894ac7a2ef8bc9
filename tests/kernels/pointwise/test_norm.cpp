#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/kernels/pointwise/norm.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;
using test::error_of;

namespace {

template <class S>
constexpr double tolerance = 8 * static_cast<double>(std::numeric_limits<S>::epsilon());

template <class S>
std::vector<Index> widths() {
  constexpr Index lanes = simd::lanes<S>;
  std::vector<Index> result{1, lanes - 1, lanes, lanes + 1, 3 * lanes + 5};
  std::erase(result, Index{0});
  return result;
}

long double sigmoid(long double x) { return 1 / (1 + std::exp(-x)); }
long double silu(long double x) { return x * sigmoid(x); }

/// Every norm of this file, by one plain loop over each row in long double.
struct Norm {
  Index group = 0;
  bool centred = false;  // subtract the mean
  bool sum = false;      // Σ x² instead of its mean
  double eps = 0;
};
struct Expected {
  Tensor<double, 2> y;
  double sensitivity = 1;  // how much an error of the mean grows: max |x| / sqrt(variance + eps)
};
template <class S>
Expected expected_norm(const Norm& norm, const Tensor<S, 2>& x, auto&& before, auto&& after) {
  Expected result{Tensor<double, 2>(x.shape()), 1};
  const auto value = [&](Index row, Index i) {
    return before(static_cast<long double>(x(row, i)), row, i);
  };
  for (Index row = 0; row < x.extent(0); ++row) {
    for (Index first = 0; first < x.extent(1); first += norm.group) {
      const auto count = static_cast<long double>(norm.group);
      long double mean = 0, square = 0, largest = 0;
      for (Index i = first; i < first + norm.group; ++i) mean += value(row, i) / count;
      if (!norm.centred) mean = 0;
      for (Index i = first; i < first + norm.group; ++i) {
        const long double v = value(row, i) - mean;
        square += norm.sum ? v * v : v * v / count;
        largest = std::max(largest, std::abs(value(row, i)));
      }
      const long double root = std::sqrt(square + static_cast<long double>(norm.eps));
      for (Index i = first; i < first + norm.group; ++i) {
        result.y(row, i) = static_cast<double>(after((value(row, i) - mean) / root, row, i));
      }
      if (norm.centred) {
        result.sensitivity = std::max(result.sensitivity, static_cast<double>(largest / root));
      }
    }
  }
  return result;
}
long double as_is(long double v, Index, Index) { return v; }

/// `call(y)` on a window of a larger memory gives `expected` and leaves what is around it alone.
template <class S>
void check_window(const Tensor<S, 2>& start, const Tensor<S, 2>& expected, auto&& call) {
  const Index rows = start.extent(0), width = start.extent(1);
  Tensor<S, 2> memory({rows + 1, width + 3});
  fill(memory.view(), S(42));
  const auto window = memory.view().template slice<0>(0, rows).template slice<1>(1, width);
  copy(start.view(), window);
  call(window);
  CHECK(same_bits(window, expected.view()));
  for (Index row = 0; row <= rows; ++row) {
    for (Index i = 0; i < width + 3; ++i) {
      if (row == rows || i < 1 || i > width) REQUIRE(memory(row, i) == 42);
    }
  }
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("rms_norm divides by the root of the mean square", "[norm]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index width : widths<S>()) {
    for (const double eps : {1e-6, 0.5}) {
      INFO("width " << width << " eps " << eps);
      const auto x = random_tensor<S, 2>({5, width}, 1);
      const auto weight = random_tensor<S, 1>({width}, 2);
      const auto expected = expected_norm({width, false, false, eps}, x, as_is,
                                          [&](auto v, Index, Index i) { return v * weight[i]; });
      Tensor<S, 2> y(x.shape());
      rms_norm<S, 2>(x, weight, eps, y, TestCall(context));
      CHECK(relative_error(y.view(), expected.y.view()) <= tolerance<S>);
      check_window<S>(x, y, [&](auto window) {
        rms_norm<S, 2>(window, weight, eps, window, TestCall(context));
      });
      check_window<S>(Tensor<S, 2>(x.shape()), y, [&](auto window) {
        rms_norm<S, 2>(x, weight, eps, window, TestCall(context));
      });
    }
  }
}

TEMPLATE_LIST_TEST_CASE("the gated norms take the gate after or before the norm", "[norm]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index width : widths<S>()) {
    for (const double eps : {1e-6, 0.5}) {
      INFO("width " << width << " eps " << eps);
      const auto x = random_tensor<S, 2>({5, width}, 3), gate = random_tensor<S, 2>({5, width}, 4);
      const auto weight = random_tensor<S, 1>({width}, 5);

      const auto check_norm_first = [&](auto f, auto&& exact) {
        const auto norm_first = expected_norm(
            {width, false, false, eps}, x, as_is,
            [&](auto v, Index row, Index i) { return v * weight[i] * exact(gate(row, i)); });
        auto y = x;
        gated_rms_norm<S, 2>(y, gate, weight, eps, f, TestCall(context));
        CHECK(relative_error(y.view(), norm_first.y.view()) <= tolerance<S>);
        check_window<S>(x, y, [&](auto window) {
          gated_rms_norm(window, gate, weight, eps, f, TestCall(context));
        });
      };
      check_norm_first(activation::silu, silu);
      check_norm_first(activation::sigmoid, sigmoid);

      for (const Index groups : {Index{1}, Index{2}, Index{3}, width}) {
        if (width % groups != 0) continue;
        INFO("groups " << groups);
        const auto gate_first = expected_norm(
            {width / groups, false, false, eps}, x,
            [&](auto v, Index row, Index i) { return v * silu(gate(row, i)); },
            [&](auto v, Index, Index i) { return v * weight[i]; });
        auto z = x;
        rms_norm_of_gated<S, 2>(z, gate, weight, width / groups, eps, TestCall(context));
        CHECK(relative_error(z.view(), gate_first.y.view()) <= tolerance<S>);
        check_window<S>(x, z, [&](auto window) {
          rms_norm_of_gated(window, gate, weight, width / groups, eps, TestCall(context));
        });
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("group_norm centres and scales each group, with or without weight and bias",
                        "[norm]", support::TestScalars) {
  using S = TestType;
  Context context;
  const View<const S, 1> none;
  for (const Index width : widths<S>()) {
    for (const Index groups : {Index{1}, Index{2}, Index{3}, width}) {
      if (width % groups != 0) continue;
      // Numbers far from zero: a variance that was a difference of two sums would be noise.
      for (const S offset : {S(0), S(1000)}) {
        for (const int given : {0, 1, 2, 3}) {
          const Index group = width / groups;
          const double eps = 1e-5;
          INFO("width " << width << " group " << group << " offset " << offset << " given "
                        << given);
          auto x = random_tensor<S, 2>({5, width}, 6);
          for (Index i = 0; i < x.size(); ++i) x.data()[i] += offset;
          const auto weights = random_tensor<S, 1>({width}, 7),
                     biases = random_tensor<S, 1>({width}, 8);
          const View<const S, 1> weight = given % 2 == 1 ? weights.view() : none;
          const View<const S, 1> bias = given >= 2 ? biases.view() : none;
          const auto expected =
              expected_norm({group, true, false, eps}, x, as_is, [&](auto v, Index, Index i) {
                return v * (given % 2 == 1 ? weights[i] : 1) + (given >= 2 ? biases[i] : 0);
              });
          Tensor<S, 2> y(x.shape());
          fill(y.view(), std::numeric_limits<S>::quiet_NaN());
          group_norm<S, 2>(x, weight, bias, group, eps, y, TestCall(context));
          if (group == 1 && given < 2) {
            CHECK(std::all_of(y.data(), y.data() + y.size(), [](S v) { return v == 0; }));
          } else {
            CHECK(relative_error(y.view(), expected.y.view()) <=
                  tolerance<S> * expected.sensitivity);
          }
          check_window<S>(x, y, [&](auto window) {
            group_norm<S, 2>(window, weight, bias, group, eps, window, TestCall(context));
          });
          if (groups == 1) {
            Tensor<S, 2> whole(x.shape());
            layer_norm<S, 2>(x, weight, bias, eps, whole, TestCall(context));
            CHECK(same_bits(whole.view(), y.view()));
          }
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("l2_norm divides by the root of the sum of squares", "[norm]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index width : widths<S>()) {
    for (const double eps : {1e-6, 0.5}) {
      INFO("width " << width << " eps " << eps);
      const auto x = random_tensor<S, 2>({5, width}, 9);
      const auto expected = expected_norm({width, false, true, eps}, x, as_is, as_is);
      auto y = x;
      l2_norm(y.view(), eps, TestCall(context));
      CHECK(relative_error(y.view(), expected.y.view()) <= tolerance<S>);
      check_window<S>(x, y, [&](auto window) { l2_norm(window, eps, TestCall(context)); });
    }
  }
}

TEMPLATE_LIST_TEST_CASE("clamped_l2_norm divides by the norm, or by the least one", "[norm]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index width : widths<S>()) {
    const auto x = random_tensor<S, 2>({5, width}, 9);
    for (const double least : {1e-12, 1e3}) {
      INFO("width " << width << " least " << least);
      Tensor<double, 2> expected(x.shape());
      for (Index row = 0; row < 5; ++row) {
        double square = 0;
        for (Index i = 0; i < width; ++i) square += static_cast<double>(x(row, i)) * x(row, i);
        const double length = std::max(std::sqrt(square), least);
        for (Index i = 0; i < width; ++i) expected(row, i) = x(row, i) / length;
      }
      auto y = x;
      clamped_l2_norm(y.view(), least, TestCall(context));
      CHECK(relative_error(y.view(), expected.view()) <= tolerance<S>);
      check_window<S>(x, y,
                      [&](auto window) { clamped_l2_norm(window, least, TestCall(context)); });
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a group has the bits of a row of its own", "[norm]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const Index group : widths<S>()) {
    const auto x = random_tensor<S, 2>({3, 4 * group}, 10),
               gate = random_tensor<S, 2>({3, 4 * group}, 11);
    const auto weight = random_tensor<S, 1>({4 * group}, 12);
    auto gated = x;
    rms_norm_of_gated<S, 2>(gated, gate, weight, group, 1e-5, TestCall(context));
    Tensor<S, 2> centred(x.shape());
    group_norm<S, 2>(x, weight, weight, group, 1e-5, centred, TestCall(context));
    for (Index first = 0; first < 4 * group; first += group) {
      const auto part = weight.view().template slice<0>(first, group);
      Tensor<S, 2> alone({3, group}), own({3, group});
      copy(x.view().template slice<1>(first, group), alone.view());
      layer_norm<S, 2>(alone, part, part, 1e-5, own, TestCall(context));
      CHECK(same_bits(own.view(), centred.view().template slice<1>(first, group)));
      rms_norm_of_gated<S, 2>(alone, gate.view().template slice<1>(first, group), part, group, 1e-5,
                              TestCall(context));
      CHECK(same_bits(alone.view(), gated.view().template slice<1>(first, group)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("rows of zeros stay zero, and NaN stays in its row", "[norm]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const Index width = 3 * simd::lanes<S> + 1;
  const auto ones = [&] {
    Tensor<S, 1> result({width});
    fill(result.view(), S(1));
    return result;
  }();
  auto x = random_tensor<S, 2>({3, width}, 13);
  fill(x.view()[1], S(0));
  auto sick = x;
  sick(2, width - 1) = std::numeric_limits<S>::quiet_NaN();
  const auto check = [&](auto&& norm) {
    auto healthy = x, ill = sick;
    norm(healthy), norm(ill);
    CHECK(same_bits(healthy.view().template slice<0>(0, 2), ill.view().template slice<0>(0, 2)));
    for (Index i = 0; i < width; ++i) {
      REQUIRE(healthy(1, i) == 0);
      REQUIRE(std::isfinite(healthy(2, i)));
      REQUIRE(std::isnan(ill(2, i)));
    }
  };
  check([&](auto& y) { rms_norm<S, 2>(y, ones, 1e-5, y, TestCall(context)); });
  check([&](auto& y) {
    gated_rms_norm<S, 2>(y, x, ones, 1e-5, activation::silu, TestCall(context));
  });
  check([&](auto& y) { rms_norm_of_gated<S, 2>(y, x, ones, width, 1e-5, TestCall(context)); });
  check([&](auto& y) { layer_norm<S, 2>(y, ones, {}, 1e-5, y, TestCall(context)); });
  check([&](auto& y) { l2_norm(y.view(), 1e-5, TestCall(context)); });
  check([&](auto& y) { clamped_l2_norm(y.view(), 1e-12, TestCall(context)); });
}

TEMPLATE_LIST_TEST_CASE("threads and higher ranks change no bit of a norm", "[norm]",
                        support::TestScalars) {
  using S = TestType;
  const Index width = 1032, group = width / 3;
  const auto x = random_tensor<S, 2>({40, width}, 14), gate = random_tensor<S, 2>({40, width}, 15);
  const auto weight = random_tensor<S, 1>({width}, 16);
  const auto check = [&](auto&& norm) {
    Context serial;
    const auto expected = norm(x.view(), gate.view(), serial);
    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context context(executor);
      CHECK(same_bits(norm(x.view(), gate.view(), context).view(), expected.view()));
      const auto split =
          norm(x.view().template split<0>(5, 8), gate.view().template split<0>(5, 8), context);
      CHECK(same_bits(split.view().template merge<0>(), expected.view()));
    }
    // A row alone, at another place.
    const auto alone =
        norm(x.view().template slice<0>(37, 1), gate.view().template slice<0>(37, 1), serial);
    CHECK(same_bits(alone[0], expected[37]));
  };
  const auto in_place = [](const auto& from, auto&& norm) {
    constexpr Index rank = std::remove_cvref_t<decltype(from)>::rank;
    Tensor<S, rank> y(from.shape());
    copy(from, y.view());
    norm(y.view());
    return y;
  };
  check([&]<Index R>(View<const S, R> from, View<const S, R>, Context& context) {
    return in_place(from,
                    [&](auto y) { rms_norm<S, R>(from, weight, 1e-5, y, TestCall(context)); });
  });
  check([&]<Index R>(View<const S, R> from, View<const S, R> by, Context& context) {
    return in_place(from, [&](auto y) {
      gated_rms_norm<S, R>(y, by, weight, 1e-5, activation::silu, TestCall(context));
    });
  });
  check([&]<Index R>(View<const S, R> from, View<const S, R> by, Context& context) {
    return in_place(from, [&](auto y) {
      rms_norm_of_gated<S, R>(y, by, weight, group, 1e-5, TestCall(context));
    });
  });
  check([&]<Index R>(View<const S, R> from, View<const S, R>, Context& context) {
    return in_place(from, [&](auto y) {
      group_norm<S, R>(from, weight, {}, group, 1e-5, y, TestCall(context));
    });
  });
  check([&]<Index R>(View<const S, R> from, View<const S, R>, Context& context) {
    return in_place(from, [&](auto y) { l2_norm(y, 1e-5, TestCall(context)); });
  });
}

TEST_CASE("no rows are legal for every norm", "[norm]") {
  Context context;
  Tensor<float, 3> x({2, 0, 4});
  const auto weight = random_tensor<float, 1>({4}, 1);
  rms_norm<float, 3>(x, weight, 1e-5, x, TestCall(context));
  gated_rms_norm<float, 3>(x, x, weight, 1e-5, activation::silu, TestCall(context));
  rms_norm_of_gated<float, 3>(x, x, weight, 2, 1e-5, TestCall(context));
  layer_norm<float, 3>(x, weight, weight, 1e-5, x, TestCall(context));
  l2_norm(x.view(), 1e-5, TestCall(context));
  CHECK(x.empty());
}

TEST_CASE("a norm names the shape that does not fit and writes nothing", "[norm]") {
  Context context;
  const auto x = random_tensor<float, 2>({3, 6}, 1),
             other_rows = random_tensor<float, 2>({4, 6}, 2);
  auto y = x;
  const auto weight = random_tensor<float, 1>({6}, 3),
             short_weight = random_tensor<float, 1>({5}, 4);
  const View<const float, 1> none;

  const auto weight_error = [&](auto&& call) {
    const std::string text = error_of<ShapeError>(call);
    CHECK_THAT(text, ContainsSubstring("has shape [5], expected [6]"));
    return text.substr(0, text.find(':'));
  };
  CHECK(weight_error([&] { rms_norm<float, 2>(x, short_weight, 0, y, TestCall(context)); }) ==
        "rms_norm");
  CHECK(weight_error([&] {
          gated_rms_norm<float, 2>(y, x, short_weight, 0, activation::silu, TestCall(context));
        }) == "gated_rms_norm");
  CHECK(weight_error([&] {
          rms_norm_of_gated<float, 2>(y, x, short_weight, 3, 0, TestCall(context));
        }) == "rms_norm_of_gated");
  for (const bool as_bias : {false, true}) {
    const View<const float, 1> w = as_bias ? none : short_weight.view();
    const View<const float, 1> b = as_bias ? short_weight.view() : none;
    CHECK(weight_error([&] { group_norm<float, 2>(x, w, b, 3, 0, y, TestCall(context)); }) ==
          "group_norm");
  }
  const View<const float, 1> gaps(x.data(), {6}, {2});
  CHECK_THAT(error_of<ShapeError>([&] { rms_norm<float, 2>(x, gaps, 0, y, TestCall(context)); }),
             ContainsSubstring("rms_norm: the last dimension of weight has stride 2"));

  for (const Index group : {0, -1, 4, 7}) {
    const std::string text = "rows of 6 do not divide into groups of " + std::to_string(group);
    CHECK_THAT(error_of<ShapeError>(
                   [&] { group_norm<float, 2>(x, none, none, group, 0, y, TestCall(context)); }),
               ContainsSubstring("group_norm: " + text));
    CHECK_THAT(error_of<ShapeError>(
                   [&] { rms_norm_of_gated<float, 2>(y, x, weight, group, 0, TestCall(context)); }),
               ContainsSubstring("rms_norm_of_gated: " + text));
  }

  const auto rows_error = [](auto&& call) {
    CHECK_THAT(error_of<ShapeError>(call),
               ContainsSubstring("got [4, 6]") && ContainsSubstring("[3, 6]"));
  };
  rows_error([&] { rms_norm<float, 2>(other_rows, weight, 0, y, TestCall(context)); });
  rows_error([&] {
    gated_rms_norm<float, 2>(y, other_rows, weight, 0, activation::silu, TestCall(context));
  });
  rows_error([&] { rms_norm_of_gated<float, 2>(y, other_rows, weight, 3, 0, TestCall(context)); });
  rows_error([&] { layer_norm<float, 2>(other_rows, none, none, 0, y, TestCall(context)); });
  const View<float, 2> columns(y.data(), {3, 3}, {6, 2});
  CHECK_THAT(error_of<ShapeError>([&] { l2_norm(columns, 0, TestCall(context)); }),
             ContainsSubstring("got [3, 3]") && ContainsSubstring("contiguous rows"));
  CHECK(same_bits(x.view(), std::as_const(y).view()));
}
