#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/normalisers.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/kernels/positions/temperature.hpp"
#include "seqmix/layers/attention/detail/biases.hpp"
#include "seqmix/layers/attention/detail/content_biases.hpp"
#include "seqmix/layers/attention/detail/heads.hpp"
#include "seqmix/layers/mixer.hpp"

// From q · k to the weights of attention.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How the scores of a query sharpen with its position i, with L = temperature_length:
///   stepped      times 1 + temperature_rate ln(1 + floor((i + temperature_offset) / L)). Nakanishi
///                2025, arXiv:2501.19399; HF transformers Llama4TextAttention (offset 1),
///                Ministral3Attention
///   logarithmic  times max(1, ln(i + 1) / ln L). Chiang & Cholak 2022, arXiv:2202.12172; Qwen
enum class Temperature { none, stepped, logarithmic };
constexpr std::array<std::string_view, 3> names_of(Temperature) {
  return {"none", "stepped", "logarithmic"};
}

/// What makes weights of scores, with n = normaliser_length where it is positive:
///   softmax       exp(s_tj) / (Σ_i exp(s_ti) + exp(sink_h)),  without the sink where sink_logits
///                 is false
///   sigmoid       σ(s_tj + normaliser_bias - ln n). Ramapuram et al. 2024, arXiv:2409.04431
///   relu          max(s_tj, 0). Zhang et al. 2021, arXiv:2104.07012 (ReLA, with `output_norm`)
///   relu_squared  max(s_tj / n, 0)². Hua et al. 2022, arXiv:2202.10447 (GAU, FLASH)
/// and the kinds of `RowNormaliser`, which ask for all scores of a query: its memory is O(T).
enum class Normaliser {
  softmax,
  sigmoid,
  relu,
  relu_squared,
  layer_norm,
  sparsemax,
  entmax15,
  stick_breaking,
  geometric
};
constexpr std::array<std::string_view, 9> names_of(Normaliser) {
  return {"softmax",   "sigmoid",  "relu",           "relu_squared", "layer_norm",
          "sparsemax", "entmax15", "stick_breaking", "geometric"};
}

/// The scores of attention, which its normaliser makes weights.
///
///   s_tj = (score_scale τ_t η_h q_t · k_j + content(t, j) + bias(t, j)) / score_divisor,  η_h = 1
///         without head_scale;  with soft_cap c: c tanh(s_tj / c)
///
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Gemma team 2024, arXiv:2408.00118 (cap);
/// OpenAI 2025, arXiv:2508.10925 (sinks); Wang et al. 2024, arXiv:2404.12224 (scales by head);
/// Chi et al. 2023, arXiv:2311.00684 (score_divisor: a temperature that the length served asks
/// for).
struct ScoresConfig {
  double score_scale = 0;    // of q · k; 0: head_dim^-1/2, with DeBERTa's terms beside it
                             // (terms head_dim)^-1/2
  bool head_scale = false;   // a factor of each head's q · k
  double score_divisor = 1;  // of products, content and biases
  double soft_cap = 0;       // bound on the size of a score; 0: none
  bool sink_logits = false;  // a logit of each head that softmax counts beside the keys
  Temperature temperature = Temperature::none;
  double temperature_rate = 0.1;
  Index temperature_length = 0;
  Index temperature_offset = 0;
  Normaliser normaliser = Normaliser::softmax;
  Index normaliser_length = 0;  // tokens that a query is to see as in training; 0: any
  double normaliser_bias = 0;   // of every score
  double normaliser_eps = 1e-3;
  OwnKey own_key = OwnKey::seen;

  static void visit(auto& self, auto&& field) {
    field("score_scale", self.score_scale, is_positive.or_zero());
    field("head_scale", self.head_scale), field("score_divisor", self.score_divisor, is_positive);
    field("soft_cap", self.soft_cap, is_positive.or_zero());
    field("sink_logits", self.sink_logits), field("temperature", self.temperature);
    const auto stepped =
        only_where(self.temperature == Temperature::stepped, "temperature is stepped");
    field("temperature_rate", self.temperature_rate, is_positive, stepped);
    field("temperature_length", self.temperature_length, zero_is_legal,
          only_where(self.temperature != Temperature::none, "temperature is not none"));
    field("temperature_offset", self.temperature_offset, zero_is_legal, stepped);
    const bool sigmoid = self.normaliser == Normaliser::sigmoid;
    field("normaliser", self.normaliser);
    field("normaliser_length", self.normaliser_length, zero_is_legal,
          only_where(sigmoid || self.normaliser == Normaliser::relu_squared,
                     "normaliser is sigmoid or relu_squared"));
    field("normaliser_bias", self.normaliser_bias, is_finite,
          only_where(sigmoid, "normaliser is sigmoid"));
    field("normaliser_eps", self.normaliser_eps, at_least(0),
          only_where(self.normaliser == Normaliser::layer_norm, "normaliser is layer_norm"));
    field("own_key", self.own_key,
          only_where(self.normaliser == Normaliser::stick_breaking ||
                         self.normaliser == Normaliser::geometric,
                     "normaliser is stick_breaking or geometric"));
  }
  void check() const {
    require(!sink_logits || normaliser == Normaliser::softmax,
            "sink_logits needs normaliser softmax");
    require(own_key != OwnKey::remainder || normaliser == Normaliser::stick_breaking,
            "own_key remainder needs normaliser stick_breaking");
    require(temperature != Temperature::stepped || temperature_length > 0,
            "temperature stepped needs a positive temperature_length");
    require(temperature != Temperature::logarithmic || temperature_length > 1,
            "temperature logarithmic needs a temperature_length of at least 2");
  }
  /// Whether the weight of a pair depends on its own score alone.
  bool weighs_pairs() const {
    return normaliser == Normaliser::sigmoid || normaliser == Normaliser::relu ||
           normaliser == Normaliser::relu_squared;
  }
  /// τ of a query at `position`.
  double temperature_at(Index position) const {
    const auto length = static_cast<double>(temperature_length);
    if (temperature == Temperature::stepped) {
      const auto steps = static_cast<double>((position + temperature_offset) / temperature_length);
      return 1 + temperature_rate * std::log(1 + steps);
    }
    return std::max(1.0, std::log(static_cast<double>(position + 1)) / std::log(length));
  }
};

