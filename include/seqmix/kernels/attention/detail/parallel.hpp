#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <type_traits>

#include "seqmix/kernels/attention/detail/products.hpp"
#include "seqmix/kernels/attention/detail/tiles.hpp"
#include "seqmix/kernels/pointwise/softmax.hpp"
#include "seqmix/simd/weight_exp.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// How many positions before a call its first panel begins. Where the width of panels divides
/// tiles, all begin at multiples of it, as tiles do: they straddle no two blocks of a mask that are
/// whole tiles. A call that one panel can hold is not cut for that.
template <class S>
Index positions_before(Index past, Index tokens) {
  constexpr Index width = query_panel_width<S>;
  return attention_tile % width == 0 && tokens > width ? past % width : 0;
}

/// How far a score may lie above what is subtracted from all of its query's: then exp has room
/// below infinity, and sums are seldom carried over.
inline constexpr int attention_slack = 8;

/// Strips of a tile; no register that is in none of them sees a key of it.
template <class Products>
using Strips = std::array<Strip, static_cast<std::size_t>(attention_tile / Products::strip_keys)>;

/// Consecutive queries of one head on their way through the tiles of their keys: the parallel form.
///
/// Products are computed transposed, scoresᵀ = K qᵀ and oᵀ += Vᵀ pᵀ, so that each lane is one
/// query: softmax needs no operation across lanes, the cache is read as it lies, and no query can
/// touch the bits of another.
template <class S, class Products>
struct QueryPanel {
  using Batch = simd::Batch<S>;
  static constexpr Index lanes = simd::lanes<S>, width = query_panel_width<S>;

  Products& products;
  Index number;  // of this panel among those of `products`
  Policies<S> policies;
  HeadOfRow head;
  Span queries;
  View<S, 2> o;          // [V, width], sums of p v
  View<S, 1> reference;  // [width], a score that no other one lies far above
  View<S, 1> sum;        // [width], of p

  Index registers() const { return ceil_div(queries.size(), lanes); }

  void begin(const View<const S, 2>& from) const {
    products.set_queries(number, from, static_cast<S>(policies.scores.scale(head)));
    const Index padded = round_up(queries.size(), lanes * Products::strip_registers);
    for (Index e = 0; e < o.extent(0); ++e) std::fill_n(&o(e, 0), padded, S(0));
    const bool weights = policies.scores.weighting() != Weighting::softmax;  // divided by nothing
    fill(reference, weights ? S(0) : minus_infinity<S>), fill(sum, weights ? S(1) : S(0));
  }

  /// Takes in the keys of the positions in `tile` and their `values` [size, V].
  void visit(Span tile, const View<const S, 2>& values) const {
    Strips<Products> list;
    const auto strips = std::span(list).first(cut(tile, list));
    if (strips.empty()) return;
    multiply_keys(tile, strips);
    const bool whole = strips[0].begin == 0 && strips[0].end == panel_registers;
    if (policies.scores.weighting() != Weighting::softmax) {
      for (Index r = 0; r < registers(); ++r) take_weights(r, tile, strips);
    } else if (strips.size() == 1 && whole && !strips[0].partial) {
      update<panel_registers>(0, tile, strips);
    } else {
      for (Index r = 0; r < registers(); ++r) update<1>(r, tile, strips);
    }
    for (const Strip& strip : strips) {
      if (strip.partial && !all_finite(values.slice(axis::row, strip.first, strip.size()))) {
        add_visible(strip, tile, values);
      } else {
        products.add_values(strip, o);
      }
    }
  }

  void finish(const View<S, 2>& to, S* log_sum_exp, Index stride) const {
    const Batch sink(static_cast<S>(policies.scores.sink(head)));
    const bool has_sink = simd::reduce_max(sink) > minus_infinity<S>;
    for (Index r = 0; r < registers(); ++r) {
      S* const result = &sum[r * lanes];
      Batch total = simd::load<S>(result), most = simd::load<S>(&reference[r * lanes]), share(S(1));
      if (has_sink) {
        const Batch highest = simd::max<S>(most, sink);
        share = simd::exp(most - highest);
        total = simd::fma<S>(total, share, simd::exp(sink - highest)), most = highest;
      }
      scale_sums(r, share * inverse_or_zero(total));
      simd::store<S>(result, most + simd::log(total));
    }
    const auto rows = o.slice(axis::row, 0, to.extent(1));
    scale_transposed<S>(rows.slice(axis::channel, 0, queries.size()), S(1), to);
    if (log_sum_exp == nullptr) return;
    for (Index i = 0; i < queries.size(); ++i) log_sum_exp[i * stride] = sum[i];
  }

