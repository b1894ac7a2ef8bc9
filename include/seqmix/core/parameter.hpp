#pragma once

#include <memory>
#include <utility>

#include "seqmix/core/tensor.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// An immutable weight behind a shared handle: copies share the numbers.
///
/// It owns a tensor that was moved in, or borrows row-major numbers that a handle keeps alive (a
/// mapped file, say); without a handle the caller does.
template <class Scalar, Index Rank>
class Parameter {
 public:
  using value_type = Scalar;
  static constexpr Index rank = Rank;

  Parameter() = default;
  Parameter(Tensor<Scalar, Rank> numbers) {
    auto owner = std::make_shared<const Tensor<Scalar, Rank>>(std::move(numbers));
    view_ = owner->view();
    handle_ = std::move(owner);
  }
  Parameter(View<const Scalar, Rank> numbers, std::shared_ptr<const void> owner)
      : handle_(std::move(owner)), view_(numbers) {
    if (!numbers.contiguous()) throw ShapeError("a borrowed parameter must be contiguous");
  }

  Parameter(const Parameter&) = default;
  Parameter(Parameter&& other) noexcept { swap(other); }
  Parameter& operator=(Parameter other) noexcept {
    swap(other);
    return *this;
  }
  ~Parameter() = default;

  /// Whether there are numbers; an optional bias that a layer lacks is an empty parameter.
  explicit operator bool() const { return data() != nullptr || handle_ != nullptr; }
  View<const Scalar, Rank> view() const { return view_; }
  Tensor<Scalar, Rank> to_tensor() const {
    Tensor<Scalar, Rank> numbers(shape());
    copy(view_, numbers.view());
    return numbers;
  }
  /// The same numbers in another shape.
  template <Index Other>
  Parameter<Scalar, Other> reshape(const Shape<Other>& shape) const {
    if (shape.size() != size()) {
      throw ShapeError("a parameter of shape " + this->shape().text() + " has no shape " +
                       shape.text());
    }
    return {View<const Scalar, Other>(data(), shape), handle_};
  }
  operator View<const Scalar, Rank>() const { return view_; }
  const Scalar* data() const { return view_.data(); }
  /// The same for copies, which share the numbers.
  const void* identity() const { return data(); }
  const Shape<Rank>& shape() const { return view_.shape(); }
  Index extent(Index axis) const { return view_.extent(axis); }
  Index size() const { return view_.size(); }
  decltype(auto) operator[](Index index) const { return view_[index]; }
  decltype(auto) operator()(std::convertible_to<Index> auto... indices) const {
    return view_(indices...);
  }

 private:
  void swap(Parameter& other) noexcept {
    std::swap(handle_, other.handle_), std::swap(view_, other.view_);
  }

  std::shared_ptr<const void> handle_;
  View<const Scalar, Rank> view_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
