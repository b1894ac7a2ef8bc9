#pragma once

#include <cmath>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "reference/distance_biases.hpp"
#include "reference/twin.hpp"

namespace reference {

/// What GAU and mixed chunk attention make of a token and of a score. Hua et al. 2022,
/// arXiv:2202.10447, figure 3 and section 3.
template <class S>
struct GatedUnitTwin {
  const Input<S>& in;
  std::string scaled;  // the name of gamma and beta
  Index D = in.size("d_model"), K = in.size("head_k"), V = in.size("head_v");

  std::vector<S> normed(const std::vector<S>& x) const {
    const S eps = static_cast<S>(in.number("norm_eps")), width = static_cast<S>(D);
    S mean = 0, square = 0;
    std::vector<S> result = x;
    if (in.text("norm") == "scale") {
      for (const S value : x) square += value * value;
      const S length = std::max(std::sqrt(square) / std::sqrt(width), eps);
      for (S& value : result) value = value / length * in.weight("norm.g")(0);
      return result;
    }
    for (const S value : x) mean += value / width;
    for (const S value : x) square += (value - mean) * (value - mean) / width;
    for (Index i = 0; i < D; ++i) {
      S& value = result[static_cast<std::size_t>(i)];
      value = (value - mean) / std::sqrt(square + eps) * in.weight("norm.weight")(i) +
              in.weight("norm.bias")(i);
    }
    return result;
  }
  /// silu of a projection.
  std::vector<S> projected(const std::string& name, const std::vector<S>& x) const {
    auto y = linear<S>(in.weight(name + ".0.weight"), &in.weight(name + ".0.bias"), x);
    for (S& value : y) value = silu(value);
    return y;
  }
  /// One use of qk.
  std::vector<S> use(Index number, const std::vector<S>& qk) const {
    std::vector<S> result;
    for (Index i = 0; i < K; ++i) {
      result.push_back(qk[static_cast<std::size_t>(i)] * in.weight(scaled + ".gamma")(number, i) +
                       in.weight(scaled + ".beta")(number, i));
    }
    return result;
  }
  S bias(Index t, Index j, bool both) const {
    const Index row = t5_row(t - j, both, in.size("num_buckets"), in.size("max_distance"));
    return in.weight("rel_pos_bias.relative_attention_bias.weight")(row, 0);
  }
  S weight(S score) const {
    if (in.text("activation") == "relu_squared") return score > 0 ? score * score : S(0);
    const double deviation = std::sqrt(1 / (4 * std::numbers::pi));
    const S standard =
        (score - static_cast<S>(std::sqrt(0.5))) / static_cast<S>(deviation * std::numbers::sqrt2);
    return (1 + std::erf(standard)) / 2;
  }
};

template <class S>
S dot(const std::vector<S>& a, const std::vector<S>& b) {
  S sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace reference
