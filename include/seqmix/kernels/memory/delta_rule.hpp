#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <type_traits>

#include "seqmix/core/call.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/kernels/memory/decay.hpp"
#include "seqmix/kernels/memory/detail/channel_sums.hpp"
#include "seqmix/kernels/memory/detail/lines_ahead.hpp"
#include "seqmix/kernels/memory/detail/state_cuts.hpp"
#include "seqmix/kernels/memory/detail/state_sweep.hpp"
#include "seqmix/kernels/memory/detail/swept_blocks.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Value columns of one head in one segment, over a block of time.
template <class S, class Decay>
struct DeltaRuleBlock {
  View<const S, 2> q, k;  // [T, K]
  View<const S, 2> v;     // [T, columns]
  View<const S, 1> beta;  // [T]
  const Decay& decay;
  Index head, first;  // where it is in the call
  S scale;
  View<S, 2> o;  // [T, columns]

  Index tokens() const { return q.extent(0); }
  Index keys() const { return q.extent(1); }
  Index values() const { return v.extent(1); }
  std::array<View<const S, 2>, 4> rows() const { return {q, k, v, o}; }
  void write_factors(S* a, Index stride) const {
    decay.write_factors(head, first, tokens(), a, stride);
  }
};

/// The registers of columns that the recurrence takes through the state at a time.
inline constexpr Index delta_width = 4;
/// Tokens from which on a piece of the state is copied, so that its rows lie behind each other.
inline constexpr Index delta_tokens_to_copy = 8;

/// What one token of one head brings to the state. `k_decayed` is a ⊙ k.
template <class S>
struct DeltaToken {
  const S *q, *k, *k_decayed, *a;
  S beta, scale;
};

/// One token on `width` registers of columns of the state, rows of `stride` numbers: what k finds
/// there is read in a first pass, the state is replaced and read by q in a second.
template <Index width, class Decay, bool flushed, class S>
SEQMIX_ALWAYS_INLINE void delta_rule_token(const DeltaToken<S>& token, Index K, S* state,
                                           Index stride, const S* v, S* o, auto lane_count) {
  using Batch = simd::Batch<S>;
  constexpr Index L = simd::lanes<S>, chains = 2;
  constexpr bool by_channel = Decay::by_channel, decays = !std::is_same_v<Decay, NoDecay>;
  Batch sum[chains][width], write[width];
  const auto clear = [&] {
    for (Index p = 0; p < chains; ++p) {
      for (Index c = 0; c < width; ++c) sum[p][c] = simd::broadcast(S(0));
    }
  };
  const auto for_each_key = [&](auto&& body) {
    Index r = 0;
    for (; r + chains <= K; r += chains) {
#pragma GCC unroll 2
      for (Index p = 0; p < chains; ++p) body(r + p, sum[p]);
    }
    for (Index p = 0; r < K; ++r, ++p) body(r, sum[p]);
  };

  clear();
  for_each_key([&](Index r, Batch(&found)[width]) {
    const Batch key = simd::broadcast(token.k_decayed[r]);
    const S* const row = state + r * stride;
#pragma GCC unroll 4
    for (Index c = 0; c < width; ++c) {
      found[c] = simd::fma<S>(key, simd::load(row + c * L), found[c]);
    }
  });
  const Batch head_factor = simd::broadcast(token.a[0]), beta = simd::broadcast(token.beta);
  for (Index c = 0; c < width; ++c) {
    const Batch found = sum[0][c] + sum[1][c], value = simd::load<S>(v + c * L, lane_count);
    write[c] =
        beta * (decays && !by_channel ? simd::fnma<S>(head_factor, found, value) : value - found);
  }
  clear();
  for_each_key([&](Index r, Batch(&read)[width]) {
    const Batch key = simd::broadcast(token.k[r]), query = simd::broadcast(token.q[r]);
    const Batch factor = by_channel ? simd::broadcast(token.a[r]) : head_factor;
    S* const row = state + r * stride;
#pragma GCC unroll 4
    for (Index c = 0; c < width; ++c) {
      Batch kept = simd::load(row + c * L);
      if constexpr (decays) kept = kept * factor;
      Batch now = simd::fma<S>(key, write[c], kept);
      if constexpr (flushed) now = simd::flush_subnormal<S>(now);
      simd::store<S>(row + c * L, now);
      read[c] = simd::fma<S>(query, now, read[c]);
    }
  });
  for (Index c = 0; c < width; ++c) {
    simd::store<S>(o + c * L, (sum[0][c] + sum[1][c]) * simd::broadcast(token.scale), lane_count);
  }
}

