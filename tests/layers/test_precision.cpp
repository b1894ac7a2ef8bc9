// Every layer at each precision level: as near to the truth as the level says, the same bits for
// any batch and any threads, and exactly fp32 in `step`, in double, and without matrix units.

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "seqmix/simd/amx.hpp"
#include "support/compare.hpp"
#include "support/layer_case.hpp"
#include "support/thread_executor.hpp"

namespace {

using namespace support;
using seqmix::Precision;

template <class S>
bool uses_matrix_units() {
  return std::is_same_v<S, float> && seqmix::simd::matrix_units();
}

/// Forward at one precision, in NaN-filled scratch and into NaN.
template <class S>
Tensor<S, 3> forward(const LayerCase<S>& layer, View<const S, 3> x, Precision precision,
                     seqmix::Executor* executor = nullptr) {
  Context context = executor ? Context(*executor) : Context();
  context.set_poison(true);
  context.set_precision(precision);
  Tensor<S, 3> y(x.shape());
  fill(y.view(), std::numeric_limits<S>::quiet_NaN());
  layer.forward(x, y, context);
  return y;
}

template <class S>
std::span<const S> all_of(const Tensor<S, 3>& y) {
  return {y.data(), static_cast<std::size_t>(y.size())};
}

/// The median over tokens of their relative errors: a router's near tie sends one token elsewhere.
template <class S>
double typical_error(const Tensor<S, 3>& y, std::span<const double> expected) {
  const auto width = static_cast<std::size_t>(y.extent(2));
  std::vector<double> errors;
  for (std::size_t first = 0; first < expected.size(); first += width) {
    errors.push_back(
        relative_error<S, double>(all_of(y).subspan(first, width), expected.subspan(first, width)));
  }
  const auto middle = errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2);
  std::ranges::nth_element(errors, middle);
  return *middle;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("each precision is as near as it says", "[precision]",
                        support::TestScalars) {
  if (!uses_matrix_units<TestType>()) return;
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    const auto x = layer.random_input(2, 90, 5);
    const auto truth = layer.truth(x).y.numbers;
    const auto literal = layer.literal(x).y.numbers;
    // One projection errs by 4e-6 or 2e-3 of rms, a layer of several by less than ten times that.
    // Where a layer makes errors grow, it does so to those of its literal float recurrence too.
    const double growth = std::max(1.0, relative_error<TestType, double>(literal, truth) / 2.5e-7);
    const auto fine = forward<TestType>(layer, x, Precision::bf16x3);
    CHECK(relative_error<TestType, double>(all_of(fine), truth) < 4e-5 * growth);
    const auto coarse = forward<TestType>(layer, x, Precision::bf16);
    CHECK(typical_error<TestType>(coarse, truth) < 2e-2 * growth);
  });
}

TEMPLATE_LIST_TEST_CASE("at each precision the batch and the threads change no bit", "[precision]",
                        support::TestScalars) {
  if (!uses_matrix_units<TestType>()) return;
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    // A last block of time of one token in five rows, which one row alone does not have.
    const auto x = layer.random_input(5, 65, 6);
    for (const Precision precision : {Precision::bf16x3, Precision::bf16}) {
      INFO(layer.text() << " precision " << static_cast<int>(precision));
      const auto y = forward<TestType>(layer, x, precision);
      for (const int threads : {1, 2, 3}) {
        ThreadExecutor executor(threads);
        CHECK(same_bits(forward<TestType>(layer, x, precision, &executor).view(), y.view()));
      }
      for (Index row = 0; row < 5; ++row) {
        const auto alone = forward<TestType>(layer, x.view().template slice<0>(row, 1), precision);
        CHECK(same_bits(alone.view()[0], y.view()[row]));
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("without matrix units each precision is fp32", "[precision]",
                        support::TestScalars) {
  if (uses_matrix_units<TestType>()) return;
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    const auto x = layer.random_input(2, 70, 5);
    const auto expected = forward<TestType>(layer, x, Precision::fp32);
    for (const Precision precision : {Precision::bf16x3, Precision::bf16}) {
      CHECK(same_bits(forward<TestType>(layer, x, precision).view(), expected.view()));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a step is fp32 at each precision", "[precision]", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    if (!layer.continues()) return;
    INFO(layer.text());
    const auto x = layer.random_input(2, 3, 7);
    const auto steps = [&](Precision precision) {
      Context context;
      context.set_precision(precision);
      auto state = layer.make_state(2, 3);
      Tensor<TestType, 3> y(x.shape());
      for (Index t = 0; t < 3; ++t) {
        layer.step(x.view().template at<1>(t), state, y.view().template at<1>(t), context);
      }
      CHECK(context.precision() == precision);
      return y;
    };
    const auto expected = steps(Precision::fp32);
    CHECK(same_bits(steps(Precision::bf16x3).view(), expected.view()));
    CHECK(same_bits(steps(Precision::bf16).view(), expected.view()));
  });
}
