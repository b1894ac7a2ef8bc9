#pragma once

#include <string>

#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Gates of a task of `exponential_gates` at least: each costs two exponentials.
inline constexpr Index gates_per_task = Index{1} << 11;

}  // namespace detail

/// Exponential input gates exp(i_t) of a memory that forgets by exp(f_t), f_t <= 0, kept within the
/// range of numbers by the maximum m_t = max(f_t + m_{t-1}, i_t): a memory times exp(-m_t) decays
/// by exp(f_t + m_{t-1} - m_t) and takes in exp(i_t - m_t), neither of which exceeds 1.
///
/// input: [T, H], i, becomes exp(i_t - m_t); forget: [T, H], f, becomes f_t + m_{t-1} - m_t; floor:
/// [T, H], exp(-m_t), what 1 has become; maximum: [B, H], m, whose rows the segments read, then
/// advance. Beck et al. 2024, arXiv:2405.04517, eq. 15-17.
template <class S>
void exponential_gates(View<S, 2> input, Out<S, 2> forget, Out<S, 2> maximum, Out<S, 2> floor,
                       const Call& call) {
  using Batch = simd::Batch<S>;
  const Index H = input.extent(axis::channel);
  const auto fits = [&](const View<S, 2>& view) {
    return view.shape() == input.shape() && (H <= 1 || view.stride(axis::channel) == 1);
  };
  if (!fits(input) || !fits(forget) || !fits(floor) || maximum.extent(axis::channel) != H ||
      (H > 1 && maximum.stride(axis::channel) != 1)) {
    throw ShapeError("exponential_gates: got input " + input.shape().text() + ", forget " +
                     forget.shape().text() + ", floor " + floor.shape().text() + " and maximum " +
                     maximum.shape().text() + ", expected contiguous [T, H] and [B, H]");
  }
  if (input.empty()) return;
  const auto work_of = [H](const Segment& segment) { return SegmentWork{1, segment.count * H}; };
  for_each_unit(call, detail::gates_per_task, work_of, [&](const Unit& unit, const Call&) {
    const Index first = unit.segment.first;
    S* const m = &maximum(unit.row(), 0);
    for (Index t = first; t < first + unit.tokens(); ++t) {
      S *const i = &input(t, 0), *const f = &forget(t, 0), *const least = &floor(t, 0);
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
