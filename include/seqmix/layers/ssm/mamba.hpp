#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/kernels/scan/selective_scan.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What happens to the low-rank time step, B and C before their use: nothing, an RMS norm with
/// weights (Jamba) or one without (FalconMamba).
enum class MambaNorm { none, weighted, weightless };
constexpr std::array<std::string_view, 3> names_of(MambaNorm) {
  return {"none", "weighted", "weightless"};
}

struct MambaConfig {
  Index d_model = 0;
  Index d_inner = 0;  // channels of the scan
  Index state_size = 16;
  Index dt_rank = 0;      // rank of the time step's projection
  Index conv_kernel = 4;  // taps of the short convolution
  bool conv_bias = true;
  bool bias = false;  // of in_proj and out_proj
  MambaNorm norm = MambaNorm::none;
  double norm_eps = 1e-6;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("d_inner", self.d_inner);
    field("state_size", self.state_size), field("dt_rank", self.dt_rank);
    field("conv_kernel", self.conv_kernel), field("conv_bias", self.conv_bias);
    field("bias", self.bias), field("norm", self.norm);
    field("norm_eps", self.norm_eps, at_least(0),
          only_where(self.norm != MambaNorm::none, "norm is not none"));
  }
  Index selected() const { return dt_rank + 2 * state_size; }
};

/// Mamba: a state space whose every channel chooses from the input what to keep and for how long.
///
///   (x, z) = W_in u_t,    x = silu(short_conv(x)),    (r, B, C) = W_x x_t,    each normed or not
///   dt = softplus(W_dt r + b),    A = -exp(A_log)
///   h_t = exp(dt_t A) ⊙ h_{t-1} + (dt_t x_t) B_tᵀ                            h_t [D, N]
///   y_t = W_out ((h_t C_t + D ⊙ x_t) ⊙ silu(z_t))
///
/// forward: O(T (D² + D (R + N))); step: O(D² + D (R + N)). State: N D numbers and W - 1 inputs of
/// the short convolution a stream, whatever T.
/// Source: Gu & Dao 2023, arXiv:2312.00752, algorithm 2 and section 3.4; HF transformers
/// MambaMixer; the norms: Lieber et al. 2024, arXiv:2403.19887; HF JambaMambaMixer,
/// FalconMambaMixer.
template <class S>
struct MambaDefinition {
  using Scalar = S;
  using Config = MambaConfig;
  static constexpr Traits traits{.name = "mamba",
                                 .title = "Mamba (S6; Jamba, FalconMamba)",
                                 .paper = "Gu 2023, arXiv:2312.00752",
                                 .forward = "O(T (D² + D (R + N)))",
                                 .step = "O(D² + D (R + N))",
                                 .state = "D N + (W - 1) D"};

