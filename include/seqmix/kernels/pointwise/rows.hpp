#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/call.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The numbers that one task of a row-wise kernel handles; fixed, so that the split is by shape.
inline constexpr Index numbers_per_task = Index{1} << 14;

namespace detail {

[[noreturn]] inline void refuse_rows(std::string_view kernel, std::span<const Index> got,
                                     const std::string& expected) {
  throw ShapeError(std::string(kernel) + ": got " + text_of_extents(got) + ", expected " +
                   expected);
}

template <class T, Index Rank>
bool has_contiguous_rows(const View<T, Rank>& view) {
  return view.extent(axis::channel) <= 1 || view.stride(axis::channel) == 1;
}

/// The address of entry `row` of the leading `axes` axes, counted in their order.
template <Index axes, class T, Index Rank>
T* entry_address(const View<T, Rank>& view, Index row) {
  T* address = view.data();
  for (Index axis = axes - 1; axis > 0; --axis) {
    address += row % view.extent(axis) * view.stride(axis);
    row /= view.extent(axis);
  }
  return axes == 0 ? address : address + row * view.stride(0);
}
/// The address of row `row` of a view whose last axis is a row.
template <class T, Index Rank>
T* row_address(const View<T, Rank>& view, Index row) {
  return entry_address<Rank - 1>(view, row);
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

/// Inputs of `elementwise` whose numbers serve more than one element each.
template <class S>
struct ByChannel {
  View<const S, 1> numbers;  // [C], for each row
};
template <class S>
struct ByHead {
  View<const S, 1> numbers;  // [H], for each token of [T, H, C]
};
template <class S, Index Rank>
struct ByRow {
  View<const S, Rank> numbers;  // [T] for [T, C], [T, H] for [T, H, C]
};

/// One number a channel, the same in all rows: [C], a view, tensor or parameter.
template <class T>
ByChannel<std::remove_const_t<T>> by_channel(const View<T, 1>& numbers) {
  return {numbers};
}
auto by_channel(const auto& owner) { return by_channel(owner.view()); }

/// One number a head, the same for all tokens: [H], a view, tensor or parameter.
template <class T>
ByHead<std::remove_const_t<T>> by_head(const View<T, 1>& numbers) {
  return {numbers};
}
auto by_head(const auto& owner) { return by_head(owner.view()); }

/// One number for all channels of a row: a head's factor, an expert's gate. A view that lacks the
/// last axis.
template <class T, Index Rank>
ByRow<std::remove_const_t<T>, Rank> by_row(const View<T, Rank>& numbers) {
  return {numbers};
}

namespace detail {

/// What `elementwise` reads for an output of `shape`, where it belongs to it.
template <Index Rank, class T>
View<T, Rank> input_of(const Shape<Rank>& shape, const View<T, Rank>& in) {
  if (in.shape() != shape || !has_contiguous_rows(in)) {
    refuse_rows("elementwise", in.shape().extents, "contiguous rows of " + shape.text());
  }
  return in;
}
template <Index Rank, class S>
ByChannel<S> input_of(const Shape<Rank>& shape, const ByChannel<S>& in) {
  const Shape<1> expected{shape[Rank - 1]};
  if (in.numbers.shape() != expected || !has_contiguous_rows(in.numbers)) {
    refuse_rows("elementwise: by_channel", in.numbers.shape().extents,
                "contiguous " + expected.text() + " for " + shape.text());
  }
  return in;
}
template <Index Rank, class S>
ByRow<S, Rank - 1> input_of(const Shape<Rank>& shape, const ByRow<S, Rank - 1>& in) {
  Shape<Rank - 1> expected;
  std::copy_n(shape.extents.begin(), Rank - 1, expected.extents.begin());
  if (in.numbers.shape() != expected) {
    refuse_rows("elementwise: by_row", in.numbers.shape().extents,
                expected.text() + " for " + shape.text());
  }
  return in;
}
template <class S>
ByRow<S, 2> input_of(const Shape<3>& shape, const ByHead<S>& in) {
  const Shape<1> expected{shape[1]};
  if (in.numbers.shape() != expected) {
    refuse_rows("elementwise: by_head", in.numbers.shape().extents,
                expected.text() + " for " + shape.text());
  }
  return {{in.numbers.data(), {shape[0], shape[1]}, {0, in.numbers.stride(0)}}};
}

/// What a body gets of an input in a row.
template <class T, Index Rank>
T* in_row(const View<T, Rank>& view, Index row) {
  return row_address(view, row);
}
template <class S>
const S* in_row(const ByChannel<S>& in, Index /*row*/) {
  return in.numbers.data();
}
template <class S, Index Rank>
S in_row(const ByRow<S, Rank>& in, Index row) {
  return *entry_address<Rank>(in.numbers, row);
}

/// Calls `body(in_row(inputs, row)...)` for each of `rows` rows of `width` numbers, in parallel.
void run_rows(const Call& call, Index rows, Index width, auto&& body, const auto&... inputs) {
  const Index rows_per_task = std::max<Index>(numbers_per_task / width, 1);
  call.parallel_for(ceil_div(rows, rows_per_task), [&](Index task, const Call&) {
    const Index end = std::min(rows, (task + 1) * rows_per_task);
    for (Index row = task * rows_per_task; row < end; ++row) body(in_row(inputs, row)...);
  });
}

}  // namespace detail

/// Calls `body(first.row, rest.row...)`, pointers to contiguous rows, for each row of the last
/// axis. All views have the leading extents of the first; the rows run in parallel.
template <class T, Index Rank, class... Rest>
void for_each_row(const Call& call, auto&& body, const View<T, Rank>& first, const Rest&... rest) {
  if (first.empty()) return;
  const auto check = [&](const auto& view) {
    bool same = detail::has_contiguous_rows(view);
    for (Index axis = 0; axis + 1 < Rank; ++axis) same &= view.extent(axis) == first.extent(axis);
    if (same) return;
    detail::refuse_rows("row-wise kernel", view.shape().extents,
                        "contiguous rows and the leading extents of " + first.shape().text());
  };
  check(first), (check(rest), ...);
  const Index width = first.extent(axis::channel);
  detail::run_rows(call, first.size() / width, width, body, first, rest...);
}

/// out[i] = f(in[i]...) for every element. `f` maps numbers to a number; it is written for any type
/// of number, as it gets registers of them. Inputs are views of the shape of `out`, of which `out`
/// may be one, or what `by_channel`, `by_head` and `by_row` broadcast.
template <class S, Index Rank, class... Inputs>
void elementwise(const Call& call, auto&& f, const View<S, Rank>& out, const Inputs&... in) {
  if (out.empty()) return;
  const Index width = out.extent(axis::channel);
  const auto body = [&](S* to, auto... from) { simd::map<S>(width, to, f, from...); };
  detail::run_rows(call, out.size() / width, width, body, detail::input_of(out.shape(), out),
                   detail::input_of(out.shape(), in)...);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
