#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "seqmix/core/context.hpp"
#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/matmul.hpp"
#include "seqmix/simd/batch.hpp"
#include "seqmix/simd/map.hpp"
#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Tokens of a chunk. A larger one costs more products a token and saves only decays of the state.
inline constexpr Index chunk_length = 16;
/// Tokens that are packed at a time and pass through a tile of the state while it is in registers.
inline constexpr Index packed_tokens = 2 * chunk_length;
/// Heads of one group that share its packed queries and keys, and their products.
inline constexpr Index shared_heads = 4;
/// Where there are fewer units of work than this, value columns are split into panels of this many.
inline constexpr Index enough_units = 8;
inline constexpr Index panel_columns = 128;
/// Numbers of the state that one task updates at least, over its tokens.
inline constexpr Index updates_per_task = Index{1} << 17;

/// Whether chunks are faster than the recurrence (measured with AVX-512): where the products of q
/// and k are shared by heads or small beside the state, with a constant decay too. With a decay a
/// channel they never are: the products then cost what chunks save (16 heads of 64 over 2048
/// tokens, one thread: 9.2 against 7.9 ms, and 9.1 against 8.0 where tokens read before they write;
/// alike from heads of 128 on). A matter of the heads' shape alone: were it one of T, the cut of a
/// sequence into calls would change bits.
template <class Decay>
constexpr bool chunks_pay(Index heads_per_group, Index K, Index V) {
  if (Decay::by_channel) return false;
  return heads_per_group > 1 ? K >= 64 : K >= 128 && V >= 128;
}

/// Throws unless `view` has the expected shape and a contiguous last dimension.
template <class T, Index Rank>
void check_operand(std::string_view name, const View<T, Rank>& view,
                   const std::type_identity_t<Shape<Rank>>& expected) {
  if (view.shape() != expected) {
    throw ShapeError("linear_state: " + std::string(name) + " has shape " + view.shape().text() +
                     ", expected " + expected.text());
  }
  if (view.extent(Rank - 1) > 1 && view.stride(Rank - 1) != 1) {
    throw ShapeError("linear_state: the last dimension of " + std::string(name) + " has stride " +
                     std::to_string(view.stride(Rank - 1)) + ", expected 1");
  }
}

/// The piece of the state that the recurrence holds in registers: about half of them.
template <class S>
inline constexpr Index state_tile_rows = sizeof(simd::Batch<S>) >= 64 ? 8 : 4;
template <class S>
inline constexpr Index state_tile_columns = 2 * simd::lanes<S>;

/// A running product of factors in {0} and [smallest normal number, 1]. It becomes zero where it
/// leaves that range and never passes through a subnormal number: it is kept too large by the
/// reciprocal of the smallest normal number, a power of two.
template <class S>
class DecayProduct {
 public:
  SEQMIX_ALWAYS_INLINE void multiply(const simd::Batch<S>& factor) {
    const simd::Batch<S> product = scaled_ * factor;
    scaled_ = simd::select<S>(product < simd::broadcast(S(1)), simd::broadcast(S(0)), product);
  }
  /// Leaves the lanes as they are in which `mask` does not hold.
  SEQMIX_ALWAYS_INLINE void multiply(const simd::Batch<S>& factor, const simd::Mask<S>& mask) {
    const simd::Batch<S> before = scaled_;
    multiply(factor);
    scaled_ = simd::select<S>(mask, scaled_, before);
  }
  SEQMIX_ALWAYS_INLINE simd::Batch<S> value() const {
    return scaled_ * simd::broadcast(std::numeric_limits<S>::min());
  }

 private:
  simd::Batch<S> scaled_ = simd::broadcast(1 / std::numeric_limits<S>::min());
};

/// to[r, c] = f(from[r, c]) in rows of `stride` numbers, a multiple of the lanes, padded with f(0).
/// Packed rows do not evict each other as rows at a distance of 4 KB do.
template <class S>
void pack_padded(const View<const S, 2>& from, S* to, Index stride, auto&& f) {
  constexpr Index L = simd::lanes<S>;
  for (Index row = 0; row < from.extent(0); ++row, to += stride) {
    const S* const source = from.data() + row * from.stride(0);
    for (Index c = 0; c < stride; c += L) {
      const Index left = std::clamp<Index>(from.extent(1) - c, 0, L);
      const simd::Batch<S> x = left == L ? simd::load(source + c) : simd::load(source + c, left);
      simd::store<S>(to + c, f(x));
    }
  }
}
template <class S>
void pack_padded(const View<const S, 2>& from, S* to, Index stride) {
  pack_padded<S>(from, to, stride, [](const simd::Batch<S>& x) { return x; });
}