  struct Weights {
    Projection<Scalar> in_proj, x_proj, dt_proj, out_proj;
    Parameter<Scalar, 3> conv;                     // [D, 1, W]
    Parameter<Scalar, 1> conv_bias, D;             // [D]
    Parameter<Scalar, 2> A_log;                    // [D, N]
    Parameter<Scalar, 1> dt_norm, B_norm, C_norm;  // [R], [N], [N]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("in_proj.weight", self.in_proj.weight, {2 * c.d_inner, c.d_model});
      if (c.bias) parameter("in_proj.bias", self.in_proj.bias, {2 * c.d_inner}, init::zeros);
      parameter("conv1d.weight", self.conv, {c.d_inner, 1, c.conv_kernel});
      if (c.conv_bias) parameter("conv1d.bias", self.conv_bias, {c.d_inner}, init::zeros);
      parameter("x_proj.weight", self.x_proj.weight, {c.selected(), c.d_inner}, keep_float);
      parameter("dt_proj.weight", self.dt_proj.weight, {c.d_inner, c.dt_rank}, keep_float);
      parameter("dt_proj.bias", self.dt_proj.bias, {c.d_inner}, init::time_steps(0.001, 0.1));
      if (c.norm == MambaNorm::weighted) {
        parameter("dt_layernorm.weight", self.dt_norm, {c.dt_rank}, init::ones);
        parameter("b_layernorm.weight", self.B_norm, {c.state_size}, init::ones);
        parameter("c_layernorm.weight", self.C_norm, {c.state_size}, init::ones);
      }
      parameter("A_log", self.A_log, {c.d_inner, c.state_size}, init::log_uniform(1, 16));
      parameter("D", self.D, {c.d_inner}, init::ones);
      parameter("out_proj.weight", self.out_proj.weight, {c.d_model, c.d_inner});
      if (c.bias) parameter("out_proj.bias", self.out_proj.bias, {c.d_model}, init::zeros);
    }
  };

  struct State {
    Tensor<Scalar, 3> conv;  // [B, W - 1, D], last inputs, oldest first
    Tensor<Scalar, 3> ssm;   // [B, N, D]

    static void visit(auto& self, auto&& tensor) {
      tensor("conv", self.conv), tensor("ssm", self.ssm);
    }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 2> taps;   // [W, D]
  Parameter<Scalar, 2> rates;  // [N, D], -exp(A_log) log2(e)

  MambaDefinition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), taps(transposed_taps(w.conv)) {
    Tensor<Scalar, 2> numbers({c.state_size, c.d_inner});
    for (Index d = 0; d < c.d_inner; ++d) {
      for (Index n = 0; n < c.state_size; ++n) {
        const double rate = -std::exp(static_cast<double>(w.A_log(d, n)));
        numbers(n, d) = static_cast<Scalar>(rate * std::numbers::log2e);
      }
    }
    rates = std::move(numbers);
    if (c.norm == MambaNorm::weightless) w.dt_norm = ones(c.dt_rank);
    if (c.norm == MambaNorm::weightless) w.B_norm = w.C_norm = ones(c.state_size);
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.conv = {{batch, c.conv_kernel - 1, c.d_inner}, memory},
            .ssm = {{batch, c.state_size, c.d_inner}, memory}};
  }

  void run(View<const Scalar, 2> u, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = u.extent(axis::time), R = c.dt_rank, N = c.state_size;
    auto scratch = call.scratch<Scalar>();
    auto projected = scratch(T, 2 * c.d_inner);  // [T, 2 D], x and z
    auto selected = scratch(T, c.selected());    // [T, R + 2 N], r, B and C
    auto dt = scratch(T, c.d_inner);             // [T, D], before softplus
    auto x = projected.slice(axis::channel, 0, c.d_inner);
    auto z = projected.slice(axis::channel, c.d_inner, c.d_inner);
    auto r = selected.slice(axis::channel, 0, R);
    auto keys_B = selected.slice(axis::channel, R, N);
    auto queries_C = selected.slice(axis::channel, R + N, N);

    project(u, {{w.in_proj, projected}}, call);
    short_conv(x, taps, w.conv_bias, ShortConvActivation::silu, state.conv, x, call);
    project(x, {{w.x_proj, selected}}, call);
    if (c.norm != MambaNorm::none) {
      rms_norm(r, w.dt_norm, c.norm_eps, r, call);
      rms_norm(keys_B, w.B_norm, c.norm_eps, keys_B, call);
      rms_norm(queries_C, w.C_norm, c.norm_eps, queries_C, call);
    }
    project(r, {{w.dt_proj, dt}}, call);
    selective_scan(x, dt, rates, keys_B, queries_C, w.D, z, state.ssm, x, call);
    project(x, {{w.out_proj, y}}, call);
  }

 private:
  static Parameter<Scalar, 1> ones(Index count) {
    Tensor<Scalar, 1> numbers({count});
    fill(numbers.view(), Scalar(1));
    return numbers;
  }
};

template <class Scalar = float>
using Mamba = Mixer<MambaDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(MambaDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
