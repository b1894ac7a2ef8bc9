#pragma once

#include "seqmix/simd/batch.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {

/// Calls `body(offset, lane_count)` for the blocks of [0, count). `lane_count` is `Full<S>`, but an
/// `Index` for a shorter last block, where it makes `load` and `store` partial: one body serves
/// both.
template <class S>
SEQMIX_ALWAYS_INLINE void for_each_block(Index count, auto&& body) {
  Index offset = 0;
  for (; offset + lanes<S> <= count; offset += lanes<S>) body(offset, Full<S>{});
  if (offset < count) body(offset, count - offset);
}

namespace detail {
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> part(const S* numbers, Index offset, auto lane_count) {
  return load<S>(numbers + offset, lane_count);
}
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> part(const S& number, Index /*offset*/, auto /*lane_count*/) {
  return Batch<S>(number);
}
}  // namespace detail

/// out[i] = f(in[i]...), f from registers to a register; an input that is one number is so for all
/// i. `out` may be one of `in`. Flat, as a call of a large f would load its constants anew for each
/// register.
template <class S>
__attribute__((flatten)) void map(Index count, S* out, auto&& f, auto... in) {
  for_each_block<S>(count, [&](Index offset, auto lane_count) {
    store<S>(out + offset, f(detail::part<S>(in, offset, lane_count)...), lane_count);
  });
}

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix
