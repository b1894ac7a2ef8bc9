#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "seqmix/kernels/attention/detail/operands.hpp"
#include "seqmix/kernels/pointwise/softmax.hpp"
#include "seqmix/kernels/product/detail/row_products.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"
#include "seqmix/simd/reduce.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// The softmax of one query over a part of its keys: p = exp(score - maximum), o = Σ p v and
/// sum = Σ p. Parts compose.
template <class S>
struct PartialSoftmax {
  View<S, 1> o;  // [V]
  S& maximum;
  S& sum;

  void clear() const { fill(o, S(0)), maximum = minus_infinity<S>, sum = S(0); }

  /// Refers o and sum to a maximum that is at least as large.
  void raise(S larger) const {
    if (larger == maximum) return;
    const simd::Batch<S> factor = factor_to(larger);
    scale(factor);
    sum *= simd::reduce_max(factor);
    maximum = larger;
  }
  void merge(const PartialSoftmax& other) const {
    raise(std::max(maximum, other.maximum));
    const simd::Batch<S> factor = other.factor_to(maximum);
    simd::map<S>(
        o.extent(0), o.data(),
        [&](const auto& ours, const auto& theirs) {
          return simd::flush_subnormal<S>(simd::fma<S>(theirs, factor, ours));
        },
        o.data(), other.o.data());
    sum += other.sum * simd::reduce_max(factor);
  }
  /// Takes in a key of this score whose value is zero.
  void take_in(S score) const {
    raise(std::max(maximum, score));
    sum += simd::reduce_max(simd::exp(simd::Batch<S>(score) - simd::Batch<S>(maximum)));
  }
  /// Makes o the weighted mean of the values and returns log Σ exp(score).
  S finish() const {
    const simd::Batch<S> total(sum);
    scale(inverse_or_zero(total));
    return maximum + simd::reduce_max(simd::log(total));
  }

 private:
  simd::Batch<S> factor_to(S larger) const {
    return simd::exp(simd::Batch<S>(maximum) - softmax_offset(simd::Batch<S>(larger)));
  }
  /// What is far behind the maximum fades like any state that forgets.
  void scale(const simd::Batch<S>& factor) const {
    simd::map<S>(
        o.extent(0), o.data(), [&](const auto& v) { return simd::flush_subnormal<S>(v * factor); },
        o.data());
  }
};

/// The pairs of a query at `position` and the keys of a tile, whole registers of them.
template <class S>
PairBlock<S> pairs_of_query(Index position, Span tile, S* numbers) {
  constexpr Index lanes = simd::lanes<S>;
  return {.queries = {position, position + 1},
          .keys = tile,
          .first = {tile.begin, simd::broadcast(static_cast<S>(position - tile.begin)),
                    simd::counting_from<S>(0), position - tile.begin, -1},
          .step = lanes,
          .numbers = numbers,
          .stride = lanes,
          .count = ceil_div(tile.size(), lanes)};
}

/// Calls `add(queries, keys, last)` for what `queries` see of a tile of `keys`, those that see all
/// of it together, by ascending queries: `look(r)` is the visibility of the tile to query r, whose
/// row of `visible` is then 1 or 0 where that is partial.
template <class S>
void for_each_seen(Index queries, Index keys, const View<S, 2>& visible, auto&& look, auto&& add) {
  Span together;
  for (Index r = 0; r < queries; ++r) {
    const Visibility visibility = look(r);
    if (visibility == Visibility::all) {
      together.end = r + 1;
      continue;
    }
    add(together, Span{0, keys}, false);
    together = {r + 1, r + 1};
    if (visibility == Visibility::none) continue;
    // A hidden value is not even multiplied by zero: an infinite or NaN one stays unseen.
    for (Index begin = 0, end = 0; begin < keys; begin = end + 1) {
      for (end = begin; end < keys && visible(r, end) != 0;) ++end;
      add(Span{r, r + 1}, Span{begin, end}, false);
    }
  }
  add(together, Span{0, keys}, true);
}