/// The literal recurrence on a state [K, columns], a few of its columns after the other.
template <class S, class Decay>
void delta_rule_recurrent(const DeltaRuleBlock<S, Decay>& block, const View<S, 2>& state,
                          const Call& call) {
  constexpr bool by_channel = Decay::by_channel;
  constexpr Index L = simd::lanes<S>;
  const Index T = block.tokens(), K = block.keys(), V = block.values();
  const Index a_stride = by_channel ? round_up(K, L) : 1;
  auto scratch = call.scratch<S>();
  S* const a = scratch(T, a_stride).data();                                // factors
  S* const decayed = scratch(by_channel ? T : Index{0}, a_stride).data();  // factors ⊙ k
  S* const copied = scratch(K, delta_width * L).data();

  block.write_factors(a, a_stride);
  for (Index t = 0; by_channel && t < T; ++t) {
    simd::map<S>(
        K, decayed + t * a_stride,
        [](simd::Batch<S> x, simd::Batch<S> y) { return simd::flush_subnormal<S>(x * y); },
        a + t * a_stride, &block.k(t, 0));
  }
  const auto run = [&]<Index width>(std::integral_constant<Index, width>, Index column,
                                    auto lane_count) {
    const Index columns = std::min(width * L, V - column);
    const View<S, 2> part = state.slice(axis::channel, column, columns);
    const bool copy = columns < width * L || T >= delta_tokens_to_copy;
    if (copy) pack_padded<S>(part, copied, width * L);
    S* const place = copy ? copied : part.data();
    const Index stride = copy ? width * L : part.stride(0);
    for (Index t = 0; t < T; ++t) {
      const S* const k = &block.k(t, 0);
      const DeltaToken<S> token{.q = &block.q(t, 0),
                                .k = k,
                                .k_decayed = by_channel ? decayed + t * a_stride : k,
                                .a = a + t * a_stride,
                                .beta = block.beta[t],
                                .scale = block.scale};
      const S* const v = &block.v(t, column);
      S* const o = &block.o(t, column);
      if (t + 1 < T) {
        delta_rule_token<width, Decay, false>(token, K, place, stride, v, o, lane_count);
      } else {
        delta_rule_token<width, Decay, true>(token, K, place, stride, v, o, lane_count);
      }
    }
    if (copy) unpack_padded<S>(copied, stride, part);
  };
  Index column = 0;
  for (; column + delta_width * L <= V; column += delta_width * L) {
    run(std::integral_constant<Index, delta_width>{}, column, simd::Full<S>{});
  }
  for (; column + L <= V; column += L) {
    run(std::integral_constant<Index, 1>{}, column, simd::Full<S>{});
  }
  if (column < V) run(std::integral_constant<Index, 1>{}, column, V - column);
}

/// Tokens of a chunk: what a sweep keeps of them fits in the registers.
inline constexpr Index delta_chunk = 4;
template <class S>
using DeltaSweep = StateSweep<S, 2 * delta_chunk, delta_chunk>;

/// What the tokens of a chunk hand to each other, and their shares beta.
template <class S>
struct DeltaWeights {
  static constexpr Index C = delta_chunk;
  S sums[C * C], beta[C];

  /// How much of what token j writes token i reads with its query, j <= i.
  static constexpr Index read(Index i, Index j) { return i * C + j; }
  /// And how much it finds with its key before it writes, j < i.
  static constexpr Index found(Index i, Index j) { return j * C + i; }
};

