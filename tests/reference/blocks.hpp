#pragma once

#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "reference/attention.hpp"
#include "reference/feed_forward.hpp"
#include "reference/mamba.hpp"
#include "reference/mixture_of_experts.hpp"
#include "reference/rg_lru.hpp"
#include "reference/twin.hpp"

namespace reference {

/// out.y = y + part(rms_norm(y)), `part` being the twin that block `block` has as its `kind`; its
/// weights and state are called `block`.`kind`. + their own names.
template <class S>
void add_part(const Input<S>& in, const std::string& block, const std::string& kind, auto&& part,
              Output<S>& out) {
  const std::string own = block + "." + kind + ".";
  const Json& config = in.config.at(block);
  const auto eps = config.at("norm_eps").get<S>();
  Input<S> of_part{config.at(kind), {}, out.y};
  for (const auto& [name, weight] : in.weights) {
    if (name.starts_with(own)) of_part.weights[name.substr(own.size())] = weight;
  }
  const Array<S>& norm = in.weight(block + "." + kind + "_norm.weight");
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      auto x = token(out.y, b, t);
      S square = 0;
      for (const S value : x) square += value * value;
      const S root = std::sqrt(square / static_cast<S>(x.size()) + eps);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] *= norm.numbers[i] / root;
      set_token(of_part.x, b, t, x);
    }
  }
  const Output<S> result = part(of_part);
  for (std::size_t i = 0; i < out.y.numbers.size(); ++i) out.y.numbers[i] += result.y.numbers[i];
  for (const auto& [name, member] : result.state) out.state[own + name] = member;
}

/// De et al. 2024, arXiv:2402.19427, section 2.
template <class S>
Output<S> recurrent_gemma_block(const Input<S>& in) {
  Output<S> out{in.x, {}};
  for (int layer = 0; layer < 3; ++layer) {
    const std::string block = "layers." + std::to_string(layer);
    add_part(in, block, "mixer", layer < 2 ? rg_lru<S> : sliding_window_attention<S>, out);
    add_part(in, block, "channel", feed_forward<S>, out);
  }
  return out;
}

/// Lieber et al. 2024, arXiv:2403.19887, figure 1.
template <class S>
Output<S> jamba_block(const Input<S>& in) {
  Output<S> out{in.x, {}};
  for (int layer = 0; layer < 8; ++layer) {
    const std::string block = "layers." + std::to_string(layer);
    add_part(in, block, "mixer", layer == 4 ? attention<S> : mamba<S>, out);
    add_part(in, block, "channel", layer % 2 == 1 ? mixture_of_experts<S> : feed_forward<S>, out);
  }
  return out;
}

/// What a norm of a block makes of x, its weights called `name`.
template <class S>
Array<S> normed(const Input<S>& in, const Json& norm, const std::string& name, const Array<S>& x) {
  const auto kind = norm.at("kind").get<std::string>();
  if (kind == "none") return x;
  const auto eps = norm.at("eps").get<S>();
  Array<S> y = x;
  for (Index b = 0; b < in.B(); ++b) {
    for (Index t = 0; t < in.T(); ++t) {
      auto values = token(x, b, t);
      const auto count = static_cast<S>(values.size());
      S mean = 0, square = 0;
      for (const S value : values) mean += kind == "layer" ? value / count : S(0);
      for (S& value : values) value -= mean, square += value * value;
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] /= std::sqrt(square / count + eps);
        if (norm.at("weight").get<bool>()) {
          const S weight = in.weight(name + ".weight").numbers[i];
          values[i] *= kind == "rms_around_one" ? 1 + weight : weight;
        }
        if (norm.at("bias").get<bool>()) values[i] += in.weight(name + ".bias").numbers[i];
      }
      set_token(y, b, t, values);
    }
  }
  return y;
}

/// The twin of `layer`.
template <class S>
Output<S> run_twin(const std::string& layer, const Input<S>& in) {
  for (const Twin& twin : twins()) {
    if (twin.layer != layer) continue;
    if constexpr (std::is_same_v<S, double>) {
      return twin.in_double(in);
    } else {
      return twin.in_float(in);
    }
  }
  throw seqmix::ConfigError("no twin of " + layer);
}

