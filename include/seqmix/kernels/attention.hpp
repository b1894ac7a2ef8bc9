#pragma once

#include <algorithm>
#include <array>
#include <cstring>
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
/// It may have a fourth, `Span reach(Span queries) const`, outside of which it hides every key: the
/// tiles there are not even looked at. And a fifth, `narrowed(Span queries, Span keys) const`: a
/// mask of its own type that agrees with it on these positions and may be cheaper to ask.
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
  // They stay zero unless a number is infinite or NaN. Four, since a chain would wait for itself.
  simd::Batch<S> zero[4] = {simd::Batch<S>(S(0)), simd::Batch<S>(S(0)), simd::Batch<S>(S(0)),
                            simd::Batch<S>(S(0))};
  const Index height = rows.extent(0);
  for (Index row = 0; row < height; row += 4) {
    simd::for_each_block<S>(rows.extent(1), [&](Index first, auto lane_count) {
#pragma GCC unroll 4
      for (Index i = 0; i < 4; ++i) {
        const S* const from = rows.data() + std::min(row + i, height - 1) * rows.stride(0) + first;
        zero[i] = simd::fma<S>(simd::load<S>(from, lane_count), simd::broadcast(S(0)), zero[i]);
      }
    });
  }
  return simd::reduce_add((zero[0] + zero[1]) + (zero[2] + zero[3])) == 0;
}

/// The mask, or a cheaper one that is the same for these positions.
template <class Mask>
Mask narrowed(const Mask& mask, Span queries, Span keys) {
  if constexpr (requires { mask.narrowed(queries, keys); }) {
    return mask.narrowed(queries, keys);
  } else {
    return mask;
  }
}

/// What a policy becomes for one row and head.
template <class Policy>
using OfHead = decltype(std::declval<const Policy&>().of(Index{}, Index{}));

/// The keys or the values of one row and group, by position.
template <class S>
struct Entries {
  View<const S, 2> cache;  // [rows, K], position p in slot p mod rows
  View<const S, 2> fresh;  // [T, K], of the positions from `past` on; no data if the cache has them
  Index past;

  /// The rows of a tile: where they lie, or collected in `to` [attention_tile, K].
  View<const S, 2> of(Span tile, const View<S, 2>& to) const {
    const Index cached =
        fresh.data() == nullptr ? tile.end : std::clamp(past, tile.begin, tile.end);
    if (cached == tile.begin) return fresh.template slice<0>(tile.begin - past, tile.size());
    const Index rows = cache.extent(0), slot = tile.begin % rows;
    if (cached == tile.end && slot + tile.size() <= rows) {
      return cache.template slice<0>(slot, tile.size());
    }
    for (Index position = tile.begin; position < tile.end; ++position) {
      copy(position < cached ? cache[position % rows] : fresh[position - past],
           to[position - tile.begin]);
    }
    return to.template slice<0>(0, tile.size());
  }
};

/// What both forms read, and where they write.
template <class S>
struct AttentionCall {
  View<const S, 4> q;         // [B, T, H, K]
  View<const S, 4> keys;      // [B, G, capacity, K]
  View<const S, 4> values;    // [B, G, capacity, V]
  View<const Index, 1> past;  // [B]
  View<S, 4> o;               // [B, T, H, V]
  View<S, 3> log_sum_exp;     // [B, T, H], or no data
  // Keys and values of this call where the caches, then rings, do not have them.
  View<const S, 4> fresh_keys = {};    // [B, T, G, K], or no data
  View<const S, 4> fresh_values = {};  // [B, T, G, V], or no data

  Index batch() const { return q.extent(0); }
  Index tokens() const { return q.extent(1); }
  Index heads() const { return q.extent(2); }
  Index groups() const { return keys.extent(1); }
  Index heads_per_group() const { return heads() / groups(); }
  Index head_k() const { return q.extent(3); }
  Index head_v() const { return o.extent(3); }

  Entries<S> keys_of(Index b, Index group) const { return entries(keys, fresh_keys, b, group); }
  Entries<S> values_of(Index b, Index group) const {
    return entries(values, fresh_values, b, group);
  }

