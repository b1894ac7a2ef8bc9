#pragma once

#include <algorithm>
#include <array>

#include "seqmix/core/compiled.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/memory/detail/channel_sums.hpp"
#include "seqmix/kernels/memory/detail/lines_ahead.hpp"
#include "seqmix/kernels/memory/detail/state_cuts.hpp"
#include "seqmix/kernels/memory/detail/state_sweep.hpp"
#include "seqmix/kernels/memory/detail/swept_blocks.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// The columns of the state that go through time together: their sums fit in registers.
template <class S>
inline constexpr Index dplr_registers = sizeof(simd::Batch<S>) >= 64 ? 4 : 2;
template <class S>
inline constexpr Index dplr_columns = dplr_registers<S>* simd::lanes<S>;

/// Value columns of one head in one segment, over a block of time.
template <class S>
struct DplrBlock {
  View<const S, 2> r, log_decay, k, a, b;  // [T, K]
  View<const S, 2> v;                      // [T, columns]
  View<S, 2> o;                            // [T, columns]

  Index tokens() const { return r.extent(0); }
  Index keys() const { return r.extent(1); }
  Index values() const { return v.extent(1); }
  std::array<View<const S, 2>, 7> rows() const { return {r, log_decay, k, a, b, v, o}; }
};

/// The factor of a log decay.
template <class S>
simd::Batch<S> dplr_factor(const simd::Batch<S>& log) {
  return simd::flush_subnormal<S>(simd::exp(log));
}

/// One token: s = w s + bᵀ erased + kᵀ v, o = r s. Where a token follows, `erased` becomes a' s of
/// its a', while s is in a register; where not, the state leaves without subnormal numbers.
template <bool followed, class S>
void dplr_token(Index K, const S* r, const S* w, const S* k, const S* b, const S* next_a,
                const S* v, simd::Batch<S>* erased, S* state, Index stride, S* o) {
  using Batch = simd::Batch<S>;
  constexpr Index width = dplr_registers<S>, L = simd::lanes<S>;
  Batch value[width], read[width], past[width], next[width];
#pragma GCC unroll 4
  for (Index c = 0; c < width; ++c) {
    value[c] = simd::load(v + c * L), past[c] = erased[c];
    read[c] = next[c] = simd::broadcast(S(0));
  }
  for (Index j = 0; j < K; ++j, state += stride) {
    const Batch decay = simd::broadcast(w[j]), key = simd::broadcast(k[j]);
    const Batch back = simd::broadcast(b[j]), query = simd::broadcast(r[j]);
    const Batch erase = simd::broadcast(followed ? next_a[j] : S(0));
#pragma GCC unroll 4
    for (Index c = 0; c < width; ++c) {
      const Batch written = simd::fma<S>(back, past[c], key * value[c]);
      const Batch s = simd::fma<S>(decay, simd::load(state + c * L), written);
      read[c] = simd::fma<S>(query, s, read[c]);
      if constexpr (followed) {
        next[c] = simd::fma<S>(erase, s, next[c]);
        simd::store<S>(state + c * L, s);
      } else {
        simd::store<S>(state + c * L, simd::flush_subnormal<S>(s));
      }
    }
  }
#pragma GCC unroll 4
  for (Index c = 0; c < width; ++c) {
    simd::store<S>(o + c * L, read[c]);
    erased[c] = next[c];
  }
}

