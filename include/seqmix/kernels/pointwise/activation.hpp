#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The pointwise non-linearities of feed-forward layers. `gelu` is the exact (erf) form,
/// `quick_gelu` x σ(1.702 x).
enum class Activation { silu, gelu, gelu_tanh, quick_gelu, relu, relu_squared };
constexpr std::array<std::string_view, 6> names_of(Activation) {
  return {"silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared"};
}

/// Calls `body` with the function on registers that `activation` names.
template <class S>
void with_activation(Activation activation, auto&& body) {
  using Batch = simd::Batch<S>;
  switch (activation) {
    case Activation::silu:
      return body([](Batch x) { return simd::silu(x); });
    case Activation::gelu:
      return body([](Batch x) { return simd::gelu(x); });
    case Activation::gelu_tanh:
      return body([](Batch x) { return simd::gelu_tanh(x); });
    case Activation::quick_gelu:
      return body([](Batch x) { return simd::quick_gelu(x); });
    case Activation::relu:
      return body([](Batch x) { return simd::max(x, Batch(S(0))); });
    case Activation::relu_squared:
      return body([](Batch x) {
        const Batch positive = simd::max(x, Batch(S(0)));
        return positive * positive;
      });
  }
}

/// x = activation(x).
template <class S, Index Rank>
void activate(Activation activation, View<S, Rank> x, const Call& call) {
  with_activation<S>(activation, [&](auto f) { elementwise(call, f, x, x); });
}

/// x = activation(gate) ⊙ x.
template <class S, Index Rank>
void activate_gated(Activation activation, View<S, Rank> x, In<S, Rank> gate, const Call& call) {
  with_activation<S>(activation, [&](auto f) {
    const auto gated = [f](simd::Batch<S> value, simd::Batch<S> by) { return f(by) * value; };
    elementwise(call, gated, x, x, gate);
  });
}

/// x = scale log σ(x).
template <class S, Index Rank>
void log_sigmoid(View<S, Rank> x, double scale, const Call& call) {
  const simd::Batch<S> factor(static_cast<S>(scale));
  elementwise(
      call, [factor](simd::Batch<S> value) { return factor * simd::log_sigmoid(value); }, x, x);
}

/// y = a ⊙ σ(b) of x = (a, b), the gated linear unit. x: [T, 2 D]. y: [T, D].
template <class S>
void gated_linear_unit(In<S, 2> x, View<S, 2> y, const Call& call) {
  const Index D = y.extent(axis::channel);
  elementwise(
      call, [](simd::Batch<S> a, simd::Batch<S> b) { return a * simd::sigmoid(b); }, y,
      x.slice(axis::channel, 0, D), x.slice(axis::channel, D, D));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