  /// The positions of the keys that some of the tokens and heads of row b may see.
  template <class Mask>
  Span reach(const Mask& mask, Index b, Span of_heads, Span tokens) const {
    if constexpr (requires { mask.of(b, Index{}).reach(Span{}); }) {
      Span whole{std::numeric_limits<Index>::max(), 0};
      for (Index head = of_heads.begin; head < of_heads.end; ++head) {
        const Span seen = mask.of(b, head).reach({past[b] + tokens.begin, past[b] + tokens.end});
        whole = {std::min(whole.begin, seen.begin), std::max(whole.end, seen.end)};
      }
      return {std::min(whole.begin, whole.end), whole.end};
    } else {
      return {0, past[b] + this->tokens()};
    }
  }

  template <class Mask>
  void check(const Mask& mask) const {
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
    const bool cached = fresh_keys.data() == nullptr;
    if (!cached) {
      expect("k", fresh_keys, Shape<4>{B, T, G, head_k()});
      expect("v", fresh_values, Shape<4>{B, T, G, head_v()});
    }
    expect("past", past, Shape<1>{B});
    expect("o", o, Shape<4>{B, T, H, head_v()});
    if (log_sum_exp.data() != nullptr) expect("log_sum_exp", log_sum_exp, Shape<3>{B, T, H});
    for (Index b = 0; b < B; ++b) {
      if (T == 0 || H == 0 || (!cached && past[b] >= 0)) continue;
      if (past[b] < 0 || reach(mask, b, {0, H}, {0, T}).end > capacity) {
        throw CapacityError("attention: " + std::to_string(T) + " tokens after " +
                            std::to_string(past[b]) + " do not fit in a cache of " +
                            std::to_string(capacity));
      }
    }
  }

 private:
  Entries<S> entries(const View<const S, 4>& cache, const View<const S, 4>& fresh, Index b,
                     Index group) const {
    if (fresh.data() == nullptr) return {cache[b][group], {}, past[b]};
    return {cache[b][group], fresh[b].template at<1>(group), past[b]};
  }
};

/// to [columns, rows] = scale · fromᵀ, in squares that are transposed in registers. The last ones
/// reach back over what is done.
template <class S>
void scale_transposed(const View<const S, 2>& from, S scale, const View<S, 2>& to) {
  constexpr Index side = 4;
  // g++ ignores the attribute in a `using` that depends on S.
  typedef S Row __attribute__((vector_size(side * sizeof(S))));
  const Index rows = from.extent(0), columns = from.extent(1);
  if (rows < side || columns < side) {
    for (Index row = 0; row < rows; ++row) {
      for (Index i = 0; i < columns; ++i) to(i, row) = scale * from(row, i);
    }
    return;
  }
  const Index from_row = from.stride(0), to_row = to.stride(0);
  const auto transpose = [&](Index row, Index column) {
    const S* const x = from.data() + row * from_row + column;
    S* const y = to.data() + column * to_row + row;
    Row a, b, c, d;
    std::memcpy(&a, x, sizeof(Row)), std::memcpy(&b, x + from_row, sizeof(Row));
    std::memcpy(&c, x + 2 * from_row, sizeof(Row)), std::memcpy(&d, x + 3 * from_row, sizeof(Row));
    const Row low_ac = __builtin_shufflevector(a, c, 0, 4, 1, 5) * scale;
    const Row low_bd = __builtin_shufflevector(b, d, 0, 4, 1, 5) * scale;
    const Row high_ac = __builtin_shufflevector(a, c, 2, 6, 3, 7) * scale;
    const Row high_bd = __builtin_shufflevector(b, d, 2, 6, 3, 7) * scale;
    a = __builtin_shufflevector(low_ac, low_bd, 0, 4, 1, 5);
    b = __builtin_shufflevector(low_ac, low_bd, 2, 6, 3, 7);
    c = __builtin_shufflevector(high_ac, high_bd, 0, 4, 1, 5);
    d = __builtin_shufflevector(high_ac, high_bd, 2, 6, 3, 7);
    std::memcpy(y, &a, sizeof(Row)), std::memcpy(y + to_row, &b, sizeof(Row));
    std::memcpy(y + 2 * to_row, &c, sizeof(Row)), std::memcpy(y + 3 * to_row, &d, sizeof(Row));
  };
  // Rows that lie far from each other are read or written to their end before the next ones.
  const bool by_rows = from_row >= to_row;
  const Index outer = by_rows ? rows : columns, inner = by_rows ? columns : rows;
  for (Index i = 0; i < outer; i += side) {
    for (Index j = 0; j < inner; j += side) {
      const Index first = std::min(i, outer - side), second = std::min(j, inner - side);
      by_rows ? transpose(first, second) : transpose(second, first);
    }
  }
}
template <class T>
View<T, 2> transposed(const View<T, 2>& view) {
  return {view.data(), {view.extent(1), view.extent(0)}, {view.stride(1), view.stride(0)}};
}

