#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <limits>

#include "seqmix/kernels/product/matmul.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

/// What `Precision` promises of a product of N(0, 1) numbers.
double bound(Precision precision) { return precision == Precision::bf16 ? 4e-3 : 2e-5; }

/// x wᵀ (+ bias) (+ y) in double: x [M, K], w [N, K], bias [N], y [M, N].
Tensor<double, 2> product(View<const float, 2> x, View<const float, 2> w, const float* bias,
                          const Tensor<float, 2>* y) {
  Tensor<double, 2> result({x.extent(0), w.extent(0)});
  for (Index m = 0; m < x.extent(0); ++m) {
    for (Index n = 0; n < w.extent(0); ++n) {
      double sum = (bias ? bias[n] : 0.0) + (y ? (*y)(m, n) : 0.0);
      for (Index k = 0; k < x.extent(1); ++k) {
        sum += static_cast<double>(x(m, k)) * static_cast<double>(w(n, k));
      }
      result(m, n) = sum;
    }
  }
  return result;
}

template <class S>
Tensor<S, 2> matmul_at(Precision precision, View<const S, 2> x, const PackedMatrix<S>& w,
                       const S* bias = nullptr, Executor* executor = nullptr) {
  Context context = executor ? Context(*executor) : Context();
  context.set_precision(precision);
  Tensor<S, 2> y({x.extent(0), w.rows()});
  fill(y.view(), std::numeric_limits<S>::quiet_NaN());
  matmul<S>(x, w, y.view(), TestCall(context), bias);
  return y;
}

View<const float, 2> tokens(const Tensor<float, 2>& y, Index first, Index count) {
  return y.view().slice(axis::time, first, count);
}

}  // namespace

TEST_CASE("products on matrix units are as near as their precision says", "[precision]") {
  const auto precision = GENERATE(Precision::bf16x3, Precision::bf16);
  struct Sizes {
    Index M, K, N;
  };
  const auto [M, K, N] =
      GENERATE(Sizes{32, 64, 32}, Sizes{1, 64, 70}, Sizes{2, 65, 33}, Sizes{31, 127, 31},
               Sizes{33, 96, 65}, Sizes{64, 512, 70}, Sizes{47, 1023, 100}, Sizes{70, 1024, 31},
               Sizes{40, 1025, 64}, Sizes{33, 2500, 48}, Sizes{64, 4096, 32});
  const bool with_bias = GENERATE(false, true), accumulate = GENERATE(false, true);
  CAPTURE(precision, M, K, N, with_bias, accumulate);
  const auto x = random_tensor<float, 2>({M, K}, 1), w = random_tensor<float, 2>({N, K}, 2);
  const auto bias = random_tensor<float, 1>({N}, 3);
  const auto before = random_tensor<float, 2>({M, N}, 4);
  Context context;
  context.set_precision(precision);
  auto y = before;
  matmul<float>(x, PackedMatrix<float>(w.view()), y.view(), TestCall(context),
                with_bias ? bias.data() : nullptr, accumulate);
  const auto expected = product(x.view(), w.view(), with_bias ? bias.data() : nullptr,
                                accumulate ? &before : nullptr);
  const double error = relative_error(y.view(), expected.view());
  CHECK(error <= bound(precision));
  if (simd::matrix_units() && precision == Precision::bf16) CHECK(error > 1e-4);
}

TEST_CASE("weights of each storage are multiplied at each precision", "[precision]") {
  const auto precision = GENERATE(Precision::bf16x3, Precision::bf16);
  const auto storage = GENERATE(Storage::bf16, Storage::f16, Storage::int8);
  const Index K = GENERATE(64, 301, 1100);
  CAPTURE(precision, storage, K);
  const auto x = random_tensor<float, 2>({45, K}, 1), w = random_tensor<float, 2>({70, K}, 2);
  const PackedMatrix<float> packed(w.view(), storage);
  const auto y = matmul_at<float>(precision, x.view(), packed);
  const auto expected = product(x.view(), packed.unpack().view(), nullptr, nullptr);
  CHECK(relative_error(y.view(), expected.view()) <= bound(precision));
}

TEST_CASE("matrix units are used where they are, and only there", "[precision]") {
  const auto precision = GENERATE(Precision::bf16x3, Precision::bf16);
  const auto x = random_tensor<float, 2>({40, 70}, 1);
  const PackedMatrix<float> w(random_tensor<float, 2>({50, 70}, 2).view());
  const bool same = same_bits(matmul_at<float>(precision, x.view(), w).view(),
                              matmul_at<float>(Precision::fp32, x.view(), w).view());
  CHECK(same == !simd::matrix_units());

  const auto exact_x = random_tensor<double, 2>({40, 70}, 1);
  const PackedMatrix<double> exact_w(random_tensor<double, 2>({50, 70}, 2).view());
  CHECK(same_bits(matmul_at<double>(precision, exact_x.view(), exact_w).view(),
                  matmul_at<double>(Precision::fp32, exact_x.view(), exact_w).view()));
}

