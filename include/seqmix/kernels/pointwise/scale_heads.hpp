#pragma once

#include "seqmix/kernels/pointwise/rows.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// x_t = by_t x_t for each head: x [T, H, K], by [T, H].
template <class S>
void multiply_heads(View<S, 3> x, In<S, 2> by, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index width = x.extent(axis::channel);
  for_each_row(
      call,
      [&](S* head, const S* number) {
        const Batch factor(*number);
        simd::map<S>(
            width, head, [&](const Batch& v) { return v * factor; }, head);
      },
      x, by.template insert<2>());
}

/// x_t = x_t / by_t for each head. Where `by` is 0, as sums of nothing are, the head becomes 0.
template <class S>
void divide_heads(View<S, 3> x, In<S, 2> by, const Call& call) {
  using Batch = simd::Batch<S>;
  const Index width = x.extent(axis::channel);
  for_each_row(
      call,
      [&](S* head, const S* number) {
        const Batch zero(S(0)), divisor(*number);
        const auto nothing = divisor == zero;
        simd::map<S>(
            width, head,
            [&](const Batch& v) { return simd::select<S>(nothing, zero, v / divisor); }, head);
      },
      x, by.template insert<2>());
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
