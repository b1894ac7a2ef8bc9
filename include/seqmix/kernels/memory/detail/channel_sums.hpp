#pragma once

#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/reduce.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// to[i] = sums[i] over all channels, where `add(channel, lane_count, sums)` adds those of a
/// register of them. `count` is a multiple of the lanes.
template <class S, Index count>
SEQMIX_ALWAYS_INLINE void sum_channels(Index channels, S* to, auto&& add) {
  static_assert(count % simd::lanes<S> == 0);
  simd::Batch<S> sums[count];
#pragma GCC unroll 16
  for (Index i = 0; i < count; ++i) sums[i] = simd::broadcast(S(0));
  simd::for_each_block<S>(
      channels, [&](Index channel, auto lane_count)
                    __attribute__((always_inline)) { add(channel, lane_count, sums); });
  for (Index i = 0; i < count; i += simd::lanes<S>) {
    simd::store<S>(to + i, simd::reduce_add_each<S>(sums + i));
  }
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
