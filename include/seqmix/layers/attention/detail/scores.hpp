#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/layers/mixer.hpp"

// From q · k to the weights of attention.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The scores of attention.
///
///   s_tj = score_scale q_t · k_j + bias;  with soft_cap c: c tanh(s_tj / c)
///   weights exp(s_tj) / (Σ_i exp(s_ti) + exp(sink_h)),  without the sink where sink_logits is
///   false
///
/// Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Gemma team 2024, arXiv:2408.00118 (cap);
/// OpenAI 2025, arXiv:2508.10925 (sinks).
struct ScoresConfig {
  double score_scale = 0;    // of q · k; 0: head_dim^-1/2
  double soft_cap = 0;       // bound on the size of a score; 0: none
  bool sink_logits = false;  // a logit of each head that softmax counts beside the keys

  static void visit(auto& self, auto&& field) {
    field("score_scale", self.score_scale, is_positive.or_zero());
    field("soft_cap", self.soft_cap, is_positive.or_zero());
    field("sink_logits", self.sink_logits);
  }
};

template <class Scalar>
struct ScoresWeights {
  Parameter<Scalar, 1> sinks;  // [H]

  static void visit(auto& self, const ScoresConfig& c, Index n_heads, auto&& parameter) {
    if (c.sink_logits) parameter("sinks", self.sinks, {n_heads}, init::uniform(-1, 1));
  }
};

/// ALiBi with slopes of its own.
struct OwnedAlibi {
  std::vector<double> slopes;  // [H]

  Alibi of(Index row, Index head) const { return Alibi{1, slopes}.of(row, head); }
};

/// What the kernels ask for scores of heads of `head_dim` numbers. `slopes` [H] of ALiBi, or none.
template <class S>
ComposedScore<S> make_score(const ScoresConfig& c, const ScoresWeights<S>& w, Index head_dim,
                            std::vector<double> slopes) {
  using Score = ComposedScore<S>;
  // A cap maps what is divided by it; so is what is added before.
  const double unit = c.soft_cap > 0 ? c.soft_cap : 1;
  const double scale = c.score_scale > 0 ? c.score_scale : inverse_sqrt(head_dim);
  typename Score::Maps maps;
  if (!slopes.empty()) {
    for (double& slope : slopes) slope /= unit;
    maps.push_back(Score::map(OwnedAlibi{std::move(slopes)}));
  }
  if (c.soft_cap > 0) maps.push_back(Score::map(SoftCap(scale, c.soft_cap)));
  std::vector<double> sinks;
  if (c.sink_logits) {
    for (Index h = 0; h < w.sinks.extent(0); ++h) sinks.push_back(w.sinks(h));
  }
  return {scale / unit, std::move(maps), std::move(sinks)};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
