#pragma once

#include <Eigen/Core>
#include <type_traits>

#include "seqmix/core/view.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The rows of a view [rows, columns] as an Eigen map, without a copy. The last dimension must be
/// contiguous.
template <class T>
auto to_eigen(const View<T, 2>& view) {
  using Matrix =
      Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<T>, const Matrix, Matrix>,
                         Eigen::Unaligned, Eigen::OuterStride<>>;
  if (view.extent(1) > 1 && view.stride(1) != 1) {
    throw ShapeError("to_eigen: the last dimension has stride " + std::to_string(view.stride(1)) +
                     ", expected 1");
  }
  return Map(view.data(), view.extent(0), view.extent(1), Eigen::OuterStride<>(view.stride(0)));
}

/// A view [size] as an Eigen vector, without a copy.
template <class T>
auto to_eigen(const View<T, 1>& view) {
  using Vector = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>;
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<T>, const Vector, Vector>,
                         Eigen::Unaligned, Eigen::InnerStride<>>;
  return Map(view.data(), view.extent(0), Eigen::InnerStride<>(view.stride(0)));
}

/// The window [rows, columns] on an Eigen matrix or map, of either storage order.
template <class Derived>
auto to_view(Eigen::PlainObjectBase<Derived>& matrix) {
  return View<typename Derived::Scalar, 2>(matrix.data(), {matrix.rows(), matrix.cols()},
                                           {matrix.rowStride(), matrix.colStride()});
}
template <class Derived>
auto to_view(const Eigen::PlainObjectBase<Derived>& matrix) {
  return View<const typename Derived::Scalar, 2>(matrix.data(), {matrix.rows(), matrix.cols()},
                                                 {matrix.rowStride(), matrix.colStride()});
}
template <class Matrix, int Options, class Stride>
auto to_view(const Eigen::Map<Matrix, Options, Stride>& map) {
  using Number = std::remove_pointer_t<decltype(map.data())>;
  return View<Number, 2>(map.data(), {map.rows(), map.cols()}, {map.rowStride(), map.colStride()});
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