/// The coefficients and weights of the `tokens` tokens of a chunk from `first` on, the rest of it
/// zeros; a: its factors, ones behind. The keys of tokens that write decay from token to token, so
/// that they are the writers after the last.
template <class S, class Decay>
void prepare_delta_chunk(const DeltaRuleBlock<S, Decay>& block, Index first, Index tokens,
                         const S* a, Index a_stride, S* coefficients, DeltaWeights<S>& weights) {
  using Batch = simd::Batch<S>;
  constexpr Index C = delta_chunk, L = simd::lanes<S>;
  const Batch zero = simd::broadcast(S(0));
  using Weights = DeltaWeights<S>;
  sum_channels<S, C * C>(
      block.keys(), weights.sums,
      [&](Index channel, auto lane_count, Batch* sums) __attribute__((always_inline)) {
        const auto add = [&](Index i, const Batch& x, const Batch& y)
            __attribute__((always_inline)) {
          sums[i] = simd::fma<S>(x, y, sums[i]);
        };
        const auto load = [&](const View<const S, 2>& from, Index i) {
          return i < tokens ? simd::load<S>(&from(first + i, channel), lane_count) : zero;
        };
        const auto put = [&](Index row, const Batch& x) {
          simd::store<S>(coefficients + row * L, x);
        };
        Batch key[C];
        DecayProduct<S> decay[C], since_start;
#pragma GCC unroll 4
        for (Index i = 0; i < C; ++i) {
          const Batch query = load(block.q, i);
          key[i] = load(block.k, i);
          if constexpr (!std::is_same_v<Decay, NoDecay>) {
            const Batch factor = simd::load(a + i * a_stride + (Decay::by_channel ? channel : 0));
            since_start.multiply(factor);
#pragma GCC unroll 4
            for (Index j = 0; j < C; ++j) {
              if (j < i) decay[j].multiply(factor);
            }
          }
          put(i, query * since_start.value()), put(C + i, key[i] * since_start.value());
#pragma GCC unroll 4
          for (Index j = 0; j < C; ++j) {
            if (j > i) continue;
            const Batch writer = key[j] * decay[j].value();
            add(Weights::read(i, j), query, writer);
            if (j < i) add(Weights::found(i, j), key[i], writer);
          }
        }
#pragma GCC unroll 4
        for (Index j = 0; j < C; ++j) put(2 * C + j, key[j] * decay[j].value());
        put(3 * C, since_start.value());
        coefficients += DeltaSweep<S>::rows * L;
      });
  for (Index i = 0; i < C; ++i) weights.beta[i] = i < tokens ? block.beta[first + i] : S(0);
}

/// Solves the triangular system of a chunk for some columns. found: [2 C, columns], by queries, by
/// keys; u: [C, columns].
template <class S>
void solve_delta_chunk(const DeltaWeights<S>& weights, const S* found, const View<const S, 2>& v,
                       S scale, S* u, const View<S, 2>& o) {
  using Batch = simd::Batch<S>;
  using Weights = DeltaWeights<S>;
  constexpr Index C = delta_chunk, columns = DeltaSweep<S>::columns;
  const Index tokens = v.extent(0);
  simd::for_each_block<S>(
      v.extent(1), [&](Index c, auto lane_count) __attribute__((always_inline)) {
        Batch row[C];
#pragma GCC unroll 4
        for (Index i = 0; i < C; ++i) {
          const Batch value =
              i < tokens ? simd::load<S>(&v(i, c), lane_count) : simd::broadcast(S(0));
          Batch write = value - simd::load(found + (C + i) * columns + c);
          Batch read = simd::load(found + i * columns + c);
#pragma GCC unroll 4
          for (Index j = 0; j < C; ++j) {
            if (j >= i) continue;
            write =
                simd::fnma<S>(simd::broadcast(weights.sums[Weights::found(i, j)]), row[j], write);
            read = simd::fma<S>(simd::broadcast(weights.sums[Weights::read(i, j)]), row[j], read);
          }
          row[i] = simd::broadcast(weights.beta[i]) * write;
          read = simd::fma<S>(simd::broadcast(weights.sums[Weights::read(i, i)]), row[i], read);
          simd::store<S>(u + i * columns + c, row[i]);
          if (i < tokens) simd::store<S>(&o(i, c), read * simd::broadcast(scale), lane_count);
        }
      });
}

