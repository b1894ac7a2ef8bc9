#pragma once

#include <initializer_list>
#include <memory>
#include <type_traits>

#include "seqmix/core/call.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/product/matmul.hpp"
#include "seqmix/layers/detail/name.hpp"
#include "seqmix/layers/initializer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The matrix of a projection, [out, in]: as it was loaded, then (in a mixer) packed for `matmul`,
/// which drops the handle of the unpacked numbers. Its last rows may be kept in the compute type
/// where the others are narrow.
template <class Scalar>
class ProjectionWeight {
 public:
  using value_type = Scalar;
  static constexpr Index rank = 2;

  ProjectionWeight() = default;
  ProjectionWeight(Parameter<Scalar, 2> plain) : plain_(std::move(plain)) {}

  explicit operator bool() const { return plain_ || packed_; }
  Shape<2> shape() const {
    return packed_ ? Shape<2>{packed_.rows() + kept_.rows(), packed_.cols()} : plain_.shape();
  }
  /// `kept`: the rows, the last ones, that stay native; all where there are not more.
  void pack(Storage storage = Storage::native, Index kept = 0) {
    if (!plain_) return;
    const Index rows = plain_.extent(0);
    if (kept >= rows) storage = Storage::native;
    if (storage == Storage::native) kept = 0;
    packed_ = PackedMatrix<Scalar>(plain_.view().slice(axis::row, 0, rows - kept), storage);
    if (kept > 0) kept_ = PackedMatrix<Scalar>(plain_.view().slice(axis::row, rows - kept, kept));
    plain_ = {};
  }
  /// The numbers that are computed with, row-major.
  Tensor<Scalar, 2> to_tensor() const {
    if (!packed_) return plain_.to_tensor();
    if (!kept_) return packed_.unpack();
    Tensor<Scalar, 2> numbers(shape());
    const Index first = packed_.rows();
    copy(packed_.unpack().view(), numbers.view().slice(axis::row, 0, first));
    copy(kept_.unpack().view(), numbers.view().slice(axis::row, first, kept_.rows()));
    return numbers;
  }
  /// y [T, out] = x Wᵀ + bias, or without where it is null; packed weights alone.
  void multiply(const View<const Scalar, 2>& x, const Scalar* bias, const View<Scalar, 2>& y,
                const Call& call) const {
    if (!kept_) return matmul<Scalar>(x, packed_, y, call, bias);
    const Index first = packed_.rows();
    matmul<Scalar>(x, packed_, y.slice(axis::channel, 0, first), call, bias);
    matmul<Scalar>(x, kept_, y.slice(axis::channel, first, kept_.rows()), call,
                   bias != nullptr ? bias + first : nullptr);
  }
  /// Writes row `row` of them; packed weights alone.
  void read_row(Index row, View<Scalar, 1> to) const {
    const bool kept = row >= packed_.rows();
    (kept ? kept_ : packed_).read_row(kept ? row - packed_.rows() : row, to);
  }
  /// The same for copies, which share the numbers; packing makes new ones.
  const void* identity() const { return packed_ ? packed_.identity() : plain_.identity(); }

 private:
  Parameter<Scalar, 2> plain_;
  PackedMatrix<Scalar> packed_, kept_;
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
    copy(ProjectionWeight<Scalar>::to_tensor().view(), numbers.view().at(axis::channel, 0));
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

/// Names a projection of `width` numbers to as many to a visitor of weights.
void visit_linear(const Name& name, auto& projection, Index width, bool has_bias,
                  auto&& parameter) {
  const Prefixed of_projection(name, parameter);
  of_projection("weight", projection.weight, {width, width});
  if (has_bias) of_projection("bias", projection.bias, {width}, init::zeros);
}

/// One output of `project`: [T, out], or a head split [T, H, K] of it.
template <class Scalar>
struct Projected {
  const Projection<Scalar>& projection;
  View<Scalar, 2> y;  // [T, out]

  Projected(const Projection<Scalar>& by, View<Scalar, 2> to) : projection(by), y(to) {}
  Projected(const Projection<Scalar>& by, View<Scalar, 3> to)
      : projection(by), y(to.merge(axis::head)) {}
};

/// Sends every token of x [T, in] through each projection; x may be a head split too.
template <class T, Index Rank>
void project(const View<T, Rank>& x,
             std::initializer_list<Projected<std::remove_const_t<T>>> outputs, const Call& call) {
  if constexpr (Rank == 3) {
    project(x.merge(axis::head), outputs, call);
  } else {
    for (const auto& [projection, y] : outputs) {
      projection.weight.multiply(x, projection.bias.data(), y, call);
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
