#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>
#include <string>

#include "seqmix/core/tensor.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Measures of the past whose optimal polynomial coefficients a HiPPO system x' = A x + B u tracks:
/// all of it alike (`legs`, in scaled time), a sliding window in Legendre polynomials (`legt`) or
/// in Fourier's functions (`fourier`). Time as in state-spaces/s4, where `legt` and `fourier` are
/// half of Gu et al. 2020, arXiv:2008.07669, theorem 1.
enum class HippoMeasure { legs, legt, fourier };

/// A [N, N] and B [N].
struct HippoSystem {
  Tensor<double, 2> A;
  Tensor<double, 1> B;
};

/// The system of a measure in N states.
///
///   legs     A_ij = -sqrt((2i+1)(2j+1)) for i > j, -(i+1) for i = j, 0 above; B_i = sqrt(2i+1)
///   legt     A_ij = -½ sqrt((2i+1)(2j+1)) (i < j ? (-1)^{i-j} : 1);          B_i = ½ sqrt(2i+1)
///   fourier  A = R - B Bᵀ, R the rotations of cosine and sine n at the rate π n;
///            B_0 = 1, B_{2n} = sqrt(2), B_{2n+1} = 0
inline HippoSystem hippo(HippoMeasure measure, Index N) {
  HippoSystem result{Tensor<double, 2>({N, N}), Tensor<double, 1>({N})};
  const auto root = [](Index i) { return std::sqrt(2 * static_cast<double>(i) + 1); };
  const auto sign = [](Index i) { return i % 2 == 0 ? 1.0 : -1.0; };
  for (Index i = 0; i < N; ++i) {
    switch (measure) {
      case HippoMeasure::legs:
        result.B[i] = root(i);
        break;
      case HippoMeasure::legt:
        result.B[i] = root(i) / 2;
        break;
      case HippoMeasure::fourier:
        result.B[i] = i == 0 ? 1 : i % 2 == 0 ? std::numbers::sqrt2 : 0;
        break;
    }
  }
  for (Index i = 0; i < N; ++i) {
    for (Index j = 0; j < N; ++j) {
      double& to = result.A(i, j);
      switch (measure) {
        case HippoMeasure::legs:
          to = i > j ? -root(i) * root(j) : i == j ? -static_cast<double>(i + 1) : 0;
          break;
        case HippoMeasure::legt:
          to = -root(i) * root(j) / 2 * (i < j ? sign(j - i) : 1);
          break;
        case HippoMeasure::fourier: {
          const double rate = std::numbers::pi * static_cast<double>(i / 2);
          const double rotation = i / 2 != j / 2 || i == j ? 0 : i < j ? -rate : rate;
          to = rotation - result.B[i] * result.B[j];
          break;
        }
      }
    }
  }
  return result;
}

/// The vectors P [rank, N] for which A + Σ P Pᵀ is a multiple of 1 plus a skew-symmetric matrix:
/// one of `legs` and `fourier`, two of `legt`.
inline Tensor<double, 2> hippo_correction(HippoMeasure measure, Index N) {
  Tensor<double, 2> P({measure == HippoMeasure::legt ? 2 : 1, N});
  for (Index i = 0; i < N; ++i) {
    const double root = std::sqrt(static_cast<double>(i) + 0.5);
    switch (measure) {
      case HippoMeasure::legs:
        P(0, i) = root;
        break;
      case HippoMeasure::legt:  // odd numbers in the first vector, even ones in the second
        P(1 - i % 2, i) = root;
        break;
      case HippoMeasure::fourier:
        P(0, i) = i == 0 ? 1 : i % 2 == 0 ? std::numbers::sqrt2 : 0;
        break;
    }
  }
  return P;
}

/// A = V (diag(λ) - Σ P P*) V* over all states: these are the N / 2 with Im λ <= 0, the others
/// their conjugates. B is V* B, P is V* P. The last axis holds real and imaginary parts.
struct DiagonalPlusLowRank {
  Tensor<double, 2> lambda;  // [N / 2, 2], ascending imaginary parts
  Tensor<double, 3> P;       // [rank, N / 2, 2]
  Tensor<double, 2> B;       // [N / 2, 2]
  Tensor<double, 3> V;       // [N, N / 2, 2]
};

