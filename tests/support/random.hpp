#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "seqmix/layers/detail/weights.hpp"

namespace support {

/// N(0, 1) numbers.
template <class S, seqmix::Index Rank>
seqmix::Tensor<S, Rank> random_tensor(seqmix::Shape<Rank> shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  seqmix::Tensor<S, Rank> numbers(shape);
  std::generate_n(numbers.data(), numbers.size(), [&] { return static_cast<S>(normal(random)); });
  return numbers;
}

/// Random weights of any layer: matrices N(0, 1 / in), vectors around 1.
template <class Weights, class Config>
Weights random_weights(const Config& config, unsigned seed) {
  return seqmix::make_weights<Weights>(config, [&]<class Shape>(const auto&, Shape shape) {
    constexpr auto rank = static_cast<seqmix::Index>(shape.extents.size());
    auto numbers = random_tensor<double, rank>(shape, seed++);
    const double scale = 1 / std::sqrt(static_cast<double>(shape[rank - 1]));
    for (seqmix::Index i = 0; i < numbers.size(); ++i) {
      double& number = numbers.data()[i];
      number = rank == 1 ? 1 + 0.2 * number : number * scale;
    }
    return numbers;
  });
}

}  // namespace support
