#pragma once

#include <algorithm>
#include <cmath>

#include "reference/twin.hpp"

namespace reference {

// What the twins of the RWKV blocks share: one token each.

/// (x - mean) / sqrt(variance + eps) weight + bias, each `group` numbers on their own.
template <class S>
std::vector<S> rwkv_norm(const std::vector<S>& x, const Array<S>& weight, const Array<S>& bias,
                         Index group, double eps) {
  std::vector<S> y(x.size());
  const auto n = static_cast<std::size_t>(group);
  for (std::size_t first = 0; first < x.size(); first += n) {
    S mean = 0, variance = 0;
    for (std::size_t i = first; i < first + n; ++i) mean += x[i];
    mean /= static_cast<S>(group);
    for (std::size_t i = first; i < first + n; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const S deviation = std::sqrt(variance / static_cast<S>(group) + static_cast<S>(eps));
    for (std::size_t i = first; i < first + n; ++i) {
      y[i] = (x[i] - mean) / deviation * weight.numbers[i] + bias.numbers[i];
    }
  }
  return y;
}

template <class S>
std::vector<S> rwkv_layer_norm(const Input<S>& in, const std::string& norm,
                               const std::vector<S>& x) {
  return rwkv_norm(x, in.weight(norm + ".weight"), in.weight(norm + ".bias"), in.size("d_model"),
                   in.number("norm_eps"));
}

/// The token that enters the block.
template <class S>
std::vector<S> rwkv_enter(const Input<S>& in, Index b, Index t) {
  const auto x = token(in.x, b, t);
  return in.size("layer_index") == 0 ? rwkv_layer_norm(in, "ln0", x) : x;
}

/// x + (past - x) weight.
template <class S>
std::vector<S> rwkv_mix(const std::vector<S>& x, const std::vector<S>& past,
                        const std::vector<S>& weight) {
  std::vector<S> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] + (past[i] - x[i]) * weight[i];
  return y;
}

/// x W + b of a matrix [in, out]; b may be null.
template <class S>
std::vector<S> rwkv_times(const std::vector<S>& x, const Array<S>& w, const Array<S>* b) {
  const std::size_t outputs = static_cast<std::size_t>(w.shape[1]);
  std::vector<S> y(outputs);
  for (std::size_t j = 0; j < outputs; ++j) {
    for (std::size_t i = 0; i < x.size(); ++i) y[j] += x[i] * w.numbers[i * outputs + j];
    if (b != nullptr) y[j] += b->numbers[j];
  }
  return y;
}

template <class S>
std::vector<S> rwkv_tanh(std::vector<S> x) {
  for (S& number : x) number = std::tanh(number);
  return x;
}
template <class S>
std::vector<S> rwkv_sigmoid(std::vector<S> x) {
  for (S& number : x) number = sigmoid(number);
  return x;
}
template <class S>
std::vector<S> rwkv_plus(std::vector<S> x, const std::vector<S>& more) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += more[i];
  return x;
}

/// x + the channel mix behind LN2; `past` is the last input of it and becomes this one. `mix_r` is
/// null where there is no receptance.
template <class S>
std::vector<S> rwkv_channel_mix(const Input<S>& in, const std::vector<S>& x, std::vector<S>& past,
                                const std::vector<S>& mix_k, const std::vector<S>* mix_r) {
  const auto normed = rwkv_layer_norm(in, "ln2", x);
  auto hidden = linear<S>(in.weight("ffn.key.weight"), nullptr, rwkv_mix(normed, past, mix_k));
  for (S& number : hidden) number = number > 0 ? number * number : S(0);
  auto y = linear<S>(in.weight("ffn.value.weight"), nullptr, hidden);
  if (mix_r != nullptr) {
    const auto gate =
        linear<S>(in.weight("ffn.receptance.weight"), nullptr, rwkv_mix(normed, past, *mix_r));
    for (std::size_t i = 0; i < y.size(); ++i) y[i] *= sigmoid(gate[i]);
  }
  past = normed;
  return rwkv_plus(y, x);
}

}  // namespace reference
