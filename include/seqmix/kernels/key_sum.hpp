#pragma once

#include <algorithm>
#include <string>

#include "seqmix/kernels/linear_state_unit.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// z_t = a_t z_{t-1} + k_t,  o_t = scale q_t · z_t: what a normalised `linear_state` divides by.
///
/// q, k: [B, T, H, K]; state: [B, H, K], read, then advanced; o: [B, T, H]. The decay is one of
/// those of `linear_state`. The literal recurrence in both forms: K operations a token beside the
/// K V of the state, so that it is not worth a padded value column there.
template <class S, class Decay>
void key_sum(In<S, 4> q, In<S, 4> k, const Decay& decay, double scale, Out<S, 3> state,
             View<S, 3> o, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      key_sum<S>(q.template slice<1>(piece.first, piece.count),
                 k.template slice<1>(piece.first, piece.count), decay.of(piece), scale,
                 state.template slice<0>(piece.row, 1),
                 o.template slice<1>(piece.first, piece.count), context);
    });
  }
  const Index B = o.extent(0), T = o.extent(1), H = o.extent(2), K = q.extent(3);
  detail::check_operand("q", q, {B, T, H, K});
  detail::check_operand("k", k, {B, T, H, K});
  detail::check_operand("the sum of keys", state, {B, H, K});
  decay.check({B, T, H, K});
  if (o.empty()) return;

  const Index block = std::min(T, detail::packed_tokens);
  const Index stride = round_up(Decay::by_channel ? K : 1, simd::lanes<S>);
  const Index units_per_task =
      std::max<Index>(detail::updates_per_task / std::max<Index>(T * K, 1), 1);
  context.parallel_for(ceil_div(B * H, units_per_task), [&](Index task, Context& worker) {
    auto scratch = worker.scratch<S>();
    S* const factors = scratch(block, stride).data();
    const Index end = std::min(B * H, (task + 1) * units_per_task);
    for (Index unit = task * units_per_task; unit < end; ++unit) {
      const Index b = unit / H, h = unit % H;
      S* const z = K == 0 ? nullptr : &state(b, h, 0);
      for (Index first = 0; first < T; first += block) {
        const Index tokens = std::min(block, T - first);
        decay.write_factors(b, h, first, tokens, factors, stride);
        for (Index t = 0; t < tokens; ++t) {
          const S* const query =
              q.data() + b * q.stride(0) + (first + t) * q.stride(1) + h * q.stride(2);
          const S* const key =
              k.data() + b * k.stride(0) + (first + t) * k.stride(1) + h * k.stride(2);
          const S* const factor = factors + t * stride;
          simd::Batch<S> sum = simd::broadcast(S(0));
          simd::for_each_block<S>(K, [&](Index c, auto lane_count) {
            const simd::Batch<S> next = simd::flush_subnormal<S>(
                simd::fma<S>(simd::load(factor + (Decay::by_channel ? c : 0)),
                             simd::load<S>(z + c, lane_count), simd::load<S>(key + c, lane_count)));
            simd::store<S>(z + c, next, lane_count);
            sum = simd::fma<S>(simd::load<S>(query + c, lane_count), next, sum);
          });
          o(b, first + t, h) = simd::reduce_add<S>(sum) * static_cast<S>(scale);
        }
      }
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
