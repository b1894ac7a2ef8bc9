#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>
#include <string>

#include "seqmix/kernels/pointwise/activation.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

constexpr Activation activations[] = {Activation::silu,      Activation::gelu,
                                      Activation::gelu_tanh, Activation::quick_gelu,
                                      Activation::relu,      Activation::relu_squared};

long double sigmoid(long double x) { return 1 / (1 + std::exp(-x)); }

/// The published formulas, as they are written.
long double expected_activation(Activation activation, long double x) {
  constexpr long double pi = 3.14159265358979323846264338327950288L;
  switch (activation) {
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu:
      return x / 2 * (1 + std::erf(x / std::sqrt(2.0L)));
    case Activation::gelu_tanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / pi) * (x + 0.044715L * x * x * x)));
    case Activation::quick_gelu:
      return x * sigmoid(1.702L * x);
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::relu_squared:
      return x > 0 ? x * x : 0;
  }
  return std::numeric_limits<long double>::quiet_NaN();
}

/// f(x...) of each element, in long double, rounded to double.
template <Index Rank>
Tensor<double, Rank> expected(auto&& f, const auto& first, const auto&... rest) {
  Tensor<double, Rank> result(first.shape());
  for (Index i = 0; i < result.size(); ++i) {
    result.data()[i] = static_cast<double>(
        f(static_cast<long double>(first.data()[i]), static_cast<long double>(rest.data()[i])...));
  }
  return result;
}

/// N(0, 9) numbers, the last of them positive, so that no activation makes all of them zero.
template <class S>
Tensor<S, 3> wide_input(Shape<3> shape, unsigned seed) {
  auto x = random_tensor<S, 3>(shape, seed);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] *= 3;
  x.data()[x.size() - 1] = std::abs(x.data()[x.size() - 1]) + 1;
  return x;
}

template <class S>
constexpr double tolerance = 8 * static_cast<double>(std::numeric_limits<S>::epsilon());

}  // namespace

TEST_CASE("activations have the names that configs use", "[activation]") {
  for (const Activation activation : activations) {
    Activation read = activation == Activation::silu ? Activation::relu : Activation::silu;
    from_string(to_string(activation), read);
    CHECK(read == activation);
  }
  CHECK(to_string(Activation::gelu) == "gelu");
  CHECK(to_string(Activation::relu_squared) == "relu_squared");
  CHECK(to_string(static_cast<Activation>(77)) == "unknown");
  Activation kept = Activation::gelu_tanh;
  std::string text;
  try {
    from_string("swish", kept);
  } catch (const ConfigError& error) {
    text = error.what();
  }
  CHECK_THAT(text, ContainsSubstring("\"swish\"") &&
                       ContainsSubstring("silu, gelu, gelu_tanh, quick_gelu, relu, relu_squared"));
  CHECK(kept == Activation::gelu_tanh);
}