/// One token of the query heads of a group on its way through the tiles of their keys: the
/// recurrent form. Lanes are keys, then value channels.
template <class S>
struct QueryToken {
  using Batch = simd::Batch<S>;
  using Tile = CacheView<const S, 2>;
  static constexpr Index lanes = simd::lanes<S>;

  Policies<S> policies;
  HeadOfRow first_head;
  Index position;
  View<S, 2> q;        // [R, K], scaled
  View<S, 2> p;        // [R, attention_tile]
  View<S, 2> visible;  // [R, attention_tile], 1 or 0
  View<S, 2> scales;   // [2, attention_tile], of keys and values in 8 bits
  View<S, 2> o;        // [R, V], sums of p v
  View<S, 1> maximum;  // [R], of the scores so far
  View<S, 1> sum;      // [R], of p

  Index heads() const { return q.extent(0); }
  HeadOfRow head(Index r) const {
    HeadOfRow of = first_head;
    of.head += r;
    return of;
  }

  void begin(const View<const S, 2>& from) const {
    for (Index r = 0; r < heads(); ++r) {
      const Batch scale(static_cast<S>(policies.scores.scale(head(r))));
      simd::map<S>(
          q.extent(1), &q(r, 0), [&](const Batch& v) { return v * scale; }, &from(r, 0));
      softmax(r).clear();
    }
  }

  /// Takes in the keys and values ([size, K or V]) of the positions in `tile`. What is needed next
  /// is fetched meanwhile: the values, then `next`.
  void visit(Span tile, const Tile& keys, const Tile& values, const Ahead& next) const {
    keys.visit([&](const auto& rows) { dot_rows<S>(q, rows, Ahead(values), p); });
    load_scales(keys, scales[0]), load_scales(values, scales[1]);
    const auto look = [&](Index r) {
      const Visibility visibility = visibility_of(r, tile);
      if (visibility != Visibility::none) {
        weigh(r, tile, visibility == Visibility::partial, keys, values);
      }
      return visibility;
    };
    const auto add = [&](Span of_heads, Span of_keys, bool last) {
      if (of_heads.size() == 0 || of_keys.size() == 0) return;
      values.slice(axis::row, of_keys.begin, of_keys.size()).visit([&](const auto& rows) {
        add_rows<S>(p.slice(axis::row, of_heads.begin, of_heads.size())
                        .slice(axis::channel, of_keys.begin, of_keys.size()),
                    rows, last ? next : Ahead{},
                    o.slice(axis::row, of_heads.begin, of_heads.size()));
      });
    };
    for_each_seen<S>(heads(), tile.size(), visible, look, add);
  }

  /// Whether some head may see something of a tile.
  bool sees(Span tile) const {
    for (Index r = 0; r < heads(); ++r) {
      if (visibility_of(r, tile) != Visibility::none) return true;
    }
    return false;
  }

  PartialSoftmax<S> softmax(Index r) const { return {o[r], maximum[r], sum[r]}; }

 private:
  Visibility visibility_of(Index r, Span tile) const {
    return policies.mask.visibility(head(r), {position, position + 1}, tile);
  }
  PairBlock<S> pairs(Span tile, S* numbers) const {
    return pairs_of_query(position, tile, numbers);
  }
  static void load_scales(const Tile& entries, const View<S, 1>& to) {
    if (entries.storage() != Storage::int8) return;
    const auto& from = entries.scales();
    for (Index i = 0; i < entries.extent(0); ++i) {
      to[i] = static_cast<S>(static_cast<float>(from(i, 0)));
    }
  }

  static void scale_products(const Tile& entries, const View<S, 1>& by, S* numbers) {
    if (entries.storage() != Storage::int8) return;
    simd::map<S>(
        entries.extent(0), numbers, [](const Batch& v, const Batch& scale) { return v * scale; },
        numbers, by.data());
  }

