#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/attention/relative_products.hpp"
#include "seqmix/layers/attention/detail/heads.hpp"
#include "seqmix/layers/detail/name.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

// The biases of a layer of attention that depend on what its tokens say.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

enum class ContentBiasKind { none, forget_gate, cope, cape, transformer_xl, deberta };
constexpr std::array<std::string_view, 6> names_of(ContentBiasKind) {
  return {"none", "forget_gate", "cope", "cape", "transformer_xl", "deberta"};
}

/// What is added to the scores of a query at t and a key at j, of each head, by what they say. With
/// s = score_scale, q_t and k_j as they are multiplied (turned, normalised, q_t times the factors
/// of its head and position), distances d clamped to max_distance:
///
///   forget_gate     Σ_{i = j+1 .. t} log σ(w_f · x_i + b_f). Lin et al. 2025, arXiv:2503.02130
///                   (FoX), eq. 6; fla/layers/forgetting_attn.py
///   cope            q_t · e(p_tj), between rows of a table of n_positions, at p_tj = Σ_{i=j..t}
///                   σ(s q_t · k_i) over the keys that the query sees, no more than the last row's
///                   number. Golovneva et al. 2024, arXiv:2405.18719, eq. 4-6; lucidrains'
///                   x-transformers, CoPE
///   cape            W_2 leaky_relu(W_1 [a, b] + b_1) + b_2 of the products a = s q_t · k_j and the
///                   biases b by distance of all heads. Zheng et al. 2024, arXiv:2405.14722, eq. 3;
///                   chuanyang-Zheng/DAPE, DAPE.py
///   transformer_xl  s (u · k_j + (q_t + v) · W_r R_{t-j}),  R_d = [sin(d f_i), cos(d f_i)] of
///                   f_i = 10000^(-2i / D). Dai et al. 2019, arXiv:1901.02860, section 3.3;
///                   kimiyoung/transformer-xl, RelPartialLearnableMultiHeadAttn (max_distance is
///                   its clamp_len; its same_length is sees.window); with both directions XLNet's
///   deberta         s (q_t · W_k P_d + k_j · W_q P_d), rows P of a table by the bucket of t - j,
///                   either term alone too. He et al. 2020, arXiv:2006.03654, eq. 4; HF
///                   transformers DisentangledSelfAttention of deberta and deberta_v2
///
/// A table of 2 n embeddings has those of the distances -n to n - 1; with position_buckets n, those
/// beyond n / 2 share theirs in logarithmic steps up to max_distance, else n is max_distance.
struct ContentBiasConfig {
  using Kind = ContentBiasKind;
  static constexpr Index largest_distance = Index{1} << 16;

  Kind kind = Kind::none;
  Index mlp_width = 32;
  Index n_positions = 64;
  Index max_distance = 512;         // farther ones are as near as it
  Index position_buckets = 0;       // of a direction; 0: each distance has its own
  bool query_term = true;           // q · W_k P, content to position
  bool key_term = true;             // k · W_q P, position to content
  bool query_bias = true;           // of W_k; W_q has one
  bool shared_projections = false;  // W_k and W_q are those of keys and queries

