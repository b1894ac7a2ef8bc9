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

/// The non-linearities, for `elementwise` and the gates of norms.
namespace activation {
inline constexpr auto sigmoid = [](auto x) { return simd::sigmoid(x); };
inline constexpr auto silu = [](auto x) { return simd::silu(x); };
inline constexpr auto gelu = [](auto x) { return simd::gelu(x); };
inline constexpr auto gelu_tanh = [](auto x) { return simd::gelu_tanh(x); };
inline constexpr auto quick_gelu = [](auto x) { return simd::quick_gelu(x); };
inline constexpr auto relu = [](auto x) { return simd::max(x, 0); };
inline constexpr auto relu_squared = [](auto x) {
  const auto positive = simd::max(x, 0);
  return positive * positive;
};
}  // namespace activation

/// Those that feed-forward layers choose from. `gelu` is the exact (erf) form, `quick_gelu`
/// x σ(1.702 x).
enum class Activation { silu, gelu, gelu_tanh, quick_gelu, relu, relu_squared };
constexpr std::array<std::string_view, 6> names_of(Activation) {
  return {"silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared"};
}

/// Calls `body` with the function that `kind` names.
void with_activation(Activation kind, auto&& body) {
  switch (kind) {
    case Activation::silu:
      return body(activation::silu);
    case Activation::gelu:
      return body(activation::gelu);
    case Activation::gelu_tanh:
      return body(activation::gelu_tanh);
    case Activation::quick_gelu:
      return body(activation::quick_gelu);
    case Activation::relu:
      return body(activation::relu);
    case Activation::relu_squared:
      return body(activation::relu_squared);
  }
}

/// x = activation(x).
template <class S, Index Rank>
void activate(Activation activation, View<S, Rank> x, const Call& call) {
  with_activation(activation, [&](auto f) { elementwise(call, f, x, x); });
}

/// x = activation(gate) ⊙ x.
template <class S, Index Rank>
void activate_gated(Activation activation, View<S, Rank> x, In<S, Rank> gate, const Call& call) {
  with_activation(activation, [&](auto f) {
    const auto gated = [f](auto value, auto by) { return f(by) * value; };
    elementwise(call, gated, x, x, gate);
  });
}

/// x = scale log σ(x).
template <class S, Index Rank>
void log_sigmoid(View<S, Rank> x, double scale, const Call& call) {
  const auto scaled = [factor = static_cast<S>(scale)](auto value) {
    return factor * simd::log_sigmoid(value);
  };
  elementwise(call, scaled, x, x);
}

/// x = cap tanh(x / cap).
template <class S, Index Rank>
void soft_cap(View<S, Rank> x, double cap, const Call& call) {
  const auto capped = [most = static_cast<S>(cap)](auto value) {
    return most * simd::tanh(value / most);
  };
  elementwise(call, capped, x, x);
}

/// y = a ⊙ σ(b) of x = (a, b), the gated linear unit. x: [T, 2 D]. y: [T, D].
template <class S>
void gated_linear_unit(In<S, 2> x, View<S, 2> y, const Call& call) {
  const Index D = y.extent(axis::channel);
  elementwise(
      call, [](auto a, auto b) { return a * simd::sigmoid(b); }, y, x.slice(axis::channel, 0, D),
      x.slice(axis::channel, D, D));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
