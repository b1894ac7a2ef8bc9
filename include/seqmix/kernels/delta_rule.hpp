#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/context.hpp"
#include "seqmix/kernels/linear_state.hpp"
#include "seqmix/kernels/matmul.hpp"
#include "seqmix/kernels/rows.hpp"
#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Whether chunks are faster than the recurrence (measured with AVX-512): from the key width on at
/// which the columns that the recurrence takes at a time leave the first cache. A matter of the
/// heads' shape alone, so that the cut of a sequence into calls changes no bit.
constexpr bool delta_chunks_pay(Index K, Index V) { return K > 128 && V >= 64; }

/// One unit of work: heads of one group in one batch row, V of their value columns.
template <class S, class Decay>
struct DeltaRuleUnit {
  View<const S, 2> q, k;  // [T, K]
  View<const S, 3> v;     // [T, heads, V]
  View<const S, 2> beta;  // [T, heads]
  const Decay& decay;
  Index batch_row, first_head;
  S scale;
  View<S, 3> state;  // [heads, K, V]
  View<S, 3> o;      // [T, heads, V]

  Index heads() const { return v.extent(1); }
  Index tokens() const { return q.extent(0); }
  Index keys() const { return q.extent(1); }
  Index values() const { return v.extent(2); }
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

/// The literal recurrence. A few columns of the state pass a block of time while they are in the
/// first cache.
template <class S, class Decay>
void delta_rule_recurrent(const DeltaRuleUnit<S, Decay>& unit, Context& context) {
  constexpr bool by_channel = Decay::by_channel;
  constexpr Index L = simd::lanes<S>;
  const Index T = unit.tokens(), K = unit.keys(), V = unit.values();
  const Index block = std::min(T, packed_tokens);
  const Index a_stride = by_channel ? round_up(K, L) : 1;
  auto scratch = context.scratch<S>();
  S* const a = scratch(block, a_stride).data();                                // factors
  S* const decayed = scratch(by_channel ? block : Index{0}, a_stride).data();  // factors ⊙ k
  S* const copied = scratch(K, delta_width * L).data();

  for (Index first = 0; first < T; first += block) {
    const Index tokens = std::min(block, T - first);
    for (Index h = 0; h < unit.heads(); ++h) {
      unit.decay.write_factors(unit.batch_row, unit.first_head + h, first, tokens, a, a_stride);
      for (Index t = 0; by_channel && t < tokens; ++t) {
        simd::map<S>(
            K, decayed + t * a_stride,
            [](simd::Batch<S> x, simd::Batch<S> y) { return simd::flush_subnormal<S>(x * y); },
            a + t * a_stride, &unit.k(first + t, 0));
      }
      const auto run = [&]<Index width>(std::integral_constant<Index, width>, Index column,
                                        auto lane_count) {
        const Index columns = std::min(width * L, V - column);
        const View<S, 2> part = unit.state[h].template slice<1>(column, columns);
        const bool copy = columns < width * L || tokens >= delta_tokens_to_copy;
        if (copy) pack_padded<S>(part, copied, width * L);
        S* const place = copy ? copied : part.data();
        const Index stride = copy ? width * L : part.stride(0);
        for (Index t = 0; t < tokens; ++t) {
          const S* const k = &unit.k(first + t, 0);
          const DeltaToken<S> token{.q = &unit.q(first + t, 0),
                                    .k = k,
                                    .k_decayed = by_channel ? decayed + t * a_stride : k,
                                    .a = a + t * a_stride,
                                    .beta = unit.beta(first + t, h),
                                    .scale = unit.scale};
          const S* const v = &unit.v(first + t, h, column);
          S* const o = &unit.o(first + t, h, column);
          if (t + 1 < tokens) {
            delta_rule_token<width, Decay, false>(token, K, place, stride, v, o, lane_count);
          } else {
            delta_rule_token<width, Decay, true>(token, K, place, stride, v, o, lane_count);
          }
        }
        if (copy) {
          unpack_padded<S>(copied, stride, part, [](const simd::Batch<S>& x) { return x; });
        }
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
  }
}

/// u_i = beta_i (u_i - found_i - Σ_{j<i} weights_ij u_j), by forward substitution; rows of `stride`
/// numbers, a multiple of two registers.
template <class S>
void solve_chunk(Index tokens, const S* weights, const S* beta, const S* found, S* u,
                 Index stride) {
  constexpr Index L = simd::lanes<S>;
  for (Index c = 0; c < stride; c += 2 * L) {
    for (Index i = 0; i < tokens; ++i) {
      S* const row = u + i * stride + c;
      const S* const known = found + i * stride + c;
      simd::Batch<S> s0 = simd::load(row) - simd::load(known);
      simd::Batch<S> s1 = simd::load(row + L) - simd::load(known + L);
      for (Index j = 0; j < i; ++j) {
        const simd::Batch<S> weight = simd::broadcast(weights[i * chunk_length + j]);
        s0 = simd::fnma<S>(weight, simd::load(u + j * stride + c), s0);
        s1 = simd::fnma<S>(weight, simd::load(u + j * stride + c + L), s1);
      }
      const simd::Batch<S> strength = simd::broadcast(beta[i]);
      simd::store<S>(row, strength * s0), simd::store<S>(row + L, strength * s1);
    }
  }
}

/// The chunkwise form. Within a chunk of tokens that starts from the state S0 the rows u_i that the
/// tokens add to the memory solve a triangular system:
///
///   u_i = beta_i (v_i - k_i (a_1 ... a_i) S0 - Σ_{j<i} (k_i (a_{j+1} ... a_i) k_jᵀ) u_j)
///   o_i = q_i (a_1 ... a_i) S0 + Σ_{j<=i} (q_i (a_{j+1} ... a_i) k_jᵀ) u_j
///   S   = (a_1 ... a_C) S0 + Σ_j (a_{j+1} ... a_C k_j)ᵀ u_j
///
/// Decays are only ever multiplied from the older to the newer token. One of a head commutes with
/// the state, so that the heads of a group share the products of q and k.
/// Yang et al. 2024, arXiv:2406.06484, section 3; Yang et al. 2024, arXiv:2412.06464, section 3.3.
template <class S, class Decay>
void delta_rule_chunked(const DeltaRuleUnit<S, Decay>& unit, Context& context) {
  constexpr Index C = chunk_length, L = simd::lanes<S>;
  constexpr bool by_channel = Decay::by_channel, decays = !std::is_same_v<Decay, NoDecay>;
  const Index T = unit.tokens(), K = unit.keys(), V = unit.values();
  const Index k_stride = round_up(K, L), v_stride = round_up(V, 2 * L);
  const Index a_stride = by_channel ? k_stride : L;
  auto scratch = context.scratch<S>();
  S* const q = scratch(C, k_stride).data();
  S* const k = scratch(C, k_stride).data();
  S* const readers =
      scratch(2 * C, k_stride).data();  // queries, then keys, decayed since the start
  S* const last_k = by_channel ? scratch(C, k_stride).data() : k;  // keys, decayed until the end
  S* const found = scratch(2 * C, v_stride).data();                // what the readers find in S0
  S* const u = scratch(C, v_stride).data();
  S* const last_u = by_channel || !decays ? u : scratch(C, v_stride).data();
  S* const a = scratch(C, a_stride).data();
  S* const total = scratch(a_stride).data();
  S* const q_products = scratch(C, C).data();
  S* const k_products = scratch(C, C).data();
  S* const q_weights = scratch(C, C).data();
  S* const k_weights = scratch(C, C).data();
  S* const beta = scratch(C).data();
  std::fill_n(q, C * k_stride, S(0)), std::fill_n(k, C * k_stride, S(0));

  for (Index first = 0; first < T; first += C) {
    const Index tokens = std::min(C, T - first);
    S* const k_readers = readers + tokens * k_stride;
    S* const found_by_k = found + tokens * v_stride;
    pack_padded<S>(unit.q.template slice<0>(first, tokens), q, k_stride);
    pack_padded<S>(unit.k.template slice<0>(first, tokens), k, k_stride);
    if constexpr (!by_channel) {
      chunk_products(tokens, q, k, k_stride, q_products);
      chunk_products(tokens, k, k, k_stride, k_products);
      std::copy_n(q, tokens * k_stride, readers), std::copy_n(k, tokens * k_stride, k_readers);
    }
    for (Index h = 0; h < unit.heads(); ++h) {
      const View<S, 2> state = unit.state[h];
      unit.decay.write_factors(unit.batch_row, unit.first_head + h, first, tokens, a, a_stride);
      for (Index i = 0; i < tokens; ++i) beta[i] = unit.beta(first + i, h);
      if constexpr (by_channel) {
        weigh_by_channel(tokens, q, k, a, k_stride, q_weights);
        weigh_by_channel(tokens, k, k, a, k_stride, k_weights);
        decay_since_start(tokens, a, a_stride, q, readers, k_stride);
        decay_since_start(tokens, a, a_stride, k, k_readers, k_stride);
        decay_until_end(tokens, a, a_stride, k, last_k, k_stride, total);
      } else {
        weigh_by_head(tokens, q_products, a, a_stride, q_weights);
        weigh_by_head(tokens, k_products, a, a_stride, k_weights);
      }
      tile_matmul<S>(View<const S, 2>(readers, {2 * tokens, K}, {k_stride, 1}), state,
                     View<S, 2>(found, {2 * tokens, V}, {v_stride, 1}));
      if constexpr (decays && !by_channel) {
        decay_since_start(tokens, a, a_stride, found, found, v_stride);
        decay_since_start(tokens, a, a_stride, found_by_k, found_by_k, v_stride);
      }
      pack_padded<S>(unit.v.template at<1>(h).template slice<0>(first, tokens), u, v_stride);
      solve_chunk(tokens, k_weights, beta, found_by_k, u, v_stride);
      tile_matmul<S>(View<const S, 2>(q_weights, {tokens, tokens}, {C, 1}),
                     View<const S, 2>(u, {tokens, V}, {v_stride, 1}),
                     View<S, 2>(found, {tokens, V}, {v_stride, 1}), true);
      unpack_padded<S>(found, v_stride, unit.o.template at<1>(h).template slice<0>(first, tokens),
                       [&](const simd::Batch<S>& x) { return x * simd::broadcast(unit.scale); });
      if constexpr (decays && !by_channel) {
        decay_until_end(tokens, a, a_stride, u, last_u, v_stride, total);
      }
      const auto replace = [&](auto&& f) {
        for (Index r = 0; r < K; ++r) {
          S* const row = &state(r, 0);
          const simd::Batch<S> factor = simd::broadcast(decays ? total[by_channel ? r : 0] : S(1));
          simd::map<S>(
              V, row, [&](const simd::Batch<S>& x) { return f(x, factor); }, row);
        }
      };
      if constexpr (decays) replace([](const auto& x, const auto& factor) { return x * factor; });
      tile_matmul<S>(View<const S, 2>(last_k, {K, tokens}, {1, k_stride}),
                     View<const S, 2>(last_u, {tokens, V}, {v_stride, 1}), state, true);
      replace([](const auto& x, const auto&) { return simd::flush_subnormal<S>(x); });
    }
  }
}

}  // namespace detail

/// S_t = (I - beta_t k_tᵀ k_t) diag(exp g_t) S_{t-1} + beta_t k_tᵀ v_t,  o_t = scale q_t S_t: the
/// memory forgets by the log decay g_t <= 0, then what it holds at k_t moves towards v_t by the
/// share beta_t.
///
/// q, k: [B, T, G, K]; v, o: [B, T, H, V]; beta: [B, T, H]; state: [B, H, K, V], read, then
/// advanced by the T tokens. Head h reads group h / (H / G). Last dimensions are contiguous; o
/// shares no number with the rest. The map of the state is a contraction where 0 <= beta |k|² <= 2.
///
/// `Form::recurrent` is the literal recurrence: two passes over the state a token, four operations
/// a number. `Form::parallel` is that too or takes chunks of `chunk_length` tokens, three
/// operations a number, the products of a chunk and a triangular system, as the context's algorithm
/// says; `automatic` is `delta_chunks_pay`. Both serve any T. The bits depend neither on threads
/// nor on the batch, nor on a cut into calls of a multiple of `packed_tokens`.
template <Form form, class S, class Decay>
void delta_rule(In<S, 4> q, In<S, 4> k, In<S, 4> v, In<S, 3> beta, const Decay& decay, double scale,
                Out<S, 4> state, View<S, 4> o, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      const auto part = [&](const auto& view) {
        return view.template slice<1>(piece.first, piece.count);
      };
      delta_rule<form>(part(q), part(k), part(v), part(beta), decay.of(piece), scale,
                       state.template slice<0>(piece.row, 1), part(o), context);
    });
  }
  const Index B = o.extent(0), T = o.extent(1), H = o.extent(2), V = o.extent(3);
  const Index G = q.extent(2), K = q.extent(3);
  const auto check = [](std::string_view which, const auto& view, const auto& expected) {
    constexpr Index last = std::remove_cvref_t<decltype(view)>::rank - 1;
    if (view.shape() != expected ||
        (last == 3 && view.extent(last) > 1 && view.stride(last) != 1)) {
      throw ShapeError("delta_rule: " + std::string(which) + " has shape " + view.shape().text() +
                       ", expected " + expected.text() + ", the last dimension contiguous");
    }
  };
  if (G <= 0 || H % G != 0) {
    throw ShapeError("delta_rule: " + std::to_string(H) + " heads do not divide into " +
                     std::to_string(G) + " groups");
  }
  check("o", o, Shape<4>{B, T, H, V});
  check("q", q, Shape<4>{B, T, G, K});
  check("k", k, Shape<4>{B, T, G, K});
  check("v", v, Shape<4>{B, T, H, V});
  check("beta", beta, Shape<3>{B, T, H});
  check("state", state, Shape<4>{B, H, K, V});
  decay.check({B, T, H, K});
  if (o.empty()) return;

  bool chunked = false;
  if constexpr (form == Form::parallel) {
    chunked = context.algorithm() == Algorithm::automatic
                  ? detail::delta_chunks_pay(K, V)
                  : context.algorithm() == Algorithm::chunked;
  }
  const auto run_unit = [&](const detail::StateUnit& at, Context& worker) {
    const detail::DeltaRuleUnit<S, Decay> unit{
        .q = q[at.row].template at<1>(at.group),
        .k = k[at.row].template at<1>(at.group),
        .v = at.values_of(v),
        .beta = beta[at.row].template slice<1>(at.head, at.heads),
        .decay = decay,
        .batch_row = at.row,
        .first_head = at.head,
        .scale = static_cast<S>(scale),
        .state = at.state_of(state),
        .o = at.values_of(o)};
    if (chunked) {
      detail::delta_rule_chunked(unit, worker);
    } else {
      detail::delta_rule_recurrent(unit, worker);
    }
  };
  detail::for_each_state_unit(state.shape(), G, T, detail::delta_width * simd::lanes<S>, context,
                              run_unit);
}

/// x = rates ⊙ softplus(x + bias): the log decays of heads or channels, [B, T, D].
template <class S>
void log_decays(View<S, 3> x, In<S, 1> bias, In<S, 1> rates, Context& context) {
  using Batch = simd::Batch<S>;
  const Index width = x.extent(2);
  const auto decay = [](Batch value, Batch shift, Batch rate) {
    return rate * simd::softplus(value + shift);
  };
  for_each_row(
      context, [&](S* row) { simd::map<S>(width, row, decay, row, bias.data(), rates.data()); }, x);
}

/// beta = most σ(beta): the shares of `delta_rule`.
template <class S>
void delta_shares(View<S, 3> beta, double most, Context& context) {
  const simd::Batch<S> factor(static_cast<S>(most));
  elementwise(
      context, [factor](simd::Batch<S> x) { return factor * simd::sigmoid(x); }, beta, beta);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
