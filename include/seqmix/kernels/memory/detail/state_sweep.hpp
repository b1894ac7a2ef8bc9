#pragma once

#include <algorithm>

#include "seqmix/kernels/memory/detail/lines_ahead.hpp"
#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Short chunks of tokens in a row pass through some columns of a state [K, V]. What chunk n has to
/// write depends on what it finds, so that the state is swept once between two chunks:
///
///   S = diag(total_n) S + Σ_w writer_wᵀ written_w,   then found_r = reader_r S for chunk n + 1
///
/// while each number of S is in a register. Four tokens that write one row and read two each cost
/// 13 operations a number instead of the 16 of a recurrence, and a load and a store instead of
/// eight and four: the sweep runs at the rate of the multiply-adds.
///
/// Readers, writers and the total decay are the coefficients of a chunk. They stand in panels of L
/// key channels, [K / L, rows, L], at distances that the compiler knows.
template <class S, Index chunk_readers, Index chunk_writers>
struct StateSweep {
  using Batch = simd::Batch<S>;
  static constexpr Index L = simd::lanes<S>;
  static constexpr Index readers = chunk_readers, writers = chunk_writers;
  static constexpr Index rows = readers + writers + 1;
  /// The registers of columns, of which all sums and all that is written stay in registers.
  static constexpr Index width = 2 * (readers + writers) <= (sizeof(Batch) >= 64 ? 24 : 12) ? 2 : 1;
  static constexpr Index columns = width * L;

  /// The numbers of a chunk's coefficients.
  static constexpr Index coefficients(Index K) { return ceil_div(K, L) * rows * L; }

  /// `chunks` chunks on a state [K, columns], which they leave without subnormal numbers.
  /// `solve(n)` turns `found` [readers, columns] of chunk n into `written` [writers, columns].
  /// Meanwhile memory brings the rows of `ahead` nearer, a line of L tokens a panel of channels.
  /// With `by_column` the total decay is that of columns: it is one more row of `written`.
  template <bool by_column = false>
  static void run(bool decays, Index K, Index chunks, const S* coefficients_of, S* found,
                  S* written, S* state, auto&& solve, LinesAhead<S>& ahead) {
    const Index size = coefficients(K);
    pass<false, true, false>(K, nullptr, written, coefficients_of, found, state, ahead);
    for (Index n = 0; n < chunks; ++n, coefficients_of += size) {
      solve(n);
      if (n + 1 == chunks) {
        pass<true, false, true, by_column>(K, coefficients_of, written, nullptr, found, state,
                                           ahead);
      } else if (decays) {
        pass<true, true, true, by_column>(K, coefficients_of, written, coefficients_of + size,
                                          found, state, ahead);
      } else {
        pass<true, true, false>(K, coefficients_of, written, coefficients_of + size, found, state,
                                ahead);
      }
    }
  }

 private:
  template <bool writes, bool reads, bool decays, bool by_column = false>
  __attribute__((noinline)) static void pass(Index K, const S* before, const S* written,
                                             const S* after, S* found, S* state,
                                             LinesAhead<S>& ahead) {
    Batch sum[readers][width], value[writers][width], kept[width];
#pragma GCC unroll 2
    for (Index c = 0; c < width; ++c) {
#pragma GCC unroll 8
      for (Index r = 0; r < readers; ++r) sum[r][c] = simd::broadcast(S(0));
#pragma GCC unroll 8
      for (Index w = 0; writes && w < writers; ++w) {
        value[w][c] = simd::load(written + w * columns + c * L);
      }
      if constexpr (by_column) kept[c] = simd::load(written + writers * columns + c * L);
    }
    for (Index panel = 0; panel < K; panel += L) {
      const Index channels = std::min(L, K - panel);
      auto [fetched, stride] = ahead.next(L);
      for (Index i = 0; i < channels; ++i, state += columns, fetched += stride) {
        simd::prefetch(fetched);
        Batch s[width];
#pragma GCC unroll 2
        for (Index c = 0; c < width; ++c) s[c] = simd::load(state + c * L);
        if constexpr (writes) {
          const Batch total = simd::broadcast(by_column ? S(1) : before[(rows - 1) * L + i]);
#pragma GCC unroll 2
          for (Index c = 0; decays && c < width; ++c) s[c] = s[c] * (by_column ? kept[c] : total);
#pragma GCC unroll 8
          for (Index w = 0; w < writers; ++w) {
            const Batch writer = simd::broadcast(before[(readers + w) * L + i]);
#pragma GCC unroll 2
            for (Index c = 0; c < width; ++c) s[c] = simd::fma<S>(writer, value[w][c], s[c]);
          }
#pragma GCC unroll 2
          for (Index c = 0; c < width; ++c) {
            simd::store<S>(state + c * L, reads ? s[c] : simd::flush_subnormal<S>(s[c]));
          }
        }
#pragma GCC unroll 8
        for (Index r = 0; reads && r < readers; ++r) {
          const Batch reader = simd::broadcast(after[r * L + i]);
#pragma GCC unroll 2
          for (Index c = 0; c < width; ++c) sum[r][c] = simd::fma<S>(reader, s[c], sum[r][c]);
        }
      }
      if constexpr (writes) before += rows * L;
      if constexpr (reads) after += rows * L;
    }
#pragma GCC unroll 8
    for (Index r = 0; reads && r < readers; ++r) {
#pragma GCC unroll 2
      for (Index c = 0; c < width; ++c) simd::store<S>(found + r * columns + c * L, sum[r][c]);
    }
  }
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
