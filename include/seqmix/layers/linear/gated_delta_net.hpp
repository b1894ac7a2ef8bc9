#pragma once

#include <utility>

#include "seqmix/kernels/conv/grouped.hpp"
#include "seqmix/kernels/memory/delta_rule.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/linear/detail/convolved_heads.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct GatedDeltaNetConfig {
  Index d_model = 0;
  Index n_heads = 0;                  // H, heads of values
  Index n_key_heads = 0;              // G, heads of queries and keys
  Index head_k = 128;                 // key width per head
  Index head_v = 128;                 // value width per head
  Index conv_kernel = 4;              // taps of the short convolution
  bool negative_eigenvalues = false;  // doubles beta: what is held at a key may change its sign
  double norm_eps = 1e-6;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("n_key_heads", self.n_key_heads);
    field("head_k", self.head_k), field("head_v", self.head_v);
    field("conv_kernel", self.conv_kernel), field("norm_eps", self.norm_eps, at_least(0));
    field("negative_eigenvalues", self.negative_eigenvalues);
  }
  void check() const {
    require(n_heads % n_key_heads == 0, "n_heads must be a multiple of n_key_heads");
  }
  Index heads_per_group() const { return n_heads / n_key_heads; }
  Index group_values() const { return heads_per_group() * head_v; }
  Index group_channels() const { return 2 * head_k + group_values(); }
};

/// Gated DeltaNet: a memory that forgets by one number a head, then replaces a share beta of what
/// it holds at a key.
///
///   (q, k, v, z), (b, a) = W_qkvz x, W_ba x,        (q, k, v) = silu(short_conv(q, k, v))
///   g_t = -exp(A_log) softplus(a_t + dt_bias),      beta_t = σ(b_t) or 2 σ(b_t), q, k of length 1
///   S_t = (I - beta_t k_tᵀ k_t) exp(g_t) S_{t-1} + beta_t k_tᵀ v_t     S_t [K, V] per head
///   y_t = W_o (rms_norm(K^{-1/2} q_t S_t) ⊙ silu(z_t))
///
/// Value head h reads query and key head h / (H / G); the rows of W_qkvz and W_ba lie by key head,
/// (q | k | v | z) and (b | a) of each behind each other.
///
/// forward: O(T (D² + D K)); step: O(D² + D K). State: H K V accumulators and W - 1 inputs of the
/// short convolution a stream, whatever T.
/// Source: Yang et al. 2024, arXiv:2412.06464, section 3.1; HF transformers Qwen3NextGatedDeltaNet;
/// with negative eigenvalues OlmoHybridGatedDeltaNet and fla/layers/gated_deltanet.py.
template <class S>
struct GatedDeltaNetDefinition {
  using Scalar = S;
  using Config = GatedDeltaNetConfig;
  static constexpr Traits traits{.name = "gated_delta_net",
                                 .title = "Gated DeltaNet",
                                 .paper = "Yang 2024, arXiv:2412.06464",
                                 .forward = "O(T (D² + D K))",
                                 .step = "O(D² + D K)",
                                 .state = "H K V + (W - 1) (2 G K + H V)"};

  struct Weights {
    Projection<Scalar> in_proj_qkvz, in_proj_ba, out_proj;
    Parameter<Scalar, 3> conv;            // [2 G K + H V, 1, W], all queries, all keys, all values
    Parameter<Scalar, 1> dt_bias, A_log;  // [H]
    Parameter<Scalar, 1> norm;            // [V]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index channels = c.n_key_heads * c.group_channels(), values = c.n_heads * c.head_v;
      parameter("in_proj_qkvz.weight", self.in_proj_qkvz.weight, {channels + values, c.d_model});
      parameter("in_proj_ba.weight", self.in_proj_ba.weight, {2 * c.n_heads, c.d_model},
                keep_float);
      parameter("conv1d.weight", self.conv, {channels, 1, c.conv_kernel});
      parameter("dt_bias", self.dt_bias, {c.n_heads}, init::time_steps(0.001, 0.1));
      parameter("A_log", self.A_log, {c.n_heads}, init::log_uniform(1, 16));
      parameter("norm.weight", self.norm, {c.head_v}, init::ones);
      parameter("out_proj.weight", self.out_proj.weight, {c.d_model, values});
    }
  };

  struct State {
    Tensor<Scalar, 4> conv;    // [B, W - 1, G, 2 K + V H / G], last inputs by key head (q | k | v)
    Tensor<Scalar, 4> memory;  // [B, H, K, V]

    static void visit(auto& self, auto&& tensor) {
      tensor("conv", self.conv), tensor("memory", self.memory);
    }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 3> taps;   // [W, G, 2 K + V H / G], by key head
  Parameter<Scalar, 1> rates;  // [H], -exp(A_log)

  GatedDeltaNetDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        taps(grouped_taps(w.conv, c.n_key_heads, {c.head_k, c.head_k, c.group_values()})),
        rates(decay_rates(w.A_log)) {}

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.conv = {{batch, c.conv_kernel - 1, c.n_key_heads, c.group_channels()}, memory},
            .memory = {{batch, c.n_heads, c.head_k, c.head_v}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), G = c.n_key_heads, K = c.head_k;
    const Index R = c.heads_per_group(), values = c.group_values();
    auto scratch = call.scratch<Scalar>();
    auto projected = scratch(T, G, c.group_channels() + values);  // [T, G, (q | k | v | z)]
    auto ba = scratch(T, G, 2 * R);                               // [T, G, (b | a)]
    auto v = scratch(T, G, values);                               // [T, G, R V]
    auto o = scratch(T, c.n_heads, c.head_v);                     // [T, H, V]
    auto beta = scratch(T, c.n_heads);                            // [T, H]
    auto decay = scratch(T, c.n_heads);                           // [T, H], log
    const auto part = [](const auto& view, Index first, Index count) {
      return view.slice(axis::channel, first, count);
    };
    const auto convolve = [&](Index first, View<const Scalar, 3> in, View<Scalar, 3> out) {
      const Index count = out.extent(axis::channel);
      grouped_conv<Scalar>(in, part(taps.view(), first, count), ShortConvActivation::silu,
                           part(state.conv.view(), first, count), out, call);
    };

    project(x, {{w.in_proj_qkvz, projected}, {w.in_proj_ba, ba}}, call);
    const auto qk = part(projected, 0, 2 * K);
    convolve(0, qk, qk);
    convolve(2 * K, part(projected, 2 * K, values), v);
    l2_norm(qk.split(axis::channel, 2, K), 1e-6, call);
    copy(part(ba, 0, R), beta.split(axis::channel, G, R));
    copy(part(ba, R, R), decay.split(axis::channel, G, R));
    delta_shares(beta, c.negative_eigenvalues ? 2 : 1, call);
    log_decays(decay, w.dt_bias, rates, call);
    delta_rule(part(qk, 0, K), part(qk, K, K),
               v.merge(axis::head).split(axis::channel, c.n_heads, c.head_v), beta,
               ScalarDecay<Scalar>{decay}, inverse_sqrt(K), state.memory.view(), o, call);
    const auto z = part(projected, c.group_channels(), values);
    gated_rms_norm(o.split(axis::head, G, R), z.split(axis::channel, R, c.head_v), w.norm,
                   c.norm_eps, activation::silu, call);
    project(o, {{w.out_proj, y}}, call);
  }
};

template <class Scalar = float>
using GatedDeltaNet = Mixer<GatedDeltaNetDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(GatedDeltaNetDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
