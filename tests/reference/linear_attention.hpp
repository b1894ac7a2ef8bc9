#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "reference/twin.hpp"

namespace reference {

/// φ of one head, of queries "q" or keys "k", at a position, from 1 on.
template <class S>
std::vector<S> linear_attention_features(const Input<S>& in, const std::vector<S>& x, double at,
                                         const std::string& of) {
  const auto map = in.config.at("feature_map").template get<std::string>();
  const S K = static_cast<S>(x.size());
  std::vector<S> result;
  if (map == "identity") result = x;
  if (map == "relu") {
    for (const S v : x) result.push_back(std::max(v, S(0)));
  }
  if (map == "elu_plus_one") {
    for (const S v : x) result.push_back(v > 0 ? v + 1 : std::exp(v));
  }
  if (map == "softmax") {
    const S most = *std::max_element(x.begin(), x.end());
    S sum = 0;
    for (const S v : x) sum += std::exp(v - most);
    for (const S v : x) result.push_back(std::exp(v - most) / sum);
  }
  if (map == "taylor") {
    result.push_back(1);
    for (const S v : x) result.push_back(v / std::sqrt(std::sqrt(K)));
    for (const S v : x) result.push_back(v * v / std::sqrt(2 * K));
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t j = i + 1; j < x.size(); ++j) result.push_back(x[i] * x[j] / std::sqrt(K));
    }
  }
  if (map == "cosformer") {
    const double angle = std::numbers::pi / 2 * at / in.number("max_length");
    for (const S v : x) result.push_back(std::max(v, S(0)) * static_cast<S>(std::sin(angle)));
    for (const S v : x) result.push_back(std::max(v, S(0)) * static_cast<S>(std::cos(angle)));
  }
  if (map == "elementwise_product") {
    const auto through = [&](const std::string& layer) {
      const std::string name = "feature_map_" + of + "." + layer;
      return linear<S>(in.weight(name + ".weight"), &in.weight(name + ".bias"), x);
    };
    result = through("layer1");
    const auto other = through("layer2");
    for (std::size_t i = 0; i < x.size(); ++i) result[i] *= other[i];
  }
  if (map == "favor") {  // the exponents
    result = linear<S>(in.weight("projection_matrix"), nullptr, x);
    for (S& v : result) v /= std::sqrt(std::sqrt(K));
  }
  return result;
}

/// Katharopoulos et al. 2020, arXiv:2006.16236, eq. 16-20, with the feature maps of the layer.
template <class S>
Output<S> linear_attention(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v");
  const auto map = in.config.at("feature_map").template get<std::string>();
  const bool favor = map == "favor", normalize = in.flag("normalize"), bias = in.flag("bias");
  const bool added = in.number("kernel_eps") > 0;  // the added epsilons are one feature more
  const Index F = static_cast<Index>(
      favor ? static_cast<std::size_t>(in.size("n_features") + (added ? 1 : 0))
            : linear_attention_features<S>(in, std::vector<S>(static_cast<std::size_t>(K)), 1, "q")
                  .size());
  const S eps = static_cast<S>(added ? 0 : in.number("eps"));
  const S kernel_eps = static_cast<S>(in.number("kernel_eps"));
  const auto through = [&](const std::string& name, const std::vector<S>& x) {
    const bool biased = bias || (name == "o_proj" && in.flag("out_bias"));
    return linear<S>(in.weight(name + ".weight"), biased ? &in.weight(name + ".bias") : nullptr, x);
  };
  const auto head = [](const std::vector<S>& x, Index h, Index width) {
    return std::vector<S>(x.begin() + h * width, x.begin() + (h + 1) * width);
  };
  Output<S> out{in.x, {}};
  Array<S> memory({B, H, F, V}), key_sum({B, H, F}), maximum({B, H}), position({B});
  const auto half_square = [K](const std::vector<S>& x) {
    S square = 0;
    for (const S value : x) square += value * value;
    return square / std::sqrt(static_cast<S>(K)) / 2;
  };
  for (Index b = 0; b < B; ++b) {
    for (Index h = 0; h < H; ++h) {
      maximum(b, h) = S(-1e30);
      if (added) {
        key_sum(b, h, F - 1) = static_cast<S>(
            in.number("eps") * std::sqrt(static_cast<double>(in.size("n_features"))));
      }
    }
    position(b) = static_cast<S>(T);
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto q = through("q_proj", x), k = through("k_proj", x), v = through("v_proj", x);
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index h = 0; h < H; ++h) {
        const double at = static_cast<double>(t + 1);
        const auto key = head(k, h, K);
        auto query_features = linear_attention_features<S>(in, head(q, h, K), at, "q");
        auto key_features = linear_attention_features<S>(in, key, at, "k");
        S decay = 1;
        if (favor) {
          const auto query = head(q, h, K);
          const S most = *std::max_element(query_features.begin(), query_features.end());
          const S own = added ? half_square(query) : S(0);  // cancels where nothing is added
          for (S& value : query_features) value = std::exp(value - own - most) + kernel_eps;
          const S norm = half_square(key), before = maximum(b, h);
          for (const S value : key_features) {
            maximum(b, h) = std::max(maximum(b, h), added ? value : value - norm);
          }
          decay = std::exp(before - maximum(b, h));
          for (S& value : key_features) value = std::exp(value - norm - maximum(b, h));
          if (added) {
            S sum = 0;
            for (const S value : query_features) sum += value;
            query_features.push_back(sum), key_features.push_back(kernel_eps);
          }
        }
        S denominator = 0;
        for (Index i = 0; i < F; ++i) {
          const auto feature = static_cast<std::size_t>(i);
          const S query = query_features[feature] * static_cast<S>(in.number("scale"));
          const S kept = added && i == F - 1 ? S(1) : decay;
          key_sum(b, h, i) = kept * key_sum(b, h, i) + key_features[feature];
          denominator += query * key_sum(b, h, i);
          for (Index j = 0; j < V; ++j) {
            S& cell = memory(b, h, i, j);
            cell = kept * cell + key_features[feature] * v[static_cast<std::size_t>(h * V + j)];
            o[static_cast<std::size_t>(h * V + j)] += query * cell;
          }
        }
        denominator = map == "cosformer" ? std::max(denominator, eps) : denominator + eps;
        S square = 0;
        for (Index j = 0; j < V; ++j) {
          S& value = o[static_cast<std::size_t>(h * V + j)];
          if (normalize) value = denominator == 0 ? S(0) : value / denominator;
          square += value * value;
        }
        if (!in.flag("output_norm")) continue;
        const S norm =
            std::sqrt(square / static_cast<S>(V) + static_cast<S>(in.number("norm_eps")));
        for (Index j = 0; j < V; ++j) {
          S& value = o[static_cast<std::size_t>(h * V + j)];
          value = value / norm * in.weight("norm.weight")(j);
        }
      }
      set_token(out.y, b, t, through("o_proj", o));
    }
  }
  out.state["memory"] = memory;
  if (normalize) out.state["key_sum"] = key_sum;
  if (favor) out.state["maximum"] = maximum;
  out.state["position"] = position;
  return out;
}

