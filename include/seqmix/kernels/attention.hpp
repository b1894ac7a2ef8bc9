#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/core/context.hpp"
#include "seqmix/kernels/matmul.hpp"
#include "seqmix/kernels/softmax.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Positions [begin, end), counted from the start of the stream.
struct Span {
  Index begin = 0, end = 0;
  Index size() const { return end - begin; }
};

/// How many pairs of a span of queries and a span of keys see each other. A policy that does not
/// know may answer `partial`.
enum class Visibility { none, partial, all };

/// A register of (query, key) pairs. Their positions are origin + query and origin + key: small
/// whole numbers, so that policies compare and subtract them in registers.
template <class S>
struct Pairs {
  Index origin;
  simd::Batch<S> query, key;
};

/// A query sees the keys up to its own.
///
/// A mask is any type with these three members. It sees positions only, never how they are tiled.
struct Causal {
  /// The mask of one batch row and query head.
  Causal of(Index /*row*/, Index /*head*/) const { return *this; }
  Visibility visibility(Span queries, Span keys) const {
    if (keys.begin >= queries.end) return Visibility::none;
    return keys.end <= queries.begin + 1 ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    return pairs.key <= pairs.query;
  }
};

/// scale · q · k, nothing more.
///
/// A score is any type with these members. It maps scaled products before the mask is applied, so
/// that a cap or a bias never makes a hidden key visible.
struct PlainScore {
  double scale = 1;

  /// The score of one batch row and query head.
  PlainScore of(Index /*row*/, Index /*head*/) const { return *this; }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& /*pairs*/) const {
    return products;
  }
};

namespace detail {

/// Keys of a tile. Tiles begin at multiples of it, wherever a call begins, so that the tiling of a
/// query's keys (and with it every bit of its result) depends on positions alone.
inline constexpr Index attention_tile = 64;
/// Keys of a strip, the unit in which a tile that is visible in part is computed.
inline constexpr Index attention_strip = 16;
/// Keys that the recurrent form hands to one task.
inline constexpr Index attention_span = 512;
/// Such tasks that are in flight before their results are merged.
inline constexpr Index attention_wave = 32;
/// Queries (of all heads that share a key) of one task of the parallel form.
inline constexpr Index attention_block = 192;
/// Heads at most in one task of the parallel form.
inline constexpr Index attention_heads = 8;
/// Numbers of the cache that are worth a task of the recurrent form.
inline constexpr Index attention_task_numbers = Index{1} << 15;
/// Queries of one head that are handled together.
template <class S>
inline constexpr Index query_panel_width = 3 * simd::lanes<S>;

template <class S>
inline constexpr S minus_infinity = -std::numeric_limits<S>::infinity();

/// first, first + 1, ...
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> counting_from(Index first) {
  constexpr auto steps = [] {
    std::array<S, static_cast<std::size_t>(simd::lanes<S>)> numbers{};
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<S>(i);
    return numbers;
  }();
  return simd::load<S>(steps.data()) + simd::broadcast(static_cast<S>(first));
}

template <class S>
bool all_finite(const View<const S, 2>& rows) {
  simd::Batch<S> zero(S(0));  // stays so unless a number is infinite or NaN
  for (Index row = 0; row < rows.extent(0); ++row) {
    simd::for_each_block<S>(rows.extent(1), [&](Index first, auto lane_count) {
      const S* const from = rows.data() + row * rows.stride(0) + first;
      zero = simd::fma<S>(simd::load<S>(from, lane_count), simd::broadcast(S(0)), zero);
    });
  }
  return simd::reduce_add(zero) == 0;
}

/// What both forms read, and where they write.
template <class S>
struct AttentionCall {
  View<const S, 4> q;         // [B, T, H, K]
  View<const S, 4> keys;      // [B, G, capacity, K]
  View<const S, 4> values;    // [B, G, capacity, V]
  View<const Index, 1> past;  // [B]
  View<S, 4> o;               // [B, T, H, V]
  View<S, 3> log_sum_exp;     // [B, T, H], or no data

  Index batch() const { return q.extent(0); }
  Index tokens() const { return q.extent(1); }
  Index heads() const { return q.extent(2); }
  Index groups() const { return keys.extent(1); }
  Index heads_per_group() const { return heads() / groups(); }
  Index head_k() const { return q.extent(3); }
  Index head_v() const { return o.extent(3); }

