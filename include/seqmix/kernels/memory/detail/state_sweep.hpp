#pragma once

#include <algorithm>
#include <array>

#include "seqmix/core/call.hpp"
#include "seqmix/core/view.hpp"
#include "seqmix/kernels/memory/decay.hpp"
#include "seqmix/kernels/memory/detail/state_units.hpp"
#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/math.hpp"
#include "seqmix/simd/reduce.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Rows of tokens that memory brings nearer while a state is swept, a line of the cache at a time.
template <class S>
class LinesAhead {
 public:
  /// A line of tokens `stride` apart.
  struct Line {
    const S* at;
    Index stride;
  };

  /// [tokens, columns]
  void add(const View<const S, 2>& rows) {
    if (!rows.empty()) rows_[count_++] = rows;
  }
  /// The next line of `count` tokens: where fewer are left one of them again and again.
  Line next(Index count) {
    if (at_ == count_) return {nothing_, 0};
    const View<const S, 2>& rows = rows_[at_];
    const bool whole = token_ + count <= rows.extent(0);
    const Line line{rows.data() + token_ * rows.stride(0) + column_, whole ? rows.stride(0) : 0};
    token_ += count;
    if (token_ >= rows.extent(0)) {
      token_ = 0, column_ += alignment / static_cast<Index>(sizeof(S));
      if (column_ >= rows.extent(1)) column_ = 0, ++at_;
    }
    return line;
  }