  static void visit(auto& self, auto&& field) {
    const auto of_distance = only_where(self.by_distance(), "kind is transformer_xl or deberta");
    const auto of_deberta = only_where(self.kind == Kind::deberta, "kind is deberta");
    field("kind", self.kind, flat_key("content_bias"));
    field("mlp_width", self.mlp_width, only_where(self.kind == Kind::cape, "kind is cape"));
    field("n_positions", self.n_positions, only_where(self.kind == Kind::cope, "kind is cope"));
    field("max_distance", self.max_distance, of_distance, flat_key("content_max_distance"));
    field("position_buckets", self.position_buckets, zero_is_legal, of_deberta);
    field("query_term", self.query_term, of_deberta);
    field("key_term", self.key_term, of_deberta);
    field("query_bias", self.query_bias, of_deberta, flat_key("query_term_bias"));
    field("shared_projections", self.shared_projections, of_deberta);
  }
  void check() const {
    require(max_distance <= largest_distance, "max_distance must not exceed 2^16");
    require(kind != Kind::deberta || query_term || key_term,
            "kind deberta needs query_term or key_term");
    require(position_buckets == 0 ||
                (position_buckets % 2 == 0 && position_buckets / 2 < max_distance - 1),
            "position_buckets must be even and its half less than max_distance - 1");
    require(query_bias || (query_term && !shared_projections),
            "query_bias false needs a query_term and projections that are not shared");
  }
  bool by_distance() const { return kind == Kind::transformer_xl || kind == Kind::deberta; }
  /// Terms whose numbers are as large as those of q · k, with these.
  Index terms() const {
    return kind == Kind::deberta ? 1 + Index{query_term} + Index{key_term} : 1;
  }
  /// Embeddings of a direction.
  Index span() const { return position_buckets > 0 ? position_buckets : max_distance; }
  /// The embedding of a distance; logarithms in float, as published.
  Index embedding(Index distance) const {
    const Index mid = position_buckets / 2, far = std::abs(distance);
    Index bucket = far;
    if (position_buckets > 0 && far > mid) {
      const auto steps = [mid](Index at) {
        return std::log(static_cast<float>(at) / static_cast<float>(mid));
      };
      const float wider =
          std::ceil(steps(far) / steps(max_distance - 1) * static_cast<float>(mid - 1));
      bucket = static_cast<Index>(wider) + mid;
    }
    return std::clamp<Index>(span() + (distance < 0 ? -bucket : bucket), 0, 2 * span() - 1);
  }
};

template <class Scalar>
struct ContentBiasWeights {
  Projection<Scalar> f_proj;                        // [H, D]
  Projection<Scalar> pos_emb;                       // [n_positions, K]
  Projection<Scalar> r_net;                         // [H K, D]
  Parameter<Scalar, 2> hidden_weight, out_weight;   // [M, 2 H], [H, M], of CAPE
  Parameter<Scalar, 1> hidden_bias, out_bias;       // [M], [H]
  Parameter<Scalar, 2> r_w_bias, r_r_bias;          // [H, K], u and v
  Parameter<Scalar, 2> rel_embeddings;              // [2 n, D]
  Projection<Scalar> pos_key_proj, pos_query_proj;  // [H K, D]

  static void visit(auto& self, const ContentBiasConfig& of, const HeadsConfig& heads,
                    Index d_model, auto&& parameter) {
    using Kind = ContentBiasKind;
    const Index H = heads.n_heads, width = H * heads.head_dim;
    if (of.kind == Kind::forget_gate) {
      parameter("f_proj.weight", self.f_proj.weight, {H, d_model}, keep_float);
      parameter("f_proj.bias", self.f_proj.bias, {H}, init::uniform(0, 4));
    }
    if (of.kind == Kind::cape) {
      parameter("mlp2.0.weight", self.hidden_weight, {of.mlp_width, 2 * H});
      parameter("mlp2.0.bias", self.hidden_bias, {of.mlp_width}, init::uniform(-1, 1));
      parameter("mlp2.2.weight", self.out_weight, {H, of.mlp_width}, init::uniform(-1, 1));
      parameter("mlp2.2.bias", self.out_bias, {H}, init::uniform(-1, 1));
    }
    if (of.kind == Kind::cope) {
      parameter("pos_emb", self.pos_emb.weight, {of.n_positions, heads.head_dim},
                init::uniform(-1, 1));
    }
    if (of.kind == Kind::transformer_xl) {
      parameter("r_net.weight", self.r_net.weight, {width, d_model});
      parameter("r_w_bias", self.r_w_bias, {H, heads.head_dim}, init::uniform(-1, 1));
      parameter("r_r_bias", self.r_r_bias, {H, heads.head_dim}, init::uniform(-1, 1));
    }
    if (of.kind != Kind::deberta) return;
    parameter("rel_embeddings", self.rel_embeddings, {2 * of.span(), d_model},
              init::uniform(-1, 1));
    if (of.shared_projections) return;
    if (of.query_term) {
      parameter("pos_key_proj.weight", self.pos_key_proj.weight, {width, d_model});
      if (of.query_bias) {
        parameter("pos_key_proj.bias", self.pos_key_proj.bias, {width}, init::uniform(-1, 1));
      }
    }
    if (of.key_term) {
      parameter("pos_query_proj.weight", self.pos_query_proj.weight, {width, d_model});
      parameter("pos_query_proj.bias", self.pos_query_proj.bias, {width}, init::uniform(-1, 1));
    }
  }
};

