#pragma once

#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/parameter.hpp"
#include "seqmix/layers/check_config.hpp"
#include "seqmix/layers/name.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a layer keeps its projections' weights, and its states their caches of keys and values.
struct Options {
  Storage weights = Storage::native;
  Storage caches = Storage::native;

  Options() = default;
  /// Both, which is what `load(..., Storage::bf16)` asks for.
  Options(Storage both) : weights(both), caches(both) {}
  Options(Storage of_weights, Storage of_caches) : weights(of_weights), caches(of_caches) {}
};

/// Calls `body(part, number)` for the `count` parts of a list that weights call `name`.
///
/// A list that is being filled grows by the part that is asked for, so that a config's word makes
/// no memory before the tensors are there that it implies. What a const list lacks is an empty
/// part.
template <class Parts>
void for_each_part(std::string_view name, Parts& parts, Index count, auto&& body) {
  const typename Parts::value_type none{};
  for (Index i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if constexpr (std::is_const_v<Parts>) {
      body(at < parts.size() ? parts[at] : none, i);
    } else {
      body(at < parts.size() ? parts[at] : parts.emplace_back(), i);
    }
  }
  if (std::ssize(parts) > count) {
    throw ShapeError(std::string(name) + ": the weights have " + std::to_string(parts.size()) +
                     " parts, expected " + std::to_string(count));
  }
}

/// The number of numbers in all parameters.
template <class Weights, class Config>
Index count_parameters(const Weights& weights, const Config& config) {
  Index count = 0;
  Weights::visit(weights, config, [&]<class P>(const Name&, const P&, Shape<P::rank> shape) {
    count += shape.size();
  });
  return count;
}

/// The taps [W, D] of a depthwise convolution from a checkpoint's [D, 1, W].
template <class Scalar>
Parameter<Scalar, 2> transposed_taps(const Parameter<Scalar, 3>& weight) {
  Tensor<Scalar, 2> taps({weight.extent(2), weight.extent(0)});
  for (Index d = 0; d < weight.extent(0); ++d) {
    for (Index tap = 0; tap < weight.extent(2); ++tap) taps(tap, d) = weight(d, 0, tap);
  }
  return taps;
}

/// Weights whose every parameter is what `make(name, shape)` returns, a `Tensor` of that shape.
template <class Weights, class Config>
Weights make_weights(const Config& config, auto&& make) {
  Weights weights;
  Weights::visit(weights, config,
                 [&]<class P>(const Name& name, P& parameter, Shape<P::rank> shape) {
                   parameter = Parameter<typename P::value_type, P::rank>(make(name, shape));
                 });
  return weights;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
