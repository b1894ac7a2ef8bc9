#pragma once

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "seqmix/core/memory.hpp"
#include "seqmix/core/view.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Owned row-major numbers at a 64-byte aligned address, zero at the start.
///
/// A tensor converts to views; a copy owns heap memory of its own. One of `Memory::shapes_only()`
/// has none, nor have its copies: it is there to be asked for its shape.
template <class T, Index Rank>
class Tensor {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  using value_type = T;
  static constexpr Index rank = Rank;

  Tensor() = default;
  explicit Tensor(Shape<Rank> shape) : Tensor(shape, Memory{}) {}
  /// `Tensor<T, 1>({5})`: preferred to reading {5} as a tensor to copy.
  explicit Tensor(std::initializer_list<Index> extent) requires(Rank == 1)
      : Tensor(Shape<1>{extent.size() == 1 ? *extent.begin() : -1}) {}
  Tensor(Shape<Rank> shape, Memory memory) : memory_(memory), size_(shape.size()) {
    const Index bytes = checked_product(size_, static_cast<Index>(sizeof(T)));
    if (!memory.is_none()) {
      data_ = static_cast<T*>(memory_.allocate(bytes));
      std::uninitialized_fill_n(data_, size_, T{});
    }
    view_ = {data_, shape};
  }
  Tensor(const Tensor& other)
      : Tensor(other.shape(), other.memory_.is_none() ? Memory::shapes_only() : Memory{}) {
    copy_numbers(other);
  }
  Tensor(Tensor&& other) noexcept { swap(other); }
  /// Numbers of the same shape go where this tensor's are; nothing is allocated then.
  Tensor& operator=(const Tensor& other) {
    if (shape() == other.shape() && (data_ == nullptr) == (other.data_ == nullptr)) {
      copy_numbers(other);
    } else {
      *this = Tensor(other);
    }
    return *this;
  }
  Tensor& operator=(Tensor&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() {
    if (data_ != nullptr) memory_.free(data_, size_ * static_cast<Index>(sizeof(T)));
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  const Shape<Rank>& shape() const { return view_.shape(); }
  Index extent(Index axis) const { return view_.extent(axis); }
  Index size() const { return size_; }
  bool empty() const { return size_ == 0; }

  View<T, Rank> view() { return view_; }
  View<const T, Rank> view() const { return view_; }
  operator View<T, Rank>() { return view_; }
  operator View<const T, Rank>() const { return view_; }

  T& operator()(std::convertible_to<Index> auto... indices) { return view_(indices...); }
  const T& operator()(std::convertible_to<Index> auto... indices) const {
    return view_(indices...);
  }
  decltype(auto) operator[](Index index) { return view()[index]; }
  decltype(auto) operator[](Index index) const { return view()[index]; }

 private:
  void copy_numbers(const Tensor& other) {
    if (data_ != other.data_) std::copy_n(other.data_, size_, data_);
  }
  void swap(Tensor& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(view_, other.view_);
  }

  Memory memory_;
  T* data_ = nullptr;
  Index size_ = 0;
  View<T, Rank> view_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