 private:
  std::array<View<const S, 2>, 7> rows_;
  std::size_t count_ = 0, at_ = 0;
  Index token_ = 0, column_ = 0;
  S nothing_[1] = {};
};

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
  static void run(bool decays, Index K, Index chunks, const S* coefficients_of, S* found,
                  S* written, S* state, auto&& solve, LinesAhead<S>& ahead) {
    const Index size = coefficients(K);
    pass<false, true, false>(K, nullptr, written, coefficients_of, found, state, ahead);
    for (Index n = 0; n < chunks; ++n, coefficients_of += size) {
      solve(n);
      if (n + 1 == chunks) {
        pass<true, false, true>(K, coefficients_of, written, nullptr, found, state, ahead);
      } else if (decays) {
        pass<true, true, true>(K, coefficients_of, written, coefficients_of + size, found, state,
                               ahead);
      } else {
        pass<true, true, false>(K, coefficients_of, written, coefficients_of + size, found, state,
                                ahead);
      }
    }
  }

 private:
  template <bool writes, bool reads, bool decays>
  __attribute__((noinline)) static void pass(Index K, const S* before, const S* written,
                                             const S* after, S* found, S* state,
                                             LinesAhead<S>& ahead) {
    Batch sum[readers][width], value[writers][width];
#pragma GCC unroll 2
    for (Index c = 0; c < width; ++c) {
#pragma GCC unroll 8
      for (Index r = 0; r < readers; ++r) sum[r][c] = simd::broadcast(S(0));
#pragma GCC unroll 8
      for (Index w = 0; writes && w < writers; ++w) {
        value[w][c] = simd::load(written + w * columns + c * L);
      }
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
          const Batch total = simd::broadcast(before[(rows - 1) * L + i]);
#pragma GCC unroll 2
          for (Index c = 0; decays && c < width; ++c) s[c] = s[c] * total;
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

/// to[i] = sums[i] over all channels, where `add(channel, lane_count, sums)` adds those of a
/// register of them. `count` is a multiple of the lanes.
template <class S, Index count>
SEQMIX_ALWAYS_INLINE void sum_channels(Index channels, S* to, auto&& add) {
  static_assert(count % simd::lanes<S> == 0);
  simd::Batch<S> sums[count];
#pragma GCC unroll 16
  for (Index i = 0; i < count; ++i) sums[i] = simd::broadcast(S(0));
  simd::for_each_block<S>(
      channels, [&](Index channel, auto lane_count)
                    __attribute__((always_inline)) { add(channel, lane_count, sums); });
  for (Index i = 0; i < count; i += simd::lanes<S>) {
    simd::store<S>(to + i, simd::reduce_add_each<S>(sums + i));
  }
}

/// The columns of each head of a state [heads, K, V] in slabs [K, slab] behind each other, padded
/// with zeros: rows at a distance of 4 KB would evict each other.
constexpr Index slabs_size(Index K, Index V, Index slab) { return K * round_up(V, slab); }
template <class S>
void for_each_slab(const View<S, 3>& state, Index slab, S* slabs, auto&& copy) {
  const Index K = state.extent(1), V = state.extent(2);
  for (Index h = 0; h < state.extent(0); ++h, slabs += slabs_size(K, V, slab)) {
    for (Index column = 0; column < V; column += slab) {
      copy(state[h].slice(axis::channel, column, std::min(slab, V - column)), slabs + column * K);
    }
  }
}
template <class S>
void pack_slabs(const View<S, 3>& state, Index slab, S* slabs) {
  for_each_slab(state, slab, slabs,
                [&](const View<S, 2>& from, S* to) { pack_padded<S>(from, to, slab); });
}
template <class S>
void unpack_slabs(S* slabs, Index slab, const View<S, 3>& state) {
  for_each_slab(state, slab, slabs,
                [&](const View<S, 2>& to, const S* from) { unpack_padded<S>(from, slab, to); });
}

/// Heads that one unit takes through the same blocks of time: their rows of a token lie beside each
/// other, where those of one head alone are short and far apart.
inline constexpr Index heads_per_task = 4;
/// Where there are fewer units than this, they take fewer heads, then fewer columns.
inline constexpr Index enough_tasks = 4;

/// A cut between columns is a multiple of `slab`.
inline StateCut cut_by_heads(const Call& call, const Segment& segment, const Shape<4>& state,
                             Index slab) {
  const Index H = state[1], V = state[3], wanted = share_of(call, segment, enough_tasks);
  const Index heads = std::clamp<Index>(H / wanted, 1, heads_per_task);
  const Index slabs = ceil_div(V, slab);
  const Index panels = std::min(slabs, ceil_div(wanted, ceil_div(H, heads)));
  const Index columns = ceil_div(slabs, panels) * slab;
  return {1, H, heads, columns, ceil_div(V, columns)};
}

/// Whether a segment passes in chunks.
inline bool takes_chunks(const Call& call, const Segment& segment) {
  return segment.form == Form::parallel && call.algorithm() != Algorithm::recurrent;
}

/// Calls `body(head, first, tokens)` for the heads of a unit and blocks of its tokens.
void for_each_block_of_time(const StateUnit& unit, auto&& body) {
  const Index T = unit.tokens();
  for (Index first = 0; first < T; first += packed_tokens) {
    for (Index head = unit.head; head < unit.head + unit.heads; ++head) {
      body(head, first, std::min(packed_tokens, T - first));
    }
  }
}

/// Calls `sweep(block, ahead, slabs)` for the same, where `block_of(head, first, tokens)` makes a
/// block: `ahead` are the rows of the one that follows, `slabs` a copy of the state of the head.
template <class S>
void for_each_swept_block(const StateUnit& unit, const View<S, 4>& state, Index slab,
                          const Call& call, auto&& block_of, auto&& sweep) {
  const View<S, 3> heads = unit.state_of(state);
  const Index size = slabs_size(heads.extent(1), heads.extent(2), slab), T = unit.tokens();
  auto scratch = call.scratch<S>();
  S* const slabs = scratch(unit.heads, size).data();
  pack_slabs<S>(heads, slab, slabs);
  for_each_block_of_time(unit, [&](Index head, Index first, Index tokens) {
    const bool last = head + 1 == unit.head + unit.heads;
    const Index next = last ? unit.head : head + 1, from = last ? first + packed_tokens : first;
    LinesAhead<S> ahead;
    if (from < T) {
      const auto following = block_of(next, from, std::min(packed_tokens, T - from));
      for (const View<const S, 2>& rows : following.rows()) ahead.add(rows);
    }
    sweep(block_of(head, first, tokens), ahead, slabs + (head - unit.head) * size);
  });
  unpack_slabs<S>(slabs, slab, heads);
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
