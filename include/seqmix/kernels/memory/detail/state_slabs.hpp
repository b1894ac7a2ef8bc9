#pragma once

#include <algorithm>

#include "seqmix/core/view.hpp"
#include "seqmix/kernels/memory/decay.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// The columns of each head of a state [heads, K, V] in slabs [K, slab] behind each other, padded
/// with zeros: rows at a distance of 4 KB would evict each other.
constexpr Index slabs_size(Index K, Index V, Index slab) { return K * round_up(V, slab); }
template <class S>
void for_each_slab(const View<S, 3>& state, Index slab, S* slabs, auto&& copy) {
  const Index K = state.extent(1), V = state.extent(2);
  for (Index h = 0; h < state.extent(0); ++h, slabs += slabs_size(K, V, slab)) {
    for (Index column = 0; column < V; column += slab) {
      copy(state[h].slice(axis::channel, column, std::min(slab, V - column)), slabs + column * K);
    }
  }
}
template <class S>
void pack_slabs(const View<S, 3>& state, Index slab, S* slabs) {
  for_each_slab(state, slab, slabs,
                [&](const View<S, 2>& from, S* to) { pack_padded<S>(from, to, slab); });
}
template <class S>
void unpack_slabs(S* slabs, Index slab, const View<S, 3>& state) {
  for_each_slab(state, slab, slabs,
                [&](const View<S, 2>& to, const S* from) { unpack_padded<S>(from, slab, to); });
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
