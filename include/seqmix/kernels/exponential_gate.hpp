#pragma once

#include <string>

#include "seqmix/kernels/rows.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// x = cap tanh(x / cap).
template <class S, Index Rank>
void soft_cap(View<S, Rank> x, double cap, Context& context) {
  using Batch = simd::Batch<S>;
  const Batch most(static_cast<S>(cap));
  elementwise(
      context, [most](const Batch& v) { return most * simd::tanh<S>(v / most); }, x, x);
}

/// Exponential input gates exp(i_t) of a memory that forgets by exp(f_t), f_t <= 0, kept within the
/// range of numbers by the maximum m_t = max(f_t + m_{t-1}, i_t): a memory times exp(-m_t) decays
/// by exp(f_t + m_{t-1} - m_t) and takes in exp(i_t - m_t), neither of which exceeds 1.
///
/// input: [B, T, H], i, becomes exp(i_t - m_t); forget: [B, T, H], f, becomes f_t + m_{t-1} - m_t;
/// floor: [B, T, H], exp(-m_t), what 1 has become; maximum: [B, H], m, read, then advanced.
/// Beck et al. 2024, arXiv:2405.04517, eq. 15-17.
template <class S>
void exponential_gates(View<S, 3> input, Out<S, 3> forget, Out<S, 2> maximum, Out<S, 3> floor,
                       Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      exponential_gates<S>(input.template slice<1>(piece.first, piece.count),
                           forget.template slice<1>(piece.first, piece.count),
                           maximum.template slice<0>(piece.row, 1),
                           floor.template slice<1>(piece.first, piece.count), context);
    });
  }
  using Batch = simd::Batch<S>;
  const Index B = input.extent(0), T = input.extent(1), H = input.extent(2);
  const auto fits = [&](const View<S, 3>& view) {
    return view.shape() == input.shape() && (H <= 1 || view.stride(2) == 1);
  };
  if (!fits(input) || !fits(forget) || !fits(floor) || maximum.shape() != Shape<2>{B, H} ||
      (H > 1 && maximum.stride(1) != 1)) {
    throw ShapeError("exponential_gates: got input " + input.shape().text() + ", forget " +
                     forget.shape().text() + ", floor " + floor.shape().text() + " and maximum " +
                     maximum.shape().text() + ", expected contiguous [B, T, H] and [B, H]");
  }
  if (input.empty()) return;
  context.parallel_for(B, [&](Index b, Context&) {
    for (Index t = 0; t < T; ++t) {
      S *const i = &input(b, t, 0), *const f = &forget(b, t, 0);
      S *const m = &maximum(b, 0), *const least = &floor(b, t, 0);
      simd::for_each_block<S>(H, [&](Index h, auto lane_count) {
        const Batch in = simd::load<S>(i + h, lane_count);
        const Batch kept = simd::load<S>(f + h, lane_count) + simd::load<S>(m + h, lane_count);
        const Batch most = simd::max<S>(kept, in);
        simd::store<S>(i + h, simd::exp<S>(in - most), lane_count);
        simd::store<S>(f + h, kept - most, lane_count);
        simd::store<S>(least + h, simd::exp<S>(-most), lane_count);
        simd::store<S>(m + h, most, lane_count);
      });
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