  /// Turns the products of head r with the keys of a tile into p. Of a tile that it sees in part,
  /// `visible` says which keys count.
  void weigh(Index r, Span tile, bool partial, const Tile& keys, const Tile& values) const {
    S* const weights = &p(r, 0);
    scale_products(keys, scales[0], weights);
    if (partial) policies.mask.show(head(r), pairs(tile, &visible(r, 0)));
    const bool plain = policies.scores.is_plain();
    if (partial || !plain) policies.score(head(r), pairs(tile, weights), plain, partial);
    if (policies.scores.weighting() != Weighting::softmax) {
      simd::map<S>(
          tile.size(), weights, [](const Batch& score) { return weight_of<S>(score); }, weights);
      scale_products(values, scales[1], weights);
      maximum[r] = S(0);
      return;
    }
    Batch tile_maximum(minus_infinity<S>);
    for (Index i = 0; i < tile.size(); i += lanes) {
      const auto there = simd::counting_from<S>(i) < simd::broadcast(static_cast<S>(tile.size()));
      const Batch value = simd::select<S>(there, simd::load<S>(weights + i), minus_infinity<S>);
      simd::store<S>(weights + i, value);
      tile_maximum = simd::max<S>(tile_maximum, value);
    }
    const PartialSoftmax<S> whole = softmax(r);
    whole.raise(std::max(whole.maximum, simd::reduce_max(tile_maximum)));
    const Batch offset = softmax_offset(Batch(whole.maximum));
    Batch total(S(0));
    for (Index i = 0; i < tile.size(); i += lanes) {
      const Batch weight = simd::exp(simd::load<S>(weights + i) - offset);
      simd::store<S>(weights + i, weight);
      total += weight;
    }
    scale_products(values, scales[1], weights);
    whole.sum += simd::reduce_add(total);
  }
};

/// Keys that one token of the query heads of a group goes through in one task.
struct KeySpan {
  SegmentQueries of;
  Index token, group;
  Span keys;
  Index end;         // of all keys that the heads reach
  bool first, last;  // of the spans of these heads
};

/// Calls `body(span)` for the spans of all tokens of the recurrent segments, in order; heads that
/// reach no key have an empty one. Spans begin at multiples of their length.
template <class S>
void for_each_key_span(const AttentionOperands<S>& operands, const Call& call, auto&& body) {
  const Index R = operands.heads_per_group();
  for (const Segment& segment : call.segments()) {
    if (operands.in_parallel(segment)) continue;
    const SegmentQueries of = operands.queries_of(segment);
    for (Index t = 0; t < of.count; ++t) {
      for (Index group = 0; group < operands.groups(); ++group) {
        const Span reach = operands.reach(of, {group * R, (group + 1) * R}, {t, t + 1});
        const Index first = reach.begin / attention_span * attention_span;
        for (Index begin = first; begin == first || begin < reach.end; begin += attention_span) {
          const Index end = std::min(reach.end, begin + attention_span);
          body(KeySpan{of, t, group, {begin, end}, reach.end, begin == first, end == reach.end});
        }
      }
    }
  }
}

/// Spans of keys that are gone through in parallel, then merged in their order.
template <class S>
class KeySpanWave {
 public:
  KeySpanWave(const AttentionOperands<S>& operands, const Call& call)
      : operands_(operands),
        call_(call),
        heads_(operands.heads_per_group()),
        scratch_(call.scratch<S>()),
        maximum_(scratch_(heads_)),
        sum_(scratch_(heads_)),
        part_o_(scratch_(attention_wave, heads_, operands.head_v())),
        part_maximum_(scratch_(attention_wave, heads_)),
        part_sum_(scratch_(attention_wave, heads_)) {}

  void add(const KeySpan& span) {
    spans_[static_cast<std::size_t>(count_++)] = span, keys_ += span.keys.size();
    if (count_ == attention_wave) finish();
  }
  /// Goes through what was added and is not merged yet.
  void finish() {
    if (count_ == 0) return;
    const Index width = operands_.head_k() + operands_.head_v();
    const Index numbers = std::max<Index>(keys_ * width, 1);
    const Index spans_per_task = ceil_div(attention_task_numbers * count_, numbers);
    call_.parallel_for(ceil_div(count_, spans_per_task), [&](Index task, const Call& worker) {
      const Index first = task * spans_per_task;
      for (Index slot = first; slot < std::min(count_, first + spans_per_task); ++slot) {
        attend(slot, worker);
      }
    });
    for (Index slot = 0; slot < count_; ++slot) merge(slot);
    count_ = keys_ = 0;
  }

