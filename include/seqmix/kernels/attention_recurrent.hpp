#pragma once

#include <algorithm>
#include <utility>

#include "seqmix/kernels/attention_call.hpp"
#include "seqmix/kernels/matmul.hpp"
#include "seqmix/kernels/softmax.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

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
    simd::map<S>(
        o.extent(0), o.data(), [&](const auto& v) { return v * factor; }, o.data());
    sum *= simd::reduce_max(factor);
    maximum = larger;
  }
  void merge(const PartialSoftmax& other) const {
    raise(std::max(maximum, other.maximum));
    const simd::Batch<S> factor = other.factor_to(maximum);
    simd::map<S>(
        o.extent(0), o.data(),
        [&](const auto& ours, const auto& theirs) { return simd::fma<S>(theirs, factor, ours); },
        o.data(), other.o.data());
    sum += other.sum * simd::reduce_max(factor);
  }
  /// Makes o the weighted mean of the values and returns log Σ exp(score).
  S finish() const {
    const simd::Batch<S> total(sum), inverse = inverse_or_zero(total);
    simd::map<S>(
        o.extent(0), o.data(), [&](const auto& v) { return v * inverse; }, o.data());
    return maximum + simd::reduce_max(simd::log(total));
  }

 private:
  simd::Batch<S> factor_to(S larger) const {
    return simd::exp(simd::Batch<S>(maximum) - softmax_offset(simd::Batch<S>(larger)));
  }
};

/// products[row] = q · rows[row]: lanes add up on their own, then in one fixed tree.
template <class S>
void dot_rows(const S* q, const View<const S, 2>& rows, S* products) {
  const auto dot = [&]<std::size_t... i>(Index row, std::index_sequence<i...>) {
    const S* const first = rows.data() + row * rows.stride(0);
    simd::Batch<S> total[] = {(static_cast<void>(i), simd::Batch<S>(S(0)))...};
    simd::for_each_block<S>(rows.extent(1), [&](Index k, auto lane_count) {
      const simd::Batch<S> factor = simd::load<S>(q + k, lane_count);
      ((total[i] = simd::fma<S>(
            factor, simd::load<S>(first + static_cast<Index>(i) * rows.stride(0) + k, lane_count),
            total[i])),
       ...);
    });
    ((products[row + static_cast<Index>(i)] = simd::reduce_add(total[i])), ...);
  };
  Index row = 0;
  for (; row + 4 <= rows.extent(0); row += 4) dot(row, std::make_index_sequence<4>{});
  for (; row < rows.extent(0); ++row) dot(row, std::make_index_sequence<1>{});
}

/// One token of the query heads of a group on its way through the tiles of their keys: the
/// recurrent form. Lanes are keys, then value channels.
template <class S, class Mask, class Score>
struct QueryToken {
  using Batch = simd::Batch<S>;

  const Mask& mask;
  const Score& score;
  Index row, first_head;  // the policies' view of it
  Index position;
  View<S, 2> q;        // [R, K], scaled
  View<S, 2> p;        // [R, attention_tile]
  View<S, 2> visible;  // [R, attention_tile], 1 or 0
  View<S, 2> o;        // [R, V], sums of p v
  View<S, 1> maximum;  // [R], of the scores so far
  View<S, 1> sum;      // [R], of p

  Index heads() const { return q.extent(0); }

  void begin(const View<const S, 2>& from) const {
    for (Index r = 0; r < heads(); ++r) {
      const Batch scale(static_cast<S>(score.of(row, first_head + r).scale));
      simd::map<S>(
          q.extent(1), &q(r, 0), [&](const Batch& v) { return v * scale; }, &from(r, 0));
      softmax(r).clear();
    }
  }

  /// Takes in the keys and values ([size, K or V]) of the positions in `tile`.
  void visit(Span tile, const View<const S, 2>& tile_keys,
             const View<const S, 2>& tile_values) const {
    const auto add = [&](Span of_heads, Span of_keys) {
      const auto weights = p.template slice<0>(of_heads.begin, of_heads.size());
      tile_matmul<S>(weights.template slice<1>(of_keys.begin, of_keys.size()),
                     tile_values.template slice<0>(of_keys.begin, of_keys.size()),
                     o.template slice<0>(of_heads.begin, of_heads.size()), true);
    };
    Span together;  // heads that see the whole tile
    for (Index r = 0; r < heads(); ++r) {
      const Visibility visibility =
          mask.of(row, first_head + r).visibility({position, position + 1}, tile);
      if (visibility != Visibility::none) weigh(r, tile, visibility, tile_keys);
      if (visibility == Visibility::all) {
        together.end = r + 1;
        continue;
      }
      add(together, {0, tile.size()});
      together = {r + 1, r + 1};
      if (visibility == Visibility::none) continue;
      // A hidden value is not even multiplied by zero: an infinite or NaN one stays unseen.
      for (Index begin = 0, end = 0; begin < tile.size(); begin = end + 1) {
        for (end = begin; end < tile.size() && visible(r, end) != 0;) ++end;
        add({r, r + 1}, {begin, end});
      }
    }
    add(together, {0, tile.size()});
  }

  /// Whether some head may see something of a tile.
  bool sees(Span tile) const {
    for (Index r = 0; r < heads(); ++r) {
      const auto visibility =
          mask.of(row, first_head + r).visibility({position, position + 1}, tile);
      if (visibility != Visibility::none) return true;
    }
    return false;
  }

  PartialSoftmax<S> softmax(Index r) const { return {o[r], maximum[r], sum[r]}; }

