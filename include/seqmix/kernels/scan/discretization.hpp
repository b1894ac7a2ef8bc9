#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <utility>
#include <vector>

#include "seqmix/core/numeric.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// One input, one output, continuous in time: x' = A x + B u, y = 2 Re(C x), where
/// A = diag(λ) - P P*. Each member holds one of every pair of conjugate states.
struct ContinuousSystem {
  std::vector<std::complex<double>> lambda, B, C;
  std::vector<std::complex<double>> P;  // empty where A is diagonal
  double dt = 0;                        // the time between two tokens
};

/// The same at each token: x_t = F ⊙ x_{t-1} - G Re(M·x_{t-1}) + B u_t, y_t = Re(C·x_t). M and C
/// have the factor 2 of the conjugate states in them. G and M are empty where A is diagonal.
struct DiscreteSystem {
  std::vector<std::complex<double>> F, B, C, G, M;

  std::size_t states() const { return F.size(); }
};

/// The input is held between tokens: F = exp(λ dt), B̄ = (exp(λ dt) - 1) / λ B. A must be diagonal.
inline DiscreteSystem discretize_zoh(const ContinuousSystem& system) {
  DiscreteSystem result;
  for (std::size_t n = 0; n < system.lambda.size(); ++n) {
    const double decay = system.lambda[n].real() * system.dt;
    const double angle = system.lambda[n].imag() * system.dt, half = std::sin(angle / 2);
    // exp(z) - 1 without the cancellation at small z.
    const std::complex<double> growth(std::expm1(decay) * std::cos(angle) - 2 * half * half,
                                      std::exp(decay) * std::sin(angle));
    const std::complex<double> z(decay, angle);
    const auto mean = z == 0.0 ? std::complex<double>(1) : growth / z;
    result.F.push_back(std::polar(std::exp(decay), angle));
    result.B.push_back(mean * system.dt * system.B[n]);
    result.C.push_back(2.0 * system.C[n]);
  }
  return result;
}

/// The bilinear transform: Ā = (1 - dt/2 A)^{-1} (1 + dt/2 A), B̄ = (1 - dt/2 A)^{-1} dt B.
///
/// Of a diagonal matrix minus one of rank 1 it is another such, by Woodbury's identity: with
/// D = 1 / (2/dt - λ), ρ = 1 + P* D P and sums over all states, conjugates included,
///
///   Ā = diag(D (2/dt + λ)) - (D P) (4 / (dt ρ) P* D),     B̄ = 2 D B - D P (2/ρ) (P* D B)
inline DiscreteSystem discretize_bilinear(const ContinuousSystem& system) {
  DiscreteSystem result;
  const double rate = 2 / system.dt;
  double rho = 1, input = 0;
  for (std::size_t n = 0; n < system.P.size(); ++n) {
    const auto left = std::conj(system.P[n]) / (rate - system.lambda[n]);
    rho += 2 * (left * system.P[n]).real();
    input += 2 * (left * system.B[n]).real();
  }
  for (std::size_t n = 0; n < system.lambda.size(); ++n) {
    const auto D = 1.0 / (rate - system.lambda[n]);
    result.F.push_back(D * (rate + system.lambda[n]));
    result.B.push_back(2.0 * D * system.B[n]);
    result.C.push_back(2.0 * system.C[n]);
    if (system.P.empty()) continue;
    result.G.push_back(D * system.P[n]);
    result.M.push_back(4 * rate / rho * std::conj(system.P[n]) * D);
    result.B.back() -= result.G.back() * (2 * input / rho);
  }
  return result;
}

namespace detail {

/// A square matrix of real numbers, row by row.
struct SquareMatrix {
  std::size_t size;
  std::vector<double> numbers;

  explicit SquareMatrix(std::size_t extent) : size(extent), numbers(extent * extent) {}
  double* row(std::size_t i) { return numbers.data() + i * size; }
  const double* row(std::size_t i) const { return numbers.data() + i * size; }

  friend SquareMatrix operator*(const SquareMatrix& a, const SquareMatrix& b) {
    SquareMatrix result(a.size);
    for (std::size_t i = 0; i < a.size; ++i) {
      double* const to = result.row(i);
      for (std::size_t k = 0; k < a.size; ++k) {
        const double factor = a.row(i)[k];
        const double* const from = b.row(k);
        for (std::size_t j = 0; j < a.size; ++j) to[j] += factor * from[j];
      }
    }
    return result;
  }
};

/// x of A x = b, by elimination with pivots of the largest magnitude in their column.
inline std::vector<double> solve(SquareMatrix A, std::vector<double> b) {
  const std::size_t size = A.size;
  for (std::size_t k = 0; k < size; ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k + 1; i < size; ++i) {
      if (std::abs(A.row(i)[k]) > std::abs(A.row(pivot)[k])) pivot = i;
    }
    std::swap_ranges(A.row(k), A.row(k) + size, A.row(pivot));
    std::swap(b[k], b[pivot]);
    for (std::size_t i = k + 1; i < size; ++i) {
      const double factor = A.row(i)[k] / A.row(k)[k];
      for (std::size_t j = k; j < size; ++j) A.row(i)[j] -= factor * A.row(k)[j];
      b[i] -= factor * b[k];
    }
  }
  for (std::size_t k = size; k-- > 0;) {
    for (std::size_t j = k + 1; j < size; ++j) b[k] -= A.row(k)[j] * b[j];
    b[k] /= A.row(k)[k];
  }
  return b;
}

/// Ā as it acts on real and imaginary parts, [2 N, 2 N], transposed.
inline SquareMatrix transposed_real_form(const DiscreteSystem& system) {
  const std::size_t N = system.states();
  SquareMatrix result(2 * N);
  for (std::size_t n = 0; n < N; ++n) {  // column n of Ā is the image of state n
    result.row(n)[n] = result.row(N + n)[N + n] = system.F[n].real();
    result.row(n)[N + n] = system.F[n].imag(), result.row(N + n)[n] = -system.F[n].imag();
    if (system.G.empty()) continue;
    for (std::size_t m = 0; m < N; ++m) {
      result.row(n)[m] -= system.G[m].real() * system.M[n].real();
      result.row(n)[N + m] -= system.G[m].imag() * system.M[n].real();
      result.row(N + n)[m] += system.G[m].real() * system.M[n].imag();
      result.row(N + n)[N + m] += system.G[m].imag() * system.M[n].imag();
    }
  }
  return result;
}

}  // namespace detail

/// Gives a system its own C where it holds C (1 - Ā^length), the output of an impulse response that
/// is cut after `length` tokens.
inline void undo_truncation(DiscreteSystem& system, Index length) {
  const std::size_t N = system.states();
  detail::SquareMatrix power = detail::transposed_real_form(system), factor(2 * N);
  for (std::size_t i = 0; i < 2 * N; ++i) factor.row(i)[i] = 1;
  for (; length > 0; length /= 2) {
    if (length % 2 == 1) factor = factor * power;
    if (length > 1) power = power * power;
  }
  std::vector<double> c(2 * N);  // Re(C·x) as a row: Re C, -Im C
  for (std::size_t n = 0; n < N; ++n) c[n] = system.C[n].real(), c[N + n] = -system.C[n].imag();
  for (double& number : factor.numbers) number = -number;
  for (std::size_t i = 0; i < 2 * N; ++i) factor.row(i)[i] += 1;
  c = detail::solve(std::move(factor), std::move(c));
  for (std::size_t n = 0; n < N; ++n) system.C[n] = {c[n], -c[N + n]};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
