#pragma once

#include <algorithm>
#include <string>

#include "seqmix/core/context.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The numbers that one task of a row-wise kernel handles; fixed, so that the split is by shape.
inline constexpr Index numbers_per_task = Index{1} << 14;

namespace detail {

/// The address of row `row` of a view whose last axis is a row.
template <class T, Index Rank>
T* row_address(const View<T, Rank>& view, Index row) {
  T* address = view.data();
  for (Index axis = Rank - 2; axis >= 0; --axis) {
    address += row % view.extent(axis) * view.stride(axis);
    row /= view.extent(axis);
  }
  return address;
}

}  // namespace detail

/// Calls `body(first.row, rest.row...)`, pointers to contiguous rows, for each row of the last
/// axis. All views have the leading extents of the first; the rows run in parallel.
template <class T, Index Rank, class... Rest>
void for_each_row(Context& context, auto&& body, const View<T, Rank>& first, const Rest&... rest) {
  static_assert(Rank >= 2);
  if (first.empty()) return;
  const auto check = [&](const auto& view) {
    bool same = view.extent(Rank - 1) <= 1 || view.stride(Rank - 1) == 1;
    for (Index axis = 0; axis + 1 < Rank; ++axis) same &= view.extent(axis) == first.extent(axis);
    if (!same) {
      throw ShapeError("row-wise kernel: got " + view.shape().text() +
                       ", expected contiguous rows and the leading extents of " +
                       first.shape().text());
    }
  };
  check(first), (check(rest), ...);
  const Index width = std::max<Index>(first.extent(Rank - 1), 1);
  const Index rows = first.size() / width;
  const Index rows_per_task = std::max<Index>(numbers_per_task / width, 1);
  context.parallel_for(ceil_div(rows, rows_per_task), [&](Index task, Context&) {
    const Index end = std::min(rows, (task + 1) * rows_per_task);
    for (Index row = task * rows_per_task; row < end; ++row) {
      body(detail::row_address(first, row), detail::row_address(rest, row)...);
    }
  });
}

/// out[i] = f(in[i]...) for every element; `f` maps registers to a register. `out` may be an input.
template <class S, Index Rank, class... Inputs>
void elementwise(Context& context, auto&& f, const View<S, Rank>& out, const Inputs&... in) {
  const Index width = out.extent(Rank - 1);
  if constexpr (Rank == 1) {
    simd::map<S>(width, out.data(), f, in.data()...);
  } else {
    for_each_row(
        context, [&](S* to, auto*... from) { simd::map<S>(width, to, f, from...); }, out, in...);
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
