#pragma once

#include <algorithm>
#include <array>

#include "seqmix/kernels/linear_state_unit.hpp"
#include "seqmix/kernels/matmul.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// products[i, j] = q_i k_jᵀ for j <= i, in rows of `chunk_length`; the rest is anything.
template <class S>
void chunk_products(Index tokens, const S* q, const S* k, Index k_stride, S* products) {
  constexpr Index side = 4;
  for (Index i = 0; i < tokens; i += side) {
    for (Index j = 0; j <= i; j += side) {
      simd::Batch<S> sums[side][side];
#pragma GCC unroll 4
      for (Index x = 0; x < side; ++x) {
#pragma GCC unroll 4
        for (Index y = 0; y < side; ++y) sums[x][y] = simd::broadcast(S(0));
      }
      for (Index c = 0; c < k_stride; c += simd::lanes<S>) {
#pragma GCC unroll 4
        for (Index x = 0; x < side; ++x) {
          const simd::Batch<S> qx = simd::load(q + (i + x) * k_stride + c);
#pragma GCC unroll 4
          for (Index y = 0; y < side; ++y) {
            sums[x][y] = simd::fma<S>(qx, simd::load(k + (j + y) * k_stride + c), sums[x][y]);
          }
        }
      }
#pragma GCC unroll 4
      for (Index x = 0; x < side; ++x) {
#pragma GCC unroll 4
        for (Index y = 0; y < side; ++y) {
          products[(i + x) * chunk_length + j + y] = simd::reduce_add<S>(sums[x][y]);
        }
      }
    }
  }
}

/// weights[i, j] = products[i, j] a_{j+1} ... a_i for j <= i, or where tokens read `before` they
/// write, products[i, j] a_{j+1} ... a_{i-1} for j < i; else 0.
template <bool before = false, Index C = chunk_length, class S>
void weigh_by_head(Index tokens, const S* products, const S* a, Index a_stride, S* weights) {
  constexpr Index L = simd::lanes<S>;
  static_assert(C % L == 0);
  S counted[L];
  for (Index i = 0; i < L; ++i) counted[i] = static_cast<S>(i);
  for (Index c = 0; c < C; c += L) {
    const simd::Batch<S> column = simd::load(counted) + simd::broadcast(static_cast<S>(c));
    DecayProduct<S> decay;
    for (Index i = 0; i < std::min(c, tokens); ++i) {
      simd::store<S>(weights + i * C + c, simd::broadcast(S(0)));
    }
    for (Index i = c; i < tokens; ++i) {
      const simd::Batch<S> row = simd::broadcast(static_cast<S>(i));
      const simd::Batch<S> factor = simd::load(a + i * a_stride);
      if (!before) decay.multiply(factor, column < row);
      const simd::Batch<S> weight = simd::load(products + i * C + c) * decay.value();
      const simd::Mask<S> counts = before ? column < row : column <= row;
      simd::store<S>(weights + i * C + c, simd::select<S>(counts, weight, simd::broadcast(S(0))));
      if (before) decay.multiply(factor, column < row);
    }
  }
}

/// weights[i, j] += Σ_c q_ic k_jc a_{j+1,c} ... a_ic for j <= i, or with `before` up to a_{i-1,c}
/// for j < i, c in `width` registers.
template <Index width, bool before, class S>
void add_channel_weights(Index tokens, const S* q, const S* k, const S* a, Index k_stride,
                         S* weights) {
  constexpr Index L = simd::lanes<S>;
  for (Index j = 0; j < tokens; ++j) {
    DecayProduct<S> decay[width];
    simd::Batch<S> key[width];
#pragma GCC unroll 4
    for (Index c = 0; c < width; ++c) key[c] = simd::load(k + j * k_stride + c * L);
    for (Index i = before ? j + 1 : j; i < tokens; ++i) {
      const Index last = before ? i - 1 : i;  // the last factor that counts
      simd::Batch<S> sum = simd::broadcast(S(0));
#pragma GCC unroll 4
      for (Index c = 0; c < width; ++c) {
        if (last > j) decay[c].multiply(simd::load(a + last * k_stride + c * L));
        sum = simd::fma<S>(simd::load(q + i * k_stride + c * L) * decay[c].value(), key[c], sum);
      }
      weights[i * chunk_length + j] += simd::reduce_add<S>(sum);
    }
  }
}

