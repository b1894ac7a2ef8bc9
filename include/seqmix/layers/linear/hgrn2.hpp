#pragma once

#include <utility>

#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct Hgrn2Config {
  Index d_model = 0;
  Index n_heads = 4;
  Index head_k = 128;        // expansion: forget gates per head
  Index head_v = 0;          // value width per head
  bool lower_bound = false;  // forget gates have a lower bound each, a weight; layer 0 has none
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_k", self.head_k), field("head_v", self.head_v);
    field("lower_bound", self.lower_bound), field("norm_eps", self.norm_eps, at_least(0));
  }
};

/// HGRN2: a gated linear recurrence whose state is expanded by outer products, with what the gate
/// does not keep as the key.
///
///   f_t = b + (1 - b) σ(W_f x_t),   k_t = 1 - f_t,   q_t = silu(W_q x_t),   v_t = W_i x_t
///   S_t = diag(f_t) S_{t-1} + k_tᵀ v_t,   o_t = K^{-1/2} q_t S_t       S_t [K, V] per head
///   y_t = W_o rms_norm(o_t)                                           over all heads
///
/// forward: O(T (D² + D K)); step: O(D² + D K). State: H K V accumulators a stream, whatever T.
/// Source: Qin et al. 2024, arXiv:2404.07904, section 3; fla/layers/hgrn2.py.
template <class S>
struct Hgrn2Definition {
  using Scalar = S;
  using Config = Hgrn2Config;
  static constexpr Traits traits{.name = "hgrn2",
                                 .title = "HGRN2",
                                 .paper = "Qin 2024, arXiv:2404.07904",
                                 .forward = "O(T (D² + D K))",
                                 .step = "O(D² + D K)",
                                 .state = "H K V"};

  struct Weights {
    Projection<Scalar> q_proj, f_proj, i_proj, o_proj;
    Parameter<Scalar, 1> lower_bound;  // [H K], from 0 to 1
    Parameter<Scalar, 1> g_norm;       // [H V]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v;
      parameter("q_proj.weight", self.q_proj.weight, {keys, c.d_model});
      parameter("f_proj.weight", self.f_proj.weight, {keys, c.d_model}, keep_float);
      parameter("i_proj.weight", self.i_proj.weight, {values, c.d_model});
      if (c.lower_bound) parameter("lower_bound", self.lower_bound, {keys}, init::uniform(0, 0.9));
      parameter("g_norm.weight", self.g_norm, {values}, init::ones);
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, values});
    }
  };

  struct State {
    Tensor<Scalar, 4> memory;  // [B, H, K, V]
    static void visit(auto& self, auto&& tensor) { tensor("memory", self.memory); }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 1> bound;  // [H K], the lower bound, or zeros

  Hgrn2Definition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), bound(w.lower_bound) {
    if (!c.lower_bound) bound = Tensor<Scalar, 1>({c.n_heads * c.head_k});
    for (Index i = 0; i < bound.size(); ++i) {
      // A bound below 1 may round to 1; then its gate stays open.
      require(bound[i] >= 0 && bound[i] <= 1, "hgrn2: every lower_bound must be from 0 to 1");
    }
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.memory = {{batch, c.n_heads, c.head_k, c.head_v}, memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, c.n_heads, c.head_k);  // [T, H, K]
    auto k = scratch(T, c.n_heads, c.head_k);  // [T, H, K]
    auto f = scratch(T, c.n_heads, c.head_k);  // [T, H, K]
    auto v = scratch(T, c.n_heads, c.head_v);  // [T, H, V]
    auto o = scratch(T, c.n_heads, c.head_v);  // [T, H, V]

    project(x, {{w.q_proj, q}, {w.f_proj, f}, {w.i_proj, v}}, call);
    activate(Activation::silu, q, call);
    gates(f.merge(axis::head), k.merge(axis::head), call);
    linear_state(q, k, v, VectorFactors<Scalar>{f}, inverse_sqrt(c.head_k), state.memory.view(), o,
                 call);
    rms_norm(o.merge(axis::head), w.g_norm, c.norm_eps, o.merge(axis::head), call);
    project(o, {{w.o_proj, y}}, call);
  }

 private:
  /// f = b + (1 - b) σ(f), k = (1 - b) σ(-f), both [T, H K].
  void gates(View<Scalar, 2> f, View<Scalar, 2> k, const Call& call) const {
    elementwise(
        call, [](auto raw, auto b) { return (1 - b) * simd::sigmoid(-raw); }, k, f,
        by_channel(bound));
    elementwise(
        call, [](auto raw, auto b) { return simd::fma(1 - b, simd::sigmoid(raw), b); }, f, f,
        by_channel(bound));
  }
};

template <class Scalar = float>
using Hgrn2 = Mixer<Hgrn2Definition<Scalar>>;
SEQMIX_COMPILE_MIXER(Hgrn2Definition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
