#pragma once

#include <algorithm>
#include <type_traits>

#include "seqmix/kernels/memory/detail/channel_sums.hpp"
#include "seqmix/kernels/memory/detail/linear_state_unit.hpp"
#include "seqmix/kernels/memory/detail/linear_state_weights.hpp"
#include "seqmix/kernels/memory/detail/lines_ahead.hpp"
#include "seqmix/kernels/memory/detail/state_slabs.hpp"
#include "seqmix/kernels/memory/detail/state_sweep.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <class S>
using LinearSweep = StateSweep<S, chunk_length, chunk_length>;

/// The products of the factors of a chunk from one token to another.
template <class S>
class FactorSpans {
 public:
  using Batch = simd::Batch<S>;

  /// Of rows of factors that lie `stride` apart.
  SEQMIX_ALWAYS_INLINE FactorSpans(const S* factors, Index stride) {
#pragma GCC unroll 4
    for (Index first = 0; first < C; ++first) {
      spans_[first][first] = simd::load(factors + first * stride);
      DecayProduct<S> product(spans_[first][first]);
#pragma GCC unroll 4
      for (Index last = 0; last < C; ++last) {
        if (last <= first) continue;
        product.multiply(simd::load(factors + last * stride));
        spans_[first][last] = product.value();
      }
    }
  }

  /// From token `first` to token `last`; one where none lies between.
  SEQMIX_ALWAYS_INLINE Batch operator()(Index first, Index last) const {
    return first > last ? simd::broadcast(S(1)) : spans_[first][last];
  }
  /// x times that.
  SEQMIX_ALWAYS_INLINE Batch decayed(const Batch& x, Index first, Index last) const {
    return first > last ? x : x * spans_[first][last];
  }
  /// The same, but nothing of an infinite x that a reset hides.
  SEQMIX_ALWAYS_INLINE Batch left_of(const Batch& x, Index first, Index last) const {
    return first > last ? x : weighed<S>(x, spans_[first][last]);
  }

  /// The product of all; what it lacks is `lost`, which the next total of the block takes. The next
  /// block starts anew, so that a cut between blocks changes no bit.
  SEQMIX_ALWAYS_INLINE Batch total(S* lost) const {
    Batch missing = simd::broadcast(S(0));
#pragma GCC unroll 4
    for (Index i = 1; i < C; ++i) {
      const Batch factor = spans_[i][i];
      const Batch rounding = simd::exact_product<S>(spans_[0][i - 1], factor).lo;
      missing = simd::fma<S>(missing, factor, rounding);
    }
    return carried_total<S>(spans_[0][C - 1], missing, lost);
  }

 private:
  static constexpr Index C = chunk_length;
  Batch spans_[C][C];
};

/// What the tokens of a chunk hand to each other: token i reads read[i, j] of what token j <= i
/// writes and `since[i]` of what it finds in the state before the chunk; `until[j]` of what token j
/// writes is left behind the chunk.
template <class S>
struct ChunkWeights {
  static constexpr Index C = chunk_length;
  S read[C * C], since[C], until[C];
};

/// The queries and keys of a chunk, [tokens, K]; tokens behind them count as zeros.
template <class S>
struct ChunkRows {
  View<const S, 2> q, k;

  SEQMIX_ALWAYS_INLINE static simd::Batch<S> load(const View<const S, 2>& rows, Index token,
                                                  Index channel, auto lane_count) {
    return token < rows.extent(0) ? simd::load<S>(&rows(token, channel), lane_count)
                                  : simd::broadcast(S(0));
  }
};

