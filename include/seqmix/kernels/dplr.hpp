#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "seqmix/kernels/delta_rule.hpp"
#include "seqmix/kernels/linear_state.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Whether chunks are faster than the recurrence (measured with AVX-512): for heads of no shape.
/// Over 2048 tokens, one thread, they take 21 ms against 14 for 16 heads of 64, 29 against 27 for 8
/// of 128 and 57 against 50 for 4 of 256.
inline constexpr bool dplr_chunks_pay = false;

/// The columns of the state that go through time together: their sums fit in registers.
template <class S>
inline constexpr Index dplr_registers = sizeof(simd::Batch<S>) >= 64 ? 4 : 2;
template <class S>
inline constexpr Index dplr_columns = dplr_registers<S>* simd::lanes<S>;

/// One head in one batch row and some value columns; the recurrence takes `dplr_columns` at most.
template <class S>
struct DplrUnit {
  View<const S, 2> r, log_decay, k, a, b;  // [T, K]
  View<const S, 2> v;                      // [T, columns]
  View<S, 2> state;                        // [K, columns]
  View<S, 2> o;                            // [T, columns]
};

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

/// The recurrence on a state of whole registers, over blocks of time.
template <class S>
void dplr_recurrence(const DplrUnit<S>& unit, S* state, Index stride, Context& context) {
  using Batch = simd::Batch<S>;
  constexpr Index width = dplr_registers<S>, columns = dplr_columns<S>, L = simd::lanes<S>;
  const Index T = unit.r.extent(0), K = unit.r.extent(1), block = std::min(T, packed_tokens);
  const Index w_stride = round_up(K, L);
  auto scratch = context.scratch<S>();
  S* const w = scratch(block, w_stride).data();
  S* const v = scratch(block, columns).data();
  S* const o = scratch(block, columns).data();

  for (Index first = 0; first < T; first += block) {
    const Index tokens = std::min(block, T - first);
    pack_padded<S>(unit.log_decay.template slice<0>(first, tokens), w, w_stride,
                   [](const Batch& x) { return simd::flush_subnormal<S>(simd::exp(x)); });
    pack_padded<S>(unit.v.template slice<0>(first, tokens), v, columns);
    Batch erased[width];
    for (Index c = 0; c < width; ++c) erased[c] = simd::broadcast(S(0));
    for (Index j = 0; j < K; ++j) {
      const Batch erase = simd::broadcast(unit.a(first, j));
#pragma GCC unroll 4
      for (Index c = 0; c < width; ++c) {
        erased[c] = simd::fma<S>(erase, simd::load(state + j * stride + c * L), erased[c]);
      }
    }
    for (Index i = 0; i < tokens; ++i) {
      const Index t = first + i;
      const auto token = [&]<bool followed>(std::bool_constant<followed>) {
        dplr_token<followed>(K, &unit.r(t, 0), w + i * w_stride, &unit.k(t, 0), &unit.b(t, 0),
                             followed ? &unit.a(t + 1, 0) : nullptr, v + i * columns, erased, state,
                             stride, o + i * columns);
      };
      i + 1 < tokens ? token(std::true_type{}) : token(std::false_type{});
    }
    unpack_padded<S>(o, columns, unit.o.template slice<0>(first, tokens),
                     [](const Batch& x) { return x; });
  }
}

template <class S>
void dplr_unit(const DplrUnit<S>& unit, Context& context) {
  constexpr Index columns = dplr_columns<S>;
  const View<S, 2>& state = unit.state;
  if (state.extent(1) == columns) {
    return dplr_recurrence(unit, state.data(), state.stride(0), context);
  }
  auto scratch = context.scratch<S>();
  S* const padded = scratch(state.extent(0), columns).data();
  pack_padded<S>(state, padded, columns);
  dplr_recurrence(unit, padded, columns, context);
  unpack_padded<S>(padded, columns, state, [](const simd::Batch<S>& x) { return x; });
}

/// What the tokens of a chunk hand to each other, in rows of 2 C and of C numbers: how much of what
/// token j writes token i reads with r (`read_k`, `read_b`, j <= i) and finds with a before it
/// writes (`found_k`, `found_b`, j < i).
template <class S>
struct DplrWeights {
  S *read_k, *read_b, *found_k, *found_b;
};

