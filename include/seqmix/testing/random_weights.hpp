#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <utility>

#include "seqmix/core/parameter.hpp"
#include "seqmix/layers/detail/name.hpp"
#include "seqmix/layers/initializer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace testing {

/// Numbers of a parameter as its initialiser asks for them, in the range of float, so that layers
/// of float and double may have the same. `spread`: a constant is not the same number everywhere,
/// so that a test sees a weight that is left out or in the wrong place.
class RandomNumbers {
 public:
  explicit RandomNumbers(unsigned seed, bool spread = true) : random_(seed), spread_(spread) {}

  void fill(const Initializer& from, std::span<const Index> shape, std::span<float> numbers) {
    const auto size = std::ssize(numbers);
    const Index first = shape.empty() ? 1 : shape[0], second = shape.size() > 1 ? shape[1] : 1;
    const Index inner = std::max<Index>(size / std::max<Index>(first, 1), 1);  // the fan in
    for (Index i = 0; i < size; ++i) {
      numbers[static_cast<std::size_t>(i)] =
          static_cast<float>(number(from, i, inner, std::max<Index>(second, 1)));
    }
  }

 private:
  using Kind = Initializer::Kind;

  double number(const Initializer& from, Index i, Index inner, Index second) {
    const auto between = [&](double a, double b) { return a + (b - a) * uniform_(random_); };
    switch (from.kind) {
      case Kind::constant:
        return from.a + (spread_ ? (from.a == 0 ? 0.3 : 0.2) * normal_(random_) : 0);
      case Kind::uniform:
        return between(from.a, from.b);
      case Kind::normal:
        return from.a + from.b * normal_(random_);
      case Kind::log_uniform:
        return std::log(between(from.a, from.b));
      case Kind::time_steps:
        return std::log(std::expm1(std::exp(between(std::log(from.a), std::log(from.b)))));
      case Kind::ramp:
        return static_cast<double>(i) / static_cast<double>(second);
      case Kind::choices:
        return std::floor(between(0, from.b));
      case Kind::causal_blocks: {
        const Index row = i / second % second, column = i % second;
        return row == column || (row > column && uniform_(random_) < 0.5) ? 1 : 0;
      }
      default:
        return between(-1, 1) / std::sqrt(static_cast<double>(inner));
    }
  }

  std::mt19937 random_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
  bool spread_;
};

/// Weights drawn from their initialisers.
template <class Weights, class Config>
Weights random_weights(const Config& config, unsigned seed, bool spread = true) {
  Weights weights;
  RandomNumbers random(seed, spread);
  Weights::visit(weights, config,
                 [&]<class P>(const Name&, P& parameter, Shape<P::rank> shape, auto... tags) {
                   using T = typename P::value_type;
                   Tensor<float, 1> drawn({shape.size()});
                   random.fill(initializer_of(tags...), shape.extents,
                               {drawn.data(), static_cast<std::size_t>(drawn.size())});
                   Tensor<T, P::rank> numbers(shape);
                   std::transform(drawn.data(), drawn.data() + drawn.size(), numbers.data(),
                                  [](float x) { return static_cast<T>(x); });
                   parameter = Parameter<T, P::rank>(std::move(numbers));
                 });
  return weights;
}

}  // namespace testing
SEQMIX_END_NAMESPACE
}  // namespace seqmix