 private:
  const KeySpan& span_of(Index slot) const { return spans_[static_cast<std::size_t>(slot)]; }
  auto heads_of(const auto& view, const KeySpan& span) const {
    return view[span.of.first + span.token].slice(axis::row, span.group * heads_, heads_);
  }

  void attend(Index slot, const Call& worker) const {
    const KeySpan& span = span_of(slot);
    const Index R = heads_, K = operands_.head_k(), V = operands_.head_v();
    auto scratch = worker.scratch<S>();
    const QueryToken<S> token{operands_.policies,
                              span.of.of_head(span.group * R),
                              span.of.past + span.token,
                              scratch(R, K),
                              scratch(R, attention_tile),
                              scratch(R, attention_tile),
                              scratch(2, attention_tile),
                              part_o_[slot],
                              scratch(R),
                              scratch(R)};
    token.begin(heads_of(operands_.q, span));
    const auto keys = operands_.keys_of(span.of, span.group);
    const auto values = operands_.values_of(span.of, span.group);
    const auto collected_keys = scratch(attention_tile, K);
    const auto collected_values = scratch(attention_tile, V);
    for (Index key = span.keys.begin; key < span.keys.end; key += attention_tile) {
      const Span tile{key, std::min(span.keys.end, key + attention_tile)};
      if (!token.sees(tile)) continue;
      token.visit(tile, keys.stored(tile, collected_keys), values.stored(tile, collected_values),
                  Ahead(keys.cached({tile.end, std::min(span.end, tile.end + attention_tile)})));
    }
    // Only now, since parts of other workers lie on the same cache lines.
    copy(token.maximum, part_maximum_[slot]), copy(token.sum, part_sum_[slot]);
  }
  void merge(Index slot) const {
    const KeySpan& span = span_of(slot);
    const auto o = heads_of(operands_.o, span);
    for (Index r = 0; r < heads_; ++r) {
      const PartialSoftmax<S> whole{o[r], maximum_[r], sum_[r]};
      if (span.first) whole.clear();
      whole.merge({part_o_[slot][r], part_maximum_(slot, r), part_sum_(slot, r)});
      if (!span.last) continue;
      const auto sink =
          static_cast<S>(operands_.policies.scores.sink(span.of.of_head(span.group * heads_ + r)));
      if (sink > minus_infinity<S>) whole.take_in(sink);
      if (operands_.policies.scores.weighting() != Weighting::softmax) whole.sum = S(1);
      const S log_sum_exp = whole.finish();
      if (operands_.log_sum_exp.data() != nullptr) {
        heads_of(operands_.log_sum_exp, span)[r] = log_sum_exp;
      }
    }
  }

  const AttentionOperands<S>& operands_;
  const Call& call_;
  Index heads_;  // of a group
  Context::Scratch<S> scratch_;
  View<S, 1> maximum_, sum_;            // [heads], of those whose spans are merged
  View<S, 3> part_o_;                   // [attention_wave, heads, V]
  View<S, 2> part_maximum_, part_sum_;  // [attention_wave, heads]
  std::array<KeySpan, attention_wave> spans_;
  Index count_ = 0, keys_ = 0;
};

/// The recurrent form of the segments that ask for it: memory-bound, so that each span of keys is
/// read once for all heads of its group. The spans of all segments run in parallel.
template <class S>
void attend_by_recurrence(const AttentionOperands<S>& operands, const Call& call) {
  const auto recurs = [&](const Segment& segment) { return !operands.in_parallel(segment); };
  if (!operands.has_caches() || std::ranges::none_of(call.segments(), recurs)) return;
  KeySpanWave<S> wave(operands, call);
  for_each_key_span(operands, call, [&](const KeySpan& span) { wave.add(span); });
  wave.finish();
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