/// The literal recurrence on a state [K, columns], `dplr_columns` of its columns after the other.
template <class S>
void dplr_recurrent(const DplrBlock<S>& block, const View<S, 2>& state, const Call& call) {
  using Batch = simd::Batch<S>;
  constexpr Index width = dplr_registers<S>, columns = dplr_columns<S>, L = simd::lanes<S>;
  const Index T = block.tokens(), K = block.keys(), w_stride = round_up(K, L);
  auto scratch = call.scratch<S>();
  S* const w = scratch(T, w_stride).data();
  S* const v = scratch(T, columns).data();
  S* const o = scratch(T, columns).data();
  S* const padded = scratch(K, columns).data();

  pack_padded<S>(block.log_decay, w, w_stride, dplr_factor<S>);
  for (Index column = 0; column < block.values(); column += columns) {
    const Index count = std::min(columns, block.values() - column);
    const View<S, 2> part = state.slice(axis::channel, column, count);
    const bool copy = count < columns;
    if (copy) pack_padded<S>(part, padded, columns);
    S* const place = copy ? padded : part.data();
    const Index stride = copy ? columns : part.stride(0);
    pack_padded<S>(block.v.slice(axis::channel, column, count), v, columns);
    Batch erased[width];
    for (Index c = 0; c < width; ++c) erased[c] = simd::broadcast(S(0));
    for (Index j = 0; j < K; ++j) {
      const Batch erase = simd::broadcast(block.a(0, j));
#pragma GCC unroll 4
      for (Index c = 0; c < width; ++c) {
        erased[c] = simd::fma<S>(erase, simd::load(place + j * stride + c * L), erased[c]);
      }
    }
    for (Index t = 0; t < T; ++t) {
      const auto token = [&]<bool followed>(std::bool_constant<followed>) {
        dplr_token<followed>(K, &block.r(t, 0), w + t * w_stride, &block.k(t, 0), &block.b(t, 0),
                             followed ? &block.a(t + 1, 0) : nullptr, v + t * columns, erased,
                             place, stride, o + t * columns);
      };
      t + 1 < T ? token(std::true_type{}) : token(std::false_type{});
    }
    unpack_padded<S>(o, columns, block.o.slice(axis::channel, column, count));
    if (copy) unpack_padded<S>(padded, columns, part);
  }
}

/// Tokens of a chunk: what a sweep keeps of them fits in the registers.
inline constexpr Index dplr_chunk = 2;
template <class S>
using DplrSweep = StateSweep<S, 2 * dplr_chunk, 2 * dplr_chunk>;

/// What the tokens of a chunk hand to each other, through k and through b.
template <class S>
struct DplrWeights {
  static constexpr Index C = dplr_chunk, count = round_up(2 * C * C, simd::lanes<S>);
  S sums[count];

  /// How much of what token j writes token i reads with r, j <= i.
  static constexpr Index read_k(Index i, Index j) { return i * C + j; }
  static constexpr Index read_b(Index i, Index j) { return C * C + i * C + j; }
  /// And how much it finds with a before it writes, j < i.
  static constexpr Index found_k(Index i, Index j) { return read_k(j, i); }
  static constexpr Index found_b(Index i, Index j) { return read_b(j, i); }
};

/// The coefficients and weights of the `tokens` tokens of a chunk from `first` on, the rest of it
/// zeros. The k and b of tokens that write decay from token to token, so that they are the writers
/// after the last.
///
/// What the total of a channel lacks is `lost` [K], which the next total takes.
template <class S>
void prepare_dplr_chunk(const DplrBlock<S>& block, Index first, Index tokens, S* coefficients,
                        S* lost, DplrWeights<S>& weights) {
  using Batch = simd::Batch<S>;
  constexpr Index C = dplr_chunk, L = simd::lanes<S>;
  const Batch zero = simd::broadcast(S(0));
  using Weights = DplrWeights<S>;
  const auto add_channels = [&](Index channel, auto lane_count, Batch* sums)
      __attribute__((always_inline)) {
    const auto add = [&](Index i, const Batch& x, const Batch& y) __attribute__((always_inline)) {
      sums[i] = simd::fma<S>(x, y, sums[i]);
    };
    const auto load = [&](const View<const S, 2>& from, Index i) {
      return i < tokens ? simd::load<S>(&from(first + i, channel), lane_count) : zero;
    };
    const auto put = [&](Index row, const Batch& x) { simd::store<S>(coefficients + row * L, x); };
    Batch key[C], back[C], factor[C];
    DecayProduct<S> decay[C], since_start;
#pragma GCC unroll 4
    for (Index i = 0; i < C; ++i) {
      const Batch erase = load(block.a, i), query = load(block.r, i);
      factor[i] = dplr_factor<S>(load(block.log_decay, i));
      key[i] = load(block.k, i), back[i] = load(block.b, i);
      put(C + i, erase * since_start.value());
#pragma GCC unroll 4
      for (Index j = 0; j < C; ++j) {
        if (j >= i) continue;
        const Batch found = erase * decay[j].value();
        add(Weights::found_k(i, j), found, key[j]);
        add(Weights::found_b(i, j), found, back[j]);
        decay[j].multiply(factor[i]);
      }
      since_start.multiply(factor[i]);
      put(i, query * since_start.value());
#pragma GCC unroll 4
      for (Index j = 0; j < C; ++j) {
        if (j > i) continue;
        const Batch read = query * decay[j].value();
        add(Weights::read_k(i, j), read, key[j]);
        add(Weights::read_b(i, j), read, back[j]);
      }
    }
#pragma GCC unroll 4
    for (Index j = 0; j < C; ++j) {
      put(2 * C + j, key[j] * decay[j].value()), put(3 * C + j, back[j] * decay[j].value());
    }
    static_assert(C == 2);
    const Batch missing = simd::exact_product<S>(factor[0], factor[1]).lo;
    put(4 * C, carried_total<S>(since_start.value(), missing, lost + channel));
    coefficients += DplrSweep<S>::rows * L;
  };
  sum_channels<S, Weights::count>(block.keys(), weights.sums, add_channels);
}

