#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "reference/twin.hpp"

namespace reference {

/// Softmax attention of all tokens at once: `weight(b, h, i, j)` says how often query i counts key
/// j, `projection(b, i)` what stands behind the names of the projections that query i uses.
template <class S>
Output<S> encoder_attention(const Input<S>& in, auto&& weight, auto&& projection) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads"), D = in.size("d_model"), K = D / H;
  const auto projected = [&](const std::string& name, Index b, Index t) {
    const auto bias = in.weights.find(name + ".bias");
    return linear<S>(in.weight(name + ".weight"),
                     bias == in.weights.end() ? nullptr : &bias->second, token(in.x, b, t));
  };
  Output<S> out{in.x, {}};
  for (Index b = 0; b < B; ++b) {
    std::map<std::string, std::vector<std::vector<S>>> keys, values;  // of each suffix and token
    for (Index i = 0; i < T; ++i) {
      const std::string suffix = projection(b, i);
      if (keys.count(suffix) == 0) {
        for (Index j = 0; j < T; ++j) {
          keys[suffix].push_back(projected("key" + suffix, b, j));
          values[suffix].push_back(projected("value" + suffix, b, j));
        }
      }
      const std::vector<std::vector<S>>&key = keys[suffix], &value = values[suffix];
      const std::vector<S> q = projected("query" + suffix, b, i);
      std::vector<S> o(static_cast<std::size_t>(D));
      for (Index h = 0; h < H; ++h) {
        std::vector<S> score(static_cast<std::size_t>(T), -1 / S(0)), count(score.size());
        for (Index j = 0; j < T; ++j) {
          count[static_cast<std::size_t>(j)] = static_cast<S>(weight(b, h, i, j));
          if (count[static_cast<std::size_t>(j)] == 0) continue;
          S dot = 0;
          for (Index n = 0; n < K; ++n) {
            const auto at = static_cast<std::size_t>(h * K + n);
            dot += q[at] * key[static_cast<std::size_t>(j)][at];
          }
          score[static_cast<std::size_t>(j)] = dot / std::sqrt(static_cast<S>(K));
        }
        const S largest = *std::max_element(score.begin(), score.end());
        S total = 0;
        for (std::size_t j = 0; j < score.size(); ++j) {
          score[j] = count[j] * std::exp(score[j] - largest);
          total += score[j];
        }
        for (Index n = 0; n < K; ++n) {
          const auto at = static_cast<std::size_t>(h * K + n);
          for (std::size_t j = 0; j < score.size(); ++j) {
            if (count[j] != 0) o[at] += score[j] / total * value[j][at];
          }
        }
      }
      set_token(out.y, b, i, o);
    }
  }
  return out;
}

/// Beltagy et al. 2020, arXiv:2004.05150, section 3.1.
template <class S>
Output<S> longformer_attention(const Input<S>& in) {
  const Index first = in.size("n_global"), half = in.size("window") / 2;
  const auto global = [&](Index b, Index i) {
    return i < first || (in.flag("global_mask") && in.input("global_attention_mask")(b, i, 0) > 0);
  };
  const auto weight = [&](Index b, Index, Index i, Index j) {
    return global(b, i) || global(b, j) || std::abs(i - j) <= half ? 1 : 0;
  };
  return encoder_attention(
      in, weight, [&](Index b, Index i) { return std::string(global(b, i) ? "_global" : ""); });
}

inline const std::vector<std::string> longformer_attention_configs{
    R"({"d_model": 16, "n_heads": 2, "window": 12, "n_global": 0})",
    R"({"d_model": 21, "n_heads": 3, "window": 70, "n_global": 5})",
    R"({"d_model": 10, "n_heads": 1, "window": 2, "n_global": 66})",
    R"({"d_model": 12, "n_heads": 2, "window": 10, "n_global": 1, "global_mask": true})"};

}  // namespace reference
