#pragma once

#include <utility>

#include "seqmix/kernels/conv/token_shift.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/detail/weights.hpp"
#include "seqmix/layers/initializer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

// What the blocks of RWKV share.

/// The numbers of a parameter [1, 1, D] as [D].
template <class Scalar>
View<const Scalar, 1> flat(const Parameter<Scalar, 3>& parameter) {
  return {parameter.data(), {parameter.size()}};
}

/// f of each number of a parameter.
template <class Scalar, Index Rank>
Parameter<Scalar, Rank> mapped(const Parameter<Scalar, Rank>& parameter, auto&& f) {
  Tensor<Scalar, Rank> numbers = parameter.to_tensor();
  for (Index i = 0; i < numbers.size(); ++i) numbers.data()[i] = f(numbers.data()[i]);
  return numbers;
}

/// The projection x W + b of a matrix [in, out], as checkpoints of RWKV keep factors of low rank;
/// b [out] may be empty.
template <class Scalar>
Projection<Scalar> transposed_projection(View<const Scalar, 2> weight,
                                         View<const Scalar, 1> bias = {}) {
  Tensor<Scalar, 2> rows({weight.extent(1), weight.extent(0)});
  for (Index i = 0; i < weight.extent(0); ++i) copy(weight[i], rows.view().at(axis::channel, i));
  Projection<Scalar> result{Parameter<Scalar, 2>(std::move(rows)), {}};
  result.weight.pack();
  if (bias.data() != nullptr) {
    Tensor<Scalar, 1> numbers({bias.extent(0)});
    copy(bias, numbers.view());
    result.bias = std::move(numbers);
  }
  return result;
}

/// The layer norms of a block; ln0, behind the embedding, is layer 0's alone.
template <class Scalar>
struct RwkvNorms {
  Parameter<Scalar, 1> ln0, ln0_bias, ln1, ln1_bias, ln2, ln2_bias;  // [D]

  static void visit(auto& self, const auto& c, auto&& parameter) {
    if (c.layer_index == 0) parameter("ln0.weight", self.ln0, {c.d_model}, init::ones);
    if (c.layer_index == 0) parameter("ln0.bias", self.ln0_bias, {c.d_model}, init::zeros);
    parameter("ln1.weight", self.ln1, {c.d_model}, init::ones);
    parameter("ln1.bias", self.ln1_bias, {c.d_model}, init::zeros);
    parameter("ln2.weight", self.ln2, {c.d_model}, init::ones);
    parameter("ln2.bias", self.ln2_bias, {c.d_model}, init::zeros);
  }
  /// The residual stream at the start of the block: x, or in layer 0 what ln0 makes of it, in y.
  View<const Scalar, 2> enter(View<const Scalar, 2> x, double eps, View<Scalar, 2> y,
                              const Call& call) const {
    if (!ln0) return x;
    layer_norm(x, ln0, ln0_bias, eps, y, call);
    return y;
  }
};

/// y = W_v max(0, W_k mix_k)², times σ(W_r mix_r) where there is a receptance. x: [T, D], behind
/// its norm; mix_k and mix_r weigh the token before; history: [B, 1, D].
template <class Scalar>
void channel_mix(View<const Scalar, 2> x, const Parameter<Scalar, 3>& mix_k,
                 const Parameter<Scalar, 3>& mix_r, const Projection<Scalar>& key,
                 const Projection<Scalar>& receptance, const Projection<Scalar>& value,
                 View<Scalar, 3> history, View<Scalar, 2> y, const Call& call) {
  const Index T = x.extent(axis::time), D = x.extent(axis::channel);
  auto scratch = call.scratch<Scalar>();
  auto before = scratch(T, D);                      // [T, D], previous token - token
  auto mixed = scratch(T, D);                       // [T, D]
  auto hidden = scratch(T, key.weight.shape()[0]);  // [T, F]
  token_shift(x, history, before, call);
  mix_tokens(x, before, by_channel(flat(mix_k)), mixed, call);
  project(mixed, {{key, hidden}}, call);
  activate(Activation::relu_squared, hidden, call);
  project(hidden, {{value, y}}, call);
  if (!receptance.weight) return;
  auto gate = before;  // [T, D]
  mix_tokens(x, before, by_channel(flat(mix_r)), mixed, call);
  project(mixed, {{receptance, gate}}, call);
  elementwise(
      call, [](auto out, auto by) { return out * simd::sigmoid(by); }, y, y, gate);
}

/// y = a + b; y may be either.
template <class Scalar>
void add(View<const Scalar, 2> a, View<const Scalar, 2> b, View<Scalar, 2> y, const Call& call) {
  elementwise(
      call, [](auto left, auto right) { return left + right; }, y, a, b);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
