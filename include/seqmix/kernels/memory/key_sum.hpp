#pragma once

#include <algorithm>
#include <string>

#include "seqmix/kernels/memory/detail/linear_state_unit.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// z_t = a_t z_{t-1} + k_t,  o_t = scale q_t · z_t: what a normalised `linear_state` divides by.
///
/// q, k: [T, H, K]; state: [B, H, K], whose rows the segments read, then advance; o: [T, H]. The
/// decay is one of those of `linear_state`. The literal recurrence in both forms: K operations a
/// token beside the K V of the state, so that it is not worth a padded value column there.
template <class S, class Decay>
void key_sum(In<S, 3> q, In<S, 3> k, const Decay& decay, double scale, Out<S, 3> state,
             View<S, 2> o, const Call& call) {
  const Index T = o.extent(0), H = o.extent(1), K = q.extent(2);
  const Expect expect{"key_sum"};
  expect.rows("q", q, {T, H, K});
  expect.rows("k", k, {T, H, K});
  expect.rows("state", state, {state.extent(0), H, K});
  decay.check({T, H, K});
  if (o.empty()) return;

  const Index stride = round_up(Decay::by_channel ? K : 1, simd::lanes<S>);
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{H, std::max<Index>(segment.count * K, 1)};
  };
  for_each_unit(call, detail::updates_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    const Index h = unit.item, end = unit.segment.first + unit.tokens();
    const Index block = std::min(unit.tokens(), detail::packed_tokens);
    auto scratch = worker.scratch<S>();
    S* const factors = scratch(block, stride).data();
    S* const z = K == 0 ? nullptr : &state(unit.row(), h, 0);
    for (Index first = unit.segment.first; first < end; first += block) {
      const Index tokens = std::min(block, end - first);
      decay.write_factors(h, first, tokens, factors, stride);
      for (Index t = 0; t < tokens; ++t) {
        const S* const query = q.data() + (first + t) * q.stride(0) + h * q.stride(1);
        const S* const key = k.data() + (first + t) * k.stride(0) + h * k.stride(1);
        const S* const factor = factors + t * stride;
        simd::Batch<S> sum = simd::broadcast(S(0));
        simd::for_each_block<S>(K, [&](Index c, auto lane_count) {
          const simd::Batch<S> next = simd::flush_subnormal<S>(
              simd::fma<S>(simd::load(factor + (Decay::by_channel ? c : 0)),
                           simd::load<S>(z + c, lane_count), simd::load<S>(key + c, lane_count)));
          simd::store<S>(z + c, next, lane_count);
          sum = simd::fma<S>(simd::load<S>(query + c, lane_count), next, sum);
        });
        o(first + t, h) = simd::reduce_add<S>(sum) * static_cast<S>(scale);
      }
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
