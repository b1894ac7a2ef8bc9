#pragma once

#include <algorithm>
#include <string>

#include "seqmix/kernels/rows.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// difference_t = x_{t-1} - x_t: what a token shift adds to a token, weighted.
///
/// x, difference: [B, T, D]; history: [B, 1, D], the input before the first one; read, then the
/// last of the T inputs. x and difference share no number.
template <class S>
void token_shift(In<S, 3> x, Out<S, 3> history, View<S, 3> difference, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& p) {
      token_shift(x.template slice<1>(p.first, p.count), history.template slice<0>(p.row, 1),
                  difference.template slice<1>(p.first, p.count), context);
    });
  }
  const Index B = difference.extent(0), T = difference.extent(1), D = difference.extent(2);
  const auto check = [D](const char* which, const auto& view, const Shape<3>& expected) {
    if (view.shape() != expected || (D > 1 && view.stride(2) != 1)) {
      throw ShapeError(std::string("token_shift: ") + which + " has shape " + view.shape().text() +
                       ", expected " + expected.text() + ", the last dimension contiguous");
    }
  };
  check("x", x, {B, T, D});
  check("difference", difference, {B, T, D});
  check("history", history, {B, 1, D});
  if (difference.empty()) return;

  const Index rows_per_task = std::max<Index>(numbers_per_task / D, 1);
  context.parallel_for(ceil_div(B * T, rows_per_task), [&](Index task, Context&) {
    const Index end = std::min(B * T, (task + 1) * rows_per_task);
    for (Index row = task * rows_per_task; row < end; ++row) {
      const Index b = row / T, t = row % T;
      const S* const before = t == 0 ? &history(b, 0, 0) : &x(b, t - 1, 0);
      simd::map<S>(
          D, &difference(b, t, 0), [](auto past, auto now) { return past - now; }, before,
          &x(b, t, 0));
    }
  });
  for (Index b = 0; b < B; ++b) std::copy_n(&x(b, T - 1, 0), D, &history(b, 0, 0));
}

/// y = x + difference ⊙ weight, all [B, T, D]: each channel of a token goes towards its predecessor
/// by its weight.
template <class S>
void mix_tokens(In<S, 3> x, In<S, 3> difference, In<S, 3> weight, View<S, 3> y, Context& context) {
  using Batch = simd::Batch<S>;
  const auto mix = [](Batch now, Batch change, Batch by) { return simd::fma(change, by, now); };
  elementwise(context, mix, y, x, difference, weight);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
