#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Yang et al. 2024, arXiv:2412.06464, section 3.1, with the layer around it of Qwen3-Next.
template <class S>
Output<S> gated_delta_net(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads"), G = in.size("n_key_heads");
  const Index K = in.size("head_k"), V = in.size("head_v"), W = in.size("conv_kernel"), R = H / G;
  const Index group = 2 * K + 2 * R * V;  // rows of a key head: q [K], k [K], v [R V], z [R V]
  Output<S> out{in.x, {}};
  Array<S> memory({B, H, K, V}), conv({B, W - 1, G, 2 * K + R * V});
  const auto unit = [K](std::vector<S> x) {
    S square = 0;
    for (const S value : x) square += value * value;
    for (S& value : x) value /= std::sqrt(square + static_cast<S>(1e-6));
    x.resize(static_cast<std::size_t>(K));
    return x;
  };
  const Array<S>& taps = in.weight("conv1d.weight");
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto row = linear<S>(in.weight("in_proj_qkvz.weight"), nullptr, x);
      const auto ba = linear<S>(in.weight("in_proj_ba.weight"), nullptr, x);
      std::vector<S> o(static_cast<std::size_t>(H * V));
      for (Index g = 0; g < G; ++g) {
        // The channels of the convolution are all queries, all keys, all values.
        const auto mixed = [&](Index i) {
          const Index channel = i < K       ? g * K + i
                                : i < 2 * K ? G * K + g * K + i - K
                                            : 2 * G * K + g * R * V + i - 2 * K;
          const S now = row[static_cast<std::size_t>(g * group + i)];
          S sum = 0;
          for (Index j = 0; j < W - 1; ++j) sum += taps(channel, 0, j) * conv(b, j, g, i);
          sum += taps(channel, 0, W - 1) * now;
          for (Index j = 0; j + 1 < W - 1; ++j) conv(b, j, g, i) = conv(b, j + 1, g, i);
          if (W > 1) conv(b, W - 2, g, i) = now;
          return silu(sum);
        };
        std::vector<S> q, k, v;
        for (Index i = 0; i < K; ++i) q.push_back(mixed(i));
        for (Index i = 0; i < K; ++i) k.push_back(mixed(K + i));
        for (Index i = 0; i < R * V; ++i) v.push_back(mixed(2 * K + i));
        q = unit(q), k = unit(k);
        for (Index r = 0; r < R; ++r) {
          const Index h = g * R + r;
          const S beta = (in.flag("negative_eigenvalues") ? 2 : 1) *
                         sigmoid(ba[static_cast<std::size_t>(g * 2 * R + r)]);
          const S raw = ba[static_cast<std::size_t>(g * 2 * R + R + r)] + in.weight("dt_bias")(h);
          const S softplus = raw > 20 ? raw : std::log1p(std::exp(raw));
          const S decay = std::exp(-std::exp(in.weight("A_log")(h)) * softplus);
          S square = 0;
          for (Index j = 0; j < V; ++j) {
            S found = 0, sum = 0;
            for (Index i = 0; i < K; ++i) {
              memory(b, h, i, j) *= decay;
              found += k[static_cast<std::size_t>(i)] * memory(b, h, i, j);
            }
            const S write = beta * (v[static_cast<std::size_t>(r * V + j)] - found);
            for (Index i = 0; i < K; ++i) {
              memory(b, h, i, j) += k[static_cast<std::size_t>(i)] * write;
              sum += q[static_cast<std::size_t>(i)] * memory(b, h, i, j);
            }
            sum /= std::sqrt(static_cast<S>(K));
            o[static_cast<std::size_t>(h * V + j)] = sum;
            square += sum * sum;
          }
          const S norm =
              std::sqrt(square / static_cast<S>(V) + static_cast<S>(in.number("norm_eps")));
          for (Index j = 0; j < V; ++j) {
            const S z = row[static_cast<std::size_t>(g * group + 2 * K + R * V + r * V + j)];
            o[static_cast<std::size_t>(h * V + j)] *= in.weight("norm.weight")(j) / norm * silu(z);
          }
        }
      }
      set_token(out.y, b, t, linear<S>(in.weight("out_proj.weight"), nullptr, o));
    }
  }
  out.state = {{"conv", conv}, {"memory", memory}};
  return out;
}

inline const std::vector<std::string> gated_delta_net_configs{
    R"({"d_model": 16, "n_heads": 4, "n_key_heads": 2, "head_k": 8, "head_v": 8, "conv_kernel": 4,
        "negative_eigenvalues": false, "norm_eps": 1e-6})",
    R"({"d_model": 21, "n_heads": 3, "n_key_heads": 3, "head_k": 5, "head_v": 7, "conv_kernel": 3,
        "negative_eigenvalues": true, "norm_eps": 1e-5})",
    R"({"d_model": 12, "n_heads": 3, "n_key_heads": 1, "head_k": 33, "head_v": 83, "conv_kernel": 2,
        "negative_eigenvalues": false, "norm_eps": 1e-6})"};

}  // namespace reference
