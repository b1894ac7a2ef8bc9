#pragma once

#include <algorithm>
#include <string>

#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// difference_t = x_{t-1} - x_t: what a token shift adds to a token, weighted.
///
/// x, difference: [T, D]; history: [B, 1, D], the input before the first one, whose rows the
/// segments read, then set to their last input. x and difference share no number.
template <class S>
void token_shift(In<S, 2> x, Out<S, 3> history, View<S, 2> difference, const Call& call) {
  const Index T = difference.extent(0), D = difference.extent(1);
  const Expect expect{"token_shift"};
  expect.rows("x", x, {T, D}), expect.rows("difference", difference, {T, D});
  expect.rows("history", history, {history.extent(0), 1, D});
  if (difference.empty()) return;

  const Index tokens = std::max<Index>(numbers_per_task / D, 1);  // of an item
  const auto work_of = [&](const Segment& segment) {
    return SegmentWork{ceil_div(segment.count, tokens), std::min(segment.count, tokens) * D};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call&) {
    const auto in = unit.tokens_of(x);
    const auto out = unit.tokens_of(difference);
    const Index first = unit.item * tokens, end = std::min(unit.tokens(), first + tokens);
    for (Index t = first; t < end; ++t) {
      const S* const before = t == 0 ? &history(unit.row(), 0, 0) : &in(t - 1, 0);
      simd::map<S>(
          D, &out(t, 0), [](auto past, auto now) { return past - now; }, before, &in(t, 0));
    }
  });
  for (const Segment& segment : call.segments()) {
    std::copy_n(&x(segment.first + segment.count - 1, 0), D, &history(segment.row, 0, 0));
  }
}

/// y_t = x_{t-1}, both [T, D], which share no number. history: as in `token_shift`, or none: zeros.
template <class S>
void shift_tokens(In<S, 2> x, Out<S, 3> history, View<S, 2> y, const Call& call) {
  const Index T = y.extent(0), D = y.extent(1);
  const bool remembers = history.data() != nullptr;
  const Expect expect{"shift_tokens"};
  expect.rows("x", x, {T, D}), expect.rows("y", y, {T, D});
  if (remembers) expect.rows("history", history, {history.extent(0), 1, D});
  for (const auto& [row, first, count, form] : call.segments()) {
    if (count == 0) continue;
    if (remembers) {
      copy(history[row][0], y[first]), copy(x[first + count - 1], history[row][0]);
    } else {
      fill(y[first], S(0));
    }
    copy(x.slice(axis::time, first, count - 1), y.slice(axis::time, first + 1, count - 1));
  }
}

/// y = x + difference ⊙ weight, all [T, D]: each channel of a token goes towards its predecessor by
/// its weight, which may also be the same for all tokens, `by_channel`.
template <class S>
void mix_tokens(In<S, 2> x, In<S, 2> difference, const auto& weight, View<S, 2> y,
                const Call& call) {
  const auto mix = [](auto now, auto change, auto by) { return simd::fma(change, by, now); };
  elementwise(call, mix, y, x, difference, weight);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