/// to[r, c] = f(from[r, c]) out of rows of `stride` numbers.
template <class S>
void unpack_padded(const S* from, Index stride, const View<S, 2>& to, auto&& f) {
  for (Index row = 0; row < to.extent(0); ++row, from += stride) {
    simd::map<S>(to.extent(1), to.data() + row * to.stride(0), f, from);
  }
}

}  // namespace detail

/// How a state forgets: a type whose `write_factors` writes the factors exp(log) in [0, 1] of
/// `count` tokens of a head, a row of `stride` numbers a token: a factor for each key channel
/// (`by_channel`), else the head's factor in all places; `of` is the decay of a packed piece.
///
/// The state forgets nothing.
struct NoDecay {
  static constexpr bool by_channel = false;

  void check(const Shape<4>&) const {}
  NoDecay of(const Piece&) const { return {}; }
  template <class S>
  void write_factors(Index, Index, Index, Index count, S* rows, Index stride) const {
    std::fill_n(rows, count * stride, S(1));
  }
};

/// One log decay a token and head, <= 0; -infinity forgets all.
template <class S>
struct ScalarDecay {
  static constexpr bool by_channel = false;
  View<const S, 3> log;  // [B, T, H]

  void check(const Shape<4>& keys) const {
    if (log.shape() != Shape<3>{keys[0], keys[1], keys[2]}) {
      throw ShapeError("linear_state: the log decay has shape " + log.shape().text() +
                       ", expected " + Shape<3>{keys[0], keys[1], keys[2]}.text());
    }
  }
  ScalarDecay of(const Piece& piece) const {
    return {log.template slice<1>(piece.first, piece.count)};
  }
  void write_factors(Index b, Index h, Index first, Index count, S* rows, Index stride) const {
    constexpr Index L = simd::lanes<S>;
    for (Index t = 0; t < count; t += L) {
      const Index tokens = std::min(L, count - t);
      S factors[L] = {};
      for (Index i = 0; i < tokens; ++i) factors[i] = log(b, first + t + i, h);
      simd::store<S>(factors, simd::flush_subnormal<S>(simd::exp(simd::load(factors))));
      for (Index i = 0; i < tokens; ++i) std::fill_n(rows + (t + i) * stride, stride, factors[i]);
    }
  }
};

/// One log decay a token, head and key channel, <= 0; -infinity forgets all.
template <class S>
struct VectorDecay {
  static constexpr bool by_channel = true;
  View<const S, 4> log;  // [B, T, H, K]

  void check(const Shape<4>& keys) const { detail::check_operand("the log decay", log, keys); }
  VectorDecay of(const Piece& piece) const {
    return {log.template slice<1>(piece.first, piece.count)};
  }
  void write_factors(Index b, Index h, Index first, Index count, S* rows, Index stride) const {
    const View<const S, 2> of_head = log[b].template at<1>(h).template slice<0>(first, count);
    detail::pack_padded<S>(of_head, rows, stride, [](const simd::Batch<S>& x) {
      return simd::flush_subnormal<S>(simd::exp(x));
    });
  }
};

/// One factor γ a head in [0, 1], the same for each token: factors [H]. Made once, as it computes
/// the powers of γ that a chunk takes.
///
/// Each power is rounded once. But the state takes γ^C at every chunk, and its rounding would be
/// the same error each time and add up over the memory of a slow head: it is split into 0 or 1,
/// which is nearer, and a rest, which is small where the head is slow, and so is its rounding.
template <class S>
class ConstantDecay {
 public:
  static constexpr bool by_channel = false;

  explicit ConstantDecay(In<S, 1> factors) {
    constexpr Index C = detail::chunk_length;
    Tensor<S, 3> table({factors.extent(0), 2, 2 * C});
    for (Index h = 0; h < factors.extent(0); ++h) {
      table(h, 0, C) = 1;
      const double factor = static_cast<double>(factors[h]), log = std::log1p(factor - 1);
      for (Index n = 1; n <= C; ++n) {
        const double exponent = static_cast<double>(n);
        const S rounded = static_cast<S>(std::pow(factor, exponent));
        const S power = rounded < std::numeric_limits<S>::min() ? S(0) : rounded;
        table(h, 0, C - n) = power;
        // The digits of power - 1, which a subtraction would lose.
        const S from_one = static_cast<S>(std::expm1(exponent * log));
        table(h, 1, C - n) = nearest(power) == S(0) ? power : from_one;
      }
    }
    table_ = std::move(table);
  }