/// The chunkwise form. Within a chunk of tokens that starts from the state S0 the rows u_i that the
/// tokens add to the memory solve a triangular system:
///
///   u_i = beta_i (v_i - k_i (a_1 ... a_i) S0 - Σ_{j<i} (k_i (a_{j+1} ... a_i) k_jᵀ) u_j)
///   o_i = q_i (a_1 ... a_i) S0 + Σ_{j<=i} (q_i (a_{j+1} ... a_i) k_jᵀ) u_j
///   S   = (a_1 ... a_C) S0 + Σ_j (a_{j+1} ... a_C k_j)ᵀ u_j
///
/// Decays are only ever multiplied from the older to the newer token.
/// Yang et al. 2024, arXiv:2406.06484, section 3; Yang et al. 2024, arXiv:2412.06464, section 3.3.
template <class S, class Decay>
void delta_rule_chunked(const DeltaRuleBlock<S, Decay>& block, LinesAhead<S>& ahead, S* slabs,
                        const Call& call) {
  using Sweep = DeltaSweep<S>;
  constexpr Index C = delta_chunk, L = simd::lanes<S>, columns = Sweep::columns;
  const Index T = block.tokens(), K = block.keys(), V = block.values();
  const Index chunks = ceil_div(T, C), size = Sweep::coefficients(K);
  const Index a_stride = Decay::by_channel ? round_up(K, L) : L;
  auto scratch = call.scratch<S>();
  S* const a = scratch(chunks * C, a_stride).data();  // factors
  S* const coefficients = scratch(chunks, size).data();
  S* const found = scratch(Sweep::readers, columns).data();
  S* const u = scratch(C, columns).data();
  DeltaWeights<S> weights[packed_tokens / C];
  std::fill_n(u, C * columns, S(0));

  const auto tokens = [&](Index n) { return std::min(C, T - n * C); };
  block.write_factors(a, a_stride);
  std::fill(a + T * a_stride, a + chunks * C * a_stride, S(1));
  for (Index n = 0; n < chunks; ++n) {
    prepare_delta_chunk(block, n * C, tokens(n), a + n * C * a_stride, a_stride,
                        coefficients + n * size, weights[n]);
  }
  for (Index column = 0; column < V; column += columns) {
    const auto solve = [&](Index n) {
      const auto part = [&](const auto& view) {
        return view.slice(axis::time, n * C, tokens(n))
            .slice(axis::channel, column, std::min(columns, V - column));
      };
      solve_delta_chunk<S>(weights[n], found, part(block.v), block.scale, u, part(block.o));
    };
    Sweep::run(!std::is_same_v<Decay, NoDecay>, K, chunks, coefficients, found, u,
               slabs + column * K, solve, ahead);
  }
}

/// The operands of a call of `delta_rule`.
template <class S, class Decay>
struct DeltaRuleOperands {
  View<const S, 3> q, k;  // [T, G, K]
  View<const S, 3> v;     // [T, H, V]
  View<const S, 2> beta;  // [T, H]
  const Decay& decay;
  S scale;
  View<S, 3> o;  // [T, H, V]

  /// What a unit does of `tokens` tokens, from `first` of its segment on, and one of its heads.
  DeltaRuleBlock<S, Decay> block(const StateUnit& unit, Index head, Index first,
                                 Index tokens) const {
    const Index token = unit.segment.first + first;
    const Index group = head / (o.extent(axis::head) / q.extent(axis::head));
    const auto part = [&](const auto& view, Index h) {
      return view.at(axis::head, h).slice(axis::time, token, tokens);
    };
    const auto values = [&](const auto& view) {
      return part(view, head).slice(axis::channel, unit.column, unit.width);
    };
    return {.q = part(q, group),
            .k = part(k, group),
            .v = values(v),
            .beta = part(beta, head),
            .decay = decay,
            .head = head,
            .first = token,
            .scale = scale,
            .o = values(o)};
  }
};

}  // namespace detail

