#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/tensor.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The bytes of one number of `Scalar` in a storage.
template <class Scalar>
constexpr Index number_size(Storage storage) {
  if (storage == Storage::native) return static_cast<Index>(sizeof(Scalar));
  return storage == Storage::int8 ? 1 : 2;
}

/// A non-owning window on entries, the vectors along the last axis, whose numbers are contiguous
/// and stored as is known at run time.
///
/// A view of plain numbers converts to one of native storage.
template <class T, Index Rank>
class CacheView {
  using Scalar = std::remove_const_t<T>;
  template <class U>
  using ConstAsT = std::conditional_t<std::is_const_v<T>, const U, U>;

 public:
  using Bytes = View<ConstAsT<std::byte>, Rank>;
  using Scales = View<ConstAsT<bfloat16>, Rank>;
  static constexpr Index rank = Rank;

  CacheView() = default;
  /// The extents of `bytes` count numbers, its strides bytes. `scales` (int8 alone) has the stride
  /// 0 on the last axis: one an entry.
  CacheView(Storage storage, Bytes bytes, Scales scales)
      : storage_(storage), bytes_(bytes), scales_(scales) {}
  template <class Numbers>
  requires std::convertible_to<Numbers&, View<T, Rank>> CacheView(Numbers&& plain) {
    const View<T, Rank> numbers = plain;
    Shape<Rank> strides = numbers.strides();
    for (Index& stride : strides.extents) stride *= static_cast<Index>(sizeof(T));
    bytes_ = {reinterpret_cast<ConstAsT<std::byte>*>(numbers.data()), numbers.shape(), strides};
  }
  template <class U>
  requires std::same_as<T, const U> CacheView(const CacheView<U, Rank>& other)
      : CacheView(other.storage(), other.bytes(), other.scales()) {}

  Storage storage() const { return storage_; }
  bool is_native() const { return storage_ == Storage::native; }
  const Bytes& bytes() const { return bytes_; }
  const Scales& scales() const { return scales_; }
  const Shape<Rank>& shape() const { return bytes_.shape(); }
  Index extent(Index axis) const { return bytes_.extent(axis); }
  /// In numbers.
  Index stride(Index axis) const { return bytes_.stride(axis) / number_size<Scalar>(storage_); }

  /// Calls `body` with the numbers as a view of what they are: of `Scalar`, `bfloat16`, `float16`
  /// or `std::int8_t`.
  decltype(auto) visit(auto&& body) const {
    switch (storage_) {
      case Storage::bf16:
        return body(numbers<bfloat16>());
      case Storage::f16:
        return body(numbers<float16>());
      case Storage::int8:
        return body(numbers<std::int8_t>());
      default:
        return body(numbers<Scalar>());
    }
  }
  /// The numbers, whose storage must be native.
  View<T, Rank> native() const {
    if (!is_native()) {
      throw ShapeError("a cache is stored as " + std::string(to_string(storage_)) +
                       ", expected native");
    }
    return numbers<Scalar>();
  }

  /// The window that `of` makes of views of this shape.
  auto window(auto&& of) const {
    const auto bytes = of(bytes_);
    return CacheView<T, std::remove_const_t<decltype(bytes)>::rank>(storage_, bytes, of(scales_));
  }
  template <NamedAxis Axis>
  requires(!std::same_as<Axis, axis::Time>) Index extent(Axis)
  const { return extent(Axis::template of<Rank>); }
  template <NamedAxis Axis>
  requires(!std::same_as<Axis, axis::Time>) CacheView<T, Rank - 1> at(Axis, Index index)
  const { return at<Axis::template of<Rank>>(index); }
  template <NamedAxis Axis>
  requires(!std::same_as<Axis, axis::Time>) CacheView slice(Axis, Index begin, Index count)
  const { return slice<Axis::template of<Rank>>(begin, count); }
  template <Index Axis>
  CacheView<T, Rank - 1> at(Index index) const {
    return window([&](const auto& view) { return view.template at<Axis>(index); });
  }
  CacheView<T, Rank - 1> operator[](Index index) const { return at<0>(index); }
  template <Index Axis>
  CacheView slice(Index begin, Index count) const {
    return window([&](const auto& view) { return view.template slice<Axis>(begin, count); });
  }

 private:
  template <class Number>
  View<ConstAsT<Number>, Rank> numbers() const {
    Shape<Rank> strides = bytes_.strides();
    for (Index& stride : strides.extents) stride /= static_cast<Index>(sizeof(Number));
    return {reinterpret_cast<ConstAsT<Number>*>(bytes_.data()), bytes_.shape(), strides};
  }

  Storage storage_ = Storage::native;
  Bytes bytes_;
  Scales scales_;
};

/// Kernel arguments from which nothing is deduced, as `In` and `Out`.
template <class Scalar, Index Rank>
using CacheIn = std::type_identity_t<CacheView<const Scalar, Rank>>;
template <class Scalar, Index Rank>
using CacheOut = std::type_identity_t<CacheView<Scalar, Rank>>;

/// Owned entries, zero at the start, in a storage that is chosen at run time.
template <class Scalar, Index Rank>
class Cache {
 public:
  static constexpr Index rank = Rank;