inline const std::vector<std::string> linear_attention_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 4, "head_v": 8, "feature_map": "elu_plus_one",
        "n_features": 0, "max_length": 0, "scale": 1, "normalize": true, "eps": 1e-6,
        "bias": true, "output_norm": false, "norm_eps": 1e-5})",
    R"({"d_model": 21, "n_heads": 3, "head_k": 5, "head_v": 7, "feature_map": "taylor",
        "n_features": 0, "max_length": 0, "scale": 1, "normalize": true, "eps": 1e-12,
        "bias": false, "output_norm": false, "norm_eps": 1e-5})",
    R"({"d_model": 22, "n_heads": 2, "head_k": 9, "head_v": 11, "feature_map": "favor",
        "n_features": 23, "max_length": 0, "scale": 1, "normalize": true, "eps": 0,
        "bias": false, "output_norm": false, "norm_eps": 1e-5})",
    R"({"d_model": 22, "n_heads": 2, "head_k": 9, "head_v": 11, "feature_map": "favor",
        "n_features": 19, "max_length": 0, "scale": 1, "normalize": true, "eps": 1e-3,
        "kernel_eps": 1e-2, "bias": false, "out_bias": true, "output_norm": false,
        "norm_eps": 1e-5})",
    R"({"d_model": 14, "n_heads": 2, "head_k": 7, "head_v": 7, "feature_map": "cosformer",
        "n_features": 0, "max_length": 400, "scale": 1, "normalize": true, "eps": 1e-6,
        "bias": true, "output_norm": false, "norm_eps": 1e-5})",
    R"({"d_model": 40, "n_heads": 1, "head_k": 33, "head_v": 65, "feature_map": "identity",
        "n_features": 0, "max_length": 0, "scale": 0.17, "normalize": false, "eps": 0,
        "bias": false, "output_norm": true, "norm_eps": 1e-6})",
    R"({"d_model": 13, "n_heads": 2, "head_k": 7, "head_v": 5, "feature_map": "elementwise_product",
        "n_features": 0, "max_length": 0, "scale": 0.4, "normalize": false, "eps": 0,
        "bias": false, "output_norm": true, "norm_eps": 1e-5})",
    R"({"d_model": 12, "n_heads": 3, "head_k": 6, "head_v": 4, "feature_map": "softmax",
        "n_features": 0, "max_length": 0, "scale": 1, "normalize": true, "eps": 1e-6,
        "bias": false, "output_norm": true, "norm_eps": 1e-5})",
    R"({"d_model": 17, "n_heads": 1, "head_k": 17, "head_v": 17, "feature_map": "relu",
        "n_features": 0, "max_length": 0, "scale": 0.5, "normalize": true, "eps": 1e-6,
        "bias": false, "output_norm": false, "norm_eps": 1e-5})"};

}  // namespace reference
