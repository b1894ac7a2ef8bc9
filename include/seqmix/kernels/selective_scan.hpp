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
/// The channels of one task.
template <class S>
inline constexpr Index selective_channels = 4 * simd::lanes<S>;
/// The state numbers of a channel that stay in registers while a block of tokens passes.
inline constexpr Index selective_states = 8;

/// The block of one task, rows of `selective_channels` numbers filled up with zeros.
template <class S>
struct SelectiveBlock {
  S *step, *input, *sum;        // [tokens, channels], dt, dt x and Σ C h
  S *rates, *state;             // [N', channels], N' a multiple of selective_states
  S *keys, *queries;            // [tokens, N']
  Index tokens, padded_states;  // N'
};

/// The recurrence of `selective_states` state numbers of one register of channels.
template <class S>
void selective_register(const SelectiveBlock<S>& block, Index n, Index channel) {
  using Batch = simd::Batch<S>;
  constexpr Index columns = selective_channels<S>;
  [&]<Index... i>(std::integer_sequence<Index, i...>) {
    const S* const rates = block.rates + n * columns + channel;
    S* const state = block.state + n * columns + channel;
    Batch h[] = {simd::load(state + i * columns)...};
    for (Index t = 0; t < block.tokens; ++t) {
      const Batch dt = simd::load(block.step + t * columns + channel);
      const Batch in = simd::load(block.input + t * columns + channel);
      const S* const key = block.keys + t * block.padded_states + n;
      const S* const query = block.queries + t * block.padded_states + n;
      Batch sum = simd::load(block.sum + t * columns + channel);
      ((h[i] = simd::fma<S>(simd::exp2_decay<S>(dt * simd::load(rates + i * columns)), h[i],
                            in * simd::broadcast(key[i]))),
       ...);
      ((sum = simd::fma<S>(h[i], simd::broadcast(query[i]), sum)), ...);
      simd::store<S>(block.sum + t * columns + channel, sum);
    }
    (simd::store<S>(state + i * columns, simd::flush_subnormal<S>(h[i])), ...);
  }
  (std::make_integer_sequence<Index, selective_states>{});
}

/// Copies the columns [first, first + width) of `from` to rows of `stride` numbers with zeros
/// behind them.
template <class S>
void pack_columns(const View<const S, 2>& from, Index first, Index width, S* to, Index stride) {
  for (Index row = 0; row < from.extent(0); ++row, to += stride) {
    std::fill(std::copy_n(from.data() + row * from.stride(0) + first, width, to), to + stride,
              S(0));
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

  constexpr Index columns = detail::selective_channels<S>, L = simd::lanes<S>;
  const Index groups = ceil_div(D, columns), padded = round_up(N, detail::selective_states);
  context.parallel_for(B * groups, [&](Index task, Context& worker) {
    const Index b = task / groups, first = task % groups * columns;
    const Index width = std::min(columns, D - first), block = std::min(T, detail::selective_tokens);
    auto scratch = worker.scratch<S>();
    detail::SelectiveBlock<S> packed{.step = scratch(block, columns).data(),
                                     .input = scratch(block, columns).data(),
                                     .sum = scratch(block, columns).data(),
                                     .rates = scratch(padded, columns).data(),
                                     .state = scratch(padded, columns).data(),
                                     .keys = scratch(block, padded).data(),
                                     .queries = scratch(block, padded).data(),
                                     .tokens = block,
                                     .padded_states = padded};
    std::fill_n(packed.rates + N * columns, (padded - N) * columns, S(0));
    std::fill_n(packed.state + N * columns, (padded - N) * columns, S(0));
    detail::pack_columns<S>(rates, first, width, packed.rates, columns);
    detail::pack_columns<S>(state[b], first, width, packed.state, columns);

    for (Index start = 0; start < T; start += block) {
      packed.tokens = std::min(block, T - start);
      for (Index t = 0; t < packed.tokens; ++t) {
        const S *const raw = &raw_dt(b, start + t, first), *const in = &x(b, start + t, first);
        for (Index i = 0; i < columns; i += L) {
          const Index count = std::clamp<Index>(width - i, 0, L), at = t * columns + i;
          const Batch dt =
              simd::softplus<S>(count == L ? simd::load(raw + i) : simd::load(raw + i, count));
          const Batch now = count == L ? simd::load(in + i) : simd::load(in + i, count);
          simd::store<S>(packed.step + at, dt), simd::store<S>(packed.input + at, dt * now);
          simd::store<S>(packed.sum + at, simd::broadcast(S(0)));
        }
      }
      detail::pack_columns<S>(keys[b].template slice<0>(start, packed.tokens), 0, N, packed.keys,
                              padded);
      detail::pack_columns<S>(queries[b].template slice<0>(start, packed.tokens), 0, N,
                              packed.queries, padded);
      for (Index channel = 0; channel < width; channel += L) {
        for (Index n = 0; n < padded; n += detail::selective_states) {
          detail::selective_register<S>(packed, n, channel);
        }
      }
      for (Index t = 0; t < packed.tokens; ++t) {
        const auto finish = [](Batch sum, Batch factor, Batch now, Batch by) {
          return simd::fma<S>(factor, now, sum) * simd::silu<S>(by);
        };
        simd::map<S>(width, &y(b, start + t, first), finish, packed.sum + t * columns,
                     skip.data() + first, &x(b, start + t, first), &gate(b, start + t, first));
      }
    }
    for (Index n = 0; n < N; ++n) {
      std::copy_n(packed.state + n * columns, width, &state(b, n, first));
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
