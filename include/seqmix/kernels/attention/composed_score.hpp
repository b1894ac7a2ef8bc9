#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "seqmix/kernels/attention/detail/policies.hpp"
#include "seqmix/kernels/attention/normalisers.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A score that is made of others while the program runs: scale q · k goes through each of them in
/// turn, so that what is combined costs the sum of its parts. With logits of sinks softmax counts
/// one more key a head, whose value is zero: o = Σ exp(s_j) v_j / (Σ exp(s_j) + exp(sink)). OpenAI
/// 2025, arXiv:2508.10925; Miller 2023 (logits of 0). The kernels take an `AnyScore` of it.
template <class S>
class ComposedScore final : public detail::ScorePolicy<S> {
 public:
  /// Maps of scaled products, whose own scales are not read.
  using Maps = std::vector<std::shared_ptr<const detail::ScorePolicy<S>>>;

  /// `sinks`: their logits, [H] or none. In place of softmax, `rows` makes weights of scores, or
  /// the last map gives the weights themselves.
  ComposedScore(double scale, Maps maps, std::vector<double> sinks = {},
                std::optional<RowNormaliser> rows = {})
      : detail::ScorePolicy<S>(maps.empty(), maps.size() == 1 && maps[0]->is_biased(),
                               rows           ? detail::Weighting::by_row
                               : maps.empty() ? detail::Weighting::softmax
                                              : maps.back()->weighting()),
        scale_(scale),
        maps_(std::move(maps)),
        sinks_(std::move(sinks)),
        rows_(std::move(rows)) {}

  /// `Score` as one of the maps.
  template <class Score>
  static auto map(Score score) {
    return std::make_shared<const detail::ScoreOf<S, Score>>(std::move(score));
  }

  double scale(detail::HeadOfRow) const override { return scale_; }
  double sink(detail::HeadOfRow of) const override {
    if (sinks_.empty()) return detail::ScorePolicy<S>::sink(of);
    return sinks_[static_cast<std::size_t>(of.head)];
  }
  simd::Batch<S> score(detail::HeadOfRow of, const detail::PairBlock<S>& block) const override {
    simd::Batch<S> highest(detail::minus_infinity<S>);
    for (const auto& map : maps_) highest = map->score(of, block);
    return highest;
  }
  void bias(detail::HeadOfRow of, Index first, Index count, S* to) const override {
    maps_[0]->bias(of, first, count, to);
  }
  void weigh(detail::HeadOfRow of, const detail::ScoreRow<S>& row) const override {
    rows_->weigh(of.head, row);
  }

 private:
  double scale_;
  Maps maps_;
  std::vector<double> sinks_;
  std::optional<RowNormaliser> rows_;
};

/// A score whose kind is known when the program runs alone; what it points to outlives the call.
template <class S>
struct AnyScore {
  const detail::ScorePolicy<S>* policy;
  Index first_head = 0;  // of the score, for the first head of the call
  bool has_sinks = true;

  AnyScore(const ComposedScore<S>& score) : policy(&score) {}
  /// The same for a call that has the heads from `head` on alone.
  AnyScore from_head(Index head) const {
    AnyScore result = *this;
    result.first_head += head;
    return result;
  }
  /// The same for a part of the keys other than the first one: sinks count once.
  AnyScore without_sinks() const {
    AnyScore result = *this;
    result.has_sinks = false;
    return result;
  }
};

namespace detail {

template <class S>
class ScoreOf<S, AnyScore<S>> final : public ScorePolicy<S> {
 public:
  explicit ScoreOf(AnyScore<S> any)
      : ScorePolicy<S>(any.policy->is_plain(), any.policy->is_biased(), any.policy->weighting()),
        any_(any) {}

  double scale(HeadOfRow of) const override { return any_.policy->scale(shifted(of)); }
  double sink(HeadOfRow of) const override {
    return any_.has_sinks ? any_.policy->sink(shifted(of)) : ScorePolicy<S>::sink(of);
  }
  simd::Batch<S> score(HeadOfRow of, const PairBlock<S>& block) const override {
    return any_.policy->score(shifted(of), block);
  }
  void bias(HeadOfRow of, Index first, Index count, S* to) const override {
    any_.policy->bias(shifted(of), first, count, to);
  }
  void weigh(HeadOfRow of, const ScoreRow<S>& row) const override {
    any_.policy->weigh(shifted(of), row);
  }

 private:
  HeadOfRow shifted(HeadOfRow of) const {
    of.head += any_.first_head;
    return of;
  }

  AnyScore<S> any_;
};

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
