#pragma once

#include <cmath>

#include "reference/twin.hpp"

namespace reference {

/// What is added up for later tokens after the T of `history` [B, orders, T, D]: of each binary
/// digit U of T, the U tokens of its tile to the U tokens behind it; at s those for s + U.
template <class S>
Array<S> tile_sums(const Array<S>& history, auto&& tap) {
  Array<S> sums(history.shape);
  const Index T = history.shape[2];
  for (Index U = 1; U <= T; U *= 2) {
    if (T / U % 2 == 0) continue;
    const Index first = T / U * U - U;
    for (Index b = 0; b < history.shape[0]; ++b) {
      for (Index o = 0; o < history.shape[1]; ++o) {
        for (Index d = 0; d < history.shape[3]; ++d) {
          for (Index s = first; s < first + U; ++s) {
            for (Index m = first; m < first + U; ++m) {
              sums(b, o, s, d) += tap(s + U - m, o, d) * history(b, o, m, d);
            }
          }
        }
      }
    }
  }
  return sums;
}

/// The same for blocks of V = 32, 64, ... tokens: of each V the block that is being read and the
/// one behind it, at its number modulo 2. The latter is made while tokens come, for 16 channels and
/// one earlier block at a time; what is not begun still holds the block before.
template <class S>
Array<S> spread_sums(const Array<S>& history, Index max_length, auto&& tap) {
  const Index B = history.shape[0], orders = history.shape[1], T = history.shape[2];
  const Index D = history.shape[3], groups = (D + 15) / 16;
  std::vector<Index> blocks;
  for (Index V = 32; V <= 1024 && 2 * V < max_length; V *= 2) blocks.push_back(V);
  Array<S> sums({B, orders, blocks.empty() ? 0 : 4 * blocks.back() - 64, D});
  for (const Index V : blocks) {
    for (Index target = 2; (target - 1) * V < T; ++target) {
      std::vector<Index> sources;
      for (Index a = 0; a <= target - 2; ++a) {
        // Parents that are not neighbours have been added with longer blocks.
        if (V == blocks.back() || a / 2 + 1 == target / 2) sources.push_back(a);
      }
      const Index count = static_cast<Index>(sources.size());
      const Index done = std::min(V, T - (target - 1) * V) * count * groups / V;
      for (Index item = 0; item < done; ++item) {
        const Index group = item / count, a = sources[static_cast<std::size_t>(item % count)];
        for (Index b = 0; b < B; ++b) {
          for (Index o = 0; o < orders; ++o) {
            for (Index d = 16 * group; d < std::min(D, 16 * group + 16); ++d) {
              for (Index r = 0; r < V; ++r) {
                S& sum = sums(b, o, 2 * (V - 32) + target % 2 * V + r, d);
                if (item % count == 0) sum = 0;
                for (Index m = 0; m < V; ++m) {
                  sum += tap((target - a) * V + r - m, o, d) * history(b, o, a * V + m, d);
                }
              }
            }
          }
        }
      }
    }
  }
  return sums;
}

/// Poli et al. 2023, arXiv:2302.10866, definition 3.1, with the filters of section 3.3; every
/// convolution is its defining sum.
template <class S>
Output<S> hyena(const Input<S>& in) {
  const Index B = in.B(), T = in.T(), D = in.size("d_model"), order = in.size("order");
  const Index W = in.size("conv_kernel"), width = (order + 1) * D, filters = order - 1;
  const Index depth = in.size("filter_inner_layers") + 1;

  // filter(t, c): channel c = d * filters + o.
  Array<S> filter({in.size("max_length"), filters * D});
  for (Index t = 0; t < in.size("max_length"); ++t) {
    std::vector<S> h;
    for (Index i = 0; i < in.size("filter_embedding"); ++i) {
      h.push_back(in.weight("filter_fn.pos_emb.z")(0, t, i));
    }
    for (Index layer = 0; layer < depth; ++layer) {
      const std::string at = "filter_fn.implicit_filter." + std::to_string(2 * layer);
      h = linear<S>(in.weight(at + ".weight"), &in.weight(at + ".bias"), h);
      const auto& frequency =
          in.weight("filter_fn.implicit_filter." + std::to_string(2 * layer + 1) + ".freq");
      for (std::size_t i = 0; i < h.size(); ++i) h[i] = std::sin(frequency.numbers[i] * h[i]);
    }
    h = linear<S>(in.weight("filter_fn.implicit_filter." + std::to_string(2 * depth) + ".weight"),
                  nullptr, h);
    for (Index c = 0; c < filters * D; ++c) {
      const S decay = std::exp(-in.weight("filter_fn.pos_emb.t")(0, t, 0) *
                               std::abs(in.weight("filter_fn.modulation.deltas")(0, 0, c)));
      filter(t, c) =
          h[static_cast<std::size_t>(c)] * (decay + static_cast<S>(in.number("modulation_shift")));
    }
  }

  Output<S> out{in.x, {}};
  const Array<S>& taps = in.weight("short_filter.weight");
  Array<S> conv({B, W - 1, width}), history({B, filters, T, D});
  Array<S> position({B});
  for (Index b = 0; b < B; ++b) {
    position(b) = static_cast<S>(T);
    for (Index t = 0; t < T; ++t) {
      const auto row =
          linear<S>(in.weight("in_proj.weight"), &in.weight("in_proj.bias"), token(in.x, b, t));
      std::vector<S> u(static_cast<std::size_t>(width));
      for (Index d = 0; d < width; ++d) {
        S sum = in.weight("short_filter.bias")(d);
        for (Index j = 0; j < W - 1; ++j) sum += taps(d, 0, j) * conv(b, j, d);
        const S now = row[static_cast<std::size_t>(d)];
        u[static_cast<std::size_t>(d)] = sum + taps(d, 0, W - 1) * now;
        for (Index j = 0; j + 1 < W - 1; ++j) conv(b, j, d) = conv(b, j + 1, d);
        if (W > 1) conv(b, W - 2, d) = now;
      }
      std::vector<S> v(u.end() - D, u.end());
      for (Index o = 0; o < filters; ++o) {
        for (Index d = 0; d < D; ++d) {
          S& value = v[static_cast<std::size_t>(d)];
          value *= u[static_cast<std::size_t>((order - 1 - o) * D + d)];
          history(b, o, t, d) = value;
          S sum = 0;
          for (Index lag = 0; lag <= t; ++lag) {
            sum += filter(lag, d * filters + o) * history(b, o, t - lag, d);
          }
          value = sum + in.weight("filter_fn.bias")(d * filters + o) * value;
        }
      }
      for (Index d = 0; d < D; ++d) {
        v[static_cast<std::size_t>(d)] *= u[static_cast<std::size_t>(d)];
      }
      set_token(out.y, b, t,
                linear<S>(in.weight("out_proj.weight"), &in.weight("out_proj.bias"), v));
    }
  }
  const auto tap = [&](Index lag, Index o, Index d) {
    return lag < in.size("max_length") ? filter(lag, d * filters + o) : S(0);
  };
  out.state = {{"position", position}, {"conv", conv}, {"history", history}};
  const bool spread = in.config.at("step_form") == "spread";
  out.state["sums"] = spread ? Array<S>({0}) : tile_sums(history, tap);
  out.state["spread_sums"] =
      spread ? spread_sums(history, in.size("max_length"), tap) : Array<S>({0});
  return out;
}

inline const std::vector<std::string> hyena_configs{
    R"({"d_model": 16, "order": 2, "max_length": 400, "filter_width": 8, "filter_embedding": 3,
        "filter_inner_layers": 2, "conv_kernel": 3, "modulation_shift": 0,
        "step_form": "amortized"})",
    R"({"d_model": 7, "order": 3, "max_length": 311, "filter_width": 5, "filter_embedding": 5,
        "filter_inner_layers": 1, "conv_kernel": 4, "modulation_shift": 0.05,
        "step_form": "amortized"})",
    R"({"d_model": 37, "order": 2, "max_length": 340, "filter_width": 6, "filter_embedding": 3,
        "filter_inner_layers": 1, "conv_kernel": 3, "modulation_shift": 0.1,
        "step_form": "spread"})"};

}  // namespace reference
