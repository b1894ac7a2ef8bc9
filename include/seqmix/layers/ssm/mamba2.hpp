#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What one norm of Mamba-2's output sees: the heads of one group (mamba_ssm, by which models were
/// trained; Falcon-H1, Zamba2) or all heads (transformers' Mamba2Mixer and Bamba). With one group
/// they are the same.
enum class Mamba2Norm { group, width };
constexpr std::array<std::string_view, 2> names_of(Mamba2Norm) { return {"group", "width"}; }

struct Mamba2Config {
  Index d_model = 0;
  Index n_heads = 0;
  Index head_dim = 64;     // P
  Index state_size = 128;  // N
  Index n_groups = 1;      // groups of heads that share B and C
  Index conv_kernel = 4;   // taps of the short convolution
  double dt_min = 0;       // limits of the time step
  double dt_max = std::numeric_limits<double>::infinity();
  bool conv_bias = true;
  bool bias = false;              // of in_proj and out_proj
  bool rms_norm = true;           // a norm beside the gate
  bool norm_before_gate = false;  // the norm sees the output before the gate, not behind it
  Mamba2Norm norm = Mamba2Norm::group;
  Index norm_groups = 0;  // parts of the width that are normalised on their own; 0: as norm says
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_dim", self.head_dim), field("state_size", self.state_size);
    field("n_groups", self.n_groups), field("conv_kernel", self.conv_kernel);
    field("dt_min", self.dt_min, at_least(0));
    field("dt_max", self.dt_max, at_least(0).or_infinity());
    field("conv_bias", self.conv_bias), field("bias", self.bias);
    const auto normed = only_where(self.rms_norm, "rms_norm is true");
    field("rms_norm", self.rms_norm), field("norm_before_gate", self.norm_before_gate, normed);
    field("norm", self.norm, normed);
    field("norm_groups", self.norm_groups, zero_is_legal);  // files name it without a norm too
    field("norm_eps", self.norm_eps, at_least(0), normed);
  }
  void check() const {
    require(n_heads % n_groups == 0, "n_heads must be a multiple of n_groups");
    require(n_heads * head_dim % norm_parts() == 0,
            "n_heads * head_dim must be a multiple of norm_groups");
    require(norm_groups == 0 || norm == Mamba2Norm::group,
            "norm \"width\" and norm_groups exclude each other");
    require(dt_min <= dt_max, "dt_min must not exceed dt_max");
  }
  Index norm_parts() const {
    if (norm_groups > 0) return norm_groups;
    return norm == Mamba2Norm::group ? n_groups : 1;
  }
  Index inner() const { return n_heads * head_dim; }
  Index channels() const { return inner() + 2 * n_groups * state_size; }
};

/// Mamba-2: a state-space layer whose heads forget by one number, the input's time step.
///
///   (z, xBC, dt) = W_in u_t,    (x, B, C) = silu(short_conv(xBC)),    dt = clamp(softplus(dt + b))
///   S_t = exp(-dt_t exp(A_log)) S_{t-1} + B_tᵀ (dt_t x_t)              S_t [N, P] per head
///   y_t = W_out rms_norm((C_t S_t + D ⊙ x_t) ⊙ silu(z_t))
///
/// The norm sees the heads of each group on their own, or all (`norm`). It may be missing or stand
/// before the gate: rms_norm(C_t S_t + D ⊙ x_t) ⊙ silu(z_t).
///
/// forward: O(T (D² + C D + D N)); step: O(D² + D N). State: H N P accumulators and W - 1 inputs of
/// the short convolution a stream, whatever T.
/// Source: Dao & Gu 2024, arXiv:2405.21060, section 2.1 and figure 6; mamba_ssm Mamba2 and
/// RMSNormGated (group_size); HF transformers Mamba2Mixer, BambaMixer, FalconH1Mixer,
/// GraniteMoeHybridMambaLayer, Zamba2MambaMixer.
template <class S>
struct Mamba2Definition {
  using Scalar = S;
  using Config = Mamba2Config;
  static constexpr Traits traits{.name = "mamba2",
                                 .title = "Mamba-2 (SSD)",
                                 .paper = "Dao 2024, arXiv:2405.21060",
                                 .forward = "O(T (D² + C D + D N))",
                                 .step = "O(D² + D N)",
                                 .state = "H N P + (W - 1) (H P + 2 G N)"};