template <class Scalar>
struct ScoresWeights {
  Parameter<Scalar, 1> sinks, head_scale, score_gain, score_bias;  // [H]

  static void visit(auto& self, const ScoresConfig& c, Index n_heads, auto&& parameter) {
    if (c.sink_logits) parameter("sinks", self.sinks, {n_heads}, init::uniform(-1, 1));
    if (c.head_scale) parameter("scale_param", self.head_scale, {n_heads}, init::uniform(0.5, 2));
    if (c.normaliser != Normaliser::layer_norm) return;
    parameter("score_norm.gain", self.score_gain, {n_heads}, init::ones);
    parameter("score_norm.bias", self.score_bias, {n_heads}, init::zeros);
  }
};

/// What weighs pairs as `c` says, whose normaliser looks at one score at a time.
inline PairWeight pair_weight(const ScoresConfig& c) {
  const auto length = static_cast<double>(std::max<Index>(c.normaliser_length, 1));
  switch (c.normaliser) {
    case Normaliser::sigmoid:
      return {PairWeight::Kind::sigmoid, c.normaliser_bias - std::log(length)};
    case Normaliser::relu_squared:
      return {PairWeight::Kind::relu_squared, 0, 1 / length};
    default:
      return {PairWeight::Kind::relu};
  }
}

/// What weighs rows as `c` says, if its normaliser asks for all scores of a query.
template <class S>
std::optional<RowNormaliser> row_normaliser(const ScoresConfig& c, const ScoresWeights<S>& w) {
  using Kind = RowNormaliser::Kind;
  const auto numbers = [](const Parameter<S, 1>& weight) {
    std::vector<double> result;
    for (Index h = 0; h < weight.extent(0); ++h) result.push_back(weight(h));
    return result;
  };
  switch (c.normaliser) {
    case Normaliser::layer_norm:
      return RowNormaliser{Kind::layer_norm, OwnKey::seen, numbers(w.score_gain),
                           numbers(w.score_bias), c.normaliser_eps};
    case Normaliser::sparsemax:
      return RowNormaliser{Kind::sparsemax};
    case Normaliser::entmax15:
      return RowNormaliser{Kind::entmax15};
    case Normaliser::stick_breaking:
      return RowNormaliser{Kind::stick_breaking, c.own_key};
    case Normaliser::geometric:
      return RowNormaliser{Kind::geometric, c.own_key};
    default:
      return {};
  }
}

/// Multiplies queries [T, H, K], of which `past` tokens are behind, by what their heads and
/// positions ask for.
template <class S>
void sharpen_queries(const ScoresConfig& c, const ScoresWeights<S>& w, View<S, 3> q,
                     View<const Index, 1> past, const Call& call) {
  if (c.head_scale) elementwise(call, std::multiplies(), q, q, by_head(w.head_scale));
  if (c.temperature == Temperature::none) return;
  const auto factor = [&](Index position) { return c.temperature_at(position); };
  scale_by_position(q, past, factor, call);
}

/// What the kernels ask for the scores of `heads`, whose biases follow `distance`, that between
/// neighbours.
template <class S>
ComposedScore<S> make_score(const ScoresConfig& c, const ScoresWeights<S>& w,
                            const DistanceBiasConfig& bias, const DistanceBiasWeights<S>& biases,
                            const ContentBiasConfig& content, const HeadsConfig& heads,
                            Index distance) {
  using Score = ComposedScore<S>;
  double scale = c.score_scale > 0 ? c.score_scale : inverse_sqrt(content.terms() * heads.head_dim);
  typename Score::Maps maps;
  make_distance_biases(bias, biases, heads.n_heads, scale, distance, [&]<class B>(B numbers) {
    maps.push_back(Score::map(OwnedBiases<B>{std::move(numbers)}));
  });
  // A factor that products bring along is none of what is added to them.
  const bool alone = maps.empty() && content.kind == ContentBiasKind::none;
  if (alone) {
    scale /= c.score_divisor;
  } else if (c.score_divisor != 1) {
    maps.push_back(Score::map(Divided{c.score_divisor}));
  }
  if (c.soft_cap > 0 && alone) {
    const SoftCap cap(scale, c.soft_cap);
    scale = cap.scale;
    maps.push_back(Score::map(cap));
  } else if (c.soft_cap > 0) {
    maps.push_back(Score::map(Capped{c.soft_cap}));
  }
  auto rows = row_normaliser(c, w);
  if (c.normaliser != Normaliser::softmax && !rows) maps.push_back(Score::map(pair_weight(c)));
  std::vector<double> sinks;
  if (c.sink_logits) {
    for (Index h = 0; h < heads.n_heads; ++h) sinks.push_back(w.sinks(h));
  }
  return {scale, std::move(maps), std::move(sinks), std::move(rows)};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
