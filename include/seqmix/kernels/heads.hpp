#pragma once

#include "seqmix/kernels/rows.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// x_t = by_t x_t for each head: x [B, T, H, K], by [B, T, H].
template <class S>
void multiply_heads(View<S, 4> x, In<S, 3> by, Context& context) {
  using Batch = simd::Batch<S>;
  const Index width = x.extent(3);
  for_each_row(
      context,
      [&](S* head, const S* number) {
        const Batch factor(*number);
        simd::map<S>(
            width, head, [&](const Batch& v) { return v * factor; }, head);
      },
      x, by.template insert<3>());
}

/// x_t = x_t / by_t for each head. Where `by` is 0, as sums of nothing are, the head becomes 0.
template <class S>
void divide_heads(View<S, 4> x, In<S, 3> by, Context& context) {
  using Batch = simd::Batch<S>;
  const Index width = x.extent(3);
  for_each_row(
      context,
      [&](S* head, const S* number) {
        const Batch zero(S(0)), divisor(*number);
        const auto nothing = divisor == zero;
        simd::map<S>(
            width, head,
            [&](const Batch& v) { return simd::select<S>(nothing, zero, v / divisor); }, head);
      },
      x, by.template insert<3>());
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
