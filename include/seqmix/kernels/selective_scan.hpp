#pragma once

#include <algorithm>
#include <utility>

#include "seqmix/core/context.hpp"
#include "seqmix/kernels/scan.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// The tokens that are packed at a time: packed rows do not evict each other as rows at a distance
/// of 4 KB do.
inline constexpr Index selective_tokens = 32;
/// The registers of channels of one task, at most: rows that are long enough to be read ahead.
inline constexpr Index selective_registers = 16;
/// The state numbers of a channel that stay in registers while a block of tokens passes.
inline constexpr Index selective_states = 8;

/// Rows that the next block of tokens needs, fetched while this one is computed.
template <class S>
struct NextRows {
  const S* row;
  Index stride;
  SEQMIX_ALWAYS_INLINE void fetch() { simd::prefetch(row), row += stride; }
};

/// A block of tokens of one register of channels, all rows of `lanes` numbers.
template <class S>
struct SelectiveBlock {
  S *step, *input, *sum;     // [tokens, lanes], dt, dt x and skip x + Σ C h
  S *rates, *state;          // [N', lanes], N' a multiple of selective_states
  S *keys, *queries;         // [tokens, N']
  Index tokens, all_states;  // N'
};

/// The recurrence of the state numbers [n, n + selective_states).
template <class S>
void selective_recurrence(const SelectiveBlock<S>& block, Index n, NextRows<S> one,
                          NextRows<S> other) {
  using Batch = simd::Batch<S>;
  constexpr Index L = simd::lanes<S>;
  [&]<Index... i>(std::integer_sequence<Index, i...>) {
    const S *step = block.step, *input = block.input, *const rates = block.rates + n * L;
    const S *key = block.keys + n, *query = block.queries + n;
    const Index all_states = block.all_states;
    S *sums = block.sum, *const state = block.state + n * L, *const end = sums + block.tokens * L;
    Batch h[] = {simd::load(state + i * L)...};
    for (; sums != end; step += L, input += L, sums += L, key += all_states, query += all_states) {
      one.fetch(), other.fetch();
      const Batch dt = simd::load(step), in = simd::load(input);
      Batch sum = simd::load(std::as_const(sums));
      ((h[i] = simd::fma<S>(simd::exp2_decay<S>(dt * simd::load(rates + i * L)), h[i],
                            in * simd::broadcast(key[i])),
        sum = simd::fma<S>(h[i], simd::broadcast(query[i]), sum)),
       ...);
      simd::store<S>(sums, sum);
    }
    (simd::store<S>(state + i * L, simd::flush_subnormal<S>(h[i])), ...);
  }
  (std::make_integer_sequence<Index, selective_states>{});
}

/// Copies rows of N numbers, filled up with zeros.
template <class S>
void pack_rows(const View<const S, 2>& from, const View<S, 2>& to) {
  const Index N = from.extent(1);
  for (Index row = 0; row < from.extent(0); ++row) {
    std::fill(std::copy_n(&from(row, 0), N, &to(row, 0)), &to(row, 0) + to.extent(1), S(0));
  }
}

}  // namespace detail