/// weights[i, j] = Σ_c q_ic k_jc a_{j+1,c} ... a_ic for j <= i, or with `before` up to a_{i-1,c}
/// for j < i; else 0.
template <bool before = false, class S>
void weigh_by_channel(Index tokens, const S* q, const S* k, const S* a, Index k_stride,
                      S* weights) {
  constexpr Index width = 4, L = simd::lanes<S>;
  std::fill_n(weights, tokens * chunk_length, S(0));
  Index c = 0;
  for (; c + width * L <= k_stride; c += width * L) {
    add_channel_weights<width, before>(tokens, q + c, k + c, a + c, k_stride, weights);
  }
  for (; c < k_stride; c += L) {
    add_channel_weights<1, before>(tokens, q + c, k + c, a + c, k_stride, weights);
  }
}

/// to_i = (a_1 ... a_i) from_i, with `before` up to a_{i-1}: what decays since the start of a
/// chunk. The factors of a row are `period` numbers, over and over.
template <bool before = false, class S>
void decay_since_start(Index tokens, const S* a, Index period, const S* from, S* to, Index stride) {
  for (Index c = 0; c < stride; c += simd::lanes<S>) {
    DecayProduct<S> decay;
    for (Index i = 0; i < tokens; ++i) {
      const simd::Batch<S> factor = simd::load(a + i * period + c % period);
      if (!before) decay.multiply(factor);
      const Index at = i * stride + c;
      simd::store<S>(to + at, simd::load(from + at) * decay.value());
      if (before) decay.multiply(factor);
    }
  }
}

/// to_j = (a_{j+1} ... a_C) from_j: what decays until the end of a chunk; total = a_1 ... a_C.
template <class S>
void decay_until_end(Index tokens, const S* a, Index period, const S* from, S* to, Index stride,
                     S* total) {
  for (Index c = 0; c < stride; c += simd::lanes<S>) {
    DecayProduct<S> decay;
    for (Index j = tokens - 1; j >= 0; --j) {
      const Index at = j * stride + c;
      simd::store<S>(to + at, simd::load(from + at) * decay.value());
      decay.multiply(simd::load(a + j * period + c % period));
    }
    simd::store<S>(total + c % period, decay.value());
  }
}

/// weights[i, j] = products[i, j] γ^(i-j) for j <= i, or with `before` γ^(i-1-j) for j < i; else 0.
/// powers(n) is γ^n, γ^(n-1), ..., 1.
template <bool before = false, Index C = chunk_length, class S>
void weigh_by_powers(Index tokens, const S* products, auto&& powers, S* weights) {
  constexpr Index L = simd::lanes<S>;
  for (Index i = 0; i < tokens; ++i) {
    const Index count = before ? i : i + 1;
    const S* const decays = powers(std::max<Index>(count - 1, 0));
    for (Index c = 0; c < C; c += L) {
      const Index at = i * C + c;
      const simd::Batch<S> counted = simd::load(products + at, std::clamp<Index>(count - c, 0, L));
      simd::store<S>(weights + at, counted * simd::load(decays + c));
    }
  }
}

/// to_i = factor(i) from_i, rows of `stride` numbers.
template <class S>
void multiply_rows(Index tokens, auto&& factor, const S* from, S* to, Index stride) {
  for (Index i = 0; i < tokens; ++i, from += stride, to += stride) {
    const simd::Batch<S> by = simd::broadcast(factor(i));
    for (Index c = 0; c < stride; c += simd::lanes<S>) {
      simd::store<S>(to + c, simd::load(from + c) * by);
    }
  }
}

