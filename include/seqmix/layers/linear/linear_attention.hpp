#pragma once

#include <cmath>

#include "seqmix/kernels/memory/feature_map.hpp"
#include "seqmix/kernels/memory/key_sum.hpp"
#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct LinearAttentionConfig {
  Index d_model = 0;
  Index n_heads = 4;
  Index head_k = 0;  // key width per head
  Index head_v = 0;  // value width per head
  FeatureMap feature_map = FeatureMap::elu_plus_one;
  Index n_features = 0;  // rows of the projection matrix of favor
  Index max_length = 0;  // tokens over which cosformer weights fall to 0
  double scale = 1;      // factor of the queries' features
  bool normalize = true;
  double eps = 1e-6;      // added to the denominator; the least denominator of cosformer
  double kernel_eps = 0;  // added to each feature of favor, eps then to each sum of keys' features
  bool bias = false;
  bool out_bias = false;     // of o_proj, where the others have none
  bool output_norm = false;  // an RMS norm of each head
  double norm_eps = 1e-5;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_k", self.head_k), field("head_v", self.head_v);
    field("feature_map", self.feature_map);
    field("n_features", self.n_features, zero_is_legal,
          only_where(self.feature_map == FeatureMap::favor, "feature_map is favor"));
    field("max_length", self.max_length, zero_is_legal,
          only_where(self.feature_map == FeatureMap::cosformer, "feature_map is cosformer"));
    field("scale", self.scale, is_positive), field("normalize", self.normalize);
    field("eps", self.eps, at_least(0));  // published layers name one without normalize too
    field("bias", self.bias), field("output_norm", self.output_norm);
    field("norm_eps", self.norm_eps, at_least(0),
          only_where(self.output_norm, "output_norm is true"));
    field("kernel_eps", self.kernel_eps, at_least(0),
          only_where(self.feature_map == FeatureMap::favor, "feature_map is favor"));
    field("out_bias", self.out_bias);
  }
  void check() const {
    require(feature_map != FeatureMap::favor || n_features > 0, "favor needs n_features");
    require(feature_map != FeatureMap::cosformer || max_length > 0, "cosformer needs max_length");
    require(feature_map != FeatureMap::favor || normalize,
            "favor needs normalize: its features are known up to a factor that cancels there");
    require(!bias || !out_bias, "out_bias is part of bias");
    require(!normalize || (feature_map != FeatureMap::identity &&
                           feature_map != FeatureMap::elementwise_product),
            "normalize needs a feature map without negative products");
    const bool may_vanish = feature_map == FeatureMap::relu || feature_map == FeatureMap::cosformer;
    require(!normalize || !may_vanish || is_positive.has(eps),
            "eps must be positive where all features may be 0: relu, cosformer");
  }
  Index features() const {
    if (feature_map == FeatureMap::taylor) return taylor_width(head_k);
    if (feature_map == FeatureMap::cosformer) return 2 * head_k;
    if (feature_map == FeatureMap::favor) return n_features + (kernel_eps > 0 ? 1 : 0);
    return head_k;
  }
};

/// Linear attention: softmax's exp(q · k) replaced by a product of features, so that the past is a
/// sum of outer products.
///
///   S_t = S_{t-1} + φ(k_t)ᵀ v_t,   z_t = z_{t-1} + φ(k_t)             S_t [F, V], z_t [F] per head
///   o_t = φ(q_t) S_t / (φ(q_t) · z_t + eps),   y_t = W_o o_t          or without the denominator
///
/// φ is elu(x) + 1 or relu(x); softmax over the head; elementwise_product: of two projections of a
/// head, those of queries and keys apart; taylor: Based; cosformer: relu with weights that fall
/// with distance, to 0 at `max_length`, which a stream must not exceed; favor: Performer's positive
/// random features of a loaded projection matrix. The sums of favor are kept divided by the
/// exponential of the largest exponent so far, `maximum`.
///
/// Performer adds `kernel_eps` to features that are divided by the largest exponential of all keys
/// of a call, later ones included. Here it is the largest so far: y_t is what the published code
/// gives for the last of the tokens up to t. The sum of the added parts is one feature more, which
/// starts at eps.
///
/// forward: O(T (D² + D F)); step: O(D² + D F). State: H F (V + 1) accumulators a stream.
/// Source: Katharopoulos et al. 2020, arXiv:2006.16236, eq. 9-12, fast_transformers
/// RecurrentLinearAttention; fla/layers/linear_attn.py; Arora et al. 2024, arXiv:2402.18668,
/// fla/layers/based.py; Qin et al. 2022, arXiv:2202.08791, CosformerAttention; Choromanski et al.
/// 2020, arXiv:2009.14794, performer_pytorch SelfAttention.
template <class S>
struct LinearAttentionDefinition {
  using Scalar = S;
  using Config = LinearAttentionConfig;
  static constexpr Traits traits{.name = "linear_attention",
                                 .title = "Linear attention, Based, cosFormer, Performer",
                                 .paper = "Katharopoulos 2020, arXiv:2006.16236",
                                 .forward = "O(T (D² + D F))",
                                 .step = "O(D² + D F)",
                                 .state = "H F (V + 1)",
                                 .has_position_limit = true,
                                 .has_start_row = true};