 private:
  Span queries_of(Index r) const {
    return {queries.begin + r * lanes, std::min(queries.end, queries.begin + (r + 1) * lanes)};
  }
  /// The pairs of a register of queries and the keys of a strip, a register each.
  PairBlock<S> pairs(Index r, Span tile, const Strip& strip, S* numbers, Index stride) const {
    return {.queries = queries_of(r),
            .keys = {tile.begin + strip.first, tile.begin + strip.last},
            .first = {tile.begin, simd::counting_from<S>(queries.begin + r * lanes - tile.begin),
                      simd::broadcast(static_cast<S>(strip.first)),
                      queries.begin + r * lanes - tile.begin - strip.first, 1},
            .step = 1,
            .numbers = numbers,
            .stride = stride,
            .count = strip.size()};
  }

  /// Biases by distance are added as the products are computed.
  void multiply_keys(Span tile, std::span<const Strip> strips) const {
    alignas(alignment) std::array<S, static_cast<std::size_t>(attention_tile + width + lanes)> bias;
    const bool biased = policies.scores.is_biased();
    if (biased) {
      policies.scores.bias(head, queries.begin - tile.end + 1,
                           tile.size() + registers() * lanes - 1, bias.data());
    }
    for (const Strip& strip : strips) {
      const S* const first = bias.data() + tile.size() - 1 - strip.first + strip.begin * lanes;
      products.multiply_keys(number, strip, biased ? first : nullptr);
    }
  }
  /// Whether what `multiply_keys` gives are the scores.
  bool has_scores() const { return policies.scores.is_plain() || policies.scores.is_biased(); }

  /// Lists what a tile asks for: all of it at once, or strips of the registers that see them.
  std::size_t cut(Span tile, Strips<Products>& strips) const {
    const Visibility whole = policies.mask.visibility(head, queries, tile);
    if (whole == Visibility::none) return 0;
    if (whole == Visibility::all) {
      strips[0] = {.last = tile.size(), .end = registers()};
      return 1;
    }
    std::size_t count = 0;
    // Lists the registers that see some of the keys; whether each of them sees all or nothing.
    const auto add = [&](Index first, Index last) {
      Strip strip{.first = first, .last = last, .begin = registers()};
      Index seeing = 0;
      bool clear = true;
      for (Index r = 0; r < registers(); ++r) {
        const Span keys{tile.begin + first, tile.begin + last};
        const Visibility visibility = policies.mask.visibility(head, queries_of(r), keys);
        if (visibility == Visibility::none) continue;
        strip.begin = std::min(strip.begin, r), strip.end = r + 1;
        clear &= visibility == Visibility::all;
        ++seeing;
      }
      constexpr Index group = Products::strip_registers;
      strip.begin = strip.begin / group * group;
      strip.end = std::min(registers(), round_up(strip.end, group));
      strip.partial = !clear || seeing < strip.end - strip.begin;
      if (seeing > 0) strips[count++] = strip;
      return clear;
    };
    if (add(0, tile.size())) return count;
    count = 0;
    for (Index first = 0; first < tile.size(); first += Products::strip_keys) {
      add(first, std::min(tile.size(), first + Products::strip_keys));
    }
    return count;
  }