/// A HiPPO system in the basis of its normal part. N must be even.
///
/// Its eigenvectors are fixed up to a phase each, which the products P P*, B P* and B C do not
/// show.
inline DiagonalPlusLowRank hippo_dplr(HippoMeasure measure, Index N) {
  if (N < 2 || N % 2 != 0) {
    throw ShapeError("hippo_dplr: " + std::to_string(N) + " states, expected an even number");
  }
  using Complex = std::complex<double>;
  const HippoSystem system = hippo(measure, N);
  const Tensor<double, 2> P = hippo_correction(measure, N);
  const Index half = N / 2, rank = P.extent(0);
  double mean = 0;                  // the multiple of 1 in the normal part
  Eigen::MatrixXcd rotation(N, N);  // -i times the rest: Hermitian
  for (Index j = 0; j < N; ++j) {
    for (Index i = 0; i < N; ++i) {
      double normal = system.A(i, j);
      for (Index r = 0; r < rank; ++r) normal += P(r, i) * P(r, j);
      if (i == j) mean += normal / static_cast<double>(N);
      rotation(i, j) = Complex(0, i == j ? 0 : -normal);
    }
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXcd> solver(rotation);
  if (solver.info() != Eigen::Success) throw Error("hippo_dplr: the eigenvalues do not converge");
  const Eigen::VectorXd& values = solver.eigenvalues();  // ascending
  Eigen::MatrixXcd vectors = solver.eigenvectors();
  // Fourier's constant and its partner share the eigenvalue 0: any basis of the two may come out,
  // but a vector and its conjugate must span them.
  if (measure == HippoMeasure::fourier) {
    vectors.col(half - 1).setZero();
    vectors(0, half - 1) = 1 / std::numbers::sqrt2;
    vectors(1, half - 1) = Complex(0, 1 / std::numbers::sqrt2);
  }
  DiagonalPlusLowRank result{Tensor<double, 2>({half, 2}), Tensor<double, 3>({rank, half, 2}),
                             Tensor<double, 2>({half, 2}), Tensor<double, 3>({N, half, 2})};
  const auto put = [](auto&& to, Complex value) { to[0] = value.real(), to[1] = value.imag(); };
  for (Index n = 0; n < half; ++n) {
    put(result.lambda.view()[n], Complex(mean, std::min(values[n], 0.0)));
    const auto project_on = [&](const View<const double, 1>& numbers) {
      Complex sum = 0;
      for (Index i = 0; i < N; ++i) sum += std::conj(vectors(i, n)) * numbers[i];
      return sum;
    };
    put(result.B.view()[n], project_on(system.B));
    for (Index r = 0; r < rank; ++r) put(result.P.view()[r][n], project_on(P[r]));
    for (Index i = 0; i < N; ++i) put(result.V.view()[i][n], vectors(i, n));
  }
  return result;
}

/// The starting points of diagonal systems, S4D of Gu et al. 2022, arXiv:2206.11893, section 4.
enum class DiagonalStart { linear, inverse, legs, real };

/// λ [N / 2, {re, im}], Im λ >= 0, of N states that are N / 2 conjugate pairs.
///
///   linear    -½ + i π n                       inverse   -½ + i (N / π) (N / (2n + 1) - 1)
///   legs      of the normal part of HiPPO's    real      -(n + 1)
inline Tensor<double, 2> diagonal_start(DiagonalStart start, Index N) {
  Tensor<double, 2> lambda({N / 2, 2});
  if (start == DiagonalStart::legs) {
    lambda = hippo_dplr(HippoMeasure::legs, N).lambda;
    for (Index n = 0; n < N / 2; ++n) lambda(n, 1) = -lambda(n, 1);
    return lambda;
  }
  const double size = static_cast<double>(N);
  for (Index n = 0; n < N / 2; ++n) {
    const double number = static_cast<double>(n);
    lambda(n, 0) = start == DiagonalStart::real ? -(number + 1) : -0.5;
    if (start == DiagonalStart::linear) lambda(n, 1) = std::numbers::pi * number;
    if (start == DiagonalStart::inverse) {
      lambda(n, 1) = size / std::numbers::pi * (size / (2 * number + 1) - 1);
    }
  }
  return lambda;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
