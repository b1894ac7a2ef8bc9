#pragma once

#include <algorithm>
#include <span>

#include "seqmix/core/call.hpp"
#include "seqmix/simd/map.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The numbers that one task of a row-wise kernel handles; fixed, so that the split is by shape.
inline constexpr Index numbers_per_task = Index{1} << 14;

namespace detail {

[[noreturn]] inline void refuse_rows(std::span<const Index> got, std::span<const Index> first) {
  throw ShapeError("row-wise kernel: got " + text_of_extents(got) +
                   ", expected contiguous rows and the leading extents of " +
                   text_of_extents(first));
}

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

/// Σ f(in[i]...), f(0...) = 0: lanes are summed in one fixed order that depends on `count` alone,
/// by several chains, as one would wait for each of its sums.
template <class S>
S sum_of(Index count, auto&& f, const auto*... in) {
  using Batch = simd::Batch<S>;
  constexpr Index L = simd::lanes<S>;
  const auto at = [&](Index i, auto lane_count) { return f(simd::load<S>(in + i, lane_count)...); };
  const simd::Full<S> full;
  Batch a(S(0)), b(S(0)), c(S(0)), d(S(0));
  Index i = 0;
  for (; i + 4 * L <= count; i += 4 * L) {
    a += at(i, full), b += at(i + L, full), c += at(i + 2 * L, full), d += at(i + 3 * L, full);
  }
  for (; i + L <= count; i += L) a += at(i, full);
  if (i < count) b += at(i, count - i);
  return simd::reduce_add((a + b) + (c + d));
}

}  // namespace detail

/// Calls `body(first.row, rest.row...)`, pointers to contiguous rows, for each row of the last
/// axis. All views have the leading extents of the first; the rows run in parallel.
template <class T, Index Rank, class... Rest>
void for_each_row(const Call& call, auto&& body, const View<T, Rank>& first, const Rest&... rest) {
  static_assert(Rank >= 2);
  if (first.empty()) return;
  const auto check = [&](const auto& view) {
    bool same = view.extent(Rank - 1) <= 1 || view.stride(Rank - 1) == 1;
    for (Index axis = 0; axis + 1 < Rank; ++axis) same &= view.extent(axis) == first.extent(axis);
    if (!same) detail::refuse_rows(view.shape().extents, first.shape().extents);
  };
  check(first), (check(rest), ...);
  const Index width = std::max<Index>(first.extent(Rank - 1), 1);
  const Index rows = first.size() / width;
  const Index rows_per_task = std::max<Index>(numbers_per_task / width, 1);
  call.parallel_for(ceil_div(rows, rows_per_task), [&](Index task, const Call&) {
    const Index end = std::min(rows, (task + 1) * rows_per_task);
    for (Index row = task * rows_per_task; row < end; ++row) {
      body(detail::row_address(first, row), detail::row_address(rest, row)...);
    }
  });
}

/// out[i] = f(in[i]...) for every element; `f` maps registers to a register. `out` may be an input.
template <class S, Index Rank, class... Inputs>
void elementwise(const Call& call, auto&& f, const View<S, Rank>& out, const Inputs&... in) {
  const Index width = out.extent(Rank - 1);
  if constexpr (Rank == 1) {
    simd::map<S>(width, out.data(), f, in.data()...);
  } else {
    for_each_row(
        call, [&](S* to, auto*... from) { simd::map<S>(width, to, f, from...); }, out, in...);
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