/// Solves the triangular system of a chunk for some columns. found: [2 C, columns], by r, by a;
/// written: [2 C, columns], v, then u.
template <class S>
void solve_dplr_chunk(const DplrWeights<S>& weights, const S* found, const View<const S, 2>& v,
                      S* written, const View<S, 2>& o) {
  using Batch = simd::Batch<S>;
  using Weights = DplrWeights<S>;
  constexpr Index C = dplr_chunk, columns = DplrSweep<S>::columns;
  const Index tokens = v.extent(0);
  const auto solve = [&](Index c, auto lane_count) __attribute__((always_inline)) {
    Batch value[C], back[C];
#pragma GCC unroll 4
    for (Index i = 0; i < C; ++i) {
      value[i] = i < tokens ? simd::load<S>(&v(i, c), lane_count) : simd::broadcast(S(0));
      back[i] = simd::load(found + (C + i) * columns + c);
      Batch read = simd::load(found + i * columns + c);
#pragma GCC unroll 4
      for (Index j = 0; j < C; ++j) {
        if (j >= i) continue;
        back[i] =
            simd::fma<S>(simd::broadcast(weights.sums[Weights::found_k(i, j)]), value[j], back[i]);
        back[i] =
            simd::fma<S>(simd::broadcast(weights.sums[Weights::found_b(i, j)]), back[j], back[i]);
      }
#pragma GCC unroll 4
      for (Index j = 0; j < C; ++j) {
        if (j > i) continue;
        read = simd::fma<S>(simd::broadcast(weights.sums[Weights::read_k(i, j)]), value[j], read);
        read = simd::fma<S>(simd::broadcast(weights.sums[Weights::read_b(i, j)]), back[j], read);
      }
      simd::store<S>(written + i * columns + c, value[i]);
      simd::store<S>(written + (C + i) * columns + c, back[i]);
      if (i < tokens) simd::store<S>(&o(i, c), read, lane_count);
    }
  };
  simd::for_each_block<S>(v.extent(1), solve);
}

/// The chunkwise form. Within a chunk of tokens that starts from the state S0 the rows u_i that the
/// tokens find and write back solve a triangular system:
///
///   u_i = a_i (w_1 ... w_{i-1}) S0 + Σ_{j<i} (a_i (w_{j+1} ... w_{i-1}) k_jᵀ) v_j
///                                  + Σ_{j<i} (a_i (w_{j+1} ... w_{i-1}) b_jᵀ) u_j
///   o_i = r_i (w_1 ... w_i) S0 + Σ_{j<=i} (r_i (w_{j+1} ... w_i) k_jᵀ) v_j, and b_j and u_j alike
///   S   = (w_1 ... w_C) S0 + Σ_j (w_{j+1} ... w_C k_j)ᵀ v_j + (w_{j+1} ... w_C b_j)ᵀ u_j
///
/// Decays are only ever multiplied from the older to the newer token.
/// Yang et al. 2024, arXiv:2406.06484, section 3; fla/ops/generalized_delta_rule/dplr/naive.py.
template <class S>
void dplr_chunked(const DplrBlock<S>& block, LinesAhead<S>& ahead, S* slabs, const Call& call) {
  using Sweep = DplrSweep<S>;
  constexpr Index C = dplr_chunk, columns = Sweep::columns;
  const Index T = block.tokens(), K = block.keys(), V = block.values();
  const Index chunks = ceil_div(T, C), size = Sweep::coefficients(K);
  auto scratch = call.scratch<S>();
  S* const coefficients = scratch(chunks, size).data();
  S* const lost = scratch(round_up(K, simd::lanes<S>)).data();
  S* const found = scratch(Sweep::readers, columns).data();
  S* const written = scratch(Sweep::writers, columns).data();
  DplrWeights<S> weights[packed_tokens / C];
  std::fill_n(written, Sweep::writers * columns, S(0));
  std::fill_n(lost, round_up(K, simd::lanes<S>), S(0));

  const auto tokens = [&](Index n) { return std::min(C, T - n * C); };
  for (Index n = 0; n < chunks; ++n) {
    prepare_dplr_chunk(block, n * C, tokens(n), coefficients + n * size, lost, weights[n]);
  }
  for (Index column = 0; column < V; column += columns) {
    const auto solve = [&](Index n) {
      const auto part = [&](const auto& view) {
        return view.slice(axis::time, n * C, tokens(n))
            .slice(axis::channel, column, std::min(columns, V - column));
      };
      solve_dplr_chunk<S>(weights[n], found, part(block.v), written, part(block.o));
    };
    Sweep::run(true, K, chunks, coefficients, found, written, slabs + column * K, solve, ahead);
  }
}

}  // namespace detail

