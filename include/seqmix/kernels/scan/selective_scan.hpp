#pragma once

#include <algorithm>
#include <utility>

#include "seqmix/core/call.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/core/expect.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// The tokens that are packed at a time: packed rows do not evict each other as rows at a distance
/// of 4 KB do.
inline constexpr Index selective_tokens = 32;
/// The registers of channels of one unit, at most: rows that are long enough to be read ahead. A
/// call has at least `selective_units` units where there are as many registers.
inline constexpr Index selective_registers = 16, selective_units = 8;
/// Updates of numbers of the state that are worth a task.
inline constexpr Index selective_updates_per_task = Index{1} << 12;
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

/// The operands of one segment, some of its channels.
template <class S>
struct SelectiveChannels {
  View<const S, 2> x, raw_dt, gate;  // [T, D]
  View<const S, 2> rates;            // [N, D]
  View<const S, 2> keys, queries;    // [T, N]
  const S* skip;                     // [D]
  View<S, 2> state;                  // [N, D]
  View<S, 2> y;                      // [T, D]
};

/// These channels on their way through blocks of tokens, in registers whose numbers lie behind each
/// other.
template <class S>
class SelectivePass {
  using Batch = simd::Batch<S>;
  static constexpr Index L = simd::lanes<S>;

 public:
  SelectivePass(const SelectiveChannels<S>& in, const Call& call)
      : in_(in),
        block_(std::min(in.y.extent(0), selective_tokens)),
        padded_(round_up(in.rates.extent(0), selective_states)),
        registers_(ceil_div(in.y.extent(1), L)),
        scratch_(call.scratch<S>()),
        steps_(scratch_(registers_, block_, L)),
        inputs_(scratch_(registers_, block_, L)),
        sums_(scratch_(registers_, block_, L)),
        rates_(scratch_(registers_, padded_, L)),
        states_(scratch_(registers_, padded_, L)),
        keys_(scratch_(block_, padded_)),
        queries_(scratch_(block_, padded_)) {}

  void run() const {
    load_state();
    const Index T = in_.y.extent(0);
    for (Index first = 0; first < T; first += block_) {
      const Index tokens = std::min(block_, T - first);
      pack(first, tokens);
      advance(tokens, std::min(first + block_, T - block_));
      write_outputs(first, tokens);
    }
    store_state();
  }

 private:
  Index width() const { return in_.y.extent(1); }
  Index states() const { return in_.rates.extent(0); }

  void load_state() const {
    if (states() < padded_) fill(rates_, 0), fill(states_, 0);
    for (Index n = 0; n < states(); ++n) {
      const S *const rate = &in_.rates(n, 0), *const last = &in_.state(n, 0);
      simd::for_each_block<S>(width(), [&](Index i, auto lane_count) {
        const Index at = i * padded_ + n * L;
        simd::store<S>(rates_.data() + at, simd::load<S>(rate + i, lane_count));
        simd::store<S>(states_.data() + at, simd::load<S>(last + i, lane_count));
      });
    }
  }
  void store_state() const {
    for (Index n = 0; n < states(); ++n) {
      S* const last = &in_.state(n, 0);
      simd::for_each_block<S>(width(), [&](Index i, auto lane_count) {
        const S* const from = states_.data() + i * padded_ + n * L;
        simd::store<S>(last + i, simd::load(from), lane_count);
      });
    }
  }

  /// Makes the tokens from `first` on a block.
  void pack(Index first, Index tokens) const {
    const Index block = block_;
    for (Index t = 0; t < tokens; ++t) {
      const S *const raw = &in_.raw_dt(first + t, 0), *const x = &in_.x(first + t, 0);
      const S* const skip = in_.skip;
      S *const step = &steps_(0, t, 0), *const input = &inputs_(0, t, 0);
      S* const sum = &sums_(0, t, 0);
      simd::for_each_block<S>(width(), [&](Index i, auto lane_count) {
        const Batch dt = simd::softplus<S>(simd::load<S>(raw + i, lane_count));
        const Batch now = simd::load<S>(x + i, lane_count);
        simd::store<S>(step + i * block, dt), simd::store<S>(input + i * block, dt * now);
        simd::store<S>(sum + i * block, simd::load<S>(skip + i, lane_count) * now);
      });
    }
    pack_rows<S>(in_.keys.slice(axis::time, first, tokens), keys_);
    pack_rows<S>(in_.queries.slice(axis::time, first, tokens), queries_);
  }
  /// Takes the states through a block, while its successor, from token `next` on, is fetched.
  void advance(Index tokens, Index next) const {
    for (Index r = 0; r < registers_; ++r) {
      const auto ahead = [&](const View<const S, 2>& view) {
        return NextRows<S>{&view(next, r * L), view.stride(axis::time)};
      };
      for (Index n = 0; n < padded_; n += selective_states) {
        selective_recurrence<S>({.step = &steps_(r, 0, 0),
                                 .input = &inputs_(r, 0, 0),
                                 .sum = &sums_(r, 0, 0),
                                 .rates = &rates_(r, 0, 0),
                                 .state = &states_(r, 0, 0),
                                 .keys = keys_.data(),
                                 .queries = queries_.data(),
                                 .tokens = tokens,
                                 .all_states = padded_},
                                n, ahead(n == 0 ? in_.raw_dt : in_.gate),
                                ahead(n == 0 ? in_.x : in_.gate));
      }
    }
  }
  void write_outputs(Index first, Index tokens) const {
    const Index block = block_;
    for (Index t = 0; t < tokens; ++t) {
      const S *const by = &in_.gate(first + t, 0), *const sum = &sums_(0, t, 0);
      S* const out = &in_.y(first + t, 0);
      simd::for_each_block<S>(width(), [&](Index i, auto lane_count) {
        const Batch factor = simd::silu<S>(simd::load<S>(by + i, lane_count));
        simd::store<S>(out + i, simd::load(sum + i * block) * factor, lane_count);
      });
    }
  }

