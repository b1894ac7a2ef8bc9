#pragma once

#include <limits>
#include <type_traits>
#include <utility>

#include "seqmix/core/call.hpp"
#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <class S>
inline constexpr S minus_infinity = -std::numeric_limits<S>::infinity();

/// The mask or score, or a cheaper one that is the same for these positions.
template <class Policy>
auto narrowed(const Policy& policy, Span queries, Span keys) {
  if constexpr (requires { policy.narrowed(queries, keys); }) {
    return policy.narrowed(queries, keys);
  } else {
    return policy;
  }
}

/// A query head of a segment that continues a row, how many positions there are then, and the token
/// of the call at position p less p.
struct HeadOfRow {
  Index row, head, count, origin;
};

/// Registers of pairs, `stride` numbers from each other, and what is known of all of them.
template <class S>
struct PairBlock {
  Span queries, keys;
  Pairs<S> first;  // of the first register
  Index step;      // from the keys of a register to those of the next
  S* numbers;
  Index stride, count;

  S* at(Index i) const { return numbers + i * stride; }
  Pairs<S> pairs(Index i) const {
    return {first.origin, first.query, first.key + simd::broadcast(static_cast<S>(i * step)),
            first.distance - i * step, first.step};
  }
};

/// The largest of value(i) for i < count.
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> highest_of(Index count, auto&& value) {
  simd::Batch<S> result(minus_infinity<S>);
  Index i = 0;
  for (; i + 4 <= count; i += 4) {  // a tree, since a chain would wait for itself
    const simd::Batch<S> a = simd::max<S>(value(i), value(i + 1));
    const simd::Batch<S> b = simd::max<S>(value(i + 2), value(i + 3));
    result = simd::max<S>(result, simd::max<S>(a, b));
  }
  for (; i < count; ++i) result = simd::max<S>(result, value(i));
  return result;
}

/// A mask as the kernels see it, which are so compiled once for all masks. Whoever computes
/// products asks once a tile, not once a pair.
template <class S>
class MaskPolicy {
 public:
  /// Outside of this no query sees a key.
  virtual Span reach(HeadOfRow of, Span queries) const = 0;
  virtual Visibility visibility(HeadOfRow of, Span queries, Span keys) const = 0;
  /// Makes scores that the mask hides -infinity. Returns the highest of each lane.
  virtual simd::Batch<S> hide(HeadOfRow of, const PairBlock<S>& block) const = 0;
  /// Writes 1 where a query sees a key, else 0.
  virtual void show(HeadOfRow of, const PairBlock<S>& block) const = 0;

 protected:
  ~MaskPolicy() = default;
};

/// What makes weights of scores: softmax; nothing, as each is its pair's weight already; something
/// that asks for all scores of a query, `ScorePolicy::weigh`.
enum class Weighting { softmax, by_pair, by_row };

/// The scores of a query, in whole registers: -infinity of keys that it does not see. `own`: that
/// of the key at its position, which may lie outside. `spare`: as many numbers, of any value.
/// `first`: the position of the first key.
template <class S>
struct ScoreRow {
  S* scores;
  Index size, own;
  S* spare;
  Index first = 0;
};

/// The scores of all heads of a query, as `ScoreRow` has those of one. `query`: its position.
template <class S>
struct HeadRows {
  View<S, 3> scores;  // [G, R, size], head h at [h / R, h mod R]
  Index size, first, query;

  S* of(Index head) const {
    const Index R = scores.extent(1);
    return &scores(head / R, head % R, 0);
  }
};

/// A score, in the same way. Scores and masks are apart, so that each costs what it costs and no
/// pair of them is compiled.
template <class S>
class ScorePolicy {
 public:
  /// `plain`: scores are the scaled products. `biased`: the same plus biases by distance.
  explicit ScorePolicy(bool plain, bool biased = false, Weighting weighting = Weighting::softmax)
      : plain_(plain), biased_(biased), weighting_(weighting) {}

  bool is_plain() const { return plain_; }
  bool is_biased() const { return biased_; }
  Weighting weighting() const { return weighting_; }
  virtual double scale(HeadOfRow of) const = 0;
  /// A score that softmax counts beside those of the keys, with a value of zero; -infinity: none.
  virtual double sink(HeadOfRow /*of*/) const { return -std::numeric_limits<double>::infinity(); }
  /// Makes scaled products scores. Returns the highest of each lane.
  virtual simd::Batch<S> score(HeadOfRow of, const PairBlock<S>& block) const = 0;
  /// Where scores are biased: writes the biases of the distances from `first` on, `count` of them
  /// and what fills their last register.
  virtual void bias(HeadOfRow /*of*/, Index /*first*/, Index /*count*/, S* /*to*/) const {}
  /// Whether the scores of a head depend on those of the others; asks for all scores of a query.
  virtual bool mixes_heads() const { return false; }
  /// Makes what they are then of all scores of a query; `of` is its first head.
  virtual void mix(HeadOfRow /*of*/, const HeadRows<S>& /*rows*/, const Call& /*worker*/) const {}
  /// Makes scores weights, 0 of keys that are not seen.
  virtual void weigh(HeadOfRow /*of*/, const ScoreRow<S>& /*row*/) const {}

