#pragma once

#include <array>
#include <concepts>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "seqmix/core/numeric.hpp"

namespace seqmix {

/// Extents as they are read: "[2, 3]".
inline std::string text_of_extents(std::span<const Index> extents) {
  std::string result = "[";
  for (const Index extent : extents) {
    if (result.size() > 1) result += ", ";
    result += std::to_string(extent);
  }
  return result + "]";
}

namespace shape_errors {
[[noreturn]] SEQMIX_COLD inline void extents(std::span<const Index> extents) {
  throw ShapeError("negative extent in shape " + text_of_extents(extents));
}
[[noreturn]] SEQMIX_COLD inline void split(std::span<const Index> extents, Index axis, Index outer,
                                           Index inner) {
  throw ShapeError("cannot split axis " + std::to_string(axis) + " of " + text_of_extents(extents) +
                   " into " + text_of_extents(std::array{outer, inner}));
}
[[noreturn]] SEQMIX_COLD inline void merge(std::span<const Index> extents, Index axis) {
  throw ShapeError("cannot merge axes " + std::to_string(axis) + " and " +
                   std::to_string(axis + 1) + " of a strided view " + text_of_extents(extents));
}
[[noreturn]] SEQMIX_COLD inline void copy(std::span<const Index> from, std::span<const Index> to) {
  throw ShapeError("copy: got " + text_of_extents(from) + ", expected " + text_of_extents(to));
}
}  // namespace shape_errors

/// Axes by name: `x.slice(axis::time, first, count)`. Activations inside a call are [T, ..., C] and
/// their heads [T, H, C]; states and caches are [B, H, ...], caches [B, H, slot, C].
namespace axis {
struct Time {
  template <Index Rank>
  static constexpr Index of = 0;
};
struct Row {
  template <Index Rank>
  static constexpr Index of = 0;
};
struct Head {
  template <Index Rank>
  static constexpr Index of = 1;
};
struct Slot {
  template <Index Rank>
  static constexpr Index of = 2;
};
struct Channel {
  template <Index Rank>
  static constexpr Index of = Rank - 1;
};
inline constexpr Time time;        // the tokens of a call
inline constexpr Row row;          // the rows of a batch or a matrix
inline constexpr Head head;        // heads, or groups of them
inline constexpr Slot slot;        // the entries of a cache
inline constexpr Channel channel;  // the last one, whatever it counts
}  // namespace axis

template <class Axis>
concept NamedAxis = requires {
  Axis::template of<4>;
};

/// The extents of a view or tensor, outermost first.
template <Index Rank>
struct Shape {
  std::array<Index, static_cast<std::size_t>(Rank)> extents{};

  constexpr Shape() = default;
  template <std::convertible_to<Index>... Extents>
  requires(sizeof...(Extents) == Rank) constexpr Shape(Extents... values)
      : extents{static_cast<Index>(values)...} {}

  constexpr Index& operator[](Index axis) { return extents[static_cast<std::size_t>(axis)]; }
  constexpr Index operator[](Index axis) const { return extents[static_cast<std::size_t>(axis)]; }
  friend constexpr bool operator==(const Shape&, const Shape&) = default;

  /// The number of elements; a `ShapeError` on a negative extent or an overflow.
  Index size() const {
    Index product = 1;
    for (const Index extent : extents) {
      if (extent < 0) shape_errors::extents(extents);
      product = checked_product(product, extent);
    }
    return product;
  }
  std::string text() const { return text_of_extents(extents); }
};

/// A non-owning strided window on numbers. Strides count elements.
///
/// A view of `T` converts to one of `const T`. Copying a view copies the window, never the numbers.
template <class T, Index Rank>
class View {
  static_assert(Rank >= 1);

 public:
  using value_type = std::remove_const_t<T>;
  static constexpr Index rank = Rank;

  constexpr View() = default;
  /// Row-major numbers without gaps.
  constexpr View(T* data, Shape<Rank> shape) : data_(data), shape_(shape) {
    Index stride = 1;
    for (Index axis = Rank - 1; axis >= 0; --axis) {
      strides_[axis] = stride;
      stride *= shape[axis];
    }
  }
  constexpr View(T* data, Shape<Rank> shape, Shape<Rank> strides)
      : data_(data), shape_(shape), strides_(strides) {}
  template <std::size_t Extent>
  requires(Rank == 1) constexpr View(std::span<T, Extent> numbers)
      : View(numbers.data(), {static_cast<Index>(numbers.size())}) {}
  template <class U>
  requires(std::same_as<T, const U>) constexpr View(const View<U, Rank>& other)
      : View(other.data(), other.shape(), other.strides()) {}