/// Queries read and keys write as they are, for decays by head: the coefficients of a chunk but the
/// total decay, and products[i, j] = q_i k_jᵀ for j <= i, else 0.
template <class S>
void prepare_rows(const ChunkRows<S>& rows, S* coefficients, S* products) {
  using Batch = simd::Batch<S>;
  constexpr Index C = chunk_length, L = simd::lanes<S>;
  const auto add = [&](Index channel, auto lane_count, Batch* sums) __attribute__((always_inline)) {
    Batch key[C];
#pragma GCC unroll 4
    for (Index i = 0; i < C; ++i) {
      const Batch query = rows.load(rows.q, i, channel, lane_count);
      key[i] = rows.load(rows.k, i, channel, lane_count);
      simd::store<S>(coefficients + i * L, query);
      simd::store<S>(coefficients + (C + i) * L, key[i]);
#pragma GCC unroll 4
      for (Index j = 0; j < C; ++j) {
        if (j <= i) sums[i * C + j] = simd::fma<S>(query, key[j], sums[i * C + j]);
      }
    }
    coefficients += LinearSweep<S>::rows * L;
  };
  sum_channels<S, C * C>(rows.q.extent(1), products, add);
}

/// The weights of a chunk with the factors `a` of a head, and its total decay as a coefficient.
template <class S>
void weigh_products(const S* products, bool reads_before, const S* a, S scale, Index K,
                    S* coefficients, S* lost, ChunkWeights<S>& weights) {
  constexpr Index C = chunk_length, L = simd::lanes<S>;
  const FactorSpans<S> spans(a, L);
  S span[C + 1][C + 1][L];  // [first, last + 1], the same number in all lanes
#pragma GCC unroll 5
  for (Index first = 0; first <= C; ++first) {
#pragma GCC unroll 5
    for (Index end = 0; end <= C; ++end) simd::store<S>(span[first][end], spans(first, end - 1));
  }
  for (Index i = 0; i < C; ++i) {
    const Index end = reads_before ? i : i + 1;
    weights.since[i] = span[0][end][0] * scale, weights.until[i] = span[i + 1][C][0];
    for (Index j = 0; j < C; ++j) {
      const S left = j < end ? span[j + 1][end][0] * scale : S(0);
      // A product may be infinite that a reset hides.
      weights.read[i * C + j] = left != 0 ? products[i * C + j] * left : S(0);
    }
  }
  const simd::Batch<S> total = spans.total(lost);
  for (Index c = 0; c < K; c += L, coefficients += LinearSweep<S>::rows * L) {
    simd::store<S>(coefficients + 2 * C * L, total);
  }
}

/// The coefficients and weights of a chunk with factors a channel, `a` [C, a_stride]. Queries take
/// what decays since the start of the chunk, keys what does until its end.
template <bool reads_before, class S>
void prepare_by_channel(const ChunkRows<S>& rows, const S* bonus, const S* a, Index a_stride,
                        S scale, S* coefficients, S* lost, ChunkWeights<S>& weights) {
  using Batch = simd::Batch<S>;
  constexpr Index C = chunk_length, L = simd::lanes<S>;
  const auto add = [&](Index channel, auto lane_count, Batch* sums) __attribute__((always_inline)) {
    const FactorSpans<S> spans(a + channel, a_stride);
    Batch key[C];
#pragma GCC unroll 4
    for (Index i = 0; i < C; ++i) {
      const Index last = reads_before ? i - 1 : i;
      const Batch query = rows.load(rows.q, i, channel, lane_count);
      key[i] = rows.load(rows.k, i, channel, lane_count);
      simd::store<S>(coefficients + i * L, spans.decayed(query, 0, last));
      simd::store<S>(coefficients + (C + i) * L, spans.decayed(key[i], i + 1, C - 1));
#pragma GCC unroll 4
      for (Index j = 0; j < C; ++j) {
        if (j > last) continue;
        const Batch left = spans.decayed(key[j], j + 1, last);
        sums[i * C + j] = simd::fma<S>(query, left, sums[i * C + j]);
      }
      if (reads_before && bonus != nullptr) {
        const Batch own = key[i] * simd::load<S>(bonus + channel, lane_count);
        sums[i * C + i] = simd::fma<S>(query, own, sums[i * C + i]);
      }
    }
    simd::store<S>(coefficients + 2 * C * L, spans.total(lost + channel));
    coefficients += LinearSweep<S>::rows * L;
  };
  sum_channels<S, C * C>(rows.q.extent(1), weights.read, add);
  for (S& weight : weights.read) weight *= scale;
  std::fill_n(weights.since, C, scale), std::fill_n(weights.until, C, S(1));
}