/// S_t = (I - beta_t k_tᵀ k_t) diag(exp g_t) S_{t-1} + beta_t k_tᵀ v_t,  o_t = scale q_t S_t: the
/// memory forgets by the log decay g_t <= 0, then what it holds at k_t moves towards v_t by the
/// share beta_t.
///
/// q, k: [T, G, K]; v, o: [T, H, V]; beta: [T, H]; state: [B, H, K, V], whose rows the segments of
/// the call read, then advance. Head h reads group h / (H / G). Last dimensions are contiguous; o
/// shares no number with the rest. The map of the state is a contraction where 0 <= beta |k|² <= 2.
///
/// A recurrent segment is the literal recurrence: two passes over the state a token, four
/// operations a number. A parallel one takes chunks of `delta_chunk` tokens, 3.25 operations a
/// number, unless the call's algorithm is the recurrence. Both serve any T.
template <class S, class Decay>
void delta_rule(In<S, 3> q, In<S, 3> k, In<S, 3> v, In<S, 2> beta, const Decay& decay, double scale,
                Out<S, 4> state, View<S, 3> o, const Call& call) {
  const Index T = o.extent(0), H = o.extent(1), V = o.extent(2);
  const Index G = q.extent(1), K = q.extent(2);
  if (G <= 0 || H % G != 0) {
    throw ShapeError("delta_rule: " + std::to_string(H) + " heads do not divide into " +
                     std::to_string(G) + " groups");
  }
  const Expect expect{"delta_rule"};
  expect.rows("o", o, {T, H, V}), expect.rows("v", v, {T, H, V});
  expect.rows("q", q, {T, G, K}), expect.rows("k", k, {T, G, K});
  expect.shape("beta", beta, {T, H});
  expect.rows("state", state, {state.extent(0), H, K, V});
  decay.check({T, H, K});
  if (o.empty()) return;

  constexpr Index slab = detail::DeltaSweep<S>::columns;
  constexpr Index tile = detail::delta_width * simd::lanes<S>;
  const auto cut_of = [&](const Segment& segment) {
    return detail::cut_by_heads(call, segment, state.shape(),
                                detail::takes_chunks(call, segment) ? slab : tile);
  };
  const detail::DeltaRuleOperands<S, Decay> operands{q, k, v, beta, decay, static_cast<S>(scale),
                                                     o};
  const auto run = [&](const detail::StateUnit& unit, const Call& worker) {
    const auto block_of = [&](Index head, Index first, Index tokens) {
      return operands.block(unit, head, first, tokens);
    };
    if (detail::takes_chunks(call, unit.segment)) {
      return detail::for_each_swept_block(
          unit, state, slab, worker, block_of,
          [&](const auto& block, detail::LinesAhead<S>& ahead, S* slabs) {
            detail::delta_rule_chunked(block, ahead, slabs, worker);
          });
    }
    const View<S, 3> heads = unit.state_of(state);
    detail::for_each_block_of_time(unit, [&](Index head, Index first, Index tokens) {
      detail::delta_rule_recurrent(block_of(head, first, tokens), heads[head - unit.head], worker);
    });
  };
  detail::for_each_state_unit(state, call, cut_of, run);
}

/// x = rates ⊙ softplus(x + bias): the log decays of heads or channels, [T, D].
template <class S>
void log_decays(View<S, 2> x, In<S, 1> bias, In<S, 1> rates, const Call& call) {
  const auto decay = [](auto value, auto shift, auto rate) {
    return rate * simd::softplus(value + shift);
  };
  elementwise(call, decay, x, x, by_channel(bias), by_channel(rates));
}

/// beta = most σ(beta), [T, H]: the shares of `delta_rule`.
template <class S>
void delta_shares(View<S, 2> beta, double most, const Call& call) {
  const auto share = [factor = static_cast<S>(most)](auto x) { return factor * simd::sigmoid(x); };
  elementwise(call, share, beta, beta);
}

#define SEQMIX_DELTA_RULE(S, Decay)                                                           \
  void delta_rule(In<S, 3>, In<S, 3>, In<S, 3>, In<S, 2>, const Decay<S>&, double, Out<S, 4>, \
                  View<S, 3>, const Call&)
SEQMIX_COMPILE(SEQMIX_DELTA_RULE, ScalarDecay);
SEQMIX_COMPILE(SEQMIX_DELTA_RULE, VectorDecay);
#undef SEQMIX_DELTA_RULE

SEQMIX_END_NAMESPACE
}  // namespace seqmix