  struct Weights {
    Projection<Scalar> q_proj, k_proj, v_proj, o_proj;
    Projection<Scalar> features;                                // random directions of favor
    Projection<Scalar> q_layer1, q_layer2, k_layer1, k_layer2;  // of elementwise_product
    Parameter<Scalar, 1> norm;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v;
      parameter("q_proj.weight", self.q_proj.weight, {keys, c.d_model});
      parameter("k_proj.weight", self.k_proj.weight, {keys, c.d_model});
      parameter("v_proj.weight", self.v_proj.weight, {values, c.d_model});
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, values});
      if (c.bias) {
        parameter("q_proj.bias", self.q_proj.bias, {keys}, init::zeros);
        parameter("k_proj.bias", self.k_proj.bias, {keys}, init::zeros);
        parameter("v_proj.bias", self.v_proj.bias, {values}, init::zeros);
      }
      if (c.bias || c.out_bias)
        parameter("o_proj.bias", self.o_proj.bias, {c.d_model}, init::zeros);
      if (c.feature_map == FeatureMap::favor) {
        parameter("projection_matrix", self.features.weight, {c.n_features, c.head_k});
      }
      if (c.feature_map == FeatureMap::elementwise_product) {
        parameter("feature_map_q.layer1.weight", self.q_layer1.weight, {c.head_k, c.head_k});
        parameter("feature_map_q.layer1.bias", self.q_layer1.bias, {c.head_k}, init::zeros);
        parameter("feature_map_q.layer2.weight", self.q_layer2.weight, {c.head_k, c.head_k});
        parameter("feature_map_q.layer2.bias", self.q_layer2.bias, {c.head_k}, init::zeros);
        parameter("feature_map_k.layer1.weight", self.k_layer1.weight, {c.head_k, c.head_k});
        parameter("feature_map_k.layer1.bias", self.k_layer1.bias, {c.head_k}, init::zeros);
        parameter("feature_map_k.layer2.weight", self.k_layer2.weight, {c.head_k, c.head_k});
        parameter("feature_map_k.layer2.bias", self.k_layer2.bias, {c.head_k}, init::zeros);
      }
      if (c.output_norm) parameter("norm.weight", self.norm, {c.head_v}, init::ones);
    }
  };

  struct State {
    Tensor<Scalar, 4> memory;   // [B, H, F, V]
    Tensor<Scalar, 3> key_sum;  // [B, H, F], where normalised
    Tensor<Scalar, 2> maximum;  // [B, H], of favor
    Position position;          // [B]

    static void visit(auto& self, auto&& tensor) {
      tensor("memory", self.memory);
      if (self.key_sum.extent(2) > 0) tensor("key_sum", self.key_sum);
      if (self.maximum.extent(1) > 0) tensor("maximum", self.maximum);
      tensor("position", self.position);
    }
  };

  Config c;
  Weights w;

  PositionLimit position_limit() const {
    if (c.feature_map != FeatureMap::cosformer) return {};
    return {c.max_length, "max_length"};
  }

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    const Index H = c.n_heads, F = c.features();
    return {.memory = {{batch, H, F, c.head_v}, memory},
            .key_sum = {{batch, H, c.normalize ? F : 0}, memory},
            .maximum = {{batch, c.feature_map == FeatureMap::favor ? H : 0}, memory},
            .position = {batch, memory}};
  }
  void start_row(State& state, Index row) const {
    fill(state.maximum.view()[row], Scalar(-1e30));  // below every exponent
    if (c.kernel_eps > 0) {  // performer_pytorch divides features by F^{1/2}, the eps of sums not
      fill(state.key_sum.view()[row].at(axis::channel, c.n_features),
           static_cast<Scalar>(c.eps * std::sqrt(static_cast<double>(c.n_features))));
    }
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), H = c.n_heads;
    auto scratch = call.scratch<Scalar>();
    auto q = scratch(T, H, c.head_k);               // [T, H, K]
    auto k = scratch(T, H, c.head_k);               // [T, H, K]
    auto v = scratch(T, H, c.head_v);               // [T, H, V]
    auto o = scratch(T, H, c.head_v);               // [T, H, V]
    auto q_features = scratch(T, H, c.features());  // [T, H, F]
    auto k_features = scratch(T, H, c.features());  // [T, H, F]
    auto denominator = scratch(T, H);               // [T, H]
    auto log_decay = scratch(T, H);                 // [T, H], of favor

    project(x, {{w.q_proj, q}, {w.k_proj, k}, {w.v_proj, v}}, call);
    if (c.feature_map == FeatureMap::elementwise_product) {
      multiply_projections(q, w.q_layer1, w.q_layer2, q_features, call);
      multiply_projections(k, w.k_layer1, w.k_layer2, k_features, call);
    } else {
      map_features(q, q_features, state, call);
      map_features(k, k_features, state, call);
    }
    const auto remember = [&](const auto& decay) {
      linear_state(q_features, k_features, v, decay, c.scale, state.memory.view(), o, call);
      if (!c.normalize) return;
      key_sum(q_features, k_features, decay, c.scale, state.key_sum.view(), denominator, call);
    };
    if (c.feature_map == FeatureMap::favor) {
      favor_queries(q, q_features, c.kernel_eps, call);
      favor_keys(k, k_features, state.maximum.view(), log_decay, c.kernel_eps, call);
      if (c.kernel_eps > 0) {
        auto decays = scratch(T, H, c.features());  // [T, H, F]
        favor_decays(log_decay, decays, call);
        remember(VectorDecay<Scalar>{decays});
      } else {
        remember(ScalarDecay<Scalar>{log_decay});
      }
    } else {
      remember(NoDecay{});
    }
    if (c.normalize) normalize(o, denominator, call);
    if (c.output_norm) rms_norm(o, w.norm, c.norm_eps, o, call);
    project(o, {{w.o_proj, y}}, call);
  }

 private:
  /// Heads [T, H, K] as rows of their own, [T H, K].
  static View<Scalar, 2> rows_of(View<Scalar, 3> heads) { return heads.merge(axis::time); }
  /// features [T, H, F] of x [T, H, K]; of favor, the projection alone.
  void map_features(View<Scalar, 3> x, View<Scalar, 3> features, const State& state,
                    const Call& call) const {
    if (c.feature_map == FeatureMap::taylor) {
      taylor_features(x, features, call);
    } else if (c.feature_map == FeatureMap::cosformer) {
      cosformer_features(x, state.position.tokens, static_cast<double>(c.max_length), features,
                         call);
    } else if (c.feature_map == FeatureMap::favor) {
      const auto exponents = features.slice(axis::channel, 0, c.n_features);
      project(rows_of(x), {{w.features, rows_of(exponents)}}, call);
    } else {
      pointwise_features(c.feature_map, x, features, call);
    }
  }
  /// features = (W_1 x + b_1) ⊙ (W_2 x + b_2) of each head, [T, H, K].
  void multiply_projections(View<Scalar, 3> x, const Projection<Scalar>& layer1,
                            const Projection<Scalar>& layer2, View<Scalar, 3> features,
                            const Call& call) const {
    auto scratch = call.scratch<Scalar>();
    auto other = scratch(x.extent(0), x.extent(1), x.extent(2));  // [T, H, K]
    project(rows_of(x), {{layer1, rows_of(features)}, {layer2, rows_of(other)}}, call);
    elementwise(
        call, [](auto a, auto b) { return a * b; }, features, features, other);
  }
  void normalize(View<Scalar, 3> o, View<Scalar, 2> denominator, const Call& call) const {
    const auto eps = static_cast<Scalar>(c.kernel_eps > 0 ? 0 : c.eps);
    const auto divide = [&](auto f) { elementwise(call, f, o, o, by_row(denominator)); };
    if (c.feature_map == FeatureMap::cosformer) {
      divide([eps](auto v, auto by) { return simd::divide_or_zero(v, simd::max(by, eps)); });
    } else {
      divide([eps](auto v, auto by) { return simd::divide_or_zero(v, by + eps); });
    }
  }
};

template <class Scalar = float>
using LinearAttention = Mixer<LinearAttentionDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(LinearAttentionDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