/// The outputs of the `tokens` tokens of a chunk and what it writes, in `count` columns.
template <class S>
void read_and_write(const ChunkWeights<S>& weights, Index tokens, Index count, const S* found,
                    const S* v, Index v_stride, S* written, S* o, Index o_stride) {
  using Batch = simd::Batch<S>;
  constexpr Index C = chunk_length, columns = LinearSweep<S>::columns;
  simd::for_each_block<S>(
      count, [&](Index c, auto lane_count) __attribute__((always_inline)) {
        Batch value[C];
#pragma GCC unroll 4
        for (Index i = 0; i < C; ++i) {
          // Behind the last token its value again, which a key of zeros writes.
          value[i] = simd::load<S>(v + std::min(i, tokens - 1) * v_stride + c, lane_count);
          simd::store<S>(written + i * columns + c, value[i] * simd::broadcast(weights.until[i]));
          Batch read = simd::load(found + i * columns + c) * simd::broadcast(weights.since[i]);
#pragma GCC unroll 4
          for (Index j = 0; j < C; ++j) {
            if (j > i) continue;
            read = simd::fma<S>(simd::broadcast(weights.read[i * C + j]), value[j], read);
          }
          if (i < tokens) simd::store<S>(o + i * o_stride + c, read, lane_count);
        }
      });
}

/// The products of a chunk and the factors of its value columns, rows of `a` that lie `a_stride`
/// apart; `lost` is what the totals before it lack.
template <class S>
struct ValueWeights {
  const S *products, *a;
  Index a_stride;
  S *lost, scale;
};

/// `read_and_write` with factors of columns, whose totals follow what is written.
template <bool reads_before, class S>
void read_and_write_by_value(const ValueWeights<S>& weights, Index tokens, Index count,
                             const S* found, const S* v, Index v_stride, S* written, S* o,
                             Index o_stride) {
  using Batch = simd::Batch<S>;
  constexpr Index C = chunk_length, columns = LinearSweep<S>::columns;
  simd::for_each_block<S>(
      count, [&](Index c, auto lane_count) __attribute__((always_inline)) {
        const FactorSpans<S> spans(weights.a + c, weights.a_stride);
        Batch value[C];
#pragma GCC unroll 4
        for (Index i = 0; i < C; ++i) {
          const Index last = reads_before ? i - 1 : i;
          // Behind the last token its value again, which a key of zeros writes.
          value[i] = simd::load<S>(v + std::min(i, tokens - 1) * v_stride + c, lane_count);
          simd::store<S>(written + i * columns + c, spans.decayed(value[i], i + 1, C - 1));
          Batch read = spans.left_of(simd::load(found + i * columns + c), 0, last);
#pragma GCC unroll 4
          for (Index j = 0; j < C; ++j) {
            if (j > last) continue;
            const Batch product = simd::broadcast(weights.products[i * C + j]);
            read = simd::fma<S>(spans.left_of(product, j + 1, last), value[j], read);
          }
          read = read * simd::broadcast(weights.scale);
          if (i < tokens) simd::store<S>(o + i * o_stride + c, read, lane_count);
        }
        simd::store<S>(written + C * columns + c, spans.total(weights.lost + c));
      });
}

