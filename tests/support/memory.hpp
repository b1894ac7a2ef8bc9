#pragma once

#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <string>

#include "seqmix/core/call.hpp"
#include "seqmix/core/tensor.hpp"
#include "support/compare.hpp"

// What tests of kernels share whose heads keep a memory [K, V].

namespace support {

/// B rows of T tokens; H heads in G groups.
struct MemorySizes {
  Index B = 1, T = 1, H = 1, G = 1, K = 1, V = 1;
};
inline std::string text(const MemorySizes& n, auto decay, seqmix::Algorithm algorithm) {
  return "B T H G K V = " + seqmix::Shape<6>{n.B, n.T, n.H, n.G, n.K, n.V}.text() + ", decay " +
         std::to_string(static_cast<int>(decay)) + ", algorithm " +
         std::to_string(static_cast<int>(algorithm));
}

inline constexpr seqmix::Algorithm algorithms[] = {seqmix::Algorithm::recurrent,
                                                   seqmix::Algorithm::chunked};

template <class S>
struct MemoryResult {
  seqmix::Tensor<S, 4> o, state;  // [B, T, H, V], [B, H, K, V]

  bool operator==(const MemoryResult& other) const {
    return same_bits(o.view(), other.o.view()) && same_bits(state.view(), other.state.view());
  }
};

/// Outputs full of NaN and a copy of the problem's memories.
template <template <class> class Problem, class S>
MemoryResult<S> fresh(const Problem<S>& p) {
  MemoryResult<S> result{seqmix::Tensor<S, 4>(p.v.shape()), p.state};
  fill(result.o.view(), std::numeric_limits<S>::quiet_NaN());
  return result;
}

/// A recurrence in R: `token(b, t, h, memory, o)`, memory [K, V] and o [V], in order of time.
template <class R>
MemoryResult<R> recurrence(const auto& problem, auto&& token) {
  MemoryResult<R> result{seqmix::Tensor<R, 4>(problem.v.shape()),
                         seqmix::Tensor<R, 4>(problem.state.shape())};
  copy(problem.state.view(), result.state.view());
  for (Index b = 0; b < problem.v.extent(0); ++b) {
    for (Index h = 0; h < problem.v.extent(2); ++h) {
      const View<R, 2> memory = result.state.view()[b][h];
      for (Index t = 0; t < problem.v.extent(1); ++t) {
        token(b, t, h, memory, result.o.view()[b][t][h]);
      }
    }
  }
  return result;
}

template <class S, class R>
double error(const seqmix::Tensor<S, 4>& got, const seqmix::Tensor<R, 4>& expected) {
  return relative_error(got.view(), expected.view());
}
template <class S>
void check_within(double bound, const MemoryResult<S>& got, const MemoryResult<double>& expected) {
  CHECK(error(got.o, expected.o) <= bound);
  CHECK(error(got.state, expected.state) <= bound);
}
/// The law: at most twice the error of the literal recurrence in S, plus 4 eps.
template <class S>
void check_law(const MemoryResult<S>& got, const MemoryResult<S>& twin,
               const MemoryResult<double>& expected) {
  const double slack = 4 * static_cast<double>(std::numeric_limits<S>::epsilon());
  CHECK(error(got.o, expected.o) <= 2 * error(twin.o, expected.o) + slack);
  CHECK(error(got.state, expected.state) <= 2 * error(twin.state, expected.state) + slack);
}

}  // namespace support
