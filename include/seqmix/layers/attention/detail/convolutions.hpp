#pragma once

#include "seqmix/core/field.hpp"
#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/layers/detail/weights.hpp"
#include "seqmix/layers/mixer.hpp"

// Short convolutions along time, between the projections of attention and its heads.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Each channel of q, k and v sees its last numbers through a convolution of its own:
///   q_t = f(b + Σ_w taps[w] (W_q x)_{t - (W - 1) + w}),  f = silu with conv_silu, else the
///   identity
/// and k and v likewise. A residual around it (Canon layers, arXiv:2512.17351) is 1 more on the
/// last tap.
///
/// Source: So et al. 2021, arXiv:2109.08668, section 4 (multi-dconv-head attention: 3 taps, which
/// all heads share); ShortConvolution of flash-linear-attention (names of weights).
struct HeadConvolutionsConfig {
  Index kernel = 0;  // taps, W; 0: no convolutions
  bool bias = false;
  bool silu = false;

  static void visit(auto& self, auto&& field) {
    const auto convolved = only_where(self.kernel > 0, "conv_kernel is positive");
    field("conv_kernel", self.kernel, zero_is_legal, flat_key("head_conv_kernel"));
    field("conv_bias", self.bias, convolved, flat_key("head_conv_bias"));
    field("conv_silu", self.silu, convolved, flat_key("head_conv_silu"));
  }
  /// Tokens that a state remembers.
  Index past() const { return kernel > 0 ? kernel - 1 : 0; }
};

template <class Scalar>
struct HeadConvolutionsWeights {
  Parameter<Scalar, 3> q, k, v;                 // [channels, 1, W]
  Parameter<Scalar, 1> q_bias, k_bias, v_bias;  // [channels]

  static void visit(auto& self, const HeadConvolutionsConfig& c, Index queries, Index keys,
                    Index values, auto&& parameter) {
    if (c.kernel == 0) return;
    parameter("q_conv1d.weight", self.q, {queries, 1, c.kernel});
    parameter("k_conv1d.weight", self.k, {keys, 1, c.kernel});
    parameter("v_conv1d.weight", self.v, {values, 1, c.kernel});
    if (!c.bias) return;
    parameter("q_conv1d.bias", self.q_bias, {queries}, init::zeros);
    parameter("k_conv1d.bias", self.k_bias, {keys}, init::zeros);
    parameter("v_conv1d.bias", self.v_bias, {values}, init::zeros);
  }

  /// All taps [W, channels]: queries, keys, values.
  Parameter<Scalar, 2> taps() const {
    const Index width = q.extent(0) + k.extent(0) + v.extent(0);
    Tensor<Scalar, 2> joined({q.extent(2), width});
    Index first = 0;
    for (const auto* conv : {&q, &k, &v}) {
      const Index channels = conv->extent(0);
      if (channels == 0) continue;
      copy(transposed_taps(*conv).view(), joined.view().slice(axis::channel, first, channels));
      first += channels;
    }
    return joined;
  }
};

/// Sends queries [T, H, K], keys and values through their convolutions. taps: [W, channels] of all
/// three behind each other. history: [B, W - 1, channels], their last inputs, which advance.
template <class S>
void convolve_heads(const HeadConvolutionsConfig& c, const HeadConvolutionsWeights<S>& w,
                    In<S, 2> taps, Out<S, 3> history, View<S, 3> q, View<S, 3> k, View<S, 3> v,
                    const Call& call) {
  if (c.kernel == 0) return;
  const auto activation = c.silu ? ShortConvActivation::silu : ShortConvActivation::none;
  Index first = 0;
  const auto convolve = [&](View<S, 3> heads, const Parameter<S, 1>& bias) {
    const auto flat = heads.merge(axis::head);  // [T, channels]
    const Index width = flat.extent(axis::channel);
    short_conv<S>(flat, taps.slice(axis::channel, first, width), bias, activation,
                  history.slice(axis::channel, first, width), flat, call);
    first += width;
  };
  convolve(q, w.q_bias), convolve(k, w.k_bias), convolve(v, w.v_bias);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
