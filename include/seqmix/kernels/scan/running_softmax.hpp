#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

#include "seqmix/core/call.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/core/memory.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What the maximum of `running_softmax` is before the first token: e^(this - anything) is 0.
inline constexpr double running_softmax_initial_maximum = std::numeric_limits<float>::lowest();

namespace detail {

/// Tokens whose exponentials are computed at a time.
inline constexpr Index running_softmax_tokens = 64;

/// One head of `running_softmax`: at most `running_softmax_tokens` tokens, numbers of scores
/// `stride` from each other.
template <class S>
void running_softmax_head(const S* scores, Index stride, const View<const S, 2>& v, S* numerator,
                          S& denominator, S& maximum, const View<S, 2>& o) {
  alignas(alignment) std::array<S, static_cast<std::size_t>(running_softmax_tokens)> kept, added;
  const Index T = o.extent(0), V = o.extent(1);
  for (Index t = 0; t < T; ++t) {
    const S score = scores[t * stride], before = maximum;
    maximum = std::max(maximum, score);
    const auto at = static_cast<std::size_t>(t);
    kept[at] = before - maximum, added[at] = score - maximum;
  }
  const auto exponential = [](const simd::Batch<S>& x) { return simd::exp(x); };
  simd::map<S>(T, kept.data(), exponential, kept.data());
  simd::map<S>(T, added.data(), exponential, added.data());
  for (Index t = 0; t < T; ++t) {
    const auto at = static_cast<std::size_t>(t);
    const S keep = kept[at], add = added[at];
    denominator = denominator * keep + add;
    const S inverse = 1 / denominator;
    simd::for_each_block<S>(V, [&](Index i, auto lane_count) {
      const simd::Batch<S> value = simd::load<S>(&v(t, i), lane_count) * simd::Batch<S>(add);
      const simd::Batch<S> sum = simd::flush_subnormal<S>(
          simd::fma<S>(simd::load<S>(numerator + i, lane_count), simd::Batch<S>(keep), value));
      simd::store<S>(numerator + i, sum, lane_count);
      simd::store<S>(&o(t, i), sum * simd::Batch<S>(inverse), lane_count);
    });
  }
}

}  // namespace detail

/// The softmax of all scores so far, of each head its own, as the weights of a mean of values:
///
///   o_t = Σ_{i<=t} e^{s_i} v_i / Σ_{i<=t} e^{s_i}
///
/// s [T, H]; v, o [T, H, V], one view or disjoint. The sums are kept as numerator e^max [B, H, V]
/// and denominator e^max [B, H], maximum [B, H], whose rows the segments read, then advance; the
/// maximum starts at `running_softmax_initial_maximum`. The denominator is at least 1 after the
/// first token; what is below the smallest normal number of the numerator becomes zero. The bits
/// depend on nothing but the tokens: any cut gives the same ones. Milakov & Gimelshein 2018,
/// arXiv:1805.02867.
template <class S>
void running_softmax(In<S, 2> s, In<S, 3> v, Out<S, 3> numerator, Out<S, 2> denominator,
                     Out<S, 2> maximum, View<S, 3> o, const Call& call) {
  const Index T = o.extent(0), H = o.extent(1), V = o.extent(2), B = numerator.extent(0);
  const Expect expect{"running_softmax"};
  expect.rows("s", s, {T, H}), expect.rows("v", v, {T, H, V}), expect.rows("o", o, {T, H, V});
  expect.rows("numerator", numerator, {B, H, V});
  expect.rows("denominator", denominator, {B, H}), expect.rows("maximum", maximum, {B, H});
  if (o.empty()) return;

  const auto work_of = [&](const Segment& segment) { return SegmentWork{H, segment.count * V}; };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call&) {
    const Index row = unit.row(), head = unit.item, step = detail::running_softmax_tokens;
    for (Index t = 0; t < unit.tokens(); t += step) {
      const auto tokens = [&](const auto& view) {
        return unit.tokens_of(view).slice(axis::time, t, std::min(step, unit.tokens() - t));
      };
      detail::running_softmax_head<S>(&tokens(s)(0, head), s.stride(0),
                                      tokens(v).at(axis::head, head), &numerator(row, head, 0),
                                      denominator(row, head), maximum(row, head),
                                      tokens(o).at(axis::head, head));
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