#if defined(__AVX512F__) && !defined(SEQMIX_SIMD_WIDTH)
/// Registers of queries of one head that are handled together.
inline constexpr Index panel_registers = 4;
/// Rows of the tiles in which products of so many registers are computed: their sums fill the
/// registers.
constexpr Index panel_rows(Index registers) { return registers == 4 ? 6 : 8; }
#else
inline constexpr Index panel_registers = 3;
constexpr Index panel_rows(Index /*registers*/) { return 4; }
#endif
template <class S>
inline constexpr Index query_panel_width = simd::lanes<S>* panel_registers;

/// How many positions before a call its first panel begins. Where the width of panels divides
/// tiles, all begin at multiples of it, as tiles do: they straddle no two blocks of a mask that are
/// whole tiles. A call that one panel can hold is not cut for that.
template <class S>
Index positions_before(Index past, Index tokens) {
  constexpr Index width = query_panel_width<S>;
  return attention_tile % width == 0 && tokens > width ? past % width : 0;
}

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

template <class S, Index Registers, Index Rows = panel_rows(Registers)>
void multiply_panel_rows(const View<const S, 2>& a, const View<const S, 2>& b, const View<S, 2>& c,
                         bool accumulate, Index row = 0) {
  for (; row + Rows <= c.extent(0); row += Rows) {
    multiply_panel_tile<S, Rows, Registers>(a, row, b, c, accumulate);
  }
  if constexpr (Rows > 1) {
    multiply_panel_rows<S, Registers, Rows == 6 ? 4 : Rows / 2>(a, b, c, accumulate, row);
  }
}