  void check(const Shape<4>& keys) const {
    if (table_.extent(0) != keys[2]) {
      throw ShapeError("linear_state: the decay factors have shape " +
                       Shape<1>{table_.extent(0)}.text() + ", expected " +
                       Shape<1>{keys[2]}.text());
    }
  }
  const ConstantDecay& of(const Piece&) const { return *this; }
  void write_factors(Index, Index h, Index, Index count, S* rows, Index stride) const {
    std::fill_n(rows, count * stride, *powers(h, 1));
  }
  /// γ^n, γ^(n-1), ..., 1, then zeros up to `chunk_length` numbers at least, n <= chunk_length.
  const S* powers(Index h, Index n) const { return &table_(h, 0, detail::chunk_length - n); }
  /// γ^n as the sum of 0 or 1 and a rest, 1 <= n <= chunk_length.
  std::array<S, 2> split_power(Index h, Index n) const {
    return {nearest(*powers(h, n)), table_(h, 1, detail::chunk_length - n)};
  }

 private:
  static S nearest(S power) { return power < S(0.5) ? S(0) : S(1); }

  Parameter<S, 3> table_;  // [H, 2, 2 C]: at C - n the power n, and its rest; zeros behind
};

/// One factor in [0, 1] a token, head and key channel: a `VectorDecay` whose exponentials are
/// taken.
template <class S>
struct VectorFactors {
  static constexpr bool by_channel = true;
  View<const S, 4> factors;  // [B, T, H, K]

  void check(const Shape<4>& keys) const {
    detail::check_operand("the decay factors", factors, keys);
  }
  VectorFactors of(const Piece& piece) const {
    return {factors.template slice<1>(piece.first, piece.count)};
  }
  void write_factors(Index b, Index h, Index first, Index count, S* rows, Index stride) const {
    const View<const S, 2> of_head = factors[b].template at<1>(h).template slice<0>(first, count);
    detail::pack_padded<S>(of_head, rows, stride,
                           [](const simd::Batch<S>& x) { return simd::flush_subnormal<S>(x); });
  }
};

/// A decay that comes after the read: o_t = scale q_t S_{t-1}, as RWKV-6 has it.
template <class Decay>
struct ReadBefore : Decay {
  using ReadsBefore = void;

  ReadBefore of(const Piece& piece) const { return {Decay::of(piece)}; }
};

namespace detail {

/// One unit of work: heads of one group in one batch row, V of their value columns.
template <class S, class Decay>
struct LinearStateUnit {
  View<const S, 2> q, k;  // [T, K]
  View<const S, 3> v;     // [T, heads, V]
  const Decay& decay;
  Index batch_row, first_head;
  S scale;
  View<S, 3> state;  // [heads, K, V]
  View<S, 3> o;      // [T, heads, V]

  Index heads() const { return v.extent(1); }
  Index tokens() const { return q.extent(0); }
  Index keys() const { return q.extent(1); }
  Index values() const { return v.extent(2); }
  /// The length of a row of packed keys, of packed values, and of a row of factors.
  Index key_stride() const {
    return round_up(keys(), std::max(state_tile_rows<S>, simd::lanes<S>));
  }
  Index value_stride() const { return round_up(values(), state_tile_columns<S>); }
  Index factor_stride() const { return Decay::by_channel ? key_stride() : simd::lanes<S>; }
};

/// A tile of the state in registers.
template <class S>
class StateTile {
 public:
  static constexpr Index rows = state_tile_rows<S>, columns = state_tile_columns<S>;

