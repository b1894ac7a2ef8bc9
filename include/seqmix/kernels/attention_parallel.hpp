#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <type_traits>

#include "seqmix/kernels/attention_call.hpp"
#include "seqmix/kernels/matmul.hpp"
#include "seqmix/kernels/softmax.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

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

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
