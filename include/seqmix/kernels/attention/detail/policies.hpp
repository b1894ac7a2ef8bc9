#pragma once

#include <limits>
#include <type_traits>
#include <utility>

#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <class S>
inline constexpr S minus_infinity = -std::numeric_limits<S>::infinity();

/// The mask, or a cheaper one that is the same for these positions.
template <class Mask>
Mask narrowed(const Mask& mask, Span queries, Span keys) {
  if constexpr (requires { mask.narrowed(queries, keys); }) {
    return mask.narrowed(queries, keys);
  } else {
    return mask;
  }
}

/// A query head of a segment that continues a row, and how many positions there are then.
struct HeadOfRow {
  Index row, head, count;
};

/// Registers of pairs, `stride` numbers from each other, and what is known of all of them.
template <class S>
struct PairBlock {
  Span queries, keys;
  Pairs<S> first;  // of the first register
  S step;          // from the keys of a register to those of the next
  S* numbers;
  Index stride, count;

  S* at(Index i) const { return numbers + i * stride; }
  Pairs<S> pairs(Index i) const {
    return {first.origin, first.query, first.key + simd::broadcast(static_cast<S>(i) * step)};
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

/// The mask and the score of a call as the kernels see them, which are so compiled once for all
/// policies. Whoever computes products asks once a tile, not once a pair.
template <class S>
class Policies {
 public:
  /// `plain`: scores are the scaled products.
  explicit Policies(bool plain) : plain_(plain) {}

  bool is_plain() const { return plain_; }
  virtual double scale(HeadOfRow of) const = 0;
  /// Outside of this no query sees a key.
  virtual Span reach(HeadOfRow of, Span queries) const = 0;
  virtual Visibility visibility(HeadOfRow of, Span queries, Span keys) const = 0;
  /// Makes products scores, -infinity where `masked` and the mask hides a key. Returns the highest
  /// of each lane.
  virtual simd::Batch<S> score(HeadOfRow of, const PairBlock<S>& block, bool masked) const = 0;
  /// Writes 1 where a query sees a key, else 0.
  virtual void show(HeadOfRow of, const PairBlock<S>& block) const = 0;

 protected:
  ~Policies() = default;

 private:
  bool plain_;
};

template <class S, class Mask, class Score>
class PoliciesOf final : public Policies<S> {
  using Batch = simd::Batch<S>;

 public:
  PoliciesOf(Mask mask, Score score)
      : Policies<S>(std::is_same_v<Score, PlainScore>),
        mask_(std::move(mask)),
        score_(std::move(score)) {}

  double scale(HeadOfRow of) const override { return score_of(of).scale; }
  Span reach(HeadOfRow of, Span queries) const override {
    if constexpr (requires { mask_of(of).reach(queries); }) {
      return mask_of(of).reach(queries);
    } else {
      return {0, of.count};
    }
  }
  Visibility visibility(HeadOfRow of, Span queries, Span keys) const override {
    return mask_of(of).visibility(queries, keys);
  }
  Batch score(HeadOfRow of, const PairBlock<S>& block, bool masked) const override {
    const auto score = [&, of_head = score_of(of)](Index i) {
      return of_head(simd::load<S>(block.at(i)), block.pairs(i));
    };
    if (!masked) return each(block, score);
    const auto mask = narrowed(mask_of(of), block.queries, block.keys);
    return each(block, [&](Index i) {
      return simd::select<S>(mask.allows(block.pairs(i)), score(i), minus_infinity<S>);
    });
  }
  void show(HeadOfRow of, const PairBlock<S>& block) const override {
    const auto mask = narrowed(mask_of(of), block.queries, block.keys);
    const Batch zero(S(0)), one(S(1));
    each(block, [&](Index i) { return simd::select<S>(mask.allows(block.pairs(i)), one, zero); });
  }

 private:
  auto mask_of(HeadOfRow of) const {
    if constexpr (requires { mask_.of(of.row, of.head, of.count); }) {
      return mask_.of(of.row, of.head, of.count);
    } else {
      return mask_.of(of.row, of.head);
    }
  }
  auto score_of(HeadOfRow of) const { return score_.of(of.row, of.head); }

  static Batch each(const PairBlock<S>& block, auto&& value) {
    return highest_of<S>(block.count, [&](Index i) {
      const Batch result = value(i);
      simd::store<S>(block.at(i), result);
      return result;
    });
  }

  Mask mask_;
  Score score_;
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