/// Adds the shares of `width` registers of channels to the weights: the products of both rows with
/// the factors between them.
template <Index width, class S>
void add_dplr_weights(Index tokens, const S* r, const S* a, const S* k, const S* b, const S* w,
                      Index stride, const DplrWeights<S>& weights) {
  using Batch = simd::Batch<S>;
  constexpr Index C = chunk_length, L = simd::lanes<S>;
  for (Index j = 0; j < tokens; ++j) {
    DecayProduct<S> decay[width];
    Batch key[width], back[width];
#pragma GCC unroll 4
    for (Index c = 0; c < width; ++c) {
      key[c] = simd::load(k + j * stride + c * L), back[c] = simd::load(b + j * stride + c * L);
    }
    for (Index i = j; i < tokens; ++i) {
      Batch read_k = simd::broadcast(S(0)), read_b = read_k, found_k = read_k, found_b = read_k;
#pragma GCC unroll 4
      for (Index c = 0; c < width; ++c) {
        const Index at = i * stride + c * L;
        if (i > j) {
          const Batch erase = simd::load(a + at) * decay[c].value();
          found_k = simd::fma<S>(erase, key[c], found_k);
          found_b = simd::fma<S>(erase, back[c], found_b);
          decay[c].multiply(simd::load(w + at));
        }
        const Batch query = simd::load(r + at) * decay[c].value();
        read_k = simd::fma<S>(query, key[c], read_k);
        read_b = simd::fma<S>(query, back[c], read_b);
      }
      weights.read_k[i * 2 * C + j] += simd::reduce_add<S>(read_k);
      weights.read_b[i * 2 * C + j] += simd::reduce_add<S>(read_b);
      if (i == j) continue;
      weights.found_k[i * C + j] += simd::reduce_add<S>(found_k);
      weights.found_b[i * C + j] += simd::reduce_add<S>(found_b);
    }
  }
}

