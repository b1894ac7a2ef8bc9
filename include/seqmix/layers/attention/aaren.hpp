#pragma once

#include <utility>

#include "seqmix/kernels/product/matmul.hpp"
#include "seqmix/kernels/product/packed_matrix.hpp"
#include "seqmix/kernels/scan/running_softmax.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct AarenConfig {
  Index d_model = 0;
  Index n_heads = 1;
  Index head_k = 0;        // key width per head
  Index head_v = 0;        // value width per head
  bool bias = false;       // of values and outputs; one of keys is the same for all of them
  double score_scale = 0;  // of q · k; 0: head_k^-1/2

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("n_heads", self.n_heads);
    field("head_k", self.head_k), field("head_v", self.head_v), field("bias", self.bias);
    field("score_scale", self.score_scale, is_positive.or_zero());
  }
};

/// Attention as a recurrent network ([A]ttention [a]s a [re]current neural [n]etwork, Aaren):
/// softmax attention whose query is no function of the token but learned, one a head, so that three
/// sums stand for all of the past.
///
///   k_t, v_t of x_t in heads,   s_t = score_scale q · k_t,   m_t = max(m_{t-1}, s_t)
///   u_t = e^{m_{t-1} - m_t} u_{t-1} + e^{s_t - m_t}
///   w_t = e^{m_{t-1} - m_t} w_{t-1} + e^{s_t - m_t} v_t
///   o_t = w_t / u_t = Σ_{i <= t} softmax_i(s_1 .. s_t) v_i,   y_t = W_o o_t
///
/// The query of a head is what the paper's projection makes of its learned token. It is multiplied
/// into the keys' projection once: a score costs D products.
///
/// forward: O(T D H V); step: O(D H V). State: H (V + 2) numbers a stream, whatever T.
/// Source: Feng et al. 2024, arXiv:2405.13956, section 3, appendix A.
template <class S>
struct AarenDefinition {
  using Scalar = S;
  using Config = AarenConfig;
  static constexpr Traits traits{.name = "aaren",
                                 .title = "Aaren (attention as an RNN)",
                                 .paper = "Feng 2024, arXiv:2405.13956",
                                 .forward = "O(T D H V)",
                                 .step = "O(D H V)",
                                 .state = "H (V + 2)",
                                 .has_start_row = true};

  struct Weights {
    Parameter<Scalar, 2> query;  // [H, K]
    Projection<Scalar> k_proj, v_proj, o_proj;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index keys = c.n_heads * c.head_k, values = c.n_heads * c.head_v;
      parameter("query", self.query, {c.n_heads, c.head_k}, init::normal(0, 1));
      parameter("k_proj.weight", self.k_proj.weight, {keys, c.d_model});
      parameter("v_proj.weight", self.v_proj.weight, {values, c.d_model});
      parameter("o_proj.weight", self.o_proj.weight, {c.d_model, values});
      if (!c.bias) return;
      parameter("v_proj.bias", self.v_proj.bias, {values}, init::zeros);
      parameter("o_proj.bias", self.o_proj.bias, {c.d_model}, init::zeros);
    }
  };

  struct State {
    Tensor<Scalar, 3> numerator;             // [B, H, V]
    Tensor<Scalar, 2> denominator, maximum;  // [B, H]

    static void visit(auto& self, auto&& tensor) {
      tensor("numerator", self.numerator), tensor("denominator", self.denominator);
      tensor("maximum", self.maximum);
    }
  };

  Config c;
  Weights w;
  PackedMatrix<Scalar> scores;  // [H, D], score_scale q_h W_k,h

  AarenDefinition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), scores(score_rows().view()) {}

  State make_state(Index batch, Index /*capacity*/, Memory memory) const {
    return {.numerator = {{batch, c.n_heads, c.head_v}, memory},
            .denominator = {{batch, c.n_heads}, memory},
            .maximum = {{batch, c.n_heads}, memory}};
  }
  void start_row(State& state, Index row) const {
    fill(state.maximum.view()[row], static_cast<Scalar>(running_softmax_initial_maximum));
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<Scalar>();
    auto s = scratch(T, c.n_heads);            // [T, H]
    auto v = scratch(T, c.n_heads, c.head_v);  // [T, H, V]

    matmul<Scalar>(x, scores, s, call);
    project(x, {{w.v_proj, v}}, call);
    running_softmax(s, v, state.numerator.view(), state.denominator.view(), state.maximum.view(), v,
                    call);
    project(v, {{w.o_proj, y}}, call);
  }

 private:
  Tensor<Scalar, 2> score_rows() const {
    const double scale = c.score_scale > 0 ? c.score_scale : inverse_sqrt(c.head_k);
    const Tensor<Scalar, 2> keys = w.k_proj.weight.to_tensor();
    Tensor<Scalar, 2> rows({c.n_heads, c.d_model});
    for (Index h = 0; h < c.n_heads; ++h) {
      for (Index d = 0; d < c.d_model; ++d) {
        double sum = 0;
        for (Index i = 0; i < c.head_k; ++i) {
          sum +=
              static_cast<double>(w.query(h, i)) * static_cast<double>(keys(h * c.head_k + i, d));
        }
        rows(h, d) = static_cast<Scalar>(scale * sum);
      }
    }
    return rows;
  }
};

template <class Scalar = float>
using Aaren = Mixer<AarenDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(AarenDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