  /// Turns the products of `Count` registers from r on with a whole tile into p, and carries their
  /// sums over to a new reference where a score lies far above the last one. The tile is one step
  /// whatever its strips: that a key is masked or left out is the same.
  template <Index Count>
  void update(Index r, Span tile, std::span<const Strip> strips) const {
    const auto each = [&](auto&& body) {
      for (const Strip& strip : strips) {
        if (r >= strip.begin && r < strip.end) body(Strip(strip));
      }
    };
    Batch offset[Count], total[Count], correction[Count];
    const simd::WeightExp<S> exp;
    bool moved = false;
#pragma GCC unroll 4
    for (Index i = 0; i < Count; ++i) {
      S* const so_far = &reference[(r + i) * lanes];
      const Batch before = simd::load<S>(so_far);
      Batch highest = before;
      each(
          [&](Strip strip) { highest = simd::max<S>(highest, highest_score(r + i, tile, strip)); });
      const auto far = highest > before + Batch(static_cast<S>(attention_slack));
      const Batch after = simd::select<S>(far, highest, before);
      simd::store<S>(so_far, after);
      offset[i] = softmax_offset(after);
      correction[i] = exp(before - offset[i]);
      total[i] = simd::load<S>(&sum[(r + i) * lanes]) * correction[i];
      // exp(0) is 1, so that leaving out the lanes whose reference stays changes no bit.
      moved |= simd::reduce_max(simd::select<S>(far, Batch(S(1)), Batch(S(0)))) > 0;
    }
    each([&](Strip strip) {
      const auto columns = products.columns_of(r);
      const auto weight = [&](Index key, Index i) {
        return exp(simd::load<S>(columns.score(key, i)) - offset[i]);
      };
      Index key = strip.first;
      for (; key + 2 <= strip.last; key += 2) {
#pragma GCC unroll 4
        for (Index i = 0; i < Count; ++i) {
          const Batch even = weight(key, i), odd = weight(key + 1, i);
          columns.set_weights(key, i, even, odd);
          total[i] += even, total[i] += odd;
        }
      }
      for (; key < round_up(strip.last, Products::key_group); key += 2) {
#pragma GCC unroll 4
        for (Index i = 0; i < Count; ++i) {
          const Batch even = key < strip.last ? weight(key, i) : Batch(S(0));
          columns.set_weights(key, i, even, Batch(S(0)));
          total[i] += even;
        }
      }
    });
#pragma GCC unroll 4
    for (Index i = 0; i < Count; ++i) {
      simd::store<S>(&sum[(r + i) * lanes], total[i]);
      if (moved) scale_sums(r + i, correction[i]);
    }
  }

  /// The same where scores are weights.
  __attribute__((noinline)) void take_weights(Index r, Span tile,
                                              std::span<const Strip> strips) const {
    for (const Strip& strip : strips) {
      if (r < strip.begin || r >= strip.end) continue;
      ask_policies(r, tile, strip);
      const auto columns = products.columns_of(r);
      const auto weight = [&](Index key) {
        return key < strip.last ? weight_of<S>(simd::load<S>(columns.score(key, 0))) : Batch(S(0));
      };
      for (Index key = strip.first; key < round_up(strip.last, Products::key_group); key += 2) {
        columns.set_weights(key, 0, weight(key), weight(key + 1));
      }
    }
  }

  /// The highest score of a strip for the queries of a register. From here on masked scores stand
  /// where the products were.
  Batch highest_score(Index r, Span tile, const Strip& strip) const {
    if (strip.partial || !has_scores()) return ask_policies(r, tile, strip);
    return highest_product(r, strip);
  }
  Batch highest_product(Index r, const Strip& strip) const {
    const auto columns = products.columns_of(r);
    return highest_of<S>(strip.size(),
                         [&](Index i) { return simd::load<S>(columns.score(strip.first + i, 0)); });
  }
  __attribute__((noinline)) Batch ask_policies(Index r, Span tile, const Strip& strip) const {
    const auto block = pairs(r, tile, strip, products.columns_of(r).score(strip.first, 0), width);
    const bool masked = strip.partial && policies.mask.visibility(head, block.queries,
                                                                  block.keys) != Visibility::all;
    if (!masked && has_scores()) return highest_product(r, strip);
    return policies.score(head, block, has_scores(), masked);
  }

  __attribute__((noinline)) void scale_sums(Index r, const Batch& factor) const {
    for (Index e = 0; e < o.extent(0); ++e) {
      S* const at = &o(e, r * lanes);
      simd::store<S>(at, simd::flush_subnormal<S>(simd::load<S>(at) * factor));
    }
  }

  /// o += p v where the mask allows it: a hidden value is not even multiplied by zero, so that an
  /// infinite or NaN one stays unseen.
  void add_visible(const Strip& strip, Span tile, const View<const S, 2>& values) const {
    alignas(alignment) std::array<S, static_cast<std::size_t>(attention_tile * lanes)> visible;
    for (Index r = strip.begin; r < strip.end; ++r) {
      policies.mask.show(head, pairs(r, tile, strip, visible.data(), lanes));
      for (Index key = strip.first; key < strip.last; ++key) {
        const Batch shown = simd::load<S>(visible.data() + (key - strip.first) * lanes);
        const Batch weight = products.weight(key, r), zero(S(0));
        for (Index e = 0; e < values.extent(1); ++e) {
          const Batch value = simd::broadcast(values(key, e));
          S* const at = &o(e, r * lanes);
          simd::store<S>(at, simd::fma<S>(simd::select<S>(shown == zero, zero, value), weight,
                                          simd::load<S>(at)));
        }
      }
    }
  }
};

