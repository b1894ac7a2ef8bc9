#pragma once

#include <algorithm>
#include <limits>

#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// What softmax subtracts from scores whose maximum is given: the maximum, or 0 where every score
/// is -infinity, so that exp gives 0 there and not NaN.
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> softmax_offset(const simd::Batch<S>& maximum) {
  const simd::Batch<S> nothing(-std::numeric_limits<S>::infinity());
  return simd::select<S>(maximum == nothing, simd::broadcast(S(0)), maximum);
}

/// 1 / sum, or 0 where there was nothing to sum.
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> inverse_or_zero(const simd::Batch<S>& sum) {
  const simd::Batch<S> zero(S(0)), one(S(1));
  return simd::select<S>(sum == zero, zero, one / sum);
}

/// The largest of the numbers that are not NaN, or -infinity.
template <class S>
S maximum_of(const S* x, Index count) {
  simd::Batch<S> most(-std::numeric_limits<S>::infinity());
  Index i = 0;
  for (; i + simd::lanes<S> <= count; i += simd::lanes<S>)
    most = simd::max(most, simd::load(x + i));
  S maximum = simd::reduce_max(most);
  for (; i < count; ++i) maximum = std::max(maximum, x[i]);
  return maximum;
}

}  // namespace detail

/// x = exp(x) / Σ exp(x) over the last axis. A row of -infinity alone becomes zeros; NaN fills its
/// own row and no other.
template <class S, Index Rank>
void softmax(View<S, Rank> x, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index width = x.extent(Rank - 1);
  for_each_row(
      call,
      [&](S* row) {
        const Batch offset = detail::softmax_offset(Batch(detail::maximum_of(row, width)));
        simd::map<S>(
            width, row, [&](const Batch& v) { return simd::exp(v - offset); }, row);
        const S sum = detail::sum_of<S>(
            width, [](auto v) { return v; }, row);
        const Batch inverse = detail::inverse_or_zero(Batch(sum));
        simd::map<S>(
            width, row, [&](const Batch& v) { return v * inverse; }, row);
      },
      x);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
