#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/scan/diagonal.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct RgLruConfig {
  Index d_model = 0;
  Index lru_width = 0;    // channels of the recurrence
  Index n_heads = 1;      // blocks of the gates' block-diagonal matrices
  Index conv_kernel = 4;  // taps of the short convolution

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("lru_width", self.lru_width);
    field("n_heads", self.n_heads), field("conv_kernel", self.conv_kernel);
  }
  void check() const {
    require(lru_width % n_heads == 0, "lru_width must be a multiple of n_heads");
  }
  Index head_dim() const { return lru_width / n_heads; }
};

/// The recurrent block of Griffin and Hawk: a real-gated linear recurrent unit behind a short
/// convolution, and a GELU branch beside them.
///
///   x_t = short_conv(W_x u_t),   i_t = σ(BD_i x_t),   r_t = σ(BD_r x_t)      BD: block-diagonal
///   a_t = exp(-8 softplus(Λ) ⊙ r_t)
///   h_t = a_t ⊙ h_{t-1} + sqrt(1 - a_t²) ⊙ i_t ⊙ x_t,   h_0 = i_0 ⊙ x_0
///   y_t = W_out (h_t ⊙ gelu(W_y u_t))
///
/// forward: O(T (D² + D P)), P the width of a block; step: O(D² + D P). State: D numbers and W - 1
/// inputs of the short convolution a stream, whatever T.
/// Source: De et al. 2024, arXiv:2402.19427, eq. 1-4 and figure 2c; HF transformers
/// RecurrentGemmaRecurrentBlock.
template <class S>
struct RgLruDefinition {
  using Scalar = S;
  using Config = RgLruConfig;
  static constexpr Traits traits{.name = "rg_lru",
                                 .title = "RG-LRU (Griffin, Hawk, RecurrentGemma)",
                                 .paper = "De 2024, arXiv:2402.19427",
                                 .forward = "O(T (D² + D P))",
                                 .step = "O(D² + D P)",
                                 .state = "D + (W - 1) D"};

  struct Weights {
    Projection<Scalar> linear_y, linear_x, linear_out;
    Parameter<Scalar, 3> conv;                                      // [D, 1, W]
    Parameter<Scalar, 1> conv_bias, recurrent_param;                // [D]
    Parameter<Scalar, 3> input_gate_weight, recurrent_gate_weight;  // [H, P, P], in by out
    Parameter<Scalar, 2> input_gate_bias, recurrent_gate_bias;      // [H, P]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index D = c.lru_width, H = c.n_heads, P = c.head_dim();
      parameter("linear_y.weight", self.linear_y.weight, {D, c.d_model});
      parameter("linear_y.bias", self.linear_y.bias, {D}, init::zeros);
      parameter("linear_x.weight", self.linear_x.weight, {D, c.d_model});
      parameter("linear_x.bias", self.linear_x.bias, {D}, init::zeros);
      parameter("conv_1d.weight", self.conv, {D, 1, c.conv_kernel});
      parameter("conv_1d.bias", self.conv_bias, {D}, init::zeros);
      parameter("rg_lru.recurrent_param", self.recurrent_param, {D}, init::uniform(-6, 0));
      parameter("rg_lru.input_gate_weight", self.input_gate_weight, {H, P, P});
      parameter("rg_lru.input_gate_bias", self.input_gate_bias, {H, P}, init::zeros);
      parameter("rg_lru.recurrent_gate_weight", self.recurrent_gate_weight, {H, P, P});
      parameter("rg_lru.recurrent_gate_bias", self.recurrent_gate_bias, {H, P}, init::zeros);
      parameter("linear_out.weight", self.linear_out.weight, {c.d_model, D});
      parameter("linear_out.bias", self.linear_out.bias, {c.d_model}, init::zeros);
    }
  };

  struct State {
    Position position;         // [B]
    Tensor<Scalar, 3> conv;    // [B, W - 1, D], last inputs, oldest first
    Tensor<Scalar, 2> hidden;  // [B, D]

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("conv", self.conv), tensor("hidden", self.hidden);
    }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 2> taps;                                         // [W, D]
  Parameter<Scalar, 1> rate;                                         // [D], 8 softplus(Λ)
  std::vector<PackedMatrix<Scalar>> input_blocks, recurrent_blocks;  // [P, P] each, out by in

  RgLruDefinition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), taps(transposed_taps(w.conv)) {
    Tensor<Scalar, 1> rates({c.lru_width});
    for (Index d = 0; d < c.lru_width; ++d) {
      const auto raw = static_cast<double>(w.recurrent_param[d]);
      rates[d] =
          static_cast<Scalar>(8 * (std::max(raw, 0.0) + std::log1p(std::exp(-std::abs(raw)))));
    }
    rate = std::move(rates);
    for (Index h = 0; h < c.n_heads; ++h) {
      input_blocks.push_back(transposed_block(w.input_gate_weight, h));
      recurrent_blocks.push_back(transposed_block(w.recurrent_gate_weight, h));
    }
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.position = {batch, memory},
            .conv = {{batch, c.conv_kernel - 1, c.lru_width}, memory},
            .hidden = {{batch, c.lru_width}, memory}};
  }

  void run(View<const Scalar, 2> u, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = u.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto gate = scratch(T, c.lru_width);       // [T, D]
    auto x = scratch(T, c.lru_width);          // [T, D], then h
    auto input = scratch(T, c.lru_width);      // [T, D], i before σ
    auto recurrent = scratch(T, c.lru_width);  // [T, D], r before σ

    project(u, {{w.linear_y, gate}, {w.linear_x, x}}, call);
    short_conv(x, taps, w.conv_bias, ShortConvActivation::none, state.conv, x, call);
    project_blocks(x, input_blocks, w.input_gate_bias, input, call);
    project_blocks(x, recurrent_blocks, w.recurrent_gate_bias, recurrent, call);
    rg_lru_scan(x, input, recurrent, rate, state.position.tokens, state.hidden, x, call);
    activate_gated(Activation::gelu_tanh, x, gate, call);
    project(x, {{w.linear_out, y}}, call);
  }

 private:
  static PackedMatrix<Scalar> transposed_block(const Parameter<Scalar, 3>& weight, Index h) {
    const Index P = weight.extent(1);
    return PackedMatrix<Scalar>(View<const Scalar, 2>(&weight(h, 0, 0), {P, P}, {1, P}));
  }
  /// y = x blocks + bias, each head by its own block: [T, H P].
  void project_blocks(View<const Scalar, 2> x, const std::vector<PackedMatrix<Scalar>>& blocks,
                      const Parameter<Scalar, 2>& bias, View<Scalar, 2> y, const Call& call) const {
    for (Index h = 0; h < c.n_heads; ++h) {
      const Index first = h * c.head_dim();
      matmul<Scalar>(x.slice(axis::channel, first, c.head_dim()),
                     blocks[static_cast<std::size_t>(h)],
                     y.slice(axis::channel, first, c.head_dim()), call, &bias(h, 0));
    }
  }
};

template <class Scalar = float>
using RgLru = Mixer<RgLruDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(RgLruDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