  void check() const {
    const auto expect = [](std::string_view what, const auto& view, const auto& shape) {
      if (view.shape() != shape) {
        throw ShapeError("attention: " + std::string(what) + " has shape " + view.shape().text() +
                         ", expected " + shape.text());
      }
      if constexpr (std::remove_cvref_t<decltype(view)>::rank == 4) {
        if (view.extent(3) > 1 && view.stride(3) != 1) {
          throw ShapeError("attention: the last dimension of " + std::string(what) +
                           " has stride " + std::to_string(view.stride(3)) + ", expected 1");
        }
      }
    };
    const Index B = batch(), T = tokens(), H = heads(), G = groups(), capacity = keys.extent(2);
    if (G <= 0 || H % G != 0) {
      throw ShapeError("attention: " + std::to_string(H) + " query heads cannot share " +
                       std::to_string(G) + " key heads");
    }
    expect("q", q, q.shape());
    expect("keys", keys, Shape<4>{B, G, capacity, head_k()});
    expect("values", values, Shape<4>{B, G, capacity, head_v()});
    expect("past", past, Shape<1>{B});
    expect("o", o, Shape<4>{B, T, H, head_v()});
    if (log_sum_exp.data() != nullptr) expect("log_sum_exp", log_sum_exp, Shape<3>{B, T, H});
    for (Index b = 0; b < B; ++b) {
      if (past[b] < 0 || past[b] > capacity - T) {
        throw CapacityError("attention: " + std::to_string(T) + " tokens after " +
                            std::to_string(past[b]) + " do not fit in a cache of " +
                            std::to_string(capacity));
      }
    }
  }
};

/// to[c, r] = scale · from[r, c].
template <class S>
void transpose(const View<const S, 2>& from, S scale, const View<S, 2>& to) {
  for (Index r = 0; r < from.extent(0); ++r) {
    for (Index c = 0; c < from.extent(1); ++c) to(c, r) = scale * from(r, c);
  }
}

/// Keys of a tile against the registers [begin, end) of a panel; no other register sees any of
/// them.
struct Strip {
  Span keys;
  Index begin = 0, end = 0;
  bool partial = false;
};
using Strips = std::array<Strip, static_cast<std::size_t>(attention_tile / attention_strip)>;

/// Consecutive queries of one head on their way through the tiles of their keys: the parallel form.
///
/// Products are computed transposed, scoresᵀ = K qᵀ and oᵀ += Vᵀ pᵀ, so that each lane is one
/// query: softmax needs no operation across lanes, the cache is read as it lies, and no query can
/// touch the bits of another.
template <class S, class Mask, class Score>
struct QueryPanel {
  using Batch = simd::Batch<S>;
  static constexpr Index lanes = simd::lanes<S>;

  Mask mask;    // of this row and head
  Score score;  // of this row and head
  Span queries;
  View<S, 2> q;        // [K, width], scaled
  View<S, 2> o;        // [V, width], sums of p v
  View<S, 1> maximum;  // [width], of the scores so far
  View<S, 1> sum;      // [width], of p

  Index registers() const { return ceil_div(queries.size(), lanes); }

  void begin(const View<const S, 2>& from) const {
    fill(q, S(0));
    transpose<S>(from, static_cast<S>(score.scale), q);
    fill(o, S(0)), fill(maximum, minus_infinity<S>), fill(sum, S(0));
  }

  /// Takes in the keys and values (all of one head, [capacity, K or V]) of the positions in `tile`.
  /// `p` is scratch, [attention_tile, width].
  void visit(Span tile, const View<const S, 2>& keys, const View<const S, 2>& values,
             const View<S, 2>& p) const {
    Strips list;
    const auto strips = std::span(list).first(cut(tile, list));
    if (strips.empty()) return;
    const auto products = [&](const Strip& strip) {
      return p.template slice<0>(strip.keys.begin - tile.begin, strip.keys.size())
          .template slice<1>(strip.begin * lanes, (strip.end - strip.begin) * lanes);
    };
    for (const Strip& strip : strips) {
      tile_matmul<S>(keys.template slice<0>(strip.keys.begin, strip.keys.size()),
                     q.template slice<1>(strip.begin * lanes, (strip.end - strip.begin) * lanes),
                     products(strip), false);
    }
    for (Index r = 0; r < registers(); ++r) update(r, tile, strips, p);
    for (const Strip& strip : strips) {
      const auto rows = values.template slice<0>(strip.keys.begin, strip.keys.size());
      if (strip.partial && !all_finite(rows)) {
        add_visible(strip, tile, rows, p);
        continue;
      }
      const View<const S, 2> columns(rows.data(), {rows.extent(1), rows.extent(0)},
                                     {1, rows.stride(0)});
      tile_matmul<S>(columns, products(strip),
                     o.template slice<1>(strip.begin * lanes, (strip.end - strip.begin) * lanes),
                     true);
    }
  }