TEMPLATE_LIST_TEST_CASE("each activation is its formula, gated or not, at any width",
                        "[activation]", support::TestScalars) {
  using S = TestType;
  constexpr Index lanes = simd::lanes<S>;
  Context context;
  for (const Activation activation : activations) {
    for (const Index width : {Index{1}, lanes - 1, lanes, lanes + 1, 3 * lanes + 5}) {
      if (width == 0) continue;
      INFO(to_string(activation) << " width " << width);
      const auto x = random_tensor<S, 3>({2, 5, width}, 1);
      const auto gate = wide_input<S>({2, 5, width}, 2);
      const auto f = [&](long double v) { return expected_activation(activation, v); };

      auto y = gate;
      activate(activation, y.view(), TestCall(context));
      CHECK(support::relative_error(y.view(), expected<3>(f, gate).view()) <= tolerance<S>);

      auto gated = x;
      activate_gated<S, 3>(activation, gated, gate, TestCall(context));
      const auto product = [&](long double value, long double by) { return f(by) * value; };
      CHECK(support::relative_error(gated.view(), expected<3>(product, x, gate).view()) <=
            tolerance<S>);

      // The gate may be what is written, and rows may have gaps.
      Tensor<S, 3> guarded({2, 5, width + 2});
      fill(guarded.view(), S(42));
      const auto inner = guarded.view().template slice<2>(1, width);
      copy(gate.view(), inner);
      activate(activation, inner, TestCall(context));
      CHECK(same_bits(inner, y.view()));
      for (Index t = 0; t < 5; ++t) {
        CHECK(guarded(1, t, 0) == 42);
        CHECK(guarded(1, t, width + 1) == 42);
      }
      auto itself = gate;
      activate_gated<S, 3>(activation, itself, itself, TestCall(context));
      const auto square = [&](long double v) { return f(v) * v; };
      CHECK(support::relative_error(itself.view(), expected<3>(square, gate).view()) <=
            tolerance<S>);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("the log decay is scale log sigmoid", "[activation]",
                        support::TestScalars) {
  using S = TestType;
  constexpr Index lanes = simd::lanes<S>;
  Context context;
  for (const Index width : {Index{1}, lanes - 1, lanes, lanes + 1, 3 * lanes + 5}) {
    if (width == 0) continue;
    for (const double scale : {1.0, 1.0 / 16, -2.0}) {
      auto x = wide_input<S>({2, 3, width}, 5);
      x.data()[0] = S(-80), x.data()[x.size() - 1] = S(30);
      const auto decay = expected<3>(
          [&](long double v) {
            return static_cast<long double>(scale) *
                   (v > 0 ? -std::log1p(std::exp(-v)) : v - std::log1p(std::exp(v)));
          },
          x);
      log_sigmoid(x.view(), scale, TestCall(context));
      CHECK(support::relative_error(x.view(), decay.view()) <= tolerance<S>);
      // Far to the right the number is tiny, never zero: its relative error is what counts.
      const double last = decay.data()[x.size() - 1];
      CHECK(std::abs(static_cast<double>(x.data()[x.size() - 1]) - last) <=
            tolerance<S> * std::abs(last));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("NaN goes through every activation and stays where it is", "[activation]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  const Index width = 3 * simd::lanes<S> + 1;
  for (const Activation activation : activations) {
    INFO(to_string(activation));
    auto x = wide_input<S>({1, 2, width}, 7);
    auto sick = x;
    for (const Index i : {Index{0}, width - 1}) sick(0, 1, i) = std::numeric_limits<S>::quiet_NaN();
    activate(activation, x.view(), TestCall(context));
    activate(activation, sick.view(), TestCall(context));
    CHECK(std::isnan(sick(0, 1, 0)));
    CHECK(std::isnan(sick(0, 1, width - 1)));
    CHECK(same_bits(sick[0][0], x[0][0]));
    CHECK(same_bits(sick[0][1].template slice<0>(1, width - 2),
                    x[0][1].template slice<0>(1, width - 2)));
  }
}

TEST_CASE("a soft cap keeps small numbers and bounds large ones", "[activation]") {
  Tensor<double, 1> x({5});
  const double numbers[] = {0, 1e-3, -3, 1e3, -1e300};
  std::copy_n(numbers, 5, x.data());
  Context context;
  soft_cap(x.view(), 15, TestCall(context));
  for (Index i = 0; i < 5; ++i) CHECK(std::abs(x[i] - 15 * std::tanh(numbers[i] / 15)) < 1e-14);
}

TEMPLATE_LIST_TEST_CASE("threads change no bit of an activation", "[activation]",
                        support::TestScalars) {
  using S = TestType;
  const auto x = random_tensor<S, 2>({40, 1031}, 8), gate = random_tensor<S, 2>({40, 1031}, 9);
  Context serial;
  for (const Activation activation : activations) {
    INFO(to_string(activation));
    auto expected_gated = x;
    activate_gated<S, 2>(activation, expected_gated, gate, TestCall(serial));
    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context context(executor);
      auto y = x;
      activate_gated<S, 2>(activation, y, gate, TestCall(context));
      CHECK(same_bits(y.view(), expected_gated.view()));
    }
  }
}

TEST_CASE("a gate with other rows is named", "[activation]") {
  Context context;
  Tensor<float, 3> x({2, 3, 4}), gate({2, 2, 4});
  std::string text;
  try {
    activate_gated<float, 3>(Activation::silu, x, gate, TestCall(context));
  } catch (const ShapeError& error) {
    text = error.what();
  }
  CHECK_THAT(text, ContainsSubstring("got [2, 2, 4]") && ContainsSubstring("[2, 3, 4]"));
}
