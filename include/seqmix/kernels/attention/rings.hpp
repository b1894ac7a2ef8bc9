#pragma once

#include <algorithm>
#include <utility>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/detail/residues.hpp"
#include "seqmix/kernels/attention/masks.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// `attend` where the keys and values of the call are not in the caches, which are rings, yet: then
/// they are put there.
template <class S>
void attend_to_rings(AttentionOperands<S> operands, const CacheView<S, 4>& keys,
                     const CacheView<S, 4>& values, const Call& call) {
  const View<const S, 3> k = operands.fresh_keys, v = operands.fresh_values;
  auto scratch = call.scratch<S>();
  const auto as_stored = [&](const View<const S, 3>& x, Storage storage) -> View<const S, 3> {
    if (storage == Storage::native) return x;
    auto rounded = scratch(x.extent(0), x.extent(1), x.extent(2));
    round_entries<S>(x, storage, rounded, call);
    return rounded;
  };
  operands.fresh_keys = as_stored(k, keys.storage());
  operands.fresh_values = as_stored(v, values.storage());
  attend(operands, call);
  for (const auto& [row, first, count, form] : call.segments()) {
    const auto put = [&, at = row, begin = first, tokens = count](const View<const S, 3>& from,
                                                                  const CacheView<S, 4>& ring) {
      const Index rows = ring.extent(axis::slot), past = operands.past[at];
      for (Index t = std::max<Index>(tokens - rows, 0); t < tokens; ++t) {
        store_entries<S>(from[begin + t], ring.at(axis::slot, (past + t) % rows).at(axis::row, at));
      }
    };
    put(k, keys), put(v, values);
  }
}

/// `attend_to_rings` for each remainder of the positions by `dilation`.
template <class S>
void attend_dilated(const AttentionOperands<S>& operands, Index dilation,
                    const CacheView<S, 4>& keys, const CacheView<S, 4>& values, const Call& call) {
  for (const Segment& segment : call.segments()) {
    for (Index first = 0; first < std::min(dilation, segment.count); ++first) {
      const Index position = operands.past[segment.row] + first, remainder = position % dilation;
      const Index before = position / dilation;  // tokens of this stream that are in the ring
      const Segment stream{segment.row, 0, ceil_div(segment.count - first, dilation), segment.form};
      const auto tokens = [&](const auto& view) {
        return every(axis::time, view, segment.first + first, dilation, stream.count);
      };
      const auto slots = [&](const CacheView<S, 4>& ring) {
        return every(axis::slot, ring, remainder, dilation, ring.extent(axis::slot) / dilation);
      };
      const auto ring_keys = slots(keys), ring_values = slots(values);
      attend_to_rings<S>({tokens(operands.q),
                          ring_keys,
                          ring_values,
                          for_all_rows(before, keys.extent(axis::row)),
                          tokens(operands.o),
                          {},
                          operands.policies,
                          tokens(operands.fresh_keys),
                          tokens(operands.fresh_values)},
                         ring_keys, ring_values, call.with(Segments(&stream, 1)));
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

/// `ring_attention` where a query sees the last `width` of the tokens whose distance to it divides
/// by `dilation`. The positions of each remainder are a stream of their own, in which their window
/// has no gaps: distances that `score` sees count in dilations. The rows of the rings are a
/// multiple of `dilation`.
template <class S, class Score>
void dilated_ring_attention(In<S, 3> q, In<S, 3> k, In<S, 3> v, In<Index, 1> past, Index width,
                            Index dilation, Score score, CacheOut<S, 4> keys, CacheOut<S, 4> values,
                            View<S, 3> o, const Call& call) {
  if (dilation == 1) {
    return ring_attention(q, k, v, past, Band::window(width), score, keys, values, o, call);
  }
  const detail::PoliciesOf<S, Band, Score> policies(Band::window(width), std::move(score));
  detail::attend_dilated<S>({q, keys, values, past, o, {}, policies, k, v}, dilation, keys, values,
                            call);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