/// A state whose transition is diagonal plus low rank, as RWKV-7 and generalised delta rules have:
///
///   S_t = diag(exp g_t) S_{t-1} + b_tᵀ (a_t S_{t-1}) + k_tᵀ v_t,   o_t = r_t S_t,   g_t <= 0
///
/// r, log_decay, k, a, b: [T, H, K]; v, o: [T, H, V]; state: [B, H, K, V], whose rows the segments
/// of the call read, then advance. Last dimensions are contiguous; o shares no number with the
/// rest.
///
/// A recurrent segment is the literal recurrence: five operations a token and number of the state,
/// which stays in the first cache and is read and written once a token; sums are chains of fma over
/// ascending channels. A parallel one takes chunks of `dplr_chunk` tokens, 4.5 operations a number,
/// unless the call's algorithm is the recurrence. Both serve any T. Numbers of the state below the
/// smallest normal one become zero.
template <class S>
void dplr_state(In<S, 3> r, In<S, 3> log_decay, In<S, 3> k, In<S, 3> v, In<S, 3> a, In<S, 3> b,
                Out<S, 4> state, View<S, 3> o, const Call& call) {
  const Index T = o.extent(0), H = o.extent(1), V = o.extent(2), K = r.extent(2);
  const Expect expect{"dplr_state"};
  expect.rows("o", o, {T, H, V}), expect.rows("v", v, {T, H, V});
  expect.rows("r", r, {T, H, K}), expect.rows("log_decay", log_decay, {T, H, K});
  expect.rows("k", k, {T, H, K}), expect.rows("a", a, {T, H, K}), expect.rows("b", b, {T, H, K});
  expect.rows("state", state, {state.extent(0), H, K, V});
  if (o.empty()) return;

  constexpr Index slab = detail::DplrSweep<S>::columns;
  const auto cut_of = [&](const Segment& segment) {
    return detail::cut_by_heads(
        call, segment, state.shape(),
        detail::takes_chunks(call, segment) ? slab : detail::dplr_columns<S>);
  };
  detail::for_each_state_unit(
      state, call, cut_of, [&](const detail::StateUnit& at, const Call& worker) {
        const auto block_of = [&](Index head, Index first, Index tokens) {
          const auto part = [&](const auto& view) {
            return view.at(axis::head, head).slice(axis::time, at.segment.first + first, tokens);
          };
          return detail::DplrBlock<S>{.r = part(r),
                                      .log_decay = part(log_decay),
                                      .k = part(k),
                                      .a = part(a),
                                      .b = part(b),
                                      .v = part(v).slice(axis::channel, at.column, at.width),
                                      .o = part(o).slice(axis::channel, at.column, at.width)};
        };
        if (detail::takes_chunks(call, at.segment)) {
          detail::for_each_swept_block(
              at, state, slab, worker, block_of,
              [&](const auto& block, detail::LinesAhead<S>& ahead, S* slabs) {
                detail::dplr_chunked(block, ahead, slabs, worker);
              });
        } else {
          const View<S, 3> heads = at.state_of(state);
          detail::for_each_block_of_time(at, [&](Index head, Index first, Index tokens) {
            detail::dplr_recurrent(block_of(head, first, tokens), heads[head - at.head], worker);
          });
        }
      });
}

#define SEQMIX_DPLR_STATE(S)                                                             \
  void dplr_state(In<S, 3>, In<S, 3>, In<S, 3>, In<S, 3>, In<S, 3>, In<S, 3>, Out<S, 4>, \
                  View<S, 3>, const Call&)
SEQMIX_COMPILE(SEQMIX_DPLR_STATE);
#undef SEQMIX_DPLR_STATE

SEQMIX_END_NAMESPACE
}  // namespace seqmix