/// What queries and keys are multiplied with by their distance.
template <class S>
struct DistanceTerms {
  DistanceRows<S> for_queries, for_keys;

  DistanceTerms() = default;
  /// `scale`: of products.
  DistanceTerms(const ContentBiasConfig& of, const ContentBiasWeights<S>& w,
                const HeadsConfig& heads, const HeadsWeights<S>& of_heads, double scale,
                Index d_model, bool both_directions) {
    const Index most = of.max_distance, least = both_directions ? -most : 0;
    if (of.kind == ContentBiasKind::transformer_xl) {
      Tensor<S, 2> sinusoids({most - least + 1, d_model});
      const Index half = d_model / 2;
      for (Index i = 0; i < sinusoids.extent(0); ++i) {
        for (Index n = 0; n < half; ++n) {
          const double power = -2 * static_cast<double>(n) / static_cast<double>(d_model);
          const double angle = static_cast<double>(most - i) * std::pow(10000.0, power);
          sinusoids(i, n) = static_cast<S>(std::sin(angle));
          sinusoids(i, half + n) = static_cast<S>(std::cos(angle));
        }
      }
      const auto all = [](Index i) { return i; };
      for_queries =
          rows_of(sinusoids.view(), w.r_net, heads, scale, sinusoids.extent(0), all, least, false);
    }
    if (of.kind != ContentBiasKind::deberta) return;
    const auto of_row = [&](Index i) { return of.embedding(most - i); };
    const auto& key_proj = of.shared_projections ? of_heads.k_proj : w.pos_key_proj;
    const auto& query_proj = of.shared_projections ? of_heads.q_proj : w.pos_query_proj;
    const View<const S, 2> embeddings = w.rel_embeddings;
    const Index rows = most - least + 1;
    if (of.query_term) {
      for_queries = rows_of(embeddings, key_proj, heads, scale, rows, of_row, least, false);
    }
    if (of.key_term) {
      for_keys = rows_of(embeddings, query_proj, heads, scale, rows, of_row, least, true);
    }
  }

 private:
  /// scale W x of the `count` rows x(of_row(i)).
  static DistanceRows<S> rows_of(const View<const S, 2>& x, const Projection<S>& by,
                                 const HeadsConfig& heads, double scale, Index count, auto&& of_row,
                                 Index least, bool by_column) {
    const Index H = heads.n_heads, K = heads.head_dim, n = x.extent(0);
    Context context;
    const Segment all{0, 0, n, Form::parallel};
    Tensor<S, 2> projected({n, H * K});
    project(x, {{by, projected.view()}}, Call(context, Segments(&all, 1)));
    Tensor<S, 3> rows({H, count, K});
    for (Index h = 0; h < H; ++h) {
      for (Index i = 0; i < count; ++i) {
        for (Index k = 0; k < K; ++k) {
          rows(h, i, k) = static_cast<S>(scale) * projected(of_row(i), h * K + k);
        }
      }
    }
    return {std::move(rows), least, by_column};
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
