#pragma once

#include <algorithm>
#include <utility>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/detail/residues.hpp"
#include "seqmix/kernels/attention/masks.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// As `append`, to a ring [B, H, rows, K] of the last positions.
template <class S>
void append_to_ring(In<S, 3> from, In<Index, 1> past_of_rows, CacheOut<S, 4> ring,
                    const Call& call) {
  const Index rows = ring.extent(axis::slot);
  for (const auto& [row, first, count, form] : call.segments()) {
    const Index past = past_of_rows[row];
    for (Index t = std::max<Index>(count - rows, 0); t < count; ++t) {
      store_entries<S>(from[first + t], ring.at(axis::slot, (past + t) % rows).at(axis::row, row));
    }
  }
}

namespace detail {

/// Keys or values of a call as a cache of this storage gives them back, in `scratch` where they are
/// rounded.
template <class S>
View<const S, 3> as_stored(const View<const S, 3>& x, Storage storage, Context::Scratch<S>& scratch,
                           const Call& call) {
  if (storage == Storage::native) return x;
  auto rounded = scratch(x.extent(0), x.extent(1), x.extent(2));
  round_entries<S>(x, storage, rounded, call);
  return rounded;
}
/// `attend` where the keys and values of the call are not in the caches, which are rings, yet: then
/// they are put there.
template <class S>
void attend_to_rings(AttentionOperands<S> operands, const CacheView<S, 4>& keys,
                     const CacheView<S, 4>& values, const Call& call) {
  auto scratch = call.scratch<S>();
  const View<const S, 3> k = operands.fresh_keys, v = operands.fresh_values;
  operands.fresh_keys = as_stored<S>(k, keys.storage(), scratch, call);
  operands.fresh_values = as_stored<S>(v, values.storage(), scratch, call);
  attend(operands, call);
  append_to_ring<S>(k, operands.past, keys, call);
  append_to_ring<S>(v, operands.past, values, call);
}

/// `attend_to_rings` for each remainder of the positions by `dilation`.
template <class S>
void attend_dilated(const AttentionOperands<S>& operands, Index dilation,
                    const CacheView<S, 4>& keys, const CacheView<S, 4>& values, const Call& call) {
  for (const Segment& segment : call.segments()) {
    for (Index first = 0; first < std::min(dilation, segment.count); ++first) {
      const Stream stream(segment, operands.past[segment.row], dilation, first);
      const auto ring_keys = stream.slots(keys), ring_values = stream.slots(values);
      attend_to_rings<S>({stream.tokens(operands.q),
                          ring_keys,
                          ring_values,
                          for_all_rows(stream.past, keys.extent(axis::row)),
                          stream.tokens(operands.o),
                          {},
                          operands.policies,
                          stream.tokens(operands.fresh_keys),
                          stream.tokens(operands.fresh_values)},
                         ring_keys, ring_values, call.with(Segments(&stream.segment, 1)));
    }
  }
}

}  // namespace detail

/// As `attention` where the caches are rings of the last positions, [B, G, rows, K or V] with
/// position p in slot p mod rows, and the new entries are k [T, G, K] and v [T, G, V]: they are put
/// into the rings when every query has seen what they overwrite. `mask` hides all positions that
/// lie `rows` or more before a query.
template <class S, class Mask, class Score>
void ring_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, In<Index, 1> past, Mask mask, Score score,
                    CacheOut<S, 4> keys, CacheOut<S, 4> values, View<S, 3> o, const Call& call,
                    Out<S, 2> log_sum_exp = {}) {
  const detail::PoliciesOf<S, Mask, Score> policies(std::move(mask), std::move(score));
  detail::attend_to_rings<S>({q, keys, values, past, o, log_sum_exp, policies, k, v}, keys, values,
                             call);
}

/// `ring_attention` where a query sees, of the tokens whose distance to it divides by `dilation`,
/// those that `mask` allows. The positions of each remainder are a stream of their own, in which
/// they have no gaps: `mask` and `score` count in dilations. The rows of the rings are a multiple
/// of `dilation`.
template <class S, class Mask, class Score>
void dilated_ring_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, In<Index, 1> past, Mask mask,
                            Index dilation, Score score, CacheOut<S, 4> keys, CacheOut<S, 4> values,
                            View<S, 3> o, const Call& call) {
  if (dilation == 1) return ring_attention(q, k, v, past, mask, score, keys, values, o, call);
  const detail::PoliciesOf<S, Mask, Score> policies(std::move(mask), std::move(score));
  detail::attend_dilated<S>({q, keys, values, past, o, {}, policies, k, v}, dilation, keys, values,
                            call);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