  const SelectiveChannels<S>& in_;
  Index block_;      // tokens
  Index padded_;     // N', whole sets of states
  Index registers_;  // of channels
  Context::Scratch<S> scratch_;
  View<S, 3> steps_, inputs_, sums_;  // [registers, block, L]
  View<S, 3> rates_, states_;         // [registers, N', L]
  View<S, 2> keys_, queries_;         // [block, N']
};

}  // namespace detail

/// The selective scan of Mamba, with its skip and its gate, for each channel d:
///
///   dt_t = softplus(raw_dt_t),   h_t = 2^(dt_t rates) ⊙ h_{t-1} + dt_t x_t keys_t       h_t [N]
///   y_t = (queries_t · h_t + skip x_t) silu(gate_t)
///
/// x, raw_dt, gate, y: [T, D]; rates: [N, D], A log2(e), <= 0; keys, queries: [T, N], the
/// input-dependent B and C, shared by all channels; skip: [D]; state: [B, N, D], whose rows the
/// segments read, then advance. Channels are lanes; each state number takes one fused multiply-add
/// a token, in order of time, so that any split of a sequence gives the same outputs. y may be x.
/// Gu & Dao 2023, arXiv:2312.00752, algorithm 2.
template <class S>
void selective_scan(In<S, 2> x, In<S, 2> raw_dt, In<S, 2> rates, In<S, 2> keys, In<S, 2> queries,
                    In<S, 1> skip, In<S, 2> gate, Out<S, 3> state, View<S, 2> y, const Call& call) {
  const Index T = y.extent(0), D = y.extent(1), N = rates.extent(0);
  const Expect expect{"selective_scan"};
  expect.rows("y", y, {T, D}), expect.rows("x", x, {T, D});
  expect.rows("raw_dt", raw_dt, {T, D}), expect.rows("gate", gate, {T, D});
  expect.rows("rates", rates, {N, D}), expect.rows("skip", skip, {D});
  expect.rows("keys", keys, {T, N}), expect.rows("queries", queries, {T, N});
  expect.rows("state", state, {state.extent(0), N, D});
  if (y.empty()) return;

  constexpr Index L = simd::lanes<S>;
  const Index all_registers = ceil_div(D, L), padded = round_up(N, detail::selective_states);
  const auto registers_of = [&](const Segment& segment) {
    const Index units = share_of(call, segment, detail::selective_units);
    return std::clamp<Index>(all_registers / units, 1, detail::selective_registers);
  };
  const auto work_of = [&](const Segment& segment) {
    const Index registers = registers_of(segment);
    return SegmentWork{ceil_div(all_registers, registers),
                       segment.count * registers * L * std::max<Index>(padded, 1)};
  };
  for_each_unit(call, detail::selective_updates_per_task, work_of,
                [&](const Unit& unit, const Call& worker) {
                  const Index first = unit.item * registers_of(unit.segment) * L;
                  const Index width = std::min(registers_of(unit.segment) * L, D - first);
                  const auto part = [&](const auto& view) {
                    return unit.tokens_of(view).slice(axis::channel, first, width);
                  };
                  const detail::SelectiveChannels<S> channels{
                      .x = part(x),
                      .raw_dt = part(raw_dt),
                      .gate = part(gate),
                      .rates = rates.slice(axis::channel, first, width),
                      .keys = unit.tokens_of(keys),
                      .queries = unit.tokens_of(queries),
                      .skip = skip.data() + first,
                      .state = unit.row_of(state).slice(axis::channel, first, width),
                      .y = part(y)};
                  detail::SelectivePass<S>(channels, worker).run();
                });
}

#define SEQMIX_SELECTIVE_SCAN(S)                                                            \
  void selective_scan(In<S, 2>, In<S, 2>, In<S, 2>, In<S, 2>, In<S, 2>, In<S, 1>, In<S, 2>, \
                      Out<S, 3>, View<S, 2>, const Call&)
SEQMIX_COMPILE(SEQMIX_SELECTIVE_SCAN);
#undef SEQMIX_SELECTIVE_SCAN

SEQMIX_END_NAMESPACE
}  // namespace seqmix