 protected:
  ~ScorePolicy() = default;

 private:
  bool plain_, biased_;
  Weighting weighting_;
};

/// The weights of scores that are weights already: 0 of hidden pairs, whose scores are -infinity.
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> weight_of(const simd::Batch<S>& score) {
  return simd::select<S>(score == simd::Batch<S>(minus_infinity<S>), simd::Batch<S>(S(0)), score);
}

/// The mask and the score of a call.
template <class S>
struct Policies {
  const MaskPolicy<S>& mask;
  const ScorePolicy<S>& scores;

  /// Makes products scores unless they are (`scored`), -infinity where `masked` and the mask hides
  /// a key; at least one of both is to do. Returns the highest of each lane.
  simd::Batch<S> score(HeadOfRow of, const PairBlock<S>& block, bool scored, bool masked) const {
    if (!masked) return scores.score(of, block);
    if (!scored) scores.score(of, block);
    return mask.hide(of, block);
  }
};

/// Makes each register value(i). Returns the highest of each lane.
template <class S>
simd::Batch<S> rewrite(const PairBlock<S>& block, auto&& value) {
  return highest_of<S>(block.count, [&](Index i) {
    const simd::Batch<S> result = value(i);
    simd::store<S>(block.at(i), result);
    return result;
  });
}

template <class S, class Mask>
class MaskOf final : public MaskPolicy<S> {
  using Batch = simd::Batch<S>;

 public:
  explicit MaskOf(Mask mask) : mask_(std::move(mask)) {}

  Span reach(HeadOfRow of, Span queries) const override {
    if constexpr (requires { of_head(of).reach(queries); }) {
      return of_head(of).reach(queries);
    } else {
      return {0, of.count};
    }
  }
  Visibility visibility(HeadOfRow of, Span queries, Span keys) const override {
    return of_head(of).visibility(queries, keys);
  }
  Batch hide(HeadOfRow of, const PairBlock<S>& block) const override {
    const auto mask = narrowed(of_head(of), block.queries, block.keys);
    return rewrite(block, [&](Index i) {
      return simd::select<S>(mask.allows(block.pairs(i)), simd::load<S>(block.at(i)),
                             minus_infinity<S>);
    });
  }
  void show(HeadOfRow of, const PairBlock<S>& block) const override {
    const auto mask = narrowed(of_head(of), block.queries, block.keys);
    const Batch zero(S(0)), one(S(1));
    rewrite(block,
            [&](Index i) { return simd::select<S>(mask.allows(block.pairs(i)), one, zero); });
  }

 private:
  auto of_head(HeadOfRow of) const {
    if constexpr (requires { mask_.of(of.row, of.head, of.count, of.origin); }) {
      return mask_.of(of.row, of.head, of.count, of.origin);
    } else if constexpr (requires { mask_.of(of.row, of.head, of.count); }) {
      return mask_.of(of.row, of.head, of.count);
    } else {
      return mask_.of(of.row, of.head);
    }
  }

  Mask mask_;
};

template <class S, class Score>
class ScoreOf final : public ScorePolicy<S> {
 public:
  explicit ScoreOf(Score score)
      : ScorePolicy<S>(is_plain_score<Score>, biased, weighting), score_(std::move(score)) {}

  double scale(HeadOfRow of) const override { return score_.of(of.row, of.head).scale; }
  simd::Batch<S> score(HeadOfRow of, const PairBlock<S>& block) const override {
    const auto of_head = narrowed(score_.of(of.row, of.head), block.queries, block.keys);
    return rewrite(block,
                   [&](Index i) { return of_head(simd::load<S>(block.at(i)), block.pairs(i)); });
  }
  void bias(HeadOfRow of, Index first, Index count, S* to) const override {
    if constexpr (biased) {
      const auto of_head = score_.of(of.row, of.head);
      for (Index i = 0; i < count; i += simd::lanes<S>) {
        simd::store<S>(to + i, of_head.template bias<S>(first + i));
      }
    }
  }

 private:
  static constexpr bool biased = requires(const Score& score) {
    score.of(Index{}, Index{}).template bias<S>(Index{});
  };
  static constexpr Weighting weighting =
      is_pair_weight<Score> ? Weighting::by_pair : Weighting::softmax;

  Score score_;
};

/// A mask and a score of a caller's own.
template <class S, class Mask, class Score>
struct PoliciesOf {
  MaskOf<S, Mask> mask;
  ScoreOf<S, Score> score;

  PoliciesOf(Mask of_pairs, Score of_products)
      : mask(std::move(of_pairs)), score(std::move(of_products)) {}
  operator Policies<S>() const { return {mask, score}; }
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