TEST_CASE("the bits of a token do not depend on the others or on threads", "[precision]") {
  const auto precision = GENERATE(Precision::bf16x3, Precision::bf16);
  const Index K = GENERATE(70, 1030), T = 225;
  const auto x = random_tensor<float, 2>({T, K}, 1);
  const auto bias = random_tensor<float, 1>({300}, 3);
  const PackedMatrix<float> w(random_tensor<float, 2>({300, K}, 2).view());
  const auto y = matmul_at<float>(precision, x.view(), w, bias.data());
  for (const Index workers : {1, 2, 3}) {
    support::ThreadExecutor executor(workers);
    CHECK(same_bits(matmul_at<float>(precision, x.view(), w, bias.data(), &executor).view(),
                    y.view()));
  }
  for (const Index first : {0, 1, 17, 32, 74, 75, 150, 224}) {
    for (const Index count : {1, 2, 16, 33, 75}) {
      if (first + count > T) continue;
      CAPTURE(first, count);
      const auto part = matmul_at<float>(precision, tokens(x, first, count), w, bias.data());
      CHECK(same_bits(part.view(), tokens(y, first, count)));
    }
  }
}

TEST_CASE("strided operands of matrix units keep to their numbers", "[precision]") {
  const auto precision = GENERATE(Precision::bf16x3, Precision::bf16);
  const Index T = GENERATE(5, 40, 80), K = 37, N = GENERATE(20, 64);
  constexpr float guard = 7;
  const auto x = random_tensor<float, 2>({T, K}, 1);
  const PackedMatrix<float> w(random_tensor<float, 2>({N, K}, 2).view());
  const auto expected = matmul_at<float>(precision, x.view(), w);

  Tensor<float, 2> wide_x({T + 1, K + 3}), wide_y({T + 2, N + 5});
  fill(wide_x.view(), std::numeric_limits<float>::quiet_NaN());
  const auto strided_x = wide_x.view().slice(axis::time, 1, T).slice(axis::channel, 2, K);
  copy(x.view(), strided_x);
  fill(wide_y.view(), guard);
  const auto strided_y = wide_y.view().slice(axis::time, 1, T).slice(axis::channel, 3, N);
  Context context;
  context.set_precision(precision);
  matmul<float>(strided_x, w, strided_y, TestCall(context));
  CHECK(same_bits(strided_y, expected.view()));

  fill(strided_y, guard);
  Index touched = 0;
  for (Index i = 0; i < wide_y.size(); ++i) touched += wide_y.data()[i] != guard;
  CHECK(touched == 0);
}

TEST_CASE("what is not finite stays in its row", "[precision]") {
  const auto precision = GENERATE(Precision::bf16x3, Precision::bf16);
  const float bad =
      GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  const Index row = GENERATE(0, 15, 16, 33);
  CAPTURE(precision, bad, row);
  auto x = random_tensor<float, 2>({35, 70}, 1);
  const PackedMatrix<float> w(random_tensor<float, 2>({50, 70}, 2).view());
  const auto before = matmul_at<float>(precision, x.view(), w);
  x(row, 69) = bad;
  const auto after = matmul_at<float>(precision, x.view(), w);
  for (Index t = 0; t < 35; ++t) {
    if (t != row) CHECK(same_bits(tokens(after, t, 1), tokens(before, t, 1)));
  }
  Index finite = 0;
  for (Index n = 0; n < 50; ++n) finite += std::isfinite(after(row, n));
  CHECK(finite == 0);
}

TEST_CASE("finite numbers of any size give finite products", "[precision]") {
  const float size = GENERATE(1e-38F, 1e-30F, 1e30F, 3.38e38F);
  auto x = random_tensor<float, 2>({33, 64}, 1);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::copysign(size, x.data()[i]);
  auto w = random_tensor<float, 2>({33, 64}, 2);
  for (Index i = 0; i < w.size(); ++i) w.data()[i] /= 1000;
  const auto y = matmul_at<float>(Precision::bf16x3, x.view(), PackedMatrix<float>(w.view()));
  for (Index i = 0; i < y.size(); ++i) REQUIRE(std::isfinite(y.data()[i]));
}

TEST_CASE("nothing times nothing on matrix units", "[precision]") {
  const auto bias = random_tensor<float, 1>({40}, 3);
  const PackedMatrix<float> w(Tensor<float, 2>({40, 0}).view());
  const auto y =
      matmul_at<float>(Precision::bf16x3, Tensor<float, 2>({6, 0}).view(), w, bias.data());
  for (Index i = 0; i < y.size(); ++i) CHECK(y.data()[i] == bias(i % 40));
  CHECK(matmul_at<float>(Precision::bf16x3, Tensor<float, 2>({0, 0}).view(), w).empty());
}
