#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// Queries, keys and values of one token: projected, convolved with their last inputs in `conv`
/// [B, W - 1, 2 H K + H V], through silu; q and k of length 1 in each head.
template <class S>
std::vector<S> delta_heads(const Input<S>& in, Array<S>& conv, Index b, const std::vector<S>& x) {
  const Index H = in.size("n_heads"), K = in.size("head_k"), W = in.size("conv_kernel");
  std::vector<S> mixed;
  for (const char* part : {"q", "k", "v"}) {
    const std::string name = part;
    const auto& taps = in.weight(name + "_conv1d.weight");
    const auto now = linear<S>(in.weight(name + "_proj.weight"), nullptr, x);
    for (Index i = 0; i < static_cast<Index>(now.size()); ++i) {
      const Index channel = static_cast<Index>(mixed.size());
      const S value = now[static_cast<std::size_t>(i)];
      S sum = 0;
      for (Index j = 0; j < W - 1; ++j) sum += taps(i, 0, j) * conv(b, j, channel);
      sum += taps(i, 0, W - 1) * value;
      for (Index j = 0; j + 1 < W - 1; ++j) conv(b, j, channel) = conv(b, j + 1, channel);
      if (W > 1) conv(b, W - 2, channel) = value;
      mixed.push_back(silu(sum));
    }
  }
  for (Index h = 0; h < 2 * H; ++h) {
    S square = 0;
    for (Index i = 0; i < K; ++i) {
      const S value = mixed[static_cast<std::size_t>(h * K + i)];
      square += value * value;
    }
    for (Index i = 0; i < K; ++i) {
      mixed[static_cast<std::size_t>(h * K + i)] /= std::sqrt(square + static_cast<S>(1e-6));
    }
  }
  return mixed;
}

/// o [H V] of one token: the memory [B, H, K, V] is multiplied by `decay` [H K], then moves what it
/// holds at k towards v by the share `beta` [H]; q reads it.
template <class S>
std::vector<S> delta_step(const Input<S>& in, Array<S>& memory, Index b,
                          const std::vector<S>& mixed, const std::vector<S>& decay,
                          const std::vector<S>& beta) {
  const Index H = in.size("n_heads"), K = in.size("head_k"), V = in.size("head_v");
  const auto q = [&](Index h, Index i) { return mixed[static_cast<std::size_t>(h * K + i)]; };
  const auto k = [&](Index h, Index i) { return mixed[static_cast<std::size_t>((H + h) * K + i)]; };
  std::vector<S> o;
  for (Index h = 0; h < H; ++h) {
    for (Index j = 0; j < V; ++j) {
      S found = 0, sum = 0;
      for (Index i = 0; i < K; ++i) {
        memory(b, h, i, j) *= decay[static_cast<std::size_t>(h * K + i)];
        found += k(h, i) * memory(b, h, i, j);
      }
      const S v = mixed[static_cast<std::size_t>(2 * H * K + h * V + j)];
      const S write = beta[static_cast<std::size_t>(h)] * (v - found);
      for (Index i = 0; i < K; ++i) {
        memory(b, h, i, j) += k(h, i) * write;
        sum += q(h, i) * memory(b, h, i, j);
      }
      o.push_back(sum / std::sqrt(static_cast<S>(K)));
    }
  }
  return o;
}

/// o = rms_norm(o) ⊙ weight for each head of V numbers.
template <class S>
void delta_norm(const Input<S>& in, std::vector<S>& o) {
  const std::size_t V = static_cast<std::size_t>(in.size("head_v"));
  for (std::size_t first = 0; first < o.size(); first += V) {
    S square = 0;
    for (std::size_t j = 0; j < V; ++j) square += o[first + j] * o[first + j];
    const S norm = std::sqrt(square / static_cast<S>(V) + static_cast<S>(in.number("norm_eps")));
    for (std::size_t j = 0; j < V; ++j) {
      o[first + j] *= in.weight("o_norm.weight")(static_cast<Index>(j)) / norm;
    }
  }
}

/// beta [H] = σ(W_b x), doubled where the config says so.
template <class S>
std::vector<S> delta_beta(const Input<S>& in, const std::vector<S>& x) {
  auto beta = linear<S>(in.weight("b_proj.weight"), nullptr, x);
  for (S& value : beta) value = (in.flag("negative_eigenvalues") ? 2 : 1) * sigmoid(value);
  return beta;
}

/// Yang et al. 2024, arXiv:2406.06484, section 2.2.
template <class S>
Output<S> delta_net(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), H = in.size("n_heads");
  const Index K = in.size("head_k"), V = in.size("head_v"), W = in.size("conv_kernel");
  Output<S> out{in.x, {}};
  Array<S> memory({B, H, K, V}), conv({B, W - 1, H * (2 * K + V)});
  const std::vector<S> decay(static_cast<std::size_t>(H * K), S(1));
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const auto x = token(in.x, b, t);
      const auto mixed = delta_heads(in, conv, b, x);
      auto o = delta_step(in, memory, b, mixed, decay, delta_beta(in, x));
      delta_norm(in, o);
      if (in.flag("output_gate")) {
        const auto gate = linear<S>(in.weight("g_proj.weight"), nullptr, x);
        for (std::size_t i = 0; i < o.size(); ++i) o[i] *= silu(gate[i]);
      }
      set_token(out.y, b, t, linear<S>(in.weight("o_proj.weight"), nullptr, o));
    }
  }
  out.state = {{"conv", conv}, {"memory", memory}};
  return out;
}

inline const std::vector<std::string> delta_net_configs{
    R"({"d_model": 16, "n_heads": 2, "head_k": 8, "head_v": 8, "conv_kernel": 4,
        "output_gate": false, "negative_eigenvalues": false, "norm_eps": 1e-5})",
    R"({"d_model": 21, "n_heads": 3, "head_k": 5, "head_v": 7, "conv_kernel": 3,
        "output_gate": true, "negative_eigenvalues": false, "norm_eps": 1e-5})",
    R"({"d_model": 12, "n_heads": 1, "head_k": 33, "head_v": 83, "conv_kernel": 2,
        "output_gate": false, "negative_eigenvalues": true, "norm_eps": 1e-6})"};

}  // namespace reference