  Cache() = default;
  Cache(Shape<Rank> shape, Memory memory = {}, Storage storage = Storage::native)
      : storage_(storage),
        shape_(shape),
        bytes_(with_last(checked_product(shape[Rank - 1], number_size<Scalar>(storage))), memory),
        scales_(with_last(storage == Storage::int8 ? 1 : 0), memory) {}
  Cache(const Cache&) = default;
  Cache(Cache&& other) noexcept { swap(other); }
  /// In place where shape and storage agree, or not at all where memory ends.
  Cache& operator=(const Cache& other) {
    if (storage_ == other.storage_ && shape_ == other.shape_) {
      bytes_ = other.bytes_, scales_ = other.scales_;
    } else {
      *this = Cache(other);
    }
    return *this;
  }
  Cache& operator=(Cache&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Cache() = default;

  Storage storage() const { return storage_; }
  const Shape<Rank>& shape() const { return shape_; }
  Index extent(Index axis) const { return shape_[axis]; }
  CacheView<Scalar, Rank> view() {
    return {storage_, with_shape(bytes_.view()), with_shape(scales_.view())};
  }
  CacheView<const Scalar, Rank> view() const {
    return {storage_, with_shape(bytes_.view()), with_shape(scales_.view())};
  }
  /// [..., bytes of an entry] and [..., 1 or 0].
  const Tensor<std::byte, Rank>& bytes() const { return bytes_; }
  const Tensor<bfloat16, Rank>& scales() const { return scales_; }

 private:
  void swap(Cache& other) noexcept {
    std::swap(storage_, other.storage_), std::swap(shape_, other.shape_);
    std::swap(bytes_, other.bytes_), std::swap(scales_, other.scales_);
  }
  Shape<Rank> with_last(Index extent) const {
    Shape<Rank> shape = shape_;
    shape[Rank - 1] = extent;
    return shape;
  }
  template <class T>
  View<T, Rank> with_shape(const View<T, Rank>& view) const {
    Shape<Rank> strides = view.strides();
    strides[Rank - 1] =
        std::same_as<std::remove_const_t<T>, std::byte> ? number_size<Scalar>(storage_) : 0;
    return {view.data(), shape_, strides};
  }

  Storage storage_ = Storage::native;
  Shape<Rank> shape_;
  Tensor<std::byte, Rank> bytes_;
  Tensor<bfloat16, Rank> scales_;
};

/// A row of a state sees at most so many tokens: positions are numbers that a double holds.
inline constexpr Index max_tokens = Index{1} << 53;

/// The number of tokens that each batch row of a state has seen, [B]. The mixer advances it.
struct Position {
  Tensor<Index, 1> tokens;  // [B]

  Position() = default;
  Position(Index batch, Memory memory = {}) : tokens({batch}, memory) {}
  Index operator[](Index row) const { return tokens[row]; }
  Index& operator[](Index row) { return tokens[row]; }
};

/// An append-only cache: batch first, one entry a token along `Axis`, whose extent is the capacity.
///
/// The valid entries of a row are the first `position[row]`; the state's `Position` says how many.
template <class Scalar, Index Rank, Index Axis>
struct Appended {
  static_assert(Axis > 0 && Axis < Rank);
  static constexpr Index axis = Axis;
  Cache<Scalar, Rank> entries;

  Appended() = default;
  Appended(Shape<Rank> shape, Memory memory = {}, Storage storage = Storage::native)
      : entries(shape, memory, storage) {}
  Index capacity() const { return entries.extent(Axis); }
  CacheView<Scalar, Rank> view() { return entries.view(); }
  CacheView<const Scalar, Rank> view() const { return entries.view(); }
};

/// The last entries of a stream, batch first: position p lies in slot p mod rows along `Axis`.
///
/// A layer looks back on `window` positions. Of what the other rows hold, that many tokens can be
/// taken back from the most that the row has ever seen, which later ones have not overwritten: the
/// state's position, or `reached` where some were taken back since. Slots that no token has reached
/// are undefined.
template <class Scalar, Index Rank, Index Axis>
struct Ring {
  static_assert(Axis > 0 && Axis < Rank);
  static constexpr Index ring_axis = Axis;
  Cache<Scalar, Rank> entries;
  Index window = 0;
  Tensor<Index, 1> reached;  // [B], the most tokens before some were taken back

  Ring() = default;
  Ring(Shape<Rank> shape, Index visible, Memory memory = {}, Storage storage = Storage::native)
      : entries(shape, memory, storage), window(visible), reached({shape[0]}, memory) {}
  Index rows() const { return entries.extent(Axis); }
  CacheView<Scalar, Rank> view() { return entries.view(); }
  CacheView<const Scalar, Rank> view() const { return entries.view(); }
};

/// What a row reads beside its tokens: entries that are made of a sequence of its own, batch first,
/// one of each of that sequence's tokens along `Axis`.
///
/// The valid entries of a row are the first `length[row]`. The mixer counts them when a row reads a
/// source; the tokens that come later add none and take none away.
template <class Scalar, Index Rank, Index Axis>
struct Source {
  static_assert(Axis > 0 && Axis < Rank);
  static constexpr Index source_axis = Axis;
  Cache<Scalar, Rank> entries;
  Tensor<Index, 1> length;  // [B]

  Source() = default;
  Source(Shape<Rank> shape, Memory memory = {}, Storage storage = Storage::native)
      : entries(shape, memory, storage), length({shape[0]}, memory) {}
  Index capacity() const { return entries.extent(Axis); }
  CacheView<Scalar, Rank> view() { return entries.view(); }
  CacheView<const Scalar, Rank> view() const { return entries.view(); }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