  struct Weights {
    Projection<Scalar> in_proj, out_proj;
    Parameter<Scalar, 3> conv;               // [channels, 1, W]
    Parameter<Scalar, 1> conv_bias;          // [channels]
    Parameter<Scalar, 1> dt_bias, A_log, D;  // [H]
    Parameter<Scalar, 1> norm;               // [H P]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("in_proj.weight", self.in_proj.weight,
                {c.inner() + c.channels() + c.n_heads, c.d_model}, keep_float.last(c.n_heads));
      if (c.bias) {
        parameter("in_proj.bias", self.in_proj.bias, {c.inner() + c.channels() + c.n_heads},
                  init::zeros);
      }
      parameter("conv1d.weight", self.conv, {c.channels(), 1, c.conv_kernel});
      if (c.conv_bias) parameter("conv1d.bias", self.conv_bias, {c.channels()}, init::zeros);
      parameter("dt_bias", self.dt_bias, {c.n_heads}, init::time_steps(0.001, 0.1));
      parameter("A_log", self.A_log, {c.n_heads}, init::log_uniform(1, 16));
      parameter("D", self.D, {c.n_heads}, init::ones);
      if (c.rms_norm) parameter("norm.weight", self.norm, {c.inner()}, init::ones);
      parameter("out_proj.weight", self.out_proj.weight, {c.d_model, c.inner()});
      if (c.bias) parameter("out_proj.bias", self.out_proj.bias, {c.d_model}, init::zeros);
    }
  };

  struct State {
    Tensor<Scalar, 3> conv;  // [B, W - 1, channels], last inputs, oldest first
    Tensor<Scalar, 4> ssm;   // [B, H, N, P]

    static void visit(auto& self, auto&& tensor) {
      tensor("conv", self.conv), tensor("ssm", self.ssm);
    }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 2> taps;  // [W, channels]
  Parameter<Scalar, 1> A;     // [H], -exp(A_log)

  Mamba2Definition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), taps(transposed_taps(w.conv)) {
    Tensor<Scalar, 1> rates({c.n_heads});
    for (Index h = 0; h < c.n_heads; ++h) rates[h] = -std::exp(w.A_log[h]);
    A = std::move(rates);
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.conv = {{batch, c.conv_kernel - 1, c.channels()}, memory},
            .ssm = {{batch, c.n_heads, c.state_size, c.head_dim}, memory}};
  }

  void run(View<const Scalar, 2> u, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = u.extent(axis::time), inner = c.inner(), keys = c.n_groups * c.state_size;
    auto scratch = call.scratch<Scalar>();
    auto projected = scratch(T, inner + c.channels() + c.n_heads);  // [T, HP + channels + H]
    auto v = scratch(T, c.n_heads, c.head_dim);                     // [T, H, P], dt x
    auto decay = scratch(T, c.n_heads);                             // [T, H], dt A
    auto o = scratch(T, c.n_heads, c.head_dim);                     // [T, H, P]
    const auto part = [](View<Scalar, 2> from, Index first, Index count) {
      return from.slice(axis::channel, first, count);
    };

    project(u, {{w.in_proj, projected}}, call);
    auto z = part(projected, 0, inner);
    auto mixed = part(projected, inner, c.channels());
    auto dt = part(projected, inner + c.channels(), c.n_heads);
    short_conv(mixed, taps, w.conv_bias, ShortConvActivation::silu, state.conv, mixed, call);
    auto x = part(mixed, 0, inner).split(axis::channel, c.n_heads, c.head_dim);
    auto keys_B = part(mixed, inner, keys).split(axis::channel, c.n_groups, c.state_size);
    auto queries_C = part(mixed, inner + keys, keys).split(axis::channel, c.n_groups, c.state_size);

    time_steps(dt, decay, call);
    call.trace("dt", dt), call.trace("x", x), call.trace("B", keys_B), call.trace("C", queries_C);
    elementwise(
        call, [](auto in, auto step) { return step * in; }, v, x, by_row(dt));
    linear_state(queries_C, keys_B, v, ScalarDecay<Scalar>{decay}, 1, state.ssm, o, call);
    elementwise(
        call, [](auto sum, auto in, auto d) { return simd::fma(d, in, sum); }, o, o, x,
        by_head(w.D));
    call.trace("o", o);
    gate(o.merge(axis::head), z, call);
    project(o, {{w.out_proj, y}}, call);
  }

 private:
  /// o = o ⊙ silu(z), with the norm: [T, H P].
  void gate(View<Scalar, 2> o, View<const Scalar, 2> z, const Call& call) const {
    const Index width = c.inner() / c.norm_parts();
    if (!c.rms_norm) {
      activate_gated(Activation::silu, o, z, call);
    } else if (!c.norm_before_gate) {
      rms_norm_of_gated(o, z, w.norm, width, c.norm_eps, call);
    } else {
      for (Index first = 0; first < c.inner(); first += width) {
        gated_rms_norm(o.slice(axis::channel, first, width), z.slice(axis::channel, first, width),
                       w.norm.view().slice(axis::channel, first, width), c.norm_eps,
                       activation::silu, call);
      }
    }
  }
  /// dt = clamp(softplus(dt + bias)), decay = dt A, both [T, H].
  void time_steps(View<Scalar, 2> dt, View<Scalar, 2> decay, const Call& call) const {
    const auto least = static_cast<Scalar>(c.dt_min), most = static_cast<Scalar>(c.dt_max);
    const auto clamped = [least, most](auto raw, auto bias) {
      return simd::min(simd::max(simd::softplus(raw + bias), least), most);
    };
    elementwise(call, clamped, dt, dt, by_channel(w.dt_bias));
    elementwise(
        call, [](auto step, auto rate) { return step * rate; }, decay, dt, by_channel(A));
  }
};

template <class Scalar = float>
using Mamba2 = Mixer<Mamba2Definition<Scalar>>;
SEQMIX_COMPILE_MIXER(Mamba2Definition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
