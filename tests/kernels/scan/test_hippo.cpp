#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <complex>

#include "seqmix/kernels/scan/hippo.hpp"

using namespace seqmix;
using Complex = std::complex<double>;

namespace {

constexpr HippoMeasure measures[] = {HippoMeasure::legs, HippoMeasure::legt, HippoMeasure::fourier};

Complex number(const View<const double, 1>& parts) { return {parts[0], parts[1]}; }

}  // namespace

TEST_CASE("small HiPPO matrices are the known ones") {
  const double root3 = std::sqrt(3.0), root2 = std::sqrt(2.0);
  const auto legs = hippo(HippoMeasure::legs, 2);
  CHECK(legs.A(0, 0) == -1);
  CHECK(legs.A(0, 1) == 0);
  CHECK(std::abs(legs.A(1, 0) + root3) < 1e-15);
  CHECK(legs.A(1, 1) == -2);
  CHECK(std::abs(legs.B[1] - root3) < 1e-15);
  const auto legt = hippo(HippoMeasure::legt, 2);
  CHECK(legt.A(0, 0) == -0.5);
  CHECK(std::abs(legt.A(0, 1) - root3 / 2) < 1e-15);
  CHECK(std::abs(legt.A(1, 0) + root3 / 2) < 1e-15);
  CHECK(std::abs(legt.A(1, 1) + 1.5) < 1e-15);
  CHECK(legt.B[0] == 0.5);
  const auto fourier = hippo(HippoMeasure::fourier, 4);
  const double expected[4][4] = {{-1, 0, -root2, 0},
                                 {0, 0, 0, 0},
                                 {-root2, 0, -2, -std::numbers::pi},
                                 {0, 0, std::numbers::pi, 0}};
  for (Index i = 0; i < 4; ++i) {
    for (Index j = 0; j < 4; ++j) CHECK(std::abs(fourier.A(i, j) - expected[i][j]) < 1e-15);
  }
}

TEST_CASE("HiPPO-LegS keeps the coefficients of a constant") {
  const auto system = hippo(HippoMeasure::legs, 17);
  for (Index i = 0; i < 17; ++i) CHECK(std::abs(system.A(i, 0) + system.B[i]) < 1e-14);
}

TEST_CASE("the correction leaves a multiple of 1 plus a skew-symmetric matrix") {
  for (const HippoMeasure measure : measures) {
    const Index N = 16;
    const auto A = hippo(measure, N).A;
    const auto P = hippo_correction(measure, N);
    const auto normal = [&](Index i, Index j) {
      double sum = A(i, j);
      for (Index r = 0; r < P.extent(0); ++r) sum += P(r, i) * P(r, j);
      return sum;
    };
    const double real = measure == HippoMeasure::legs ? -0.5 : 0;
    for (Index i = 0; i < N; ++i) {
      for (Index j = 0; j < N; ++j) {
        CHECK(std::abs(normal(i, j) + normal(j, i) - (i == j ? 2 * real : 0)) < 1e-13);
      }
    }
  }
}

TEST_CASE("diagonal plus low rank is the HiPPO matrix in another basis") {
  for (const HippoMeasure measure : measures) {
    for (const Index N : {2, 6, 32}) {
      const auto system = hippo(measure, N);
      const auto dplr = hippo_dplr(measure, N);
      double error = 0, norm = 0;
      for (Index i = 0; i < N; ++i) {
        Complex b = 0;
        for (Index n = 0; n < N / 2; ++n) {
          b += 2 * (number(dplr.V.view()[i][n]) * number(dplr.B.view()[n])).real();
        }
        CHECK(std::abs(b - system.B[i]) < 1e-12);
        for (Index j = 0; j < N; ++j) {
          double sum = 0;
          for (Index n = 0; n < N / 2; ++n) {
            sum += 2 * (number(dplr.V.view()[i][n]) * number(dplr.lambda.view()[n]) *
                        std::conj(number(dplr.V.view()[j][n])))
                           .real();
          }
          for (Index r = 0; r < dplr.P.extent(0); ++r) {
            double left = 0, right = 0;
            for (Index n = 0; n < N / 2; ++n) {
              const Complex p = number(dplr.P.view()[r][n]);
              left += 2 * (number(dplr.V.view()[i][n]) * p).real();
              right += 2 * (number(dplr.V.view()[j][n]) * p).real();
            }
            sum -= left * right;
          }
          error += (sum - system.A(i, j)) * (sum - system.A(i, j));
          norm += system.A(i, j) * system.A(i, j);
        }
      }
      CHECK(std::sqrt(error / norm) < 1e-13);
    }
  }
  CHECK_THROWS_AS(hippo_dplr(HippoMeasure::legs, 3), ShapeError);
}

TEST_CASE("diagonal systems start where S4D says") {
  const auto linear = diagonal_start(DiagonalStart::linear, 8);
  CHECK(linear(3, 0) == -0.5);
  CHECK(std::abs(linear(3, 1) - 3 * std::numbers::pi) < 1e-14);
  const auto inverse = diagonal_start(DiagonalStart::inverse, 8);
  CHECK(std::abs(inverse(0, 1) - 56 / std::numbers::pi) < 1e-13);
  CHECK(std::abs(inverse(1, 1) - 8 / std::numbers::pi * (8.0 / 3 - 1)) < 1e-13);
  const auto real = diagonal_start(DiagonalStart::real, 8);
  CHECK(real(3, 0) == -4);
  CHECK(real(3, 1) == 0);
  // The largest frequency of LegS grows as N² / π, which `inverse` imitates.
  const auto legs = diagonal_start(DiagonalStart::legs, 64);
  CHECK(std::abs(legs(0, 0) + 0.5) < 1e-14);
  CHECK(std::abs(legs(0, 1) - 64 * 63 / std::numbers::pi) < 0.1 * legs(0, 1));
}
