#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Positions that count what a query attends to: with gates g_j = σ(s_j) of the scores that it
/// sees, a key at j is at p_j = min(Σ_{i >= j} g_i, n - 1), and its score gets what the query makes
/// of that position, between those of the whole numbers around it. Golovneva et al. 2024,
/// arXiv:2405.18719, section 4 and the listing of its appendix.
template <class S>
class ContextualPositions final : public PairTerm<S> {
  static constexpr Index lanes = simd::lanes<S>;
  using Batch = simd::Batch<S>;

 public:
  /// `logits` [T, H, n]: of each whole position.
  explicit ContextualPositions(In<S, 3> logits)
      : PairTerm<S>(PairTerm<S>::Kind::of_rows), logits_(logits) {}

  void add_to_row(detail::HeadOfRow of, const detail::ScoreRow<S>& row) const override {
    const View<const S, 1> logits = logits_[of.origin + row.first + row.own][of.head];
    const Index last = logits.extent(0) - 1;
    const S most = static_cast<S>(last);
    S position = 0;
    Index left = row.size;
    alignas(alignment) std::array<S, static_cast<std::size_t>(lanes)> gates;
    for (; left > 0 && position < most; left -= lanes) {
      S* const scores = row.scores + left - lanes;
      simd::store<S>(gates.data(), simd::sigmoid(simd::load<S>(scores)));
      for (Index i = lanes - 1; i >= 0; --i) {
        position = std::min(position + gates[static_cast<std::size_t>(i)], most);
        // One that is NaN is at no position, and its score stays NaN.
        const Index below = position >= 0 ? static_cast<Index>(position) : 0;
        const S share = position - static_cast<S>(below);
        scores[i] += logits[below] * (1 - share) + logits[std::min(below + 1, last)] * share;
      }
    }
    simd::map<S>(
        left, row.scores, [farthest = logits[last]](const Batch& s) { return s + farthest; },
        row.scores);
  }

 private:
  View<const S, 3> logits_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
