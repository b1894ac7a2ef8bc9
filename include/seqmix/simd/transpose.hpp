#pragma once

#include <cstring>
#include <utility>

#include "seqmix/simd/batch.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {

/// A square of numbers whose rows are registers, so that the compiler sees each of them.
template <class S, Index side>
struct Square {
  // g++ ignores the attribute in a `using` that depends on S.
  typedef S Row __attribute__((vector_size(side * sizeof(S))));
  Row rows[side];

  void load(const S* from, Index stride) {
#pragma GCC unroll 16
    for (Index i = 0; i < side; ++i) std::memcpy(&rows[i], from + i * stride, sizeof(Row));
  }
  void store(S* to, Index stride) const {
#pragma GCC unroll 16
    for (Index i = 0; i < side; ++i) std::memcpy(to + i * stride, &rows[i], sizeof(Row));
  }
  void load_row(Index i, const S* from) { std::memcpy(&rows[i], from, sizeof(Row)); }
  /// Of a square as wide as a register.
  Batch<S> row(Index i) const { return simd::load<S>(reinterpret_cast<const S*>(&rows[i])); }
  /// Rows i and i + side / 2 by turns, as often as there are bits in the number of a row.
  void transpose() { halves_by_turns(std::make_integer_sequence<int, side>{}); }

 private:
  template <int... lane>
  void halves_by_turns(std::integer_sequence<int, lane...>) {
    constexpr int n = static_cast<int>(side);
#pragma GCC unroll 4
    for (Index bit = 1; bit < side; bit *= 2) {
      Row next[side];
#pragma GCC unroll 8
      for (Index i = 0; i < side / 2; ++i) {
        const Row a = rows[i], b = rows[i + side / 2];
        next[2 * i] = __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * n)...);
        next[2 * i + 1] = __builtin_shufflevector(a, b, (n / 2 + lane / 2 + lane % 2 * n)...);
      }
#pragma GCC unroll 16
      for (Index i = 0; i < side; ++i) rows[i] = next[i];
    }
  }
};

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix
