#pragma once

#include <cmath>
#include <initializer_list>

#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/detail/weights.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The rates -exp(A_log) at which heads forget, each `repeats` times.
template <class Scalar, Index Rank>
Parameter<Scalar, 1> decay_rates(const Parameter<Scalar, Rank>& A_log, Index repeats = 1) {
  Tensor<Scalar, 1> rates({A_log.size() * repeats});
  for (Index i = 0; i < rates.size(); ++i) rates[i] = -std::exp(A_log.data()[i / repeats]);
  return rates;
}

/// The taps [W, G, D] of G groups from a checkpoint's [channels, 1, W], where the channels are a
/// part of all groups, of `widths[0]` channels a group, then the next part of all groups.
template <class Scalar>
Parameter<Scalar, 3> grouped_taps(const Parameter<Scalar, 3>& weight, Index groups,
                                  std::initializer_list<Index> widths) {
  const auto taps = transposed_taps(weight);
  Tensor<Scalar, 3> grouped({taps.extent(0), groups, taps.extent(1) / groups});
  Index first = 0;
  for (const Index width : widths) {
    const auto part = taps.view().slice(axis::channel, first * groups, width * groups);
    copy(part.split(axis::channel, groups, width),
         grouped.view().slice(axis::channel, first, width));
    first += width;
  }
  return grouped;
}

/// The weights behind queries, keys and values that each pass a short convolution and a silu.
template <class Scalar>
struct ConvolvedHeadsWeights {
  Projection<Scalar> q_proj, k_proj, v_proj;
  Parameter<Scalar, 3> q_conv, k_conv, v_conv;  // [channels, 1, W]

  static void visit(auto& self, Index d_model, Index keys, Index values, Index conv_kernel,
                    auto&& parameter) {
    parameter("q_proj.weight", self.q_proj.weight, {keys, d_model});
    parameter("k_proj.weight", self.k_proj.weight, {keys, d_model});
    parameter("v_proj.weight", self.v_proj.weight, {values, d_model});
    parameter("q_conv1d.weight", self.q_conv, {keys, 1, conv_kernel});
    parameter("k_conv1d.weight", self.k_conv, {keys, 1, conv_kernel});
    parameter("v_conv1d.weight", self.v_conv, {values, 1, conv_kernel});
  }

  /// All taps [W, channels]: queries, keys, values.
  Parameter<Scalar, 2> taps() const {
    const Index keys = q_conv.extent(0), values = v_conv.extent(0);
    Tensor<Scalar, 2> joined({q_conv.extent(2), 2 * keys + values});
    Index first = 0;
    for (const auto* conv : {&q_conv, &k_conv, &v_conv}) {
      const Index channels = conv->extent(0);
      copy(transposed_taps(*conv).view(), joined.view().slice(axis::channel, first, channels));
      first += channels;
    }
    return joined;
  }
};

/// Queries, keys and values of `n_heads` heads in one buffer.
template <class Scalar>
struct ConvolvedHeads {
  View<Scalar, 3> q, k, v;  // [T, H, K], [T, H, K], [T, H, V]
};

/// (q, k, v) = silu(short_conv(W x)), then q and k of length 1 in each head; in `mixed`
/// [T, 2 H K + H V]. History: [B, W - 1, 2 H K + H V].
template <class Scalar>
ConvolvedHeads<Scalar> convolved_heads(In<Scalar, 2> x, const ConvolvedHeadsWeights<Scalar>& w,
                                       In<Scalar, 2> taps, Index n_heads, Out<Scalar, 3> history,
                                       View<Scalar, 2> mixed, const Call& call) {
  const Index keys = w.q_conv.extent(0), values = w.v_conv.extent(0);
  const auto q = mixed.slice(axis::channel, 0, keys), k = mixed.slice(axis::channel, keys, keys);
  const auto v = mixed.slice(axis::channel, 2 * keys, values);
  project(x, {{w.q_proj, q}, {w.k_proj, k}, {w.v_proj, v}}, call);
  short_conv<Scalar>(mixed, taps, {}, ShortConvActivation::silu, history, mixed, call);
  const auto qk = mixed.slice(axis::channel, 0, 2 * keys);
  l2_norm(qk.split(axis::channel, 2 * n_heads, keys / n_heads), 1e-6, call);
  return {.q = q.split(axis::channel, n_heads, keys / n_heads),
          .k = k.split(axis::channel, n_heads, keys / n_heads),
          .v = v.split(axis::channel, n_heads, values / n_heads)};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
