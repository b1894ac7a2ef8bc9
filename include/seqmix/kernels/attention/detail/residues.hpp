#pragma once

#include "seqmix/core/cache.hpp"
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

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