  void finish(const View<S, 2>& to, S* log_sum_exp, Index stride) const {
    for (Index r = 0; r < registers(); ++r) {
      const Batch total = simd::load<S>(&sum[r * lanes]);
      scale_sums(r, inverse_or_zero(total));
      S* const result = &sum[r * lanes];
      simd::store<S>(result, simd::load<S>(&maximum[r * lanes]) + simd::log(total));
    }
    transpose<S>(o.template slice<1>(0, queries.size()), S(1), to);
    if (log_sum_exp == nullptr) return;
    for (Index i = 0; i < queries.size(); ++i) log_sum_exp[i * stride] = sum[i];
  }

 private:
  Span queries_of(Index r) const {
    return {queries.begin + r * lanes, std::min(queries.end, queries.begin + (r + 1) * lanes)};
  }
  Pairs<S> pairs(Index r, Index key, Index origin) const {
    return {origin, counting_from<S>(queries.begin + r * lanes - origin),
            simd::broadcast(static_cast<S>(key - origin))};
  }

  /// Lists what a tile asks for: all of it at once, or strips of the registers that see them.
  std::size_t cut(Span tile, Strips& strips) const {
    const Visibility whole = mask.visibility(queries, tile);
    if (whole == Visibility::none) return 0;
    if (whole == Visibility::all) {
      strips[0] = {.keys = tile, .begin = 0, .end = registers(), .partial = false};
      return 1;
    }
    std::size_t count = 0;
    for (Index first = tile.begin; first < tile.end; first += attention_strip) {
      Strip strip{.keys = {first, std::min(tile.end, first + attention_strip)},
                  .begin = registers()};
      Index seeing = 0;
      for (Index r = 0; r < registers(); ++r) {
        const Visibility visibility = mask.visibility(queries_of(r), strip.keys);
        if (visibility == Visibility::none) continue;
        strip.begin = std::min(strip.begin, r), strip.end = r + 1;
        strip.partial |= visibility == Visibility::partial;
        ++seeing;
      }
      strip.partial |= seeing < strip.end - strip.begin;
      if (seeing > 0) strips[count++] = strip;
    }
    return count;
  }

  /// Turns the products of register r with a whole tile into p, and carries its sums over to the
  /// new maximum. The tile is one step whatever its strips: that a key is masked or left out is the
  /// same.
  void update(Index r, Span tile, std::span<const Strip> strips, const View<S, 2>& p) const {
    const auto each = [&](auto&& body) {
      for (const Strip& strip : strips) {
        if (r < strip.begin || r >= strip.end) continue;
        body(&p(strip.keys.begin - tile.begin, r * lanes), strip);
      }
    };
    const Index stride = p.stride(0);
    Batch tile_maximum(minus_infinity<S>);
    each([&](S* column, const Strip& strip) {
      const auto scores = [&](Index i) {
        const auto at = pairs(r, strip.keys.begin + i, tile.begin);
        Batch value = score(simd::load<S>(column + i * stride), at);
        if (strip.partial) value = simd::select<S>(mask.allows(at), value, minus_infinity<S>);
        simd::store<S>(column + i * stride, value);
        return value;
      };
      Index i = 0;
      for (; i + 4 <= strip.keys.size(); i += 4) {  // a tree, since a chain would wait for itself
        const Batch a = simd::max<S>(scores(i), scores(i + 1));
        const Batch b = simd::max<S>(scores(i + 2), scores(i + 3));
        tile_maximum = simd::max<S>(tile_maximum, simd::max<S>(a, b));
      }
      for (; i < strip.keys.size(); ++i) tile_maximum = simd::max<S>(tile_maximum, scores(i));
    });

    const Batch before = simd::load<S>(&maximum[r * lanes]);
    const Batch after = simd::max<S>(before, tile_maximum);
    const Batch offset = softmax_offset(after);
    const Batch correction = simd::exp(before - offset);
    Batch total = simd::load<S>(&sum[r * lanes]) * correction;
    each([&](S* column, const Strip& strip) {
      for (Index i = 0; i < strip.keys.size(); ++i, column += stride) {
        const Batch weight = simd::exp(simd::load<S>(column) - offset);
        simd::store<S>(column, weight);
        total += weight;
      }
    });
    simd::store<S>(&maximum[r * lanes], after);
    simd::store<S>(&sum[r * lanes], total);
    // exp(0) is 1, so that leaving out the lanes whose maximum stays changes no bit.
    const Batch moved =
        simd::select<S>(before == after, simd::broadcast(S(0)), simd::broadcast(S(1)));
    if (simd::reduce_max(moved) > 0) scale_sums(r, correction);
  }

