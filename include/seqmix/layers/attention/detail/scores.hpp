#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/layers/attention/detail/biases.hpp"
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

/// The scores of attention.
///
///   s_tj = score_scale τ_t q_t · k_j + bias(t, j);  with soft_cap c: c tanh(s_tj / c)
///   weights exp(s_tj) / (Σ_i exp(s_ti) + exp(sink_h)),  sinks only with sink_logits
///
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Gemma team 2024, arXiv:2408.00118 (cap);
/// OpenAI 2025, arXiv:2508.10925 (sinks).
struct ScoresConfig {
  double score_scale = 0;    // of q · k; 0: head_dim^-1/2
  double soft_cap = 0;       // bound on the size of a score; 0: none
  bool sink_logits = false;  // a logit of each head that softmax counts beside the keys
  Temperature temperature = Temperature::none;
  double temperature_rate = 0.1;
  Index temperature_length = 0;
  Index temperature_offset = 0;

  static void visit(auto& self, auto&& field) {
    field("score_scale", self.score_scale, is_positive.or_zero());
    field("soft_cap", self.soft_cap, is_positive.or_zero());
    field("sink_logits", self.sink_logits), field("temperature", self.temperature);
    const auto stepped =
        only_where(self.temperature == Temperature::stepped, "temperature is stepped");
    field("temperature_rate", self.temperature_rate, is_positive, stepped);
    field("temperature_length", self.temperature_length, zero_is_legal,
          only_where(self.temperature != Temperature::none, "temperature is not none"));
    field("temperature_offset", self.temperature_offset, zero_is_legal, stepped);
  }
  void check() const {
    require(temperature != Temperature::stepped || temperature_length > 0,
            "temperature stepped needs a positive temperature_length");
    require(temperature != Temperature::logarithmic || temperature_length > 1,
            "temperature logarithmic needs a temperature_length of at least 2");
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
  Parameter<Scalar, 1> sinks;  // [H]

  static void visit(auto& self, const ScoresConfig& c, Index n_heads, auto&& parameter) {
    if (c.sink_logits) parameter("sinks", self.sinks, {n_heads}, init::uniform(-1, 1));
  }
};

/// What the kernels ask for the scores of `heads`, whose biases follow `distance`, that between
/// neighbours.
template <class S>
ComposedScore<S> make_score(const ScoresConfig& c, const ScoresWeights<S>& w,
                            const DistanceBiasConfig& bias, const DistanceBiasWeights<S>& biases,
                            const HeadsConfig& heads, Index distance) {
  using Score = ComposedScore<S>;
  double scale = c.score_scale > 0 ? c.score_scale : inverse_sqrt(heads.head_dim);
  typename Score::Maps maps;
  make_distance_biases(bias, biases, heads.n_heads, scale, distance, [&]<class B>(B numbers) {
    maps.push_back(Score::map(OwnedBiases<B>{std::move(numbers)}));
  });
  if (c.soft_cap > 0 && maps.empty()) {
    const SoftCap cap(scale, c.soft_cap);
    scale = cap.scale;
    maps.push_back(Score::map(cap));
  } else if (c.soft_cap > 0) {
    maps.push_back(Score::map(Capped{c.soft_cap}));
  }
  std::vector<double> sinks;
  if (c.sink_logits) {
    for (Index h = 0; h < heads.n_heads; ++h) sinks.push_back(w.sinks(h));
  }
  return {scale, std::move(maps), std::move(sinks)};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