/// The selective scan of Mamba, with its skip and its gate, for each channel d:
///
///   dt_t = softplus(raw_dt_t),   h_t = 2^(dt_t rates) ⊙ h_{t-1} + dt_t x_t keys_t       h_t [N]
///   y_t = (queries_t · h_t + skip x_t) silu(gate_t)
///
/// x, raw_dt, gate, y: [B, T, D]; rates: [N, D], A log2(e), <= 0; keys, queries: [B, T, N], the
/// input-dependent B and C, shared by all channels; skip: [D]; state: [B, N, D], read, then
/// advanced. Channels are lanes; each state number takes one fused multiply-add a token, in order
/// of time, so that any split of a sequence gives the same outputs. y may be x. Gu & Dao 2023,
/// arXiv:2312.00752, algorithm 2.
template <class S>
void selective_scan(In<S, 3> x, In<S, 3> raw_dt, In<S, 2> rates, In<S, 3> keys, In<S, 3> queries,
                    In<S, 1> skip, In<S, 3> gate, Out<S, 3> state, View<S, 3> y, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      const auto part = [&](const auto& view) {
        return view.template slice<1>(piece.first, piece.count);
      };
      selective_scan<S>(part(x), part(raw_dt), rates, part(keys), part(queries), skip, part(gate),
                        state.template slice<0>(piece.row, 1), part(y), context);
    });
  }
  using Batch = simd::Batch<S>;
  const Index B = y.extent(0), T = y.extent(1), D = y.extent(2), N = rates.extent(0);
  const auto check = [](const char* which, const auto& view, const auto& expected) {
    detail::check_scan("selective_scan", which, view, expected);
  };
  check("y", y, Shape<3>{B, T, D}), check("x", x, Shape<3>{B, T, D});
  check("raw_dt", raw_dt, Shape<3>{B, T, D}), check("gate", gate, Shape<3>{B, T, D});
  check("rates", rates, Shape<2>{N, D}), check("skip", skip, Shape<1>{D});
  check("keys", keys, Shape<3>{B, T, N}), check("queries", queries, Shape<3>{B, T, N});
  check("state", state, Shape<3>{B, N, D});
  if (y.empty()) return;

  constexpr Index L = simd::lanes<S>, tasks = 8;  // at least, where there are as many registers
  const Index all_registers = ceil_div(D, L), padded = round_up(N, detail::selective_states);
  const Index per_task =
      std::clamp<Index>(B * all_registers / tasks, 1, detail::selective_registers);
  const Index groups = ceil_div(all_registers, per_task);
  context.parallel_for(B * groups, [&](Index task, Context& worker) {
    const Index b = task / groups, first = task % groups * per_task * L;
    const Index width = std::min(per_task * L, D - first), registers = ceil_div(width, L);
    const Index block = std::min(T, detail::selective_tokens);
    auto scratch = worker.scratch<S>();
    const auto steps = scratch(registers, block, L), inputs = scratch(registers, block, L);
    const auto sums = scratch(registers, block, L);
    const auto factors = scratch(registers, padded, L), states = scratch(registers, padded, L);
    const auto key = scratch(block, padded), query = scratch(block, padded);
    if (N < padded) fill(factors, 0), fill(states, 0);
    for (Index n = 0; n < N; ++n) {
      const S *const rate = &rates(n, first), *const last = &state(b, n, first);
      simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
        const Index at = i * padded + n * L;
        simd::store<S>(factors.data() + at, simd::load<S>(rate + i, lane_count));
        simd::store<S>(states.data() + at, simd::load<S>(last + i, lane_count));
      });
    }

    for (Index start = 0; start < T; start += block) {
      const Index tokens = std::min(block, T - start), next = std::min(start + block, T - block);
      for (Index t = 0; t < tokens; ++t) {
        const S *const raw = &raw_dt(b, start + t, first), *const in = &x(b, start + t, first);
        S *const step = &steps(0, t, 0), *const input = &inputs(0, t, 0);
        S* const sum = &sums(0, t, 0);
        simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
          const Batch dt = simd::softplus<S>(simd::load<S>(raw + i, lane_count));
          const Batch now = simd::load<S>(in + i, lane_count);
          simd::store<S>(step + i * block, dt), simd::store<S>(input + i * block, dt * now);
          simd::store<S>(sum + i * block, simd::load<S>(&skip(first) + i, lane_count) * now);
        });
      }
      detail::pack_rows<S>(keys[b].template slice<0>(start, tokens), key);
      detail::pack_rows<S>(queries[b].template slice<0>(start, tokens), query);
      for (Index r = 0; r < registers; ++r) {
        const auto ahead = [&](const View<const S, 3>& view) {
          return detail::NextRows<S>{&view(b, next, first + r * L), view.stride(1)};
        };
        for (Index n = 0; n < padded; n += detail::selective_states) {
          detail::selective_recurrence<S>({.step = &steps(r, 0, 0),
                                           .input = &inputs(r, 0, 0),
                                           .sum = &sums(r, 0, 0),
                                           .rates = &factors(r, 0, 0),
                                           .state = &states(r, 0, 0),
                                           .keys = key.data(),
                                           .queries = query.data(),
                                           .tokens = tokens,
                                           .all_states = padded},
                                          n, ahead(n == 0 ? raw_dt : gate),
                                          ahead(n == 0 ? x : gate));
        }
      }
      for (Index t = 0; t < tokens; ++t) {
        const S *const by = &gate(b, start + t, first), *const sum = &sums(0, t, 0);
        S* const out = &y(b, start + t, first);
        simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
          const Batch factor = simd::silu<S>(simd::load<S>(by + i, lane_count));
          simd::store<S>(out + i, simd::load(sum + i * block) * factor, lane_count);
        });
      }
    }
    for (Index n = 0; n < N; ++n) {
      S* const last = &state(b, n, first);
      simd::for_each_block<S>(width, [&](Index i, auto lane_count) {
        const S* const from = states.data() + i * padded + n * L;
        simd::store<S>(last + i, simd::load(from), lane_count);
      });
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
