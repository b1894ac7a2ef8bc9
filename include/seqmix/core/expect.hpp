#pragma once

#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/view.hpp"

namespace seqmix {

/// What a kernel asks of its operands. Throws a `ShapeError` that names the kernel, the tensor,
/// what it got and what was expected, unless a view, or a window on a cache, is as it must be.
struct Expect {
  std::string_view kernel;

  void shape(std::string_view tensor, const auto& view,
             const std::remove_cvref_t<decltype(view.shape())>& expected) const {
    if (view.shape() != expected) refuse(tensor, view.shape().extents, expected.extents);
  }
  /// And its last axis is contiguous.
  void rows(std::string_view tensor, const auto& view,
            const std::remove_cvref_t<decltype(view.shape())>& expected) const {
    shape(tensor, view, expected);
    constexpr Index last = std::remove_cvref_t<decltype(view)>::rank - 1;
    if (view.extent(last) > 1 && view.stride(last) != 1) refuse(tensor, view.stride(last));
  }

 private:
  [[noreturn, gnu::cold, gnu::noinline]] void refuse(std::string_view tensor,
                                                     std::span<const Index> got,
                                                     std::span<const Index> expected) const {
    throw ShapeError(std::string(kernel) + ": " + std::string(tensor) + " has shape " +
                     text_of_extents(got) + ", expected " + text_of_extents(expected));
  }
  [[noreturn, gnu::cold, gnu::noinline]] void refuse(std::string_view tensor, Index stride) const {
    throw ShapeError(std::string(kernel) + ": the last dimension of " + std::string(tensor) +
                     " has stride " + std::to_string(stride) + ", expected 1");
  }
};

}  // namespace seqmix