/// The chunkwise form of one unit of work. Within a chunk of tokens that starts from the state S0:
///
///   o_i = q_i (a_1 ... a_i) S0 + Σ_{j<=i} (q_i (a_{j+1} ... a_i) k_jᵀ) v_j
///   S   = (a_1 ... a_C) S0 + Σ_j (a_{j+1} ... a_C k_j)ᵀ v_j
///
/// Where a token reads before it writes, o_i takes the factors up to a_{i-1} and the tokens j < i.
/// Decays are only ever multiplied from the older to the newer token. One of a head commutes with
/// the state and goes to o and v, so that the heads of a group share q, k and their products; so
/// does one of a value column, column by column.
/// Yang et al. 2023, arXiv:2312.06635, section 4; Dao & Gu 2024, arXiv:2405.21060, section 6.
template <class S>
class LinearChunks {
 public:
  /// `factors`: of a token, one a channel or a value column, or 1 that stands in all lanes.
  LinearChunks(const StateRows<S>& unit, Index factors, Context::Scratch<S>& scratch)
      : unit_(unit),
        a_stride_(round_up(factors, L)),
        slabs_(slabs_size(unit.keys(), unit.values(), columns)),
        states_(scratch(unit.heads(), slabs_).data()),
        factors_(scratch(packed_tokens, a_stride_).data()),
        lost_(scratch(a_stride_).data()),
        coefficients_(scratch(most_chunks, size_).data()),
        products_(scratch(most_chunks, C * C).data()),
        found_(scratch(Sweep::readers, columns).data()),
        written_(scratch(Sweep::writers + 1, columns).data()) {
    std::fill_n(written_, (Sweep::writers + 1) * columns, S(0));
    pack_slabs<S>(unit.state, columns, states_);
  }
  void store_states() const { unpack_slabs<S>(states_, columns, unit_.state); }

  S* factors() const { return factors_; }
  Index factor_stride() const { return a_stride_; }

  /// Starts the block of `tokens` tokens from `first` on.
  void start(Index first, Index tokens) { first_ = first, tokens_ = tokens; }
  /// What the heads share where decays are by head.
  void prepare_shared() {
    for (Index n = 0; n < chunks(); ++n) {
      prepare_rows<S>(rows_of(n), coefficients_ + n * size_, products_ + n * C * C);
    }
  }
  /// The next head, whose factors are written.
  void weigh_by_head(bool reads_before) {
    end_factors();
    for (Index n = 0; n < chunks(); ++n) {
      weigh_products(products_ + n * C * C, reads_before, factors_of(n), unit_.scale, unit_.keys(),
                     coefficients_ + n * size_, lost_, weights_[n]);
    }
  }
  template <bool reads_before>
  void weigh_by_channel(const S* bonus) {
    end_factors();
    for (Index n = 0; n < chunks(); ++n) {
      prepare_by_channel<reads_before, S>(rows_of(n), bonus, factors_of(n), a_stride_, unit_.scale,
                                          coefficients_ + n * size_, lost_, weights_[n]);
    }
  }
  /// Sweeps the tokens through the state of head h while `ahead` comes nearer.
  void sweep(Index h, bool decays, LinesAhead<S>& ahead) {
    const Index K = unit_.keys(), V = unit_.values();
    for (Index column = 0; column < V; column += columns) {
      const auto solve = [&](Index n) {
        const Index token = first_ + n * C;
        read_and_write<S>(weights_[n], std::min(C, tokens_ - n * C), std::min(columns, V - column),
                          found_, &unit_.v(token, h, column), unit_.v.stride(0), written_,
                          &unit_.o(token, h, column), unit_.o.stride(0));
      };
      Sweep::run(decays, K, chunks(), coefficients_, found_, written_,
                 states_ + h * slabs_ + column * K, solve, ahead);
    }
  }
  /// The same with the factors of value columns, which are written.
  template <bool reads_before>
  void sweep_by_value(Index h, LinesAhead<S>& ahead) {
    end_factors();
    const Index K = unit_.keys(), V = unit_.values();
    for (Index column = 0; column < V; column += columns) {
      const auto solve = [&](Index n) {
        const Index token = first_ + n * C;
        const ValueWeights<S> weights{products_ + n * C * C, factors_of(n) + column, a_stride_,
                                      lost_ + column, unit_.scale};
        read_and_write_by_value<reads_before, S>(
            weights, std::min(C, tokens_ - n * C), std::min(columns, V - column), found_,
            &unit_.v(token, h, column), unit_.v.stride(0), written_, &unit_.o(token, h, column),
            unit_.o.stride(0));
      };
      Sweep::template run<true>(true, K, chunks(), coefficients_, found_, written_,
                                states_ + h * slabs_ + column * K, solve, ahead);
    }
  }