  SEQMIX_ALWAYS_INLINE StateTile(const S* state, Index stride) {
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      s_[r][0] = simd::load(state + r * stride), s_[r][1] = simd::load(state + r * stride + lanes);
    }
  }
  SEQMIX_ALWAYS_INLINE void store(S* state, Index stride) const {
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      simd::store<S>(state + r * stride, simd::flush_subnormal<S>(s_[r][0]));
      simd::store<S>(state + r * stride + lanes, simd::flush_subnormal<S>(s_[r][1]));
    }
  }
  /// s = a s, by rows.
  template <bool by_row>
  SEQMIX_ALWAYS_INLINE void decay(const S* a) {
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch factor = simd::broadcast(a[by_row ? r : 0]);
      s_[r][0] = s_[r][0] * factor, s_[r][1] = s_[r][1] * factor;
    }
  }
  /// s = a s by a factor that is split in two, rounded once where the first is 0 or 1.
  SEQMIX_ALWAYS_INLINE void decay(const std::array<S, 2>& a) {
    const Batch whole = simd::broadcast(a[0]), rest = simd::broadcast(a[1]);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      s_[r][0] = simd::fma<S>(rest, s_[r][0], whole * s_[r][0]);
      s_[r][1] = simd::fma<S>(rest, s_[r][1], whole * s_[r][1]);
    }
  }
  /// s += kᵀ v.
  SEQMIX_ALWAYS_INLINE void write(const S* k, const S* v) {
    const Batch v0 = simd::load(v), v1 = simd::load(v + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch key = simd::broadcast(k[r]);
      s_[r][0] = simd::fma<S>(key, v0, s_[r][0]), s_[r][1] = simd::fma<S>(key, v1, s_[r][1]);
    }
  }
  /// s = a s + kᵀ v.
  template <bool by_row>
  SEQMIX_ALWAYS_INLINE void decay_and_write(const S* a, const S* k, const S* v) {
    const Batch v0 = simd::load(v), v1 = simd::load(v + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch factor = simd::broadcast(a[by_row ? r : 0]), key = simd::broadcast(k[r]);
      s_[r][0] = simd::fma<S>(factor, s_[r][0], key * v0);
      s_[r][1] = simd::fma<S>(factor, s_[r][1], key * v1);
    }
  }
  /// o += q s.
  SEQMIX_ALWAYS_INLINE void read(const S* q, S* o) const {
    Batch o0 = simd::load(o), o1 = simd::load(o + lanes);
#pragma GCC unroll 8
    for (Index r = 0; r < rows; ++r) {
      const Batch query = simd::broadcast(q[r]);
      o0 = simd::fma<S>(query, s_[r][0], o0), o1 = simd::fma<S>(query, s_[r][1], o1);
    }
    simd::store<S>(o, o0), simd::store<S>(o + lanes, o1);
  }

 private:
  using Batch = simd::Batch<S>;
  static constexpr Index lanes = simd::lanes<S>;
  Batch s_[rows][2];
};

/// Calls `advance(place, stride, row, column)` for the place of each tile of `state` [K, V]. A tile
/// that the edge cuts is padded with zeros elsewhere.
template <class S>
void for_each_tile(const View<S, 2>& state, auto&& advance) {
  constexpr Index tile_rows = StateTile<S>::rows, tile_columns = StateTile<S>::columns;
  const Index K = state.extent(0), V = state.extent(1);
  for (Index row = 0; row < K; row += tile_rows) {
    for (Index column = 0; column < V; column += tile_columns) {
      const Index rows = std::min(tile_rows, K - row), columns = std::min(tile_columns, V - column);
      if (rows == tile_rows && columns == tile_columns) {
        S* const place = state.data() + row * state.stride(0) + column;
        advance(place, state.stride(0), row, column);
      } else {
        alignas(alignment) S padded[tile_rows * tile_columns] = {};
        const View<S, 2> rest =
            state.template slice<0>(row, rows).template slice<1>(column, columns);
        pack_padded<S>(rest, padded, tile_columns);
        advance(padded, tile_columns, row, column);
        unpack_padded<S>(padded, tile_columns, rest, [](const simd::Batch<S>& x) { return x; });
      }
    }
  }
}

/// Whether a token reads the state that it finds.
template <class Decay>
inline constexpr bool reads_before = requires {
  typename Decay::ReadsBefore;
};

/// Whether the decays of a chunk are powers that the policy has.
template <class Decay>
inline constexpr bool by_powers = requires(const Decay& decay) {
  decay.powers(0, 0);
};