/// The chunkwise form. Within a chunk of tokens that starts from the state S0 the rows u_i that the
/// tokens find and write back solve a triangular system:
///
///   u_i = a_i (w_1 ... w_{i-1}) S0 + Σ_{j<i} (a_i (w_{j+1} ... w_{i-1}) k_jᵀ) v_j
///                                  + Σ_{j<i} (a_i (w_{j+1} ... w_{i-1}) b_jᵀ) u_j
///   o_i = r_i (w_1 ... w_i) S0 + Σ_{j<=i} (r_i (w_{j+1} ... w_i) k_jᵀ) v_j, and b_j and u_j alike
///   S   = (w_1 ... w_C) S0 + Σ_j (w_{j+1} ... w_C k_j)ᵀ v_j + (w_{j+1} ... w_C b_j)ᵀ u_j
///
/// It is the system of the delta rule for -a, no values and all shares 1. Decays are only ever
/// multiplied from the older to the newer token.
/// Yang et al. 2024, arXiv:2406.06484, section 3; fla/ops/generalized_delta_rule/dplr/naive.py.
template <class S>
void dplr_chunked(const DplrUnit<S>& unit, Context& context) {
  using Batch = simd::Batch<S>;
  constexpr Index C = chunk_length, L = simd::lanes<S>, width = 4;
  const Index T = unit.r.extent(0), K = unit.r.extent(1), V = unit.v.extent(1);
  const Index k_stride = round_up(K, L), v_stride = round_up(V, 2 * L);
  const View<S, 2>& state = unit.state;
  auto scratch = context.scratch<S>();
  S* const w = scratch(C, k_stride).data();                 // factors
  S* const total = scratch(k_stride).data();                // their product
  S* const readers = scratch(2 * C, k_stride).data();       // r, then -a
  S* const readers_past = scratch(2 * C, k_stride).data();  // decayed since the start
  S* const writers = scratch(2 * C, k_stride).data();       // k, then b
  S* const writers_last = scratch(2 * C, k_stride).data();  // decayed until the end
  S* const found = scratch(2 * C, v_stride).data();         // what the readers find
  S* const written = scratch(2 * C, v_stride).data();       // v, then u
  S* const read_weights = scratch(C, 2 * C).data();
  S* const found_k = scratch(C, C).data();
  S* const found_b = scratch(C, C).data();
  S shares[C];
  std::fill_n(shares, C, S(1));
  const auto scale_rows = [&](auto&& f) {
    for (Index j = 0; j < K; ++j) {
      const Batch factor = simd::broadcast(total[j]);
      simd::map<S>(
          V, &state(j, 0), [&](const Batch& x) { return f(x, factor); }, &state(j, 0));
    }
  };

  for (Index first = 0; first < T; first += C) {
    const Index tokens = std::min(C, T - first), second = tokens * k_stride;
    const auto pack = [&](const View<const S, 2>& from, S* to, Index stride, auto&& f) {
      pack_padded<S>(from.template slice<0>(first, tokens), to, stride, f);
    };
    const auto same = [](const Batch& x) { return x; };
    pack(unit.log_decay, w, k_stride,
         [](const Batch& x) { return simd::flush_subnormal<S>(simd::exp(x)); });
    pack(unit.r, readers, k_stride, same), pack(unit.k, writers, k_stride, same);
    pack(unit.a, readers + second, k_stride, [](const Batch& x) { return -x; });
    pack(unit.b, writers + second, k_stride, same);
    pack(unit.v, written, v_stride, same);

    std::fill_n(read_weights, tokens * 2 * C, S(0));
    std::fill_n(found_k, tokens * C, S(0)), std::fill_n(found_b, tokens * C, S(0));
    const DplrWeights<S> weights{read_weights, read_weights + tokens, found_k, found_b};
    const auto weigh = [&]<Index registers>(std::integral_constant<Index, registers>, Index c) {
      add_dplr_weights<registers>(tokens, readers + c, readers + second + c, writers + c,
                                  writers + second + c, w + c, k_stride, weights);
    };
    Index c = 0;
    for (; c + width * L <= k_stride; c += width * L) {
      weigh(std::integral_constant<Index, width>{}, c);
    }
    for (; c < k_stride; c += L) weigh(std::integral_constant<Index, 1>{}, c);
    decay_since_start(tokens, w, k_stride, readers, readers_past, k_stride);
    decay_since_start<true>(tokens, w, k_stride, readers + second, readers_past + second, k_stride);
    decay_until_end(tokens, w, k_stride, writers, writers_last, k_stride, total);
    decay_until_end(tokens, w, k_stride, writers + second, writers_last + second, k_stride, total);

    S* const found_by_a = found + tokens * v_stride;
    S* const u = written + tokens * v_stride;
    const auto rows = [&](S* data, Index count) {
      return View<S, 2>(data, {count, V}, {v_stride, 1});
    };
    tile_matmul<S>(View<const S, 2>(readers_past, {2 * tokens, K}, {k_stride, 1}), state,
                   rows(found, 2 * tokens));
    tile_matmul<S>(View<const S, 2>(found_k, {tokens, tokens}, {C, 1}), rows(written, tokens),
                   rows(found_by_a, tokens), true);
    std::fill_n(u, tokens * v_stride, S(0));
    solve_chunk(tokens, found_b, shares, found_by_a, u, v_stride);
    tile_matmul<S>(View<const S, 2>(read_weights, {tokens, 2 * tokens}, {2 * C, 1}),
                   rows(written, 2 * tokens), rows(found, tokens), true);
    unpack_padded<S>(found, v_stride, unit.o.template slice<0>(first, tokens), same);
    scale_rows([](const Batch& x, const Batch& factor) { return x * factor; });
    tile_matmul<S>(View<const S, 2>(writers_last, {K, 2 * tokens}, {1, k_stride}),
                   rows(written, 2 * tokens), state, true);
    scale_rows([](const Batch& x, const Batch&) { return simd::flush_subnormal<S>(x); });
  }
}

}  // namespace detail