  constexpr T* data() const { return data_; }
  constexpr const Shape<Rank>& shape() const { return shape_; }
  constexpr const Shape<Rank>& strides() const { return strides_; }
  constexpr Index extent(Index axis) const { return shape_[axis]; }
  constexpr Index stride(Index axis) const { return strides_[axis]; }
  template <NamedAxis Axis>
  constexpr Index extent(Axis) const {
    return extent(Axis::template of<Rank>);
  }
  template <NamedAxis Axis>
  constexpr Index stride(Axis) const {
    return stride(Axis::template of<Rank>);
  }
  constexpr Index size() const {
    Index product = 1;
    for (const Index value : shape_.extents) product *= value;
    return product;
  }
  constexpr bool empty() const { return size() == 0; }
  /// Row-major without gaps (axes of one element do not count).
  constexpr bool contiguous() const {
    Index expected = 1;
    for (Index axis = Rank - 1; axis >= 0; --axis) {
      if (extent(axis) != 1 && stride(axis) != expected) return false;
      expected *= extent(axis);
    }
    return true;
  }

  template <std::convertible_to<Index>... Indices>
  requires(sizeof...(Indices) == Rank) constexpr T& operator()(Indices... indices) const {
    const std::array<Index, static_cast<std::size_t>(Rank)> at{static_cast<Index>(indices)...};
    Index offset = 0;
    for (Index axis = 0; axis < Rank; ++axis) {
      offset += at[static_cast<std::size_t>(axis)] * stride(axis);
    }
    return data_[offset];
  }

  /// The element (rank 1) or the sub-view (higher rank) at `index` of the outermost axis.
  constexpr decltype(auto) operator[](Index index) const {
    if constexpr (Rank == 1) {
      return (data_[index * stride(0)]);
    } else {
      return at<0>(index);
    }
  }

  /// The view without `Axis`, which is fixed at `index`.
  template <Index Axis>
  constexpr View<T, Rank - 1> at(Index index) const {
    static_assert(Rank > 1 && Axis >= 0 && Axis < Rank);
    Shape<Rank - 1> kept_shape, kept_strides;
    for (Index axis = 0, to = 0; axis < Rank; ++axis) {
      if (axis == Axis) continue;
      kept_shape[to] = extent(axis);
      kept_strides[to++] = stride(axis);
    }
    return {data_ + index * stride(Axis), kept_shape, kept_strides};
  }

  template <NamedAxis Axis>
  constexpr auto at(Axis, Index index) const {
    return at<Axis::template of<Rank>>(index);
  }

  /// `count` indices of an axis from `begin` on.
  template <NamedAxis Axis>
  constexpr View slice(Axis, Index begin, Index count) const {
    return slice<Axis::template of<Rank>>(begin, count);
  }
  template <Index Axis>
  constexpr View slice(Index begin, Index count) const {
    static_assert(Axis >= 0 && Axis < Rank);
    View result = *this;
    result.data_ += begin * stride(Axis);
    result.shape_[Axis] = count;
    return result;
  }

  /// An axis seen as two: [outer, inner]. A head split is `split(axis::channel, n_heads,
  /// head_dim)`.
  template <NamedAxis Axis>
  constexpr View<T, Rank + 1> split(Axis, Index outer, Index inner) const {
    return split<Axis::template of<Rank>>(outer, inner);
  }
  template <Index Axis>
  constexpr View<T, Rank + 1> split(Index outer, Index inner) const {
    static_assert(Axis >= 0 && Axis < Rank);
    if (outer * inner != extent(Axis)) shape_errors::split(shape_.extents, Axis, outer, inner);
    Shape<Rank + 1> new_shape, new_strides;
    for (Index axis = 0; axis < Rank; ++axis) {
      const Index to = axis > Axis ? axis + 1 : axis;
      new_shape[to] = extent(axis), new_strides[to] = stride(axis);
    }
    new_shape[Axis] = outer, new_strides[Axis] = inner * stride(Axis);
    new_shape[Axis + 1] = inner, new_strides[Axis + 1] = stride(Axis);
    return {data_, new_shape, new_strides};
  }

  /// An axis and the next one seen as one; they must lie behind each other without a gap.
  template <NamedAxis Axis>
  constexpr View<T, Rank - 1> merge(Axis) const {
    return merge<Axis::template of<Rank>>();
  }
  template <Index Axis>
  constexpr View<T, Rank - 1> merge() const {
    static_assert(Axis >= 0 && Axis + 1 < Rank);
    if (!mergeable<Axis>()) shape_errors::merge(shape_.extents, Axis);
    Shape<Rank - 1> new_shape, new_strides;
    for (Index axis = 0; axis < Rank - 1; ++axis) {
      const Index from = axis > Axis ? axis + 1 : axis;
      new_shape[axis] = extent(from), new_strides[axis] = stride(from);
    }
    new_shape[Axis] = extent(Axis) * extent(Axis + 1);
    new_strides[Axis] = stride(extent(Axis + 1) == 1 ? Axis : Axis + 1);
    return {data_, new_shape, new_strides};
  }
  template <NamedAxis Axis>
  constexpr bool mergeable(Axis) const {
    return mergeable<Axis::template of<Rank>>();
  }
  template <Index Axis>
  constexpr bool mergeable() const {
    return extent(Axis) <= 1 || extent(Axis + 1) == 1 ||
           stride(Axis) == stride(Axis + 1) * extent(Axis + 1);
  }

