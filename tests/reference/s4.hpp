#pragma once

#include <cmath>
#include <complex>

#include "reference/s4d.hpp"
#include "reference/twin.hpp"

namespace reference {

/// A square matrix of all states, conjugates included.
using DenseMatrix = std::vector<std::vector<std::complex<long double>>>;

inline DenseMatrix product(const DenseMatrix& a, const DenseMatrix& b) {
  DenseMatrix result(a.size(), std::vector<std::complex<long double>>(b[0].size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t k = 0; k < b.size(); ++k) {
      for (std::size_t j = 0; j < b[0].size(); ++j) result[i][j] += a[i][k] * b[k][j];
    }
  }
  return result;
}

/// X of A X = B, by Gauss and Jordan.
inline DenseMatrix dense_solve(DenseMatrix A, DenseMatrix B) {
  for (std::size_t k = 0; k < A.size(); ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k; i < A.size(); ++i) {
      if (std::abs(A[i][k]) > std::abs(A[pivot][k])) pivot = i;
    }
    std::swap(A[k], A[pivot]), std::swap(B[k], B[pivot]);
    for (std::size_t i = 0; i < A.size(); ++i) {
      if (i == k) continue;
      const auto factor = A[i][k] / A[k][k];
      for (std::size_t j = k; j < A.size(); ++j) A[i][j] -= factor * A[k][j];
      for (std::size_t j = 0; j < B[0].size(); ++j) B[i][j] -= factor * B[k][j];
    }
  }
  for (std::size_t k = 0; k < A.size(); ++k) {
    for (auto& number : B[k]) number /= A[k][k];
  }
  return B;
}

/// Gu et al. 2021, arXiv:2111.00396, section 2.3, with dense matrices of all states. They are
/// constants and formed in long double; the recurrence runs in S.
template <class S>
Output<S> s4(const Input<S>& in) {
  using Exact = std::complex<long double>;
  const Index D = in.size("d_model"), N = in.size("state_size") / 2, copies = in.size("n_ssm");
  const std::size_t size = 2 * static_cast<std::size_t>(N);
  Output<S> out{in.x, {}};
  Array<S> ssm({in.B(), N, 2, D}), mixed({in.B(), in.T(), D});
  for (Index d = 0; d < D; ++d) {
    const auto all = [&](auto&& of_state) {
      std::vector<Exact> numbers(size);
      for (std::size_t n = 0; n < size; ++n) {
        const Exact number = of_state(static_cast<Index>(n) % N);
        numbers[n] = static_cast<Index>(n) < N ? number : std::conj(number);
      }
      return numbers;
    };
    const auto stored = [&](const char* name, Index i) {
      return all([&, i](Index n) {
        return Exact(in.weight(name)(0, i, n, 0), in.weight(name)(0, i, n, 1));
      });
    };
    const Index copy = d % copies;
    const auto lambda = all([&](Index n) {
      return Exact(-std::exp(static_cast<long double>(in.weight("kernel.A_real")(copy, n))),
                   -static_cast<long double>(in.weight("kernel.A_imag")(copy, n)));
    });
    const auto P = stored("kernel.P", copy), B = stored("kernel.B", copy),
               C = stored("kernel.C", d);
    const long double dt = std::exp(static_cast<long double>(in.weight("kernel.inv_dt")(d, 0)));
    DenseMatrix minus(size, std::vector<Exact>(size)), plus = minus, column(size), unit = minus;
    for (std::size_t i = 0; i < size; ++i) {
      for (std::size_t j = 0; j < size; ++j) {
        const Exact A = (i == j ? lambda[i] : Exact(0)) - P[i] * std::conj(P[j]);
        unit[i][j] = i == j ? Exact(1) : Exact(0);
        minus[i][j] = unit[i][j] - dt / 2 * A, plus[i][j] = unit[i][j] + dt / 2 * A;
      }
      column[i] = {dt * B[i]};
    }
    const DenseMatrix decay = dense_solve(minus, plus), input = dense_solve(minus, column);
    DenseMatrix output(size);
    for (std::size_t n = 0; n < size; ++n) output[n] = {C[n]};
    if (in.size("l_kernel") > 0) {
      DenseMatrix power = unit, rest = unit;
      for (Index l = 0; l < in.size("l_kernel"); ++l) power = product(power, decay);
      for (std::size_t i = 0; i < size; ++i) {
        for (std::size_t j = 0; j < size; ++j) rest[i][j] -= power[j][i];
      }
      output = dense_solve(rest, output);
    }
    const S skip = in.weight("D")(0, d);
    for (Index b = 0; b < in.B(); ++b) {
      std::vector<std::complex<S>> x(size);
      for (Index t = 0; t < in.T(); ++t) {
        const S now = in.x(b, t, d);
        std::vector<std::complex<S>> next(size);
        std::complex<S> sum = 0;
        for (std::size_t i = 0; i < size; ++i) {
          for (std::size_t j = 0; j < size; ++j) next[i] += std::complex<S>(decay[i][j]) * x[j];
          next[i] += std::complex<S>(input[i][0]) * now;
          sum += std::complex<S>(output[i][0]) * next[i];
        }
        x = next;
        mixed(b, t, d) = sum.real() + skip * now;
      }
      for (Index n = 0; n < N; ++n) {
        ssm(b, n, 0, d) = x[static_cast<std::size_t>(n)].real();
        ssm(b, n, 1, d) = x[static_cast<std::size_t>(n)].imag();
      }
    }
  }
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      set_token(out.y, b, t, state_space_output(in, token(mixed, b, t)));
    }
  }
  out.state = {{"ssm", ssm}};
  return out;
}

inline const std::vector<std::string> s4_configs{
    R"({"d_model": 16, "state_size": 16, "n_ssm": 16, "l_kernel": 0})",
    R"({"d_model": 9, "state_size": 10, "n_ssm": 3, "l_kernel": 37})",
    R"({"d_model": 129, "state_size": 2, "n_ssm": 1, "l_kernel": 64})"};

}  // namespace reference