/// A state whose transition is diagonal plus low rank, as RWKV-7 and generalised delta rules have:
///
///   S_t = diag(exp g_t) S_{t-1} + b_tᵀ (a_t S_{t-1}) + k_tᵀ v_t,   o_t = r_t S_t,   g_t <= 0
///
/// r, log_decay, k, a, b: [B, T, H, K]; v, o: [B, T, H, V]; state: [B, H, K, V], read, then
/// advanced by the T tokens. Last dimensions are contiguous; o shares no number with the rest.
///
/// `Form::recurrent` is the literal recurrence: five operations a token and number of the state,
/// which stays in the first cache and is read and written once a token; sums are chains of fma over
/// ascending channels. `Form::parallel` is that too or takes chunks of `chunk_length` tokens, four
/// operations a number, the products of a chunk and a triangular system, as the context's algorithm
/// says; `automatic` is `dplr_chunks_pay`. Numbers of the state below the smallest normal one
/// become zero. The bits depend neither on threads nor on the batch, nor on a cut into calls of a
/// multiple of `packed_tokens`.
template <Form form, class S>
void dplr_state(In<S, 4> r, In<S, 4> log_decay, In<S, 4> k, In<S, 4> v, In<S, 4> a, In<S, 4> b,
                Out<S, 4> state, View<S, 4> o, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& p) {
      const auto part = [&](const auto& view) { return view.template slice<1>(p.first, p.count); };
      dplr_state<form>(part(r), part(log_decay), part(k), part(v), part(a), part(b),
                       state.template slice<0>(p.row, 1), part(o), context);
    });
  }
  const Index B = o.extent(0), T = o.extent(1), H = o.extent(2), V = o.extent(3), K = r.extent(3);
  const auto check = [](std::string_view name, const auto& view, const Shape<4>& expected) {
    if (view.shape() != expected || (view.extent(3) > 1 && view.stride(3) != 1)) {
      throw ShapeError("dplr_state: " + std::string(name) + " has shape " + view.shape().text() +
                       ", expected " + expected.text() + ", the last dimension contiguous");
    }
  };
  check("o", o, {B, T, H, V});
  check("v", v, {B, T, H, V});
  check("r", r, {B, T, H, K});
  check("the log decay", log_decay, {B, T, H, K});
  check("k", k, {B, T, H, K});
  check("a", a, {B, T, H, K});
  check("b", b, {B, T, H, K});
  check("state", state, {B, H, K, V});
  if (o.empty()) return;

  bool chunked = false;
  if constexpr (form == Form::parallel) {
    chunked = context.algorithm() == Algorithm::automatic
                  ? detail::dplr_chunks_pay
                  : context.algorithm() == Algorithm::chunked;
  }
  // Chunks take all value columns of a head or few panels of them, which share no weights.
  const Index wide =
      std::clamp<Index>(V / detail::panel_columns, 1, ceil_div(detail::enough_units, B * H));
  const Index columns =
      chunked ? round_up(ceil_div(V, wide), 2 * simd::lanes<S>) : detail::dplr_columns<S>;
  const Index panels = ceil_div(V, columns), units = B * H * panels;
  const Index updates = std::max<Index>(T * K * columns, 1);
  const Index units_per_task = std::max<Index>(detail::updates_per_task / updates, 1);
  context.parallel_for(ceil_div(units, units_per_task), [&](Index task, Context& worker) {
    const Index end = std::min(units, (task + 1) * units_per_task);
    for (Index i = task * units_per_task; i < end; ++i) {
      const Index panel = i % panels, h = i / panels % H, row = i / (panels * H);
      const Index column = panel * columns, width = std::min(columns, V - column);
      const auto head = [&](const auto& view) { return view[row].template at<1>(h); };
      const auto part = [&](const auto& view) {
        return head(view).template slice<1>(column, width);
      };
      const detail::DplrUnit<S> unit{.r = head(r),
                                     .log_decay = head(log_decay),
                                     .k = head(k),
                                     .a = head(a),
                                     .b = head(b),
                                     .v = part(v),
                                     .state = state[row][h].template slice<1>(column, width),
                                     .o = part(o)};
      if (chunked) {
        detail::dplr_chunked(unit, worker);
      } else {
        detail::dplr_unit(unit, worker);
      }
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
