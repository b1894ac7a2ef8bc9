#pragma once

#include "seqmix/core/view.hpp"

#if __has_include(<mdspan>)
#include <mdspan>
#endif

// `std::mdspan` is C++23; with an older standard library this header is empty.
#if defined(__cpp_lib_mdspan)

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The same window as a strided `std::mdspan`.
template <class T, Index Rank>
auto to_mdspan(const View<T, Rank>& view) {
  using Extents = std::dextents<Index, static_cast<std::size_t>(Rank)>;
  const std::layout_stride::mapping<Extents> mapping(Extents(view.shape().extents),
                                                     view.strides().extents);
  return std::mdspan<T, Extents, std::layout_stride>(view.data(), mapping);
}

/// The same window as a view.
template <class T, class Extents, class Layout>
auto to_view(const std::mdspan<T, Extents, Layout>& span) {
  constexpr Index rank = static_cast<Index>(Extents::rank());
  Shape<rank> shape, strides;
  for (Index axis = 0; axis < rank; ++axis) {
    const auto at = static_cast<typename Extents::rank_type>(axis);
    shape[axis] = static_cast<Index>(span.extent(at));
    strides[axis] = static_cast<Index>(span.stride(at));
  }
  return View<T, rank>(span.data_handle(), shape, strides);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix

#endif