/// C (+)= A B where a row of B and C is whole registers, those of a panel at most. A may have any
/// strides.
template <class S>
void multiply_panel(In<S, 2> a, In<S, 2> b, Out<S, 2> c, bool accumulate) {
  const auto multiply = c.extent(1) == simd::lanes<S>       ? multiply_panel_rows<S, 1>
                        : c.extent(1) == 2 * simd::lanes<S> ? multiply_panel_rows<S, 2>
                        : c.extent(1) == 3 * simd::lanes<S>
                            ? multiply_panel_rows<S, 3>
                            : multiply_panel_rows<S, panel_registers>;
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
    const Index count = queries.size();
    scale_transposed<S>(from, static_cast<S>(score.scale), q.template slice<1>(0, count));
    fill(q.template slice<1>(count, q.extent(1) - count), S(0));
    for (Index e = 0; e < o.extent(0); ++e) std::fill_n(&o(e, 0), o.extent(1), S(0));
    fill(maximum, minus_infinity<S>), fill(sum, S(0));
  }

  /// Takes in the keys and values ([size, K or V]) of the positions in `tile`. `p` is scratch,
  /// [attention_tile, width].
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
      multiply_panel<S>(keys.template slice<0>(strip.keys.begin - tile.begin, strip.keys.size()),
                        q.template slice<1>(strip.begin * lanes, (strip.end - strip.begin) * lanes),
                        products(strip), false);
    }
    for (Index r = 0; r < registers(); ++r) update(r, tile, strips, p);
    for (const Strip& strip : strips) {
      const auto rows = values.template slice<0>(strip.keys.begin - tile.begin, strip.keys.size());
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
    scale_transposed<S>(o.template slice<1>(0, queries.size()), S(1), to);
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
    // Lists the registers that see some of `keys`; whether each of them sees all or nothing.
    const auto add = [&](Span keys) {
      Strip strip{.keys = keys, .begin = registers()};
      Index seeing = 0;
      bool clear = true;
      for (Index r = 0; r < registers(); ++r) {
        const Visibility visibility = mask.visibility(queries_of(r), keys);
        if (visibility == Visibility::none) continue;
        strip.begin = std::min(strip.begin, r), strip.end = r + 1;
        clear &= visibility == Visibility::all;
        ++seeing;
      }
      strip.partial = !clear || seeing < strip.end - strip.begin;
      if (seeing > 0) strips[count++] = strip;
      return clear;
    };
    if (add(tile)) return count;
    count = 0;
    for (Index first = tile.begin; first < tile.end; first += attention_strip) {
      add({first, std::min(tile.end, first + attention_strip)});
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
    // Takes the scores of a strip in; `shown` hides some of them.
    const auto take = [&](S* column, const Strip& strip, auto&& shown) {
      const auto scores = [&](Index i) {
        const auto at = pairs(r, strip.keys.begin + i, tile.begin);
        const Batch value = shown(score(simd::load<S>(column + i * stride), at), at);
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
    };
    each([&](S* column, const Strip& strip) {
      if (!strip.partial) {
        take(column, strip, [](const Batch& value, const Pairs<S>&) { return value; });
        return;
      }
      const Mask here = narrowed(mask, queries_of(r), strip.keys);
      take(column, strip, [&](const Batch& value, const Pairs<S>& at) {
        return simd::select<S>(here.allows(at), value, minus_infinity<S>);
      });
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
  const Index before = positions_before<S>(past + tokens.begin, tokens.size());
  const Index panels_per_head = ceil_div(before + tokens.size(), width);
  const Index panels = heads.size() * panels_per_head;
  const Index group = heads.begin / call.heads_per_group();
  auto scratch = worker.scratch<S>();
  auto q = scratch(panels, call.head_k(), width), o = scratch(panels, call.head_v(), width);
  auto maximum = scratch(panels, width), sum = scratch(panels, width);
  auto p = scratch(attention_tile, width);
  auto collected_keys = scratch(attention_tile, call.head_k());
  auto collected_values = scratch(attention_tile, call.head_v());
  using Panel = QueryPanel<S, OfHead<Mask>, OfHead<Score>>;
  const auto for_each_panel = [&](auto&& body) {
    for (Index i = 0; i < panels; ++i) {
      const Index head = heads.begin + i / panels_per_head;
      const Index begin = tokens.begin - before + i % panels_per_head * width;
      const Index first = std::max(begin, tokens.begin);
      const Index count = std::min(begin + width, tokens.end) - first,
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
  const auto keys = call.keys_of(b, group), values = call.values_of(b, group);
  const Span reach = call.reach(mask, b, heads, tokens);
  const Index begin = reach.begin / attention_tile * attention_tile;
  for (Index first = begin; first < reach.end; first += attention_tile) {
    const Span tile{first, std::min(reach.end, first + attention_tile)};
    const auto tile_keys = keys.of(tile, collected_keys);
    const auto tile_values = values.of(tile, collected_values);
    for_each_panel([&](const auto& panel, Index, Index, Index) {
      panel.visit(tile, tile_keys, tile_values, p);
    });
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
  const auto before = [&](Index b) { return positions_before<S>(call.past[b], call.tokens()); };
  Index most_before = 0;
  for (Index b = 0; b < call.batch(); ++b) most_before = std::max(most_before, before(b));
  const Index blocks = ceil_div(most_before + call.tokens(), length);
  context.parallel_for(
      call.batch() * call.groups() * sets * blocks, [&](Index task, Context& worker) {
        // The blocks of a head run behind each other, whose keys stay in cache; the longest first.
        const Index block = blocks - 1 - task % blocks, rest = task / blocks;
        const Index set = rest % sets, group = rest / sets % call.groups();
        const Index first = group * call.heads_per_group();
        const Span of_set{first + set * heads,
                          first + std::min(call.heads_per_group(), (set + 1) * heads)};
        const Index b = rest / sets / call.groups(), begin = block * length - before(b);
        const Span tokens{std::max<Index>(begin, 0), std::min(call.tokens(), begin + length)};
        if (tokens.size() > 0) attend_block(call, mask, score, b, of_set, tokens, worker);
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

template <Form form, class S, class Mask, class Score>
void attend(const AttentionCall<S>& call, const Mask& mask, const Score& score, Context& context) {
  call.check(mask);
  if (call.batch() * call.tokens() * call.heads() == 0) return;
  if constexpr (form == Form::parallel) {
    attend_in_parallel<S>(call, mask, score, context);
  } else {
    for (Index t = 0; t < call.tokens(); ++t) attend_one<S>(call, mask, score, t, context);
  }
}

/// `piece` of a view of one number for each token, or of no data.
template <class S>
View<S, 3> tokens_of(const View<S, 3>& view, const Piece& piece) {
  return view.data() == nullptr ? view : view.template slice<1>(piece.first, piece.count);
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
/// then). The last dimensions are contiguous, and o overlaps no input. To the policies each of
/// packed documents is row 0. Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Dao et al. 2022,
/// arXiv:2205.14135.
template <Form form, class S, class Mask = Causal, class Score = PlainScore>
void attention(In<S, 4> q, In<S, 4> keys, In<S, 4> values, In<Index, 1> past, Mask mask,
               Score score, View<S, 4> o, Context& context, Out<S, 3> log_sum_exp = {}) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      attention<form, S>(
          q.template slice<1>(piece.first, piece.count), keys.template slice<0>(piece.row, 1),
          values.template slice<0>(piece.row, 1), past.template slice<0>(piece.row, 1), mask, score,
          o.template slice<1>(piece.first, piece.count), context,
          detail::tokens_of<S>(log_sum_exp, piece));
    });
  }
  detail::attend<form, S>({q, keys, values, past, o, log_sum_exp}, mask, score, context);
}

/// The same where the caches are rings of the last positions, [B, G, rows, K or V] with position p
/// in slot p mod rows, and the new entries are k [B, T, G, K] and v [B, T, G, V]: they are put into
/// the rings when every query has seen what they overwrite. `mask` hides all positions that lie
/// `rows` or more before a query.
template <Form form, class S, class Mask, class Score>
void ring_attention(In<S, 4> q, In<S, 4> k, In<S, 4> v, In<Index, 1> past, Mask mask, Score score,
                    Out<S, 4> keys, Out<S, 4> values, View<S, 4> o, Context& context,
                    Out<S, 3> log_sum_exp = {}) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      const auto tokens = [&](const auto& view) {
        return view.template slice<1>(piece.first, piece.count);
      };
      ring_attention<form, S>(tokens(q), tokens(k), tokens(v), past.template slice<0>(piece.row, 1),
                              mask, score, keys.template slice<0>(piece.row, 1),
                              values.template slice<0>(piece.row, 1), tokens(o), context,
                              detail::tokens_of<S>(log_sum_exp, piece));
    });
  }
  detail::attend<form, S>({q, keys, values, past, o, log_sum_exp, k, v}, mask, score, context);
  const Index T = q.extent(1);
  for (Index b = 0; b < q.extent(0); ++b) {
    const auto put = [&](const View<const S, 4>& from, const View<S, 4>& ring) {
      const Index rows = ring.extent(2);
      for (Index t = std::max<Index>(T - rows, 0); t < T; ++t) {
        copy(from[b][t], ring[b].template at<1>((past[b] + t) % rows));
      }
    };
    put(k, keys), put(v, values);
  }
}

/// Writes the heads x [B, T, G, K] of the first positions of the stream to a cache of them alone,
/// [B, G, count, K]; later ones go nowhere.
template <class S>
void append_leading(In<S, 4> x, In<Index, 1> past, View<S, 4> cache, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      append_leading<S>(x.template slice<1>(piece.first, piece.count),
                        past.template slice<0>(piece.row, 1), cache.template slice<0>(piece.row, 1),
                        context);
    });
  }
  for (Index b = 0; b < x.extent(0); ++b) {
    const Index count = std::min(x.extent(1), cache.extent(2) - past[b]);
    for (Index t = 0; t < count; ++t) copy(x[b][t], cache[b].template at<1>(past[b] + t));
  }
}

/// Makes o [B, T, H, V] and log_sum_exp [B, T, H] of one part of the keys those of both parts; of
/// the other one nothing is left.
template <class S>
void merge_attention(Out<S, 4> other_o, Out<S, 3> other_log_sum_exp, View<S, 4> o,
                     Out<S, 3> log_sum_exp) {
  for (Index b = 0; b < o.extent(0); ++b) {
    for (Index t = 0; t < o.extent(1); ++t) {
      for (Index h = 0; h < o.extent(2); ++h) {
        S sum = 1, other_sum = 1;  // the weights of a part are already divided by theirs
        const detail::PartialSoftmax<S> whole{o[b][t][h], log_sum_exp(b, t, h), sum};
        whole.merge({other_o[b][t][h], other_log_sum_exp(b, t, h), other_sum});
        log_sum_exp(b, t, h) = whole.finish();
      }
    }
  }
}

/// Heads [B, T, G, K] as attention reads them, [B, G, T, K].
template <class T>
View<T, 4> heads_first(const View<T, 4>& x) {
  return {x.data(),
          {x.extent(0), x.extent(2), x.extent(1), x.extent(3)},
          {x.stride(0), x.stride(2), x.stride(1), x.stride(3)}};
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
