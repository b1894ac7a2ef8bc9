#pragma once

#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/view.hpp"

// What a kernel asks of its operands, in one wording.

namespace seqmix {
namespace detail {

[[noreturn, gnu::cold, gnu::noinline]] inline void refuse_shape(std::string_view kernel,
                                                                std::string_view tensor,
                                                                std::span<const Index> got,
                                                                std::span<const Index> expected) {
  throw ShapeError(std::string(kernel) + ": " + std::string(tensor) + " has shape " +
                   text_of_extents(got) + ", expected " + text_of_extents(expected));
}
[[noreturn, gnu::cold, gnu::noinline]] inline void refuse_stride(std::string_view kernel,
                                                                 std::string_view tensor,
                                                                 Index stride) {
  throw ShapeError(std::string(kernel) + ": the last dimension of " + std::string(tensor) +
                   " has stride " + std::to_string(stride) + ", expected 1");
}

}  // namespace detail

/// Throws a `ShapeError` that names `kernel`, the tensor, what it got and what it expected, unless
/// a view, or a window on a cache, is as it must be.
struct Expect {
  std::string_view kernel;

  void shape(std::string_view tensor, const auto& view,
             const std::remove_cvref_t<decltype(view.shape())>& expected) const {
    if (view.shape() == expected) return;
    detail::refuse_shape(kernel, tensor, view.shape().extents, expected.extents);
  }
  /// And its last axis is contiguous.
  void rows(std::string_view tensor, const auto& view,
            const std::remove_cvref_t<decltype(view.shape())>& expected) const {
    shape(tensor, view, expected);
    constexpr Index last = std::remove_cvref_t<decltype(view)>::rank - 1;
    if (view.extent(last) <= 1 || view.stride(last) == 1) return;
    detail::refuse_stride(kernel, tensor, view.stride(last));
  }
};

}  // namespace seqmix