/// The parallel form of the heads `heads` of one group and the tokens `tokens` of a segment, whose
/// panels go through the tiles of their keys together.
template <class Products, class S>
class QueryBlock {
  using Panel = QueryPanel<S, Products>;
  static constexpr Index width = query_panel_width<S>;

 public:
  QueryBlock(const AttentionOperands<S>& operands, const SegmentQueries& of, Span heads,
             Span tokens, const Call& worker)
      : operands_(operands),
        of_(of),
        heads_(heads),
        tokens_(tokens),
        before_(positions_before<S>(of.past + tokens.begin, tokens.size())),
        panels_per_head_(ceil_div(before_ + tokens.size(), width)),
        panels_(heads.size() * panels_per_head_),
        scratch_(worker.scratch<S>()),
        sums_of_values_(scratch_(panels_, round_up(operands.head_v(), Products::channels), width)),
        reference_(scratch_(panels_, width)),
        sum_(scratch_(panels_, width)),
        collected_keys_(scratch_(attention_tile, operands.head_k())),
        collected_values_(scratch_(attention_tile, operands.head_v())),
        products_(worker, panels_, operands.head_k(), operands.head_v()) {
    products_.fetch_along(ahead_);
  }
  QueryBlock(const QueryBlock&) = delete;
  QueryBlock& operator=(const QueryBlock&) = delete;

  void run() {
    const Index group = heads_.begin / operands_.heads_per_group();
    const auto keys = operands_.keys_of(of_, group), values = operands_.values_of(of_, group);
    const Span reach = operands_.reach(of_, heads_, tokens_);
    if (reach.size() == 0) {
      return for_each_panel([&](const Panel& panel) { begin(panel), finish(panel); });
    }
    for (Index at = tile_of(reach.begin); at < reach.end; at += attention_tile) {
      const Span tile{at, std::min(reach.end, at + attention_tile)};
      const Span next{tile.end, std::min(reach.end, tile.end + attention_tile)};
      const auto tile_values = values.of(tile, collected_values_);
      products_.set_tile(keys.of(tile, collected_keys_), tile_values);
      ahead_.keys = RowsAhead(keys.cached(next)), ahead_.values = RowsAhead(values.cached(next));
      for_each_panel([&](const Panel& panel) { visit(panel, reach, tile, tile_values); });
    }
  }

 private:
  static Index tile_of(Index position) { return position / attention_tile * attention_tile; }
  Index token_of(Index position) const { return of_.first + position - of_.past; }
  auto rows_of(const auto& view, const Panel& panel, Span queries) const {
    return view.at(axis::head, panel.head.head)
        .slice(axis::time, token_of(queries.begin), queries.size());
  }

  void for_each_panel(auto&& body) {
    const Index past = of_.past;
    for (Index i = 0; i < panels_; ++i) {
      const Index head = heads_.begin + i / panels_per_head_;
      const Index begin = tokens_.begin - before_ + i % panels_per_head_ * width;
      const Span queries{past + std::max(begin, tokens_.begin),
                         past + std::min(begin + width, tokens_.end)};
      body(Panel{products_, i, operands_.policies, of_.of_head(head), queries, sums_of_values_[i],
                 reference_[i], sum_[i]});
    }
  }
  /// Takes a panel through one of the tiles of `reach`. It begins with the first one that it may
  /// see and ends with the last one: what it reads and writes then is fetched while others are
  /// computed with.
  void visit(const Panel& panel, Span reach, Span tile, const View<const S, 2>& values) {
    const Span seen = operands_.policies.mask.reach(panel.head, panel.queries);
    const Index first_of_all = tile_of(reach.begin), last_of_all = tile_of(reach.end - 1);
    const Index last = std::clamp(tile_of(seen.end - 1), first_of_all, last_of_all);
    const Index first = std::clamp(tile_of(seen.begin), first_of_all, last);
    if (tile.begin < first || tile.begin > last) return;
    if (tile.begin == first) begin(panel);
    if (tile.begin == last) ahead_.o = RowsAhead(rows_of(operands_.o, panel, panel.queries));
    panel.visit(tile, values);
    if (tile.begin == last) finish(panel);
  }
  void begin(const Panel& panel) {
    panel.begin(rows_of(operands_.q, panel, panel.queries));
    const Index end = panel.queries.end;
    const Span next{end, std::min(end + width, of_.past + tokens_.end)};
    ahead_.q = RowsAhead(rows_of(operands_.q, panel, next));
  }
  void finish(const Panel& panel) const {
    const View<S, 2>& sums = operands_.log_sum_exp;
    S* const log_sum_exp =
        sums.data() == nullptr ? nullptr : &sums(token_of(panel.queries.begin), panel.head.head);
    panel.finish(rows_of(operands_.o, panel, panel.queries), log_sum_exp, sums.stride(axis::time));
  }

