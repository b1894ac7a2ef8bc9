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

/// A register of (query, key) pairs. Their positions are origin + query and origin + key with an
/// origin near the keys: whole numbers in S, so that policies compare and subtract them in
/// registers. In float, distances above 2^24 are rounded.
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
inline constexpr Index attention_block = 384;
/// Heads at most in one task of the parallel form.
inline constexpr Index attention_heads = 8;
/// Numbers of the cache that are worth a task of the recurrent form.
inline constexpr Index attention_task_numbers = Index{1} << 15;

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

/// What a policy becomes for one row and head.
template <class Policy>
using OfHead = decltype(std::declval<const Policy&>().of(Index{}, Index{}));

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

/// to = scale · from, row by row: the rows of one of the two lie in memory, and those of the other,
/// the columns of a panel, in cache.
template <class S>
void scale_rows(const View<const S, 2>& from, S scale, const View<S, 2>& to) {
  const Index from_step = from.stride(1), to_step = to.stride(1), columns = to.extent(1);
  for (Index row = 0; row < to.extent(0); ++row) {
    const S* const x = from.data() + row * from.stride(0);
    S* const y = to.data() + row * to.stride(0);
    for (Index i = 0; i < columns; ++i) y[i * to_step] = scale * x[i * from_step];
  }
}
template <class T>
View<T, 2> transposed(const View<T, 2>& view) {
  return {view.data(), {view.extent(1), view.extent(0)}, {view.stride(1), view.stride(0)}};
}

/// Queries of one head that are handled together: three registers.
template <class S>
inline constexpr Index query_panel_width = 3 * simd::lanes<S>;
/// Rows of the tiles in which products of a panel are computed: their sums fill the registers.
#if defined(__AVX512F__) && !defined(SEQMIX_SIMD_WIDTH)
inline constexpr Index panel_rows = 8;
#else
inline constexpr Index panel_rows = 4;
#endif

/// C (+)= A B for `Rows` rows and a B and C of `Registers` registers a row: one chain of
/// multiply-adds over ascending k for each number.
template <class S, Index Rows, Index Registers>
__attribute__((noinline)) void multiply_panel_tile(const View<const S, 2>& a, Index row,
                                                   const View<const S, 2>& b, const View<S, 2>& c,
                                                   bool accumulate) {
  constexpr Index lanes = simd::lanes<S>;
  const Index a_row = a.stride(0), a_step = a.stride(1), b_step = b.stride(0);
  S* const to = c.data() + row * c.stride(0);
  const Index c_row = c.stride(0);
  simd::Batch<S> sum[Rows][Registers];
#pragma GCC unroll 8
  for (Index r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (Index i = 0; i < Registers; ++i) {
      sum[r][i] = simd::broadcast(S(0));
      if (accumulate) sum[r][i] = simd::load<S>(to + r * c_row + i * lanes);
    }
  }
  const S *x = a.data() + row * a_row, *from = b.data();
  for (Index k = 0; k < b.extent(0); ++k, x += a_step, from += b_step) {
    simd::Batch<S> factor[Registers];
#pragma GCC unroll 8
    for (Index i = 0; i < Registers; ++i) factor[i] = simd::load<S>(from + i * lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < Rows; ++r) {
      const simd::Batch<S> value = simd::broadcast(x[r * a_row]);
#pragma GCC unroll 8
      for (Index i = 0; i < Registers; ++i) sum[r][i] = simd::fma<S>(value, factor[i], sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (Index r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (Index i = 0; i < Registers; ++i) simd::store<S>(to + r * c_row + i * lanes, sum[r][i]);
  }
}

template <class S, Index Registers, Index Rows = panel_rows>
void multiply_panel_rows(const View<const S, 2>& a, const View<const S, 2>& b, const View<S, 2>& c,
                         bool accumulate, Index row = 0) {
  for (; row + Rows <= c.extent(0); row += Rows) {
    multiply_panel_tile<S, Rows, Registers>(a, row, b, c, accumulate);
  }
  if constexpr (Rows > 1) {
    multiply_panel_rows<S, Registers, Rows / 2>(a, b, c, accumulate, row);
  }
}

/// C (+)= A B where a row of B and C is 1 to 3 whole registers. A may have any strides.
template <class S>
void multiply_panel(In<S, 2> a, In<S, 2> b, Out<S, 2> c, bool accumulate) {
  const auto multiply = c.extent(1) == simd::lanes<S>       ? multiply_panel_rows<S, 1>
                        : c.extent(1) == 2 * simd::lanes<S> ? multiply_panel_rows<S, 2>
                                                            : multiply_panel_rows<S, 3>;
  multiply(a, b, c, accumulate, 0);
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
    scale_rows<S>(from, static_cast<S>(score.scale),
                  transposed(q).template slice<0>(0, queries.size()));
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
      multiply_panel<S>(keys.template slice<0>(strip.keys.begin, strip.keys.size()),
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
      multiply_panel<S>(transposed(rows), products(strip),
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
    scale_rows<S>(transposed(o).template slice<0>(0, queries.size()), S(1), to);
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
  using Panel = QueryPanel<S, OfHead<Mask>, OfHead<Score>>;
  const auto for_each_panel = [&](auto&& body) {
    for (Index i = 0; i < panels; ++i) {
      const Index head = heads.begin + i / panels_per_head;
      const Index first = tokens.begin + i % panels_per_head * width;
      const Index count = std::min(width, tokens.end - first),
                  padded = round_up(count, simd::lanes<S>);
      body(Panel{mask.of(b, head),
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

  /// Takes in the keys and values (all of one head, [capacity, K or V]) of the positions in `tile`.
  void visit(Span tile, const View<const S, 2>& keys, const View<const S, 2>& values) const {
    const auto tile_keys = keys.template slice<0>(tile.begin, tile.size());
    const auto tile_values = values.template slice<0>(tile.begin, tile.size());
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

  PartialSoftmax<S> softmax(Index r) const { return {o[r], maximum[r], sum[r]}; }

 private:
  /// Makes p of head r the weights of the keys of a tile, and `visible` whether they count.
  void weigh(Index r, Span tile, Visibility visibility, const View<const S, 2>& tile_keys) const {
    constexpr Index lanes = simd::lanes<S>;
    const auto head_mask = mask.of(row, first_head + r);
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
  Index longest = 0;
  for (Index b = 0; b < B; ++b) longest = std::max(longest, call.past[b] + call.tokens());
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
      const Index begin = item % spans * attention_span;
      const Index limit = std::min(call.past[b] + call.tokens(), begin + attention_span);
      for (Index key = begin; key < limit; key += attention_tile) {
        token.visit({key, std::min(limit, key + attention_tile)}, call.keys[b][group],
                    call.values[b][group]);
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

/// o = Σ softmax(score(scale q · k)) v over the visible keys, softmax online: no T x T numbers
/// exist.
///
///   q [B, T, H, K], o [B, T, H, V]; keys [B, G, capacity, K], values [B, G, capacity, V]
///
/// Row b has past[b] entries from before this call, and its T new ones are already in the caches
/// behind them: token t is at position past[b] + t. Query head h reads head h / (H / G). A query
/// that sees no key gives zeros. log_sum_exp [B, T, H], if given, gets log Σ exp(score) (-infinity
/// then). The last dimensions are contiguous, and o overlaps no input. Vaswani et al. 2017,
/// arXiv:1706.03762, eq. 1; Dao et al. 2022, arXiv:2205.14135.
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
