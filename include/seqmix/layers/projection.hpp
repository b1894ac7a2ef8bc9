#pragma once

#include <initializer_list>
#include <memory>
#include <type_traits>

#include "seqmix/core/context.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/matmul.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The matrix of a projection, [out, in]: as it was loaded, then (in a mixer) packed for `matmul`,
/// which drops the handle of the unpacked numbers.
template <class Scalar>
class ProjectionWeight {
 public:
  using value_type = Scalar;
  static constexpr Index rank = 2;

  ProjectionWeight() = default;
  ProjectionWeight(Parameter<Scalar, 2> plain) : plain_(std::move(plain)) {}

  explicit operator bool() const { return plain_ || packed_; }
  Shape<2> shape() const {
    return packed_ ? Shape<2>{packed_.rows(), packed_.cols()} : plain_.shape();
  }
  void pack(Storage storage = Storage::native) {
    if (!plain_) return;
    packed_ = PackedMatrix<Scalar>(plain_.view(), storage);
    plain_ = {};
  }
  /// The numbers, row-major.
  Tensor<Scalar, 2> to_tensor() const { return packed_ ? packed_.unpack() : plain_.to_tensor(); }
  const PackedMatrix<Scalar>& packed() const { return packed_; }
  /// The same for copies, which share the numbers; packing makes new ones.
  const void* identity() const { return packed_ ? packed_.identity() : plain_.identity(); }

 private:
  Parameter<Scalar, 2> plain_;
  PackedMatrix<Scalar> packed_;
};

/// The same of a convolution with one tap, [out, in, 1].
template <class Scalar>
class PointwiseWeight : public ProjectionWeight<Scalar> {
 public:
  static constexpr Index rank = 3;

  PointwiseWeight() = default;
  PointwiseWeight(Parameter<Scalar, 3> plain)
      : ProjectionWeight<Scalar>(Parameter<Scalar, 2>(
            View<const Scalar, 2>(plain.data(), {plain.extent(0), plain.extent(1)}),
            std::make_shared<const Parameter<Scalar, 3>>(plain))),
        taps_(plain.extent(2)) {}

  Shape<3> shape() const {
    const Shape<2> matrix = ProjectionWeight<Scalar>::shape();
    return {matrix[0], matrix[1], taps_};
  }
  Tensor<Scalar, 3> to_tensor() const {
    Tensor<Scalar, 3> numbers(shape());
    copy(ProjectionWeight<Scalar>::to_tensor().view(), numbers.view().template at<2>(0));
    return numbers;
  }

 private:
  Index taps_ = 1;
};

/// y = W x + b, PyTorch's `Linear`.
template <class Scalar>
struct Projection {
  ProjectionWeight<Scalar> weight;  // [out, in]
  Parameter<Scalar, 1> bias;        // [out], or empty
};

/// One output of `project`: [B, T, out], or a head split [B, T, H, K] of it.
template <class Scalar>
struct Projected {
  const Projection<Scalar>& projection;
  View<Scalar, 3> y;  // [B, T, out]

  Projected(const Projection<Scalar>& by, View<Scalar, 3> to) : projection(by), y(to) {}
  Projected(const Projection<Scalar>& by, View<Scalar, 4> to)
      : projection(by), y(to.template merge<2>()) {}
};

/// Sends every row of x [B, T, in] through each projection; x may be a head split too.
template <class T, Index Rank>
void project(const View<T, Rank>& x,
             std::initializer_list<Projected<std::remove_const_t<T>>> outputs, Context& context) {
  if constexpr (Rank == 4) {
    project(x.template merge<2>(), outputs, context);
  } else {
    for (const auto& [projection, y] : outputs) {
      matmul<std::remove_const_t<T>>(x, projection.weight.packed(), y, context,
                                     projection.bias.data());
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