 private:
  /// Makes p of head r the weights of the keys of a tile, and `visible` whether they count.
  void weigh(Index r, Span tile, Visibility visibility, const View<const S, 2>& tile_keys) const {
    constexpr Index lanes = simd::lanes<S>;
    const auto head_mask = narrowed(mask.of(row, first_head + r), {position, position + 1}, tile);
    const auto head_score = score.of(row, first_head + r);
    S* const weights = &p(r, 0);
    dot_rows<S>(&q(r, 0), tile_keys, weights);
    Batch tile_maximum(minus_infinity<S>);
    for (Index i = 0; i < tile.size(); i += lanes) {
      const Pairs<S> pairs{tile.begin, simd::broadcast(static_cast<S>(position - tile.begin)),
                           counting_from<S>(i)};
      auto shown = pairs.key < simd::broadcast(static_cast<S>(tile.size()));
      if (visibility == Visibility::partial) shown = shown && head_mask.allows(pairs);
      const Batch products = simd::load<S>(weights + i);
      const Batch value = simd::select<S>(shown, head_score(products, pairs), minus_infinity<S>);
      simd::store<S>(weights + i, value);
      simd::store<S>(&visible(r, i),
                     simd::select<S>(shown, simd::broadcast(S(1)), simd::broadcast(S(0))));
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
    whole.sum += simd::reduce_add(total);
  }
};

/// The recurrent form: memory-bound, so that each span of keys is read once for all heads of its
/// group. Spans run in parallel and are merged in their order.
template <class S, class Mask, class Score>
void attend_one(const AttentionCall<S>& call, const Mask& mask, const Score& score, Index t,
                Context& context) {
  const Index B = call.batch(), G = call.groups(), R = call.heads_per_group();
  const Index K = call.head_k(), V = call.head_v();
  // Spans begin at multiples of their length; a row counts from the first that its heads reach.
  const auto reach_of = [&](Index b, Index group) {
    const Span reach = call.reach(mask, b, {group * R, (group + 1) * R}, {t, t + 1});
    return Span{reach.begin / attention_span * attention_span, reach.end};
  };
  Index longest = 0;
  for (Index b = 0; b < B; ++b) {
    for (Index group = 0; group < G; ++group) {
      longest = std::max(longest, reach_of(b, group).size());
    }
  }
  const Index spans = ceil_div(longest, attention_span), items = B * G * spans;
  const Index numbers = std::min(longest, attention_span) * (K + V);
  const Index items_per_task = ceil_div(attention_task_numbers, std::max<Index>(numbers, 1));

  auto scratch = context.scratch<S>();
  auto maximum = scratch(B * G, R), sum = scratch(B * G, R);
  auto part_o = scratch(attention_wave, R, V);
  auto part_maximum = scratch(attention_wave, R), part_sum = scratch(attention_wave, R);
  const auto heads_of = [&](const auto& view, Index stream) {
    return view[stream / G][t].template slice<0>(stream % G * R, R);
  };
  const auto whole = [&](Index stream, Index r) {
    return PartialSoftmax<S>{heads_of(call.o, stream)[r], maximum(stream, r), sum(stream, r)};
  };
  const auto for_each_head = [&](auto&& body) {
    for (Index stream = 0; stream < B * G; ++stream) {
      for (Index r = 0; r < R; ++r) body(stream, r);
    }
  };

  for_each_head([&](Index stream, Index r) { whole(stream, r).clear(); });
  for (Index first = 0; first < items; first += attention_wave) {
    const Index end = std::min(items, first + attention_wave);
    const auto attend_item = [&](Index item, Context& worker) {
      const Index stream = item / spans, b = stream / G, group = stream % G, slot = item - first;
      auto worker_scratch = worker.scratch<S>();
      const QueryToken<S, Mask, Score> token{mask,
                                             score,
                                             b,
                                             group * R,
                                             call.past[b] + t,
                                             worker_scratch(R, K),
                                             worker_scratch(R, attention_tile),
                                             worker_scratch(R, attention_tile),
                                             part_o[slot],
                                             part_maximum[slot],
                                             part_sum[slot]};
      token.begin(heads_of(call.q, stream));
      const auto keys = call.keys_of(b, group), values = call.values_of(b, group);
      auto collected_keys = worker_scratch(attention_tile, K);
      auto collected_values = worker_scratch(attention_tile, V);
      const Span reach = reach_of(b, group);
      const Index begin = reach.begin + item % spans * attention_span;
      const Index limit = std::min(reach.end, begin + attention_span);
      for (Index key = begin; key < limit; key += attention_tile) {
        const Span tile{key, std::min(limit, key + attention_tile)};
        if (!token.sees(tile)) continue;
        token.visit(tile, keys.of(tile, collected_keys), values.of(tile, collected_values));
      }
    };
    context.parallel_for(ceil_div(end - first, items_per_task), [&](Index task, Context& worker) {
      const Index begin = first + task * items_per_task;
      for (Index item = begin; item < std::min(end, begin + items_per_task); ++item) {
        attend_item(item, worker);
      }
    });
    for (Index item = first; item < end; ++item) {
      const Index slot = item - first;
      for (Index r = 0; r < R; ++r) {
        whole(item / spans, r).merge({part_o[slot][r], part_maximum(slot, r), part_sum(slot, r)});
      }
    }
  }
  for_each_head([&](Index stream, Index r) {
    const S log_sum_exp = whole(stream, r).finish();
    if (call.log_sum_exp.data() != nullptr) {
      call.log_sum_exp(stream / G, t, stream % G * R + r) = log_sum_exp;
    }
  });
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
