#pragma once

#include <bit>
#include <cstddef>
#include <utility>

#include "seqmix/simd/batch.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {
namespace detail {

// g++ ignores the attribute in a `using` that depends on S.
template <class S>
struct LanesOf {
  typedef S type __attribute__((vector_size(sizeof(Batch<S>))));
};

/// Adds lanes `distance` apart: lane i becomes such a sum of `a`, of `b` where i has that bit set.
template <Index distance, class Lanes, std::size_t... lane>
SEQMIX_ALWAYS_INLINE void fold(Lanes& a, const Lanes& b, std::index_sequence<lane...>) {
  constexpr std::size_t count = sizeof...(lane), bit = distance;
  a = __builtin_shufflevector(a, b, (lane & bit ? lane + count : lane)...) +
      __builtin_shufflevector(a, b, (lane & bit ? (lane ^ bit) + count : lane ^ bit)...);
}

template <Index distance, class Lanes, class Every>
SEQMIX_ALWAYS_INLINE void fold_all(Lanes* rows, Every every) {
#pragma GCC unroll 16
  for (Index i = 0; i < distance; ++i) fold<distance>(rows[i], rows[i + distance], every);
  if constexpr (distance > 1) fold_all<distance / 2>(rows, every);
}

}  // namespace detail

/// Lane i is the sum of the lanes of rows[i], in an order that is fixed by the width alone. All
/// sums together take as many additions as one register has lanes.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> reduce_add_each(const Batch<S>* rows) {
  constexpr auto count = static_cast<std::size_t>(lanes<S>);
  using Lanes = typename detail::LanesOf<S>::type;
  Lanes folded[count];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < count; ++i) folded[i] = std::bit_cast<Lanes>(rows[i]);
  detail::fold_all<lanes<S> / 2>(folded, std::make_index_sequence<count>{});
  return std::bit_cast<Batch<S>>(folded[0]);
}

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix
