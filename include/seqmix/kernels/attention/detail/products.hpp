#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "seqmix/kernels/attention/detail/operands.hpp"
#include "seqmix/simd/transpose.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// to [columns, rows] = scale · fromᵀ, in squares that are transposed in registers. The last ones
/// reach back over what is done.
template <class S, Index side = simd::lanes<S>>
void scale_transposed(const View<const S, 2>& from, S scale, const View<S, 2>& to) {
  const Index rows = from.extent(0), columns = from.extent(1);
  if constexpr (side > 1) {
    if (rows < side || columns < side) return scale_transposed<S, side / 2>(from, scale, to);
  }
  const auto transpose = [&](Index row, Index column) {
    simd::Square<S, side> square;
    square.load(from.data() + row * from.stride(0) + column, from.stride(0));
    square.transpose();
#pragma GCC unroll 16
    for (Index i = 0; i < side; ++i) square.rows[i] *= scale;
    square.store(to.data() + column * to.stride(0) + row, to.stride(0));
  };
  // Rows that lie far from each other are read or written to their end before the next ones.
  const bool by_rows = from.stride(0) >= to.stride(0);
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

/// Rows that are fetched from memory, a few at a time, while others are computed with.
class RowsAhead {
 public:
  RowsAhead() = default;
  template <class S>
  explicit RowsAhead(const CacheView<const S, 2>& rows)
      : next_(rows.bytes().data()),
        stride_(rows.bytes().stride(0)),
        row_bytes_(rows.extent(1) * number_size<S>(rows.storage())),
        left_(rows.extent(0)) {}
  template <class T>
  explicit RowsAhead(const View<T, 2>& rows)
      : RowsAhead(CacheView<const std::remove_const_t<T>, 2>(View<const T, 2>(rows))) {}
  /// Fetches up to `count` rows, to be read or to be written.
  template <bool written = false>
  void fetch(Index count) {
    for (; count > 0 && left_ > 0; --count, --left_, next_ += stride_) {
      for (Index byte = 0; byte < row_bytes_; byte += alignment) {
        __builtin_prefetch(next_ + byte, written, 2);
      }
    }
  }

 private:
  const std::byte* next_ = nullptr;
  Index stride_ = 0, row_bytes_ = 0, left_ = 0;
};

/// What a task needs next, fetched a bit with each tile of products.
struct PanelsAhead {
  RowsAhead keys, values;  // of the next tile
  RowsAhead q;             // of the next panel
  RowsAhead o;             // of the panel that ends next

  void fetch() { keys.fetch(1), values.fetch(1), q.fetch(1), o.fetch<true>(2); }
};

/// C (+)= A B for `Rows` rows and a B and C of `Registers` registers a row: one chain of
/// multiply-adds over ascending k for each number. Then C += `bias`, if given: each row of it
/// begins a number before the last one.
template <class S, Index Rows, Index Registers>
__attribute__((noinline)) void multiply_panel_tile(const View<const S, 2>& a, Index row,
                                                   const View<const S, 2>& b, const View<S, 2>& c,
                                                   bool accumulate, const S* bias) {
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
  if (bias != nullptr) {
#pragma GCC unroll 8
    for (Index r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (Index i = 0; i < Registers; ++i) {
        sum[r][i] += simd::load<S>(bias - row - r + i * lanes);
      }
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
                         bool accumulate, const S* bias, PanelsAhead& ahead, Index row = 0) {
  for (; row + Rows <= c.extent(0); row += Rows) {
    ahead.fetch();
    multiply_panel_tile<S, Rows, Registers>(a, row, b, c, accumulate, bias);
  }
  if constexpr (Rows > 1) {
    constexpr Index fewer = Rows == 6 ? 4 : Rows / 2;
    multiply_panel_rows<S, Registers, fewer>(a, b, c, accumulate, bias, ahead, row);
  }
}

/// C (+)= A B where a row of B and C is whole registers, those of a panel at most. A may have any
/// strides.
template <class S>
void multiply_panel(In<S, 2> a, In<S, 2> b, Out<S, 2> c, bool accumulate, const S* bias,
                    PanelsAhead& ahead) {
  // Calls, as g++ 12 chooses among addresses by a condition that it has overwritten.
  const Index registers = c.extent(1) / simd::lanes<S>;
  if (registers == 1) {
    multiply_panel_rows<S, 1>(a, b, c, accumulate, bias, ahead);
  } else if (registers == 2) {
    multiply_panel_rows<S, 2>(a, b, c, accumulate, bias, ahead);
  } else if (registers == 3) {
    multiply_panel_rows<S, 3>(a, b, c, accumulate, bias, ahead);
  } else {
    multiply_panel_rows<S, panel_registers>(a, b, c, accumulate, bias, ahead);
  }
}

/// Keys [first, last) of a tile against the registers [begin, end) of a panel.
struct Strip {
  Index first = 0, last = 0;
  Index begin = 0, end = 0;
  bool partial = false;

  Index size() const { return last - first; }
};

/// The products of the panels of a task and one tile of keys at a time, on registers: scores = K q
/// and o += Vᵀ p, where each lane is a query.
template <class S>
class RegisterProducts {
  using Batch = simd::Batch<S>;
  static constexpr Index lanes = simd::lanes<S>, width = query_panel_width<S>;

 public:
  /// Keys and registers of the smallest strips.
  static constexpr Index strip_keys = 16, strip_registers = 1;
  /// Keys whose weights, and channels of V whose sums, are computed together.
  static constexpr Index key_group = 2, channels = 1;

  RegisterProducts(const Call& worker, Index panels, Index head_k, Index /*head_v*/)
      : scratch_(worker.context()),
        queries_(scratch_(panels, head_k, width)),
        scores_(scratch_(attention_tile, width)) {}

  /// Products are to fetch `ahead` from now on.
  void fetch_along(PanelsAhead& ahead) { ahead_ = &ahead; }
  /// The queries `from` [count, K] of a panel, times `scale`.
  void set_queries(Index panel, const View<const S, 2>& from, S scale) {
    const auto q = queries_[panel];
    const Index count = from.extent(0), padded = round_up(count, lanes);
    scale_transposed<S>(from, scale, q.slice(axis::channel, 0, count));
    fill(q.slice(axis::channel, count, padded - count), S(0));
  }
  void set_tile(const View<const S, 2>& keys, const View<const S, 2>& values) {
    keys_ = keys, values_ = values;
  }

  /// `bias`, if given, is added: of the first key and query of the strip, then of queries behind
  /// it, before it of keys.
  void multiply_keys(Index panel, const Strip& strip, const S* bias) {
    multiply_panel<S>(keys_.slice(axis::row, strip.first, strip.size()),
                      columns(queries_[panel], strip), of(strip), false, bias, *ahead_);
  }
  /// The registers of a panel from one on: their products, and what takes their weights.
  struct Columns {
    S* first;

    /// What `multiply_keys` gives for a key and register i.
    S* score(Index key, Index i) const { return first + key * width + i * lanes; }
    /// Sets the weights of a key and the one behind it.
    void set_weights(Index key, Index i, const Batch& even, const Batch& odd) const {
      simd::store<S>(score(key, i), even);
      simd::store<S>(score(key + 1, i), odd);
    }
  };
  Columns columns_of(Index r) const { return {&scores_(0, r * lanes)}; }
  Batch weight(Index key, Index r) const { return simd::load<S>(&scores_(key, r * lanes)); }
  void add_values(const Strip& strip, const View<S, 2>& o) {
    const auto rows = values_.slice(axis::row, strip.first, strip.size());
    multiply_panel<S>(transposed(rows), of(strip), columns(o, strip), true, nullptr, *ahead_);
  }

 private:
  static View<S, 2> columns(const View<S, 2>& view, const Strip& strip) {
    return view.slice(axis::channel, strip.begin * lanes, (strip.end - strip.begin) * lanes);
  }
  View<S, 2> of(const Strip& strip) const {
    return columns(scores_.slice(axis::row, strip.first, strip.size()), strip);
  }

  Context::Scratch<S> scratch_;
  View<S, 3> queries_;              // [panels, K, width]
  View<S, 2> scores_;               // [attention_tile, width]
  View<const S, 2> keys_, values_;  // of the tile
  PanelsAhead* ahead_ = nullptr;
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