/// The chunkwise form. Within a chunk of tokens that starts from the state S0:
///
///   o_i = q_i (a_1 ... a_i) S0 + Σ_{j<=i} (q_i (a_{j+1} ... a_i) k_jᵀ) v_j
///   S   = (a_1 ... a_C) S0 + Σ_j (a_{j+1} ... a_C k_j)ᵀ v_j
///
/// Where a token reads before it writes, o_i takes the factors up to a_{i-1} and the tokens j < i.
/// Decays are only ever multiplied from the older to the newer token. One of a head commutes with
/// the state and goes to o and v, so that the heads of a group share q, k and their products.
/// Yang et al. 2023, arXiv:2312.06635, section 4; Dao & Gu 2024, arXiv:2405.21060, section 6.
template <class S, class Decay>
void linear_state_chunked(const LinearStateUnit<S, Decay>& unit, Context& context) {
  constexpr Index C = chunk_length;
  constexpr bool by_channel = Decay::by_channel, before = reads_before<Decay>;
  const Index T = unit.tokens();
  const Index block = std::min(round_up(T, C), packed_tokens);
  const Index k_stride = unit.key_stride(), v_stride = unit.value_stride();
  const Index a_stride = unit.factor_stride();
  auto scratch = context.scratch<S>();
  S* const q = scratch(block, k_stride).data();
  S* const k = scratch(block, k_stride).data();
  S* const v = scratch(block, v_stride).data();
  S* const o = scratch(block, v_stride).data();
  S* const a = scratch(block, a_stride).data();
  S* const total = scratch(block / C, a_stride).data();
  S* const products = scratch(block, C).data();
  S* const weights = scratch(block, C).data();
  S* const decayed_q = by_channel ? scratch(block, k_stride).data() : q;
  S* const decayed_k = by_channel ? scratch(block, k_stride).data() : k;
  S* const decayed_v = by_channel ? v : scratch(block, v_stride).data();
  std::fill_n(q, block * k_stride, S(0)), std::fill_n(k, block * k_stride, S(0));

  for (Index first = 0; first < T; first += block) {
    const Index tokens = std::min(block, T - first);
    const auto for_each_chunk = [&](auto&& body) {
      for (Index t = 0; t < tokens; t += C) body(t, std::min(C, tokens - t));
    };
    pack_padded<S>(unit.q.template slice<0>(first, tokens), q, k_stride);
    pack_padded<S>(unit.k.template slice<0>(first, tokens), k, k_stride);
    if constexpr (!by_channel) {
      for_each_chunk([&](Index t, Index count) {
        chunk_products(count, q + t * k_stride, k + t * k_stride, k_stride, products + t * C);
      });
    }
    for (Index h = 0; h < unit.heads(); ++h) {
      const Index head = unit.first_head + h;
      if constexpr (!by_powers<Decay>) {
        unit.decay.write_factors(unit.batch_row, head, first, tokens, a, a_stride);
      }
      pack_padded<S>(unit.v.template at<1>(h).template slice<0>(first, tokens), v, v_stride);
      for_each_chunk([&](Index t, Index count) {
        const S* const factors = a + t * a_stride;
        S* const last = total + t / C * a_stride;
        if constexpr (by_channel) {
          const Index at = t * k_stride;
          weigh_by_channel<before>(count, q + at, k + at, factors, k_stride, weights + t * C);
          decay_since_start<before>(count, factors, a_stride, q + at, decayed_q + at, k_stride);
          decay_until_end(count, factors, a_stride, k + at, decayed_k + at, k_stride, last);
        } else if constexpr (by_powers<Decay>) {
          const Index at = t * v_stride;
          const auto powers = [&](Index n) { return unit.decay.powers(head, n); };
          weigh_by_powers<before>(count, products + t * C, powers, weights + t * C);
          const S* const until_end = powers(count - 1);
          multiply_rows(
              count, [&](Index j) { return until_end[j]; }, v + at, decayed_v + at, v_stride);
        } else {
          const Index at = t * v_stride;
          weigh_by_head<before>(count, products + t * C, factors, a_stride, weights + t * C);
          decay_until_end(count, factors, a_stride, v + at, decayed_v + at, v_stride, last);
        }
      });
      std::fill_n(o, tokens * v_stride, S(0));
      for_each_tile(unit.state[h], [&](S* place, Index stride, Index row, Index column) {
        StateTile<S> tile(place, stride);
        for_each_chunk([&](Index t, Index count) {
          for (Index i = t; i < t + count; ++i) {
            tile.read(decayed_q + i * k_stride + row, o + i * v_stride + column);
          }
          if constexpr (by_powers<Decay>) {
            tile.decay(unit.decay.split_power(head, count));
          } else {
            tile.template decay<by_channel>(total + t / C * a_stride + (by_channel ? row : 0));
          }
          for (Index i = t; i < t + count; ++i) {
            tile.write(decayed_k + i * k_stride + row, decayed_v + i * v_stride + column);
          }
        });
        tile.store(place, stride);
      });
      for_each_chunk([&](Index t, Index count) {
        const Index at = t * v_stride;
        if constexpr (by_powers<Decay>) {
          const auto since_start = [&](Index i) {
            return *unit.decay.powers(head, before ? i : i + 1);
          };
          multiply_rows(count, since_start, o + at, o + at, v_stride);
        } else if constexpr (!by_channel) {
          decay_since_start<before>(count, a + t * a_stride, a_stride, o + at, o + at, v_stride);
        }
        const View<const S, 2> scores(weights + t * C, {count, count}, {C, 1});
        const View<const S, 2> values(v + at, {count, v_stride});
        tile_matmul<S>(scores, values, View<S, 2>(o + at, {count, v_stride}), true);
      });
      unpack_padded<S>(o, v_stride, unit.o.template at<1>(h).template slice<0>(first, tokens),
                       [&](const simd::Batch<S>& x) { return x * simd::broadcast(unit.scale); });
    }
  }
}

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