  const AttentionOperands<S>& operands_;
  const SegmentQueries& of_;
  Span heads_, tokens_;
  Index before_, panels_per_head_, panels_;
  Context::Scratch<S> scratch_;
  View<S, 3> sums_of_values_;                     // [panels, V, width]
  View<S, 2> reference_, sum_;                    // [panels, width]
  View<S, 2> collected_keys_, collected_values_;  // [attention_tile, K or V]
  Products products_;
  PanelsAhead ahead_;
};

/// How the queries of a segment are cut into tasks: a group of heads into sets of `heads`, their
/// tokens into blocks of `length`, which begin `before` positions before the segment.
struct QueryCut {
  Index heads, sets, length, before, blocks, products;

  Index items(Index groups) const { return groups * sets * blocks; }
};

/// `of.count` is positive.
template <class S>
QueryCut cut_queries(const AttentionOperands<S>& operands, const SegmentQueries& of, Index share) {
  const Index heads = std::min(operands.heads_per_group(), attention_heads);
  const Index sets = ceil_div(operands.heads_per_group(), heads);
  const Index pieces = ceil_div(share, operands.groups() * sets);
  // No more queries of a head than keys that one may see: they would share no key.
  const Index keys = operands.reach(of, {0, operands.heads()}, {of.count - 1, of.count}).size();
  const Index queries =
      std::clamp(std::min(keys, ceil_div(of.count, pieces)) * heads, least_queries, most_queries);
  const Index length = round_up(std::max<Index>(queries / heads, 1), query_panel_width<S>);
  const Index before = positions_before<S>(of.past, of.count);
  const Index products =
      std::min(length, of.count) * heads * keys * (operands.head_k() + operands.head_v());
  return {heads, sets, length, before, ceil_div(before + of.count, length), products};
}

template <class Products, class S>
void attend_in_blocks(const AttentionOperands<S>& operands, const Call& call) {
  const auto cut_of = [&](const Segment& segment) {
    return cut_queries(operands, operands.queries_of(segment),
                       share_of(call, segment, parallel_tasks));
  };
  const auto work_of = [&](const Segment& segment) {
    if (!operands.in_parallel(segment)) return SegmentWork{};
    const QueryCut cut = cut_of(segment);
    // What is worth a task has one of its own, whatever the others cost.
    return SegmentWork{cut.items(operands.groups()),
                       std::clamp<Index>(cut.products, 1, attention_task_products)};
  };
  const Index R = operands.heads_per_group();
  for_each_unit(call, attention_task_products, work_of, [&](const Unit& unit, const Call& worker) {
    const SegmentQueries of = operands.queries_of(unit.segment);
    const QueryCut cut = cut_of(unit.segment);
    // The blocks of a head run behind each other, whose keys stay in cache; the longest first.
    const Index block = cut.blocks - 1 - unit.item % cut.blocks, rest = unit.item / cut.blocks;
    const Index set = rest % cut.sets, first = rest / cut.sets * R;
    const Span heads{first + set * cut.heads, first + std::min(R, (set + 1) * cut.heads)};
    const Index begin = block * cut.length - cut.before;
    const Span tokens{std::max<Index>(begin, 0), std::min(of.count, begin + cut.length)};
    QueryBlock<Products, S>(operands, of, heads, tokens, worker).run();
  });
}

/// The segments of the parallel form, on matrix units where the call asks for them.
template <class S>
void attend_in_parallel(const AttentionOperands<S>& operands, const Call& call) {
#if SEQMIX_MATRIX_UNITS
  if constexpr (std::is_same_v<S, float>) {
    if (matrix_precision<S>(call) != Precision::fp32) {
      return attend_in_blocks<TileProducts>(operands, call);
    }
  }
#endif
  attend_in_blocks<RegisterProducts<S>>(operands, call);
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