/// Twins put together as the branches of a block say.
template <class S>
Output<S> block(const Input<S>& in) {
  Output<S> out{in.x, {}};
  int number = 0;
  for (const Json& branch : in.config.at("branches")) {
    const std::string name = "branches." + std::to_string(number++);
    const Array<S> input = normed(in, branch.at("before"), name + ".before", out.y);
    Array<S> sum(out.y.shape);
    for (const Json& part : branch.at("parts")) {
      const auto own = part.at("name").get<std::string>();
      Input<S> of_part{
          part.at("config"), {}, normed(in, part.at("before"), own + "_before", input)};
      for (S& value : of_part.x.numbers) value *= part.at("input_multiplier").get<S>();
      for (const auto& [weight, numbers] : in.weights) {
        if (weight.starts_with(own + ".")) of_part.weights[weight.substr(own.size() + 1)] = numbers;
      }
      const Output<S> result = run_twin(part.at("layer").get<std::string>(), of_part);
      const Array<S> y = normed(in, part.at("after"), own + "_after", result.y);
      for (std::size_t i = 0; i < sum.numbers.size(); ++i) {
        sum.numbers[i] += part.at("output_multiplier").get<S>() * y.numbers[i];
      }
      for (const auto& [member, numbers] : result.state) out.state[own + "." + member] = numbers;
    }
    sum = normed(in, branch.at("after"), name + ".after", sum);
    for (std::size_t i = 0; i < sum.numbers.size(); ++i) {
      sum.numbers[i] = branch.at("residual").get<S>() * out.y.numbers[i] +
                       branch.at("multiplier").get<S>() * sum.numbers[i];
    }
    out.y = normed(in, branch.at("last"), name + ".last", sum);
  }
  return out;
}

inline const std::vector<std::string> block_configs{
    R"({"d_model": 12, "branches": [
        {"before": {"kind": "rms"}, "after": {"kind": "rms_around_one", "eps": 1e-5},
         "parts": [{"name": "mixer", "layer": "attention",
                    "config": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 4, "rotary_dim": 4}}]},
        {"multiplier": 0.22, "residual": 1.5, "last": {"kind": "layer", "bias": true},
         "parts": [{"name": "channel", "layer": "feed_forward", "config": {"d_ff": 20}}]}]})",
    R"({"d_model": 9, "branches": [
        {"before": {"kind": "layer"}, "multiplier": 0.7,
         "parts": [{"name": "memory", "layer": "gated_linear_attention",
                    "config": {"n_heads": 3, "head_k": 4, "head_v": 5, "gate_rank": 2},
                    "after": {"kind": "rms"}, "input_multiplier": 0.6, "output_multiplier": 1.4},
                   {"name": "window", "layer": "sliding_window_attention",
                    "config": {"n_heads": 1, "head_dim": 5, "window": 40},
                    "before": {"kind": "rms", "weight": false}, "output_multiplier": 0.5}]},
        {"residual": 0, "parts": [{"name": "inner", "layer": "block", "config": {"branches": [
            {"before": {"kind": "rms"},
             "parts": [{"name": "channel", "layer": "feed_forward", "config": {"d_ff": 14}}]}]}}]}]})",
    R"({"d_model": 12, "branches": [
        {"last": {"kind": "layer", "bias": true},
         "parts": [{"name": "mixer", "layer": "bidirectional_attention",
                    "config": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 6}}]},
        {"last": {"kind": "layer", "bias": true},
         "parts": [{"name": "channel", "layer": "feed_forward",
                    "config": {"d_ff": 20, "gated": false, "bias": true}}]}]})"};

inline const std::vector<std::string> recurrent_gemma_block_configs{
    R"({"d_model": 12, "norm_eps": 1e-6, "lru_width": 16, "n_heads": 4, "conv_kernel": 4,
        "n_kv_heads": 1, "head_dim": 4, "rotary_dim": 2, "o_bias": true, "window": 16,
        "d_ff": 20, "activation": "gelu_tanh", "gated": true, "bias": true})",
    R"({"d_model": 9, "norm_eps": 1e-5, "lru_width": 15, "n_heads": 3, "conv_kernel": 3,
        "n_kv_heads": 3, "head_dim": 5, "rotary_dim": 4, "o_bias": true, "window": 70,
        "d_ff": 7, "activation": "gelu_tanh", "gated": true, "bias": true})"};

// Eight layers amplify what each rounds. They are wide enough for the errors of a few tokens to be
// compared: those of very narrow ones are two or three random numbers.
inline const std::vector<std::string> jamba_block_configs{
    R"({"d_model": 24, "norm_eps": 1e-6, "d_inner": 48, "state_size": 16, "dt_rank": 4,
        "conv_kernel": 4, "conv_bias": true, "bias": false, "norm": "weighted",
        "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "d_ff": 32, "activation": "silu",
        "gated": true, "n_experts": 3, "n_experts_per_token": 2,
        "router": "softmax_then_top_k"})",
    R"({"d_model": 45, "norm_eps": 1e-5, "d_inner": 91, "state_size": 13, "dt_rank": 7,
        "conv_kernel": 4, "conv_bias": true, "bias": false, "norm": "weighted",
        "n_heads": 3, "n_kv_heads": 1, "head_dim": 15, "d_ff": 37, "activation": "silu",
        "gated": true, "n_experts": 4, "n_experts_per_token": 1,
        "router": "softmax_then_top_k"})"};

}  // namespace reference