/// The literal recurrence, tile by tile over blocks of time.
template <class S, class Decay>
void linear_state_recurrent(const LinearStateUnit<S, Decay>& unit, Context& context) {
  constexpr bool by_channel = Decay::by_channel;
  const Index T = unit.tokens();
  const Index block = std::min(T, packed_tokens);
  const Index k_stride = unit.key_stride(), v_stride = unit.value_stride();
  const Index a_stride = unit.factor_stride();
  auto scratch = context.scratch<S>();
  S* const q = scratch(block, k_stride).data();
  S* const k = scratch(block, k_stride).data();
  S* const a = scratch(block, a_stride).data();
  S* const v = scratch(block, v_stride).data();
  S* const o = scratch(block, v_stride).data();

  for (Index first = 0; first < T; first += block) {
    const Index tokens = std::min(block, T - first);
    pack_padded<S>(unit.q.template slice<0>(first, tokens), q, k_stride);
    pack_padded<S>(unit.k.template slice<0>(first, tokens), k, k_stride);
    for (Index h = 0; h < unit.heads(); ++h) {
      const View<S, 2> state = unit.state[h];
      unit.decay.write_factors(unit.batch_row, unit.first_head + h, first, tokens, a, a_stride);
      pack_padded<S>(unit.v.template at<1>(h).template slice<0>(first, tokens), v, v_stride);
      std::fill_n(o, tokens * v_stride, S(0));
      for_each_tile(state, [&](S* place, Index stride, Index row, Index column) {
        StateTile<S> tile(place, stride);
        for (Index t = 0; t < tokens; ++t) {
          if (reads_before<Decay>) tile.read(q + t * k_stride + row, o + t * v_stride + column);
          tile.template decay_and_write<by_channel>(a + t * a_stride + (by_channel ? row : 0),
                                                    k + t * k_stride + row,
                                                    v + t * v_stride + column);
          if (!reads_before<Decay>) tile.read(q + t * k_stride + row, o + t * v_stride + column);
        }
        tile.store(place, stride);
      });
      unpack_padded<S>(o, v_stride, unit.o.template at<1>(h).template slice<0>(first, tokens),
                       [&](const simd::Batch<S>& x) { return x * simd::broadcast(unit.scale); });
    }
  }
}

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
template <bool before = false, class S>
void weigh_by_head(Index tokens, const S* products, const S* a, Index a_stride, S* weights) {
  constexpr Index L = simd::lanes<S>;
  static_assert(chunk_length % L == 0);
  S counted[L];
  for (Index i = 0; i < L; ++i) counted[i] = static_cast<S>(i);
  for (Index c = 0; c < chunk_length; c += L) {
    const simd::Batch<S> column = simd::load(counted) + simd::broadcast(static_cast<S>(c));
    DecayProduct<S> decay;
    for (Index i = 0; i < tokens; ++i) {
      const simd::Batch<S> row = simd::broadcast(static_cast<S>(i));
      const simd::Batch<S> factor = simd::load(a + i * a_stride);
      if (!before) decay.multiply(factor, column < row);
      const simd::Batch<S> weight = simd::load(products + i * chunk_length + c) * decay.value();
      const simd::Mask<S> counts = before ? column < row : column <= row;
      simd::store<S>(weights + i * chunk_length + c,
                     simd::select<S>(counts, weight, simd::broadcast(S(0))));
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
template <bool before = false, class S>
void weigh_by_powers(Index tokens, const S* products, auto&& powers, S* weights) {
  constexpr Index L = simd::lanes<S>;
  for (Index i = 0; i < tokens; ++i) {
    const Index count = before ? i : i + 1;
    const S* const decays = powers(std::max<Index>(count - 1, 0));
    for (Index c = 0; c < chunk_length; c += L) {
      const Index at = i * chunk_length + c;
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

/// What one task does of a state [B, H, K, V]: `heads` heads of one group from `head` on, and their
/// value columns [column, column + width).
struct StateUnit {
  Index row, group, head, heads, column, width;

  /// Of v or o, [B, T, H, V].
  auto values_of(const auto& view) const {
    return view[row].template slice<1>(head, heads).template slice<2>(column, width);
  }
  auto state_of(const auto& state) const {
    return state[row].template slice<0>(head, heads).template slice<2>(column, width);
  }
};

/// Calls `body(unit, worker)` for all units of a state that T tokens of G groups pass through. A
/// unit has all value columns of its heads, or a panel of a multiple of `panel` of them where there
/// are few units. How a state is cut is a matter of its shape alone.
void for_each_state_unit(const Shape<4>& state, Index G, Index T, Index panel, Context& context,
                         auto&& body) {
  const Index B = state[0], K = state[2], V = state[3], per_group = state[1] / G;
  const Index heads = std::min(per_group, shared_heads);
  const Index blocks = ceil_div(per_group, heads);
  const Index panels =
      std::clamp<Index>(V / panel_columns, 1, ceil_div(enough_units, B * G * blocks));
  const Index columns = round_up(ceil_div(V, panels), panel);
  const Index units = B * G * blocks * panels;
  const Index updates = std::max<Index>(T * K * columns * heads, 1);
  const Index units_per_task = std::max<Index>(updates_per_task / updates, 1);
  context.parallel_for(ceil_div(units, units_per_task), [&](Index task, Context& worker) {
    const Index end = std::min(units, (task + 1) * units_per_task);
    for (Index i = task * units_per_task; i < end; ++i) {
      const Index column = i % panels * columns, block = i / panels % blocks;
      const Index group = i / (panels * blocks) % G, row = i / (panels * blocks * G);
      const StateUnit unit{row,
                           group,
                           group * per_group + block * heads,
                           std::min(heads, per_group - block * heads),
                           column,
                           std::min(columns, V - column)};
      if (unit.width > 0) body(unit, worker);
    }
  });
}

}  // namespace detail

/// S_t = diag(exp g_t) S_{t-1} + k_tᵀ v_t,  o_t = scale q_t S_t,  g_t <= 0 the log decay.
///
/// q, k: [B, T, G, K]; v, o: [B, T, H, V]; state: [B, H, K, V], read, then advanced by the T
/// tokens. Head h reads group h / (H / G). Last dimensions are contiguous; o shares no number with
/// the rest. Numbers of the state below the smallest normal one become zero.
///
/// `Form::recurrent` is the literal recurrence: three operations a token and number of the state,
/// o_t summed by one chain of fma over ascending channels. `Form::parallel` is that too or takes
/// chunks, two operations and the products of a chunk, as the context's algorithm says; `automatic`
/// is `chunks_pay`. Both hold the state in registers and serve any T. The bits depend neither on
/// threads nor on the batch, nor on a cut into calls of a multiple of `packed_tokens`.
template <Form form, class S, class Decay>
void linear_state(In<S, 4> q, In<S, 4> k, In<S, 4> v, const Decay& decay, double scale,
                  Out<S, 4> state, View<S, 4> o, Context& context) {
  if (context.packed()) {
    return context.for_each_piece([&](const Piece& piece) {
      const auto part = [&](const auto& view) {
        return view.template slice<1>(piece.first, piece.count);
      };
      linear_state<form>(part(q), part(k), part(v), decay.of(piece), scale,
                         state.template slice<0>(piece.row, 1), part(o), context);
    });
  }
  const Index B = o.extent(0), T = o.extent(1), H = o.extent(2), V = o.extent(3);
  const Index G = q.extent(2), K = q.extent(3);
  if (G <= 0 || H % G != 0) {
    throw ShapeError("linear_state: " + std::to_string(H) + " heads do not divide into " +
                     std::to_string(G) + " groups");
  }
  detail::check_operand("o", o, {B, T, H, V});
  detail::check_operand("q", q, {B, T, G, K});
  detail::check_operand("k", k, {B, T, G, K});
  detail::check_operand("v", v, {B, T, H, V});
  detail::check_operand("state", state, {B, H, K, V});
  decay.check({B, T, H, K});
  if (o.empty()) return;

  bool chunked = false;
  if constexpr (form == Form::parallel) {
    chunked = context.algorithm() == Algorithm::automatic
                  ? detail::chunks_pay<Decay>(H / G, K, V)
                  : context.algorithm() == Algorithm::chunked;
  }
  const auto run_unit = [&](const detail::StateUnit& at, Context& worker) {
    const detail::LinearStateUnit<S, Decay> unit{.q = q[at.row].template at<1>(at.group),
                                                 .k = k[at.row].template at<1>(at.group),
                                                 .v = at.values_of(v),
                                                 .decay = decay,
                                                 .batch_row = at.row,
                                                 .first_head = at.head,
                                                 .scale = static_cast<S>(scale),
                                                 .state = at.state_of(state),
                                                 .o = at.values_of(o)};
    if (chunked) {
      linear_state_chunked(unit, worker);
    } else {
      linear_state_recurrent(unit, worker);
    }
  };
  detail::for_each_state_unit(state.shape(), G, T, detail::state_tile_columns<S>, context,
                              run_unit);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
