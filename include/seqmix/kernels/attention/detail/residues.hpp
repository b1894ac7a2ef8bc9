#pragma once

#include "seqmix/core/cache.hpp"
#include "seqmix/core/context.hpp"
#include "seqmix/core/view.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Every `step`-th index of an axis from `first` on.
template <NamedAxis Axis, class T, Index Rank>
View<T, Rank> every(Axis, const View<T, Rank>& view, Index first, Index step, Index count) {
  constexpr Index axis = Axis::template of<Rank>;
  auto shape = view.shape(), strides = view.strides();
  shape[axis] = count, strides[axis] *= step;
  return {view.data() + first * view.stride(axis), shape, strides};
}
/// The same of a cache.
template <NamedAxis Axis, class T>
CacheView<T, 4> every(Axis axis, const CacheView<T, 4>& cache, Index first, Index step,
                      Index count) {
  return cache.window([&](const auto& view) { return every(axis, view, first, step, count); });
}
/// One number for all rows of a state.
inline View<const Index, 1> for_all_rows(const Index& number, Index rows) {
  return {&number, {rows}, {0}};
}

/// Tokens of a segment `dilation` positions from each other: a stream of its own, in which they lie
/// next to each other.
struct Stream {
  Index begin, dilation, remainder;  // its first token in the call; of its positions
  Index past;                        // tokens of the stream before the call
  Segment segment;                   // all that it has in the call, counted from 0 on

  /// `first`: of its tokens, counted in the segment, whose first one is at position `before`.
  Stream(const Segment& of, Index before, Index step, Index first)
      : begin(of.first + first),
        dilation(step),
        remainder((before + first) % step),
        past((before + first) / step),
        segment{of.row, 0, ceil_div(of.count - first, step), of.form} {}

  auto tokens(const auto& view) const {
    return every(axis::time, view, begin, dilation, segment.count);
  }
  /// Of a ring whose rows are a multiple of the dilation.
  auto slots(const auto& ring) const {
    return every(axis::slot, ring, remainder, dilation, ring.extent(axis::slot) / dilation);
  }
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
