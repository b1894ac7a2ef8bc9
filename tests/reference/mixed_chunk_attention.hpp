#pragma once

#include <algorithm>
#include <cmath>

#include "reference/gated_unit.hpp"

namespace reference {

template <class S>
Output<S> mixed_chunk_attention_of(const Input<S>& in, bool both) {
  const GatedUnitTwin<S> unit{in, "qk_offset_scale"};
  const Index B = in.B(), T = in.T(), D = unit.D, K = unit.K, V = unit.V;
  const Index size = in.size("group"), rotary = in.size("rotary_dim");
  const bool shift = in.flag("token_shift"), by_group = both && in.flag("linear_by_group");
  const Index half = shift ? (D + 1) / 2 : 0;
  const S bias_scale = std::sqrt(static_cast<S>(K));
  const auto turned = [&](std::vector<S> head, Index t) {
    for (Index i = 0; i + 1 < rotary; i += 2) {
      const double angle =
          static_cast<double>(t) *
          std::pow(in.number("rope_theta"), -static_cast<double>(i) / static_cast<double>(rotary));
      const auto cosine = static_cast<S>(std::cos(angle)), sine = static_cast<S>(std::sin(angle));
      S &a = head[static_cast<std::size_t>(i)], &b = head[static_cast<std::size_t>(i + 1)];
      const S first = a * cosine - b * sine;
      b = b * cosine + a * sine, a = first;
    }
    return head;
  };
  Output<S> out{in.x, {}};
  const Index rows = std::min(T, size);
  Array<S> keys({B, 1, rows, K}), values({B, 1, rows, V}), position({B});
  Array<S> memory({B, K, V}), open({B, K, V}), last({B, 1, half});
  for (Index b = 0; b < B; ++b) {
    position(b) = static_cast<S>(T);
    std::vector<std::vector<S>> uses[4], hidden;
    for (Index t = 0; t < T; ++t) {
      const auto normed = unit.normed(token(in.x, b, t));
      auto mixed = normed;
      for (Index i = 0; i < half; ++i) {
        mixed[static_cast<std::size_t>(i)] = last(b, 0, i);
        last(b, 0, i) = normed[static_cast<std::size_t>(i)];
      }
      hidden.push_back(unit.projected("to_hidden", mixed));
      const auto qk = unit.projected("to_qk", mixed);
      for (Index u = 0; u < 4; ++u) uses[u].push_back(turned(unit.use(u, qk), t));
      for (Index i = 0; i < K; ++i) {
        keys(b, 0, t % size, i) = uses[2].back()[static_cast<std::size_t>(i)];
      }
      for (Index i = 0; i < V; ++i) {
        values(b, 0, t % size, i) = hidden.back()[static_cast<std::size_t>(i)];
      }
    }
    const auto& [quadratic_q, linear_q, quadratic_k, linear_k] = uses;
    for (Index t = 0; t < T; ++t) {
      const auto at = static_cast<std::size_t>(t);
      std::vector<S> o(static_cast<std::size_t>(V));
      const Index begin = t / size * size, end = both ? std::min(T, begin + size) : t + 1;
      for (Index j = begin; j < end; ++j) {
        const auto key = static_cast<std::size_t>(j);
        const S p = unit.weight(dot(quadratic_q[at], quadratic_k[key]) / static_cast<S>(size) +
                                bias_scale * unit.bias(t, j, both));
        for (std::size_t i = 0; i < o.size(); ++i) o[i] += p * hidden[key][i];
      }
      if (t == begin) {  // what the tokens of this group read
        const Index first = by_group ? begin : 0;
        const Index past = by_group ? end : both ? T : begin;
        const S divisor = static_cast<S>(both ? T : size);
        for (Index i = 0; i < K; ++i) {
          for (Index e = 0; e < V; ++e) {
            S sum = 0;
            for (Index j = first; j < past; ++j) {
              const auto key = static_cast<std::size_t>(j);
              sum += linear_k[key][static_cast<std::size_t>(i)] *
                     hidden[key][static_cast<std::size_t>(e)] / divisor;
            }
            memory(b, i, e) = sum;
          }
        }
      }
      for (Index i = 0; i < K; ++i) {
        for (Index e = 0; e < V; ++e) {
          o[static_cast<std::size_t>(e)] +=
              linear_q[at][static_cast<std::size_t>(i)] * memory(b, i, e);
        }
      }
      for (std::size_t i = 0; i < o.size(); ++i) {
        o[i] *= hidden[at][static_cast<std::size_t>(V) + i];
      }
      auto y = linear<S>(in.weight("to_out.weight"), &in.weight("to_out.bias"), o);
      for (Index i = 0; i < D; ++i) y[static_cast<std::size_t>(i)] += in.x(b, t, i);
      set_token(out.y, b, t, y);
    }
    // A group that the last token ends is in memory, which nothing has read yet.
    const Index ended = T / size * size;
    for (Index i = 0; i < K; ++i) {
      for (Index e = 0; e < V; ++e) {
        S sum = 0, rest = 0;
        for (Index j = 0; j < T; ++j) {
          const auto key = static_cast<std::size_t>(j);
          const S product =
              linear_k[key][static_cast<std::size_t>(i)] * hidden[key][static_cast<std::size_t>(e)];
          if (j < ended) sum += product / static_cast<S>(size);
          if (j >= ended) rest += product;
        }
        memory(b, i, e) = sum, open(b, i, e) = rest;
      }
    }
  }
  if (both) return out;
  out.state = {{"position", position},
               {"keys", keys},
               {"values", values},
               {"memory", memory},
               {"open", open}};
  if (shift) out.state["shift"] = last;
  return out;
}

template <class S>
Output<S> mixed_chunk_attention(const Input<S>& in) {
  return mixed_chunk_attention_of(in, false);
}
template <class S>
Output<S> bidirectional_mixed_chunk_attention(const Input<S>& in) {
  return mixed_chunk_attention_of(in, true);
}

inline const std::vector<std::string> mixed_chunk_attention_configs{
    R"({"d_model": 16, "head_k": 8, "head_v": 32, "group": 16, "rotary_dim": 8})",
    R"({"d_model": 13, "head_k": 5, "head_v": 27, "group": 7, "num_buckets": 9, "max_distance": 40,
        "norm": "scale", "norm_eps": 1e-3, "token_shift": true, "rotary_dim": 2})",
    R"({"d_model": 12, "head_k": 33, "head_v": 83, "group": 70, "activation": "laplace"})"};

inline const std::vector<std::string> bidirectional_mixed_chunk_attention_configs{
    R"({"d_model": 16, "head_k": 8, "head_v": 32, "group": 16, "rotary_dim": 8})",
    R"({"d_model": 13, "head_k": 5, "head_v": 27, "group": 7, "num_buckets": 9, "max_distance": 40,
        "norm": "scale", "norm_eps": 1e-3, "token_shift": true, "rotary_dim": 2})",
    R"({"d_model": 12, "head_k": 33, "head_v": 83, "group": 70, "activation": "laplace",
        "linear_by_group": true})"};

}  // namespace reference