  void scale_sums(Index r, const Batch& factor) const {
    for (Index e = 0; e < o.extent(0); ++e) {
      S* const at = &o(e, r * lanes);
      simd::store<S>(at, simd::load<S>(at) * factor);
    }
  }

  /// o += p v where the mask allows it: a hidden value is not even multiplied by zero, so that an
  /// infinite or NaN one stays unseen.
  void add_visible(const Strip& strip, Span tile, const View<const S, 2>& values,
                   const View<S, 2>& p) const {
    for (Index r = strip.begin; r < strip.end; ++r) {
      for (Index key = strip.keys.begin; key < strip.keys.end; ++key) {
        const auto visible = mask.allows(pairs(r, key, tile.begin));
        const Batch weight = simd::load<S>(&p(key - tile.begin, r * lanes));
        for (Index e = 0; e < o.extent(0); ++e) {
          const Batch value = simd::broadcast(values(key - strip.keys.begin, e));
          S* const at = &o(e, r * lanes);
          simd::store<S>(at, simd::fma<S>(simd::select<S>(visible, value, simd::broadcast(S(0))),
                                          weight, simd::load<S>(at)));
        }
      }
    }
  }
};

/// The parallel form of the heads `heads` of one group and the tokens `tokens` of row b.
template <class S, class Mask, class Score>
void attend_block(const AttentionCall<S>& call, const Mask& mask, const Score& score, Index b,
                  Span heads, Span tokens, Context& worker) {
  const Index width = query_panel_width<S>, past = call.past[b];
  const Index panels_per_head = ceil_div(tokens.size(), width);
  const Index panels = heads.size() * panels_per_head;
  const Index group = heads.begin / call.heads_per_group();
  auto scratch = worker.scratch<S>();
  auto q = scratch(panels, call.head_k(), width), o = scratch(panels, call.head_v(), width);
  auto maximum = scratch(panels, width), sum = scratch(panels, width);
  auto p = scratch(attention_tile, width);
  const auto for_each_panel = [&](auto&& body) {
    for (Index i = 0; i < panels; ++i) {
      const Index head = heads.begin + i / panels_per_head;
      const Index first = tokens.begin + i % panels_per_head * width;
      const Index count = std::min(width, tokens.end - first),
                  padded = round_up(count, simd::lanes<S>);
      body(QueryPanel{mask.of(b, head),
                      score.of(b, head),
                      {past + first, past + first + count},
                      q[i].template slice<1>(0, padded),
                      o[i].template slice<1>(0, padded),
                      maximum[i],
                      sum[i]},
           head, first, count);
    }
  };
  const auto rows_of = [](const auto& view, Index row, Index head, Index first, Index count) {
    return view[row].template at<1>(head).template slice<0>(first, count);
  };
  for_each_panel([&](const auto& panel, Index head, Index first, Index count) {
    panel.begin(rows_of(call.q, b, head, first, count));
  });
  const auto keys = call.keys[b][group], values = call.values[b][group];
  const Index limit = past + call.tokens();
  for (Index first = 0; first < limit; first += attention_tile) {
    const Span tile{first, std::min(limit, first + attention_tile)};
    for_each_panel(
        [&](const auto& panel, Index, Index, Index) { panel.visit(tile, keys, values, p); });
  }
  for_each_panel([&](const auto& panel, Index head, Index first, Index count) {
    S* const log_sum_exp =
        call.log_sum_exp.data() == nullptr ? nullptr : &call.log_sum_exp(b, first, head);
    panel.finish(rows_of(call.o, b, head, first, count), log_sum_exp, call.log_sum_exp.stride(1));
  });
}

template <class S, class Mask, class Score>
void attend_in_parallel(const AttentionCall<S>& call, const Mask& mask, const Score& score,
                        Context& context) {
  const Index heads = std::min(call.heads_per_group(), attention_heads);
  const Index sets = ceil_div(call.heads_per_group(), heads);  // of heads, in a group
  const Index length = round_up(std::max<Index>(attention_block / heads, 1), query_panel_width<S>);
  const Index blocks = ceil_div(call.tokens(), length);
  context.parallel_for(
      call.batch() * call.groups() * sets * blocks, [&](Index task, Context& worker) {
        // The blocks of a head run behind each other, whose keys stay in cache; the longest first.
        const Index block = blocks - 1 - task % blocks, rest = task / blocks;
        const Index set = rest % sets, group = rest / sets % call.groups();
        const Index first = group * call.heads_per_group();
        const Span of_set{first + set * heads,
                          first + std::min(call.heads_per_group(), (set + 1) * heads)};
        attend_block(call, mask, score, rest / sets / call.groups(), of_set,
                     {block * length, std::min(call.tokens(), (block + 1) * length)}, worker);
      });
}

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

/// Takes the keys and values at the positions `tile` into the softmax of the query at `query`.
template <class S, class Mask, class Score>
void attend_tile(const S* q, Index query, Span tile, const View<const S, 2>& keys,
                 const View<const S, 2>& values, const Mask& mask, const Score& score,
                 const PartialSoftmax<S>& softmax) {
  using Batch = simd::Batch<S>;
  constexpr Index lanes = simd::lanes<S>;
  const Visibility visibility = mask.visibility({query, query + 1}, tile);
  if (visibility == Visibility::none) return;
  alignas(alignment) S p[attention_tile], visible[attention_tile];
  dot_rows<S>(q, keys.template slice<0>(tile.begin, tile.size()), p);

  Batch tile_maximum(minus_infinity<S>);
  for (Index i = 0; i < tile.size(); i += lanes) {
    const Pairs<S> pairs{tile.begin, simd::broadcast(static_cast<S>(query - tile.begin)),
                         counting_from<S>(i)};
    auto shown = pairs.key < simd::broadcast(static_cast<S>(tile.size()));
    if (visibility == Visibility::partial) shown = shown && mask.allows(pairs);
    const Batch products = simd::load<S>(p + i, std::min(lanes, tile.size() - i));
    const Batch value = simd::select<S>(shown, score(products, pairs), minus_infinity<S>);
    simd::store<S>(p + i, value);
    simd::store<S>(visible + i,
                   simd::select<S>(shown, simd::broadcast(S(1)), simd::broadcast(S(0))));
    tile_maximum = simd::max<S>(tile_maximum, value);
  }
  softmax.raise(std::max(softmax.maximum, simd::reduce_max(tile_maximum)));
  const Batch offset = softmax_offset(Batch(softmax.maximum));
  Batch sum(S(0));
  for (Index i = 0; i < tile.size(); i += lanes) {
    const Batch weight = simd::exp(simd::load<S>(p + i) - offset);
    simd::store<S>(p + i, weight);
    sum += weight;
  }
  softmax.sum += simd::reduce_add(sum);

  // A hidden value is not even multiplied by zero, so that an infinite or NaN one stays unseen.
  for (Index first = 0, end = 0; first < tile.size(); first = end + 1) {
    for (end = first; end < tile.size() && visible[end] != 0;) ++end;
    const View<const S, 2> weights(p + first, {1, end - first});
    tile_matmul<S>(weights, values.template slice<0>(tile.begin + first, end - first),
                   softmax.o.template insert<0>(), true);
  }
}

/// The softmax of the queries at token t of stream = b G + g over one span of keys: `part(r)` for
/// query head r of the group. `q` is scratch, [R, K].
template <class S, class Mask, class Score>
void attend_span(const AttentionCall<S>& call, const Mask& mask, const Score& score, Index t,
                 Index stream, Index first, const View<S, 2>& q, auto&& part) {
  const Index b = stream / call.groups(), group = stream % call.groups();
  const Index R = call.heads_per_group(), past = call.past[b];
  const Index end = std::min(past + call.tokens(), first + attention_span);
  for (Index r = 0; r < R; ++r) {
    const simd::Batch<S> scale(static_cast<S>(score.of(b, group * R + r).scale));
    simd::map<S>(
        call.head_k(), &q(r, 0), [&](const auto& v) { return v * scale; },
        &call.q(b, t, group * R + r, 0));
    part(r).clear();
  }
  for (; first < end; first += attention_tile) {
    const Span tile{first, std::min(end, first + attention_tile)};
    for (Index r = 0; r < R; ++r) {
      attend_tile<S>(&q(r, 0), past + t, tile, call.keys[b][group], call.values[b][group],
                     mask.of(b, group * R + r), score.of(b, group * R + r), part(r));
    }
  }
}

/// The recurrent form: memory-bound, so that each span of keys is read once for all heads of its
/// group. Spans run in parallel and are merged in their order.
template <class S, class Mask, class Score>
void attend_one(const AttentionCall<S>& call, const Mask& mask, const Score& score, Index t,
                Context& context) {
  const Index B = call.batch(), G = call.groups(), R = call.heads_per_group();
  const Index K = call.head_k(), V = call.head_v();
  Index longest = 0;
  for (Index b = 0; b < B; ++b) longest = std::max(longest, call.past[b] + call.tokens());
  const Index spans = ceil_div(longest, attention_span), items = B * G * spans;
  const Index numbers = std::min(longest, attention_span) * (K + V);
  const Index items_per_task = ceil_div(attention_task_numbers, std::max<Index>(numbers, 1));

  auto scratch = context.scratch<S>();
  auto maximum = scratch(B * G, R), sum = scratch(B * G, R);
  auto part_o = scratch(attention_wave, R, V);
  auto part_maximum = scratch(attention_wave, R), part_sum = scratch(attention_wave, R);
  const auto whole = [&](Index stream, Index r) {
    const Index b = stream / G, head = stream % G * R + r;
    return PartialSoftmax<S>{call.o[b][t][head], maximum(stream, r), sum(stream, r)};
  };
  const auto part = [&](Index item, Index r) {
    const Index i = item % attention_wave;
    return PartialSoftmax<S>{part_o[i][r], part_maximum(i, r), part_sum(i, r)};
  };
  const auto for_each_head = [&](auto&& body) {
    for (Index stream = 0; stream < B * G; ++stream) {
      for (Index r = 0; r < R; ++r) body(stream, r);
    }
  };

  for_each_head([&](Index stream, Index r) { whole(stream, r).clear(); });
  for (Index first = 0; first < items; first += attention_wave) {
    const Index end = std::min(items, first + attention_wave);
    context.parallel_for(ceil_div(end - first, items_per_task), [&](Index task, Context& worker) {
      auto worker_scratch = worker.scratch<S>();
      auto q = worker_scratch(R, K);
      const Index begin = first + task * items_per_task;
      for (Index item = begin; item < std::min(end, begin + items_per_task); ++item) {
        attend_span(call, mask, score, t, item / spans, item % spans * attention_span, q,
                    [&](Index r) { return part(item, r); });
      }
    });
    for (Index item = first; item < end; ++item) {
      for (Index r = 0; r < R; ++r) whole(item / spans, r).merge(part(item, r));
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

/// o = Σ softmax(score(scale q · k)) v over the visible keys, softmax online: no T x T numbers
/// exist.
///
///   q [B, T, H, K], o [B, T, H, V]; keys [B, G, capacity, K], values [B, G, capacity, V]
///
/// Row b has past[b] entries from before this call, and its T new ones are already in the caches
/// behind them: token t is at position past[b] + t. Query head h reads head h / (H / G). A query
/// that sees no key gives zeros. log_sum_exp [B, T, H], if given, gets log Σ exp(score) (-infinity
/// then). The last dimensions are contiguous. Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Dao et
/// al. 2022, arXiv:2205.14135.
template <Form form, class S, class Mask = Causal, class Score = PlainScore>
void attention(In<S, 4> q, In<S, 4> keys, In<S, 4> values, In<Index, 1> past, Mask mask,
               Score score, View<S, 4> o, Context& context, Out<S, 3> log_sum_exp = {}) {
  const detail::AttentionCall<S> call{q, keys, values, past, o, log_sum_exp};
  call.check();
  if (call.batch() * call.tokens() * call.heads() == 0) return;
  if constexpr (form == Form::parallel) {
    detail::attend_in_parallel<S>(call, mask, score, context);
  } else {
    for (Index t = 0; t < call.tokens(); ++t) detail::attend_one<S>(call, mask, score, t, context);
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