  /// An axis of one element put before `Axis`.
  template <NamedAxis Axis>
  constexpr View<T, Rank + 1> insert(Axis) const {
    return insert<Axis::template of<Rank>>();
  }
  template <Index Axis>
  constexpr View<T, Rank + 1> insert() const {
    static_assert(Axis >= 0 && Axis <= Rank);
    Shape<Rank + 1> new_shape, new_strides;
    for (Index axis = 0; axis < Rank; ++axis) {
      const Index to = axis >= Axis ? axis + 1 : axis;
      new_shape[to] = extent(axis), new_strides[to] = stride(axis);
    }
    new_shape[Axis] = 1;
    new_strides[Axis] =
        Axis < Rank ? extent(Axis < Rank ? Axis : 0) * stride(Axis < Rank ? Axis : 0) : 1;
    return {data_, new_shape, new_strides};
  }

  friend constexpr bool operator==(const View&, const View&) = default;

 private:
  T* data_ = nullptr;
  Shape<Rank> shape_{};
  Shape<Rank> strides_{};
};

/// A read-only kernel argument: any view of the right rank converts, nothing is deduced from it.
template <class Scalar, Index Rank>
using In = std::type_identity_t<View<const Scalar, Rank>>;
/// A written kernel argument from which nothing is deduced.
template <class Scalar, Index Rank>
using Out = std::type_identity_t<View<Scalar, Rank>>;

/// The first and one past the last element that a view can touch.
template <class T, Index Rank>
constexpr std::pair<const T*, const T*> footprint(const View<T, Rank>& view) {
  if (view.empty()) return {view.data(), view.data()};
  const T *low = view.data(), *high = view.data();
  for (Index axis = 0; axis < Rank; ++axis) {
    const Index reach = (view.extent(axis) - 1) * view.stride(axis);
    (reach < 0 ? low : high) += reach;
  }
  return {low, high + 1};
}

/// Whether two windows share no number, also where they are columns of one wider matrix.
template <class T, class U>
constexpr bool disjoint(const View<T, 3>& x, const View<U, 3>& y) {
  const auto [x_first, x_last] = footprint(x);
  const auto [y_first, y_last] = footprint(y);
  if (x.empty() || y.empty() || x_last <= y_first || y_last <= x_first) return true;
  const Index pitch = x.stride(x.extent(1) > 1 ? 1 : 0), offset = y.data() - x.data();
  return pitch > 0 && x.stride(0) == y.stride(0) && x.stride(1) == y.stride(1) &&
         x.stride(0) % pitch == 0 &&
         (offset >= 0 ? offset >= x.extent(2) && offset + y.extent(2) <= pitch
                      : -offset >= y.extent(2) && x.extent(2) - offset <= pitch);
}

template <class T, class U>
constexpr bool disjoint(const View<T, 2>& x, const View<U, 2>& y) {
  return disjoint(x.insert(axis::row), y.insert(axis::row));
}

/// Whether two indices of a view with these strides may be one number: whether the elements along
/// one axis lie within the reach of those along axes of smaller strides.
template <Index Rank>
constexpr bool overlaps_itself(const Shape<Rank>& shape, const Shape<Rank>& strides) {
  const auto size = [](Index stride) { return stride < 0 ? -stride : stride; };
  std::array<bool, static_cast<std::size_t>(Rank)> done{};
  for (Index reach = 0, round = 0; round < Rank; ++round) {
    Index next = -1;
    for (Index axis = 0; axis < Rank; ++axis) {
      if (shape[axis] == 0) return false;
      if (shape[axis] == 1 || done[static_cast<std::size_t>(axis)]) continue;
      if (next < 0 || size(strides[axis]) < size(strides[next])) next = axis;
    }
    if (next < 0) return false;
    if (size(strides[next]) <= reach) return true;
    reach += (shape[next] - 1) * size(strides[next]);
    done[static_cast<std::size_t>(next)] = true;
  }
  return false;
}

/// Copies numbers between views of one shape.
template <class T, class U, Index Rank>
void copy(const View<T, Rank>& from, const View<U, Rank>& to) {
  if (from.shape() != to.shape()) shape_errors::copy(from.shape().extents, to.shape().extents);
  if constexpr (Rank == 1) {
    for (Index i = 0; i < from.extent(0); ++i) to[i] = static_cast<U>(from[i]);
  } else {
    for (Index i = 0; i < from.extent(0); ++i) copy(from[i], to[i]);
  }
}

/// Sets every element of a view.
template <class T, Index Rank>
void fill(const View<T, Rank>& view, std::type_identity_t<T> value) {
  for (Index i = 0; i < view.extent(0); ++i) {
    if constexpr (Rank == 1) {
      view[i] = value;
    } else {
      fill(view[i], value);
    }
  }
}

}  // namespace seqmix
