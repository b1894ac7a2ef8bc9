#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "seqmix/core/error.hpp"
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

/// What the tokens of one call add to their scaled products: tiles of them before other maps make
/// scores of them, whole rows after that.
template <class S>
class PairTerm {
 public:
  /// What it adds to: tiles of products; the rows of a query, whose products are all there then; or
  /// those of all heads together, and it adds the biases, too.
  enum class Kind { of_tiles, of_rows, of_heads };

  explicit PairTerm(Kind kind = Kind::of_tiles) : kind_(kind) {}

  Kind kind() const { return kind_; }
  /// Adds to the numbers of pairs, whose keys lie in one tile; what becomes of those that are
  /// hidden matters to nobody.
  virtual void add(detail::HeadOfRow /*of*/, const detail::PairBlock<S>& /*block*/) const {}
  virtual void add_to_row(detail::HeadOfRow /*of*/, const detail::ScoreRow<S>& /*row*/) const {}
  virtual void mix(detail::HeadOfRow /*of*/, const detail::HeadRows<S>& /*rows*/,
                   const Call& /*worker*/) const {}

 protected:
  ~PairTerm() = default;

 private:
  Kind kind_;
};

/// A score whose kind is known when the program runs alone; what it points to outlives the call.
template <class S>
struct AnyScore {
  const detail::ScorePolicy<S>* policy;
  const PairTerm<S>* term = nullptr;
  Index first_head = 0;  // of the score, for the first head of the call
  bool has_sinks = true;

  AnyScore(const ComposedScore<S>& score) : policy(&score) {}
  /// The same for a call that has the heads from `head` on alone.
  AnyScore from_head(Index head) const {
    AnyScore result = *this;
    result.first_head += head;
    return result;
  }
  /// The same with a term of the call, or without one where it is null.
  AnyScore with(const PairTerm<S>* of_call) const {
    AnyScore result = *this;
    result.term = of_call;
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
      : ScorePolicy<S>(
            is_of(any, Term::of_heads) || (any.policy->is_plain() && !is_of(any, Term::of_tiles)),
            any.term == nullptr && any.policy->is_biased(),
            asks_for_rows(any) ? Weighting::by_row : any.policy->weighting()),
        any_(any) {
    require(!asks_for_rows(any) || any.policy->weighting() != Weighting::by_pair,
            "a term that adds to rows of scores needs scores, no weights of pairs");
  }

  double scale(HeadOfRow of) const override { return any_.policy->scale(shifted(of)); }
  double sink(HeadOfRow of) const override {
    return any_.has_sinks ? any_.policy->sink(shifted(of)) : ScorePolicy<S>::sink(of);
  }
  simd::Batch<S> score(HeadOfRow of, const PairBlock<S>& block) const override {
    if (is_of(any_, Term::of_tiles)) {
      any_.term->add(shifted(of), block);
      if (any_.policy->is_plain()) return highest(block);
    }
    return any_.policy->score(shifted(of), block);
  }
  void bias(HeadOfRow of, Index first, Index count, S* to) const override {
    any_.policy->bias(shifted(of), first, count, to);
  }
  bool mixes_heads() const override { return is_of(any_, Term::of_heads); }
  void mix(HeadOfRow of, const HeadRows<S>& rows, const Call& worker) const override {
    any_.term->mix(shifted(of), rows, worker);
  }
  void weigh(HeadOfRow of, const ScoreRow<S>& row) const override {
    if (asks_for_rows(any_)) {
      any_.term->add_to_row(shifted(of), row);
      if (any_.policy->weighting() == Weighting::softmax) {
        return softmax_row(row, static_cast<S>(sink(of)));
      }
    }
    any_.policy->weigh(shifted(of), row);
  }

 private:
  using Term = typename PairTerm<S>::Kind;

  static bool is_of(const AnyScore<S>& any, Term kind) {
    return any.term != nullptr && any.term->kind() == kind;
  }
  static bool asks_for_rows(const AnyScore<S>& any) {
    return any.term != nullptr && any.term->kind() != Term::of_tiles;
  }
  static simd::Batch<S> highest(const PairBlock<S>& block) {
    return highest_of<S>(block.count, [&](Index i) { return simd::load<S>(block.at(i)); });
  }
  HeadOfRow shifted(HeadOfRow of) const {
    of.head += any_.first_head;
    return of;
  }

  AnyScore<S> any_;
};

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