 private:
  using Sweep = LinearSweep<S>;
  static constexpr Index C = chunk_length, L = simd::lanes<S>, columns = Sweep::columns;
  static constexpr Index most_chunks = packed_tokens / C;

  Index chunks() const { return ceil_div(tokens_, C); }
  const S* factors_of(Index n) const { return factors_ + n * C * a_stride_; }
  ChunkRows<S> rows_of(Index n) const {
    const auto of_chunk = [&](const View<const S, 2>& rows) {
      return rows.slice(axis::time, first_ + n * C, std::min(C, tokens_ - n * C));
    };
    return {of_chunk(unit_.q), of_chunk(unit_.k)};
  }
  /// Tokens behind the last forget nothing.
  void end_factors() const {
    std::fill(factors_ + tokens_ * a_stride_, factors_ + chunks() * C * a_stride_, S(1));
    std::fill_n(lost_, a_stride_, S(0));
  }

  const StateRows<S>& unit_;
  const Index a_stride_, slabs_, size_ = Sweep::coefficients(unit_.keys());
  S *const states_, *const factors_, *const lost_, *const coefficients_, *const products_;
  S *const found_, *const written_;
  ChunkWeights<S> weights_[most_chunks];
  Index first_ = 0, tokens_ = 0;  // of the block
};

/// Whether a head has a row of factors a token.
template <class Decay>
inline constexpr bool has_rows = Decay::by_channel || by_value<Decay>;

/// Tokens that a head takes before the next. Rows of factors fill the nearest cache sooner.
template <class Decay>
inline constexpr Index tokens_per_block = has_rows<Decay> ? packed_tokens / 2 : packed_tokens;

/// The rows that a unit takes after those of head h in the block of tokens from `first` on.
template <class S, class Decay>
LinesAhead<S> lines_ahead(const LinearStateUnit<S, Decay>& unit, Index h, Index first) {
  constexpr Index block = tokens_per_block<Decay>;
  const bool last = h + 1 == unit.heads();
  const Index next = last ? 0 : h + 1, from = last ? first + block : first;
  LinesAhead<S> ahead;
  if (from >= unit.tokens()) return ahead;
  const auto add = [&](const View<const S, 2>& rows) {
    ahead.add(rows.slice(axis::time, from, std::min(block, unit.tokens() - from)));
  };
  if (last) add(unit.q), add(unit.k);
  if constexpr (has_rows<Decay>) add(unit.decays(next));
  add(unit.v.at(axis::head, next)), add(unit.o.at(axis::head, next));
  return ahead;
}

template <class S, class Decay>
void linear_state_chunked(const LinearStateUnit<S, Decay>& unit, const Call& call) {
  constexpr Index block = tokens_per_block<Decay>;
  auto scratch = call.scratch<S>();
  const Index factors = by_value<Decay> ? unit.values() : Decay::by_channel ? unit.keys() : 1;
  LinearChunks<S> chunks(unit, factors, scratch);
  for (Index first = 0; first < unit.tokens(); first += block) {
    const Index tokens = std::min(block, unit.tokens() - first);
    chunks.start(first, tokens);
    if constexpr (!Decay::by_channel) chunks.prepare_shared();
    for (Index h = 0; h < unit.heads(); ++h) {
      unit.write_factors(h, first, tokens, chunks.factors(), chunks.factor_stride());
      if constexpr (Decay::by_channel) {
        chunks.template weigh_by_channel<reads_before<Decay>>(unit.bonus(h));
      } else if constexpr (!by_value<Decay>) {
        chunks.weigh_by_head(reads_before<Decay>);
      }
      LinesAhead<S> ahead = lines_ahead(unit, h, first);
      if constexpr (by_value<Decay>) {
        chunks.template sweep_by_value<reads_before<Decay>>(h, ahead);
      } else {
        chunks.sweep(h, !std::is_base_of_v<NoDecay, Decay>, ahead);
      }
    }
  }
  chunks.store_states();
}

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
