#pragma once

#include <algorithm>
#include <array>
#include <limits>

#include "seqmix/core/numeric.hpp"
#include "seqmix/kernels/memory/detail/linear_state_unit.hpp"
#include "seqmix/kernels/memory/detail/linear_state_weights.hpp"
#include "seqmix/kernels/product/detail/tile_operand.hpp"

// The chunkwise form of `linear_state` on matrix units, for decays by head.

#if SEQMIX_MATRIX_UNITS

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Stores what of 16 numbers lies inside the matrix.
SEQMIX_ALWAYS_INLINE void store_inside(const View<float, 2>& x, Index row, Index column,
                                       const simd::Batch<float>& numbers) {
  constexpr Index L = simd::lanes<float>;
  if (row >= x.extent(0)) return;
  float* const to = x.data() + row * x.stride(0) + column;
  if (column + L <= x.extent(1)) {
    simd::store<float>(to, numbers);
  } else {
    simd::store<float>(to, numbers, std::clamp<Index>(x.extent(1) - column, 0, L));
  }
}

/// sums (+)= block i of `a` times block j of `b` over the first `steps` of depth.
template <bool accumulate = false>
SEQMIX_ALWAYS_INLINE void multiply_block(const TileOperand& a, Index i, const TileOperand& b,
                                         Index j, Index steps, float* sums,
                                         Index stride = simd::pair_rows) {
  if (accumulate) {
    simd::load_sums(sums, stride);
  } else {
    simd::zero_sums();
  }
  multiply_steps(a, i, b, j, 0, steps);
  simd::store_sums(sums, stride);
}

/// The decays of the `count` tokens of a chunk: `since` its start up to token i, or up to the token
/// before where a token reads before it writes; what is left of token j `until` its end; and of the
/// state, as the sum of 0 or 1 and a rest. Zeros behind the last token.
struct ChunkDecays {
  float since[tile_chunk_length] = {}, until[tile_chunk_length] = {};
  std::array<float, 2> total = {};

  /// Of factors that lie `stride` apart.
  template <bool before>
  void multiply(Index count, const float* factors, Index stride) {
    float product = 1;
    for (Index i = 0; i < count; ++i) {
      if (before) since[i] = product;
      product = flushed(product * factors[i * stride]);
      if (!before) since[i] = product;
    }
    product = 1;
    for (Index j = count - 1; j >= 0; --j) {
      until[j] = product;
      product = flushed(product * factors[j * stride]);
    }
    total = {0, product};
  }
  /// Of powers of the factor of a head.
  template <bool before, class Decay>
  void take_powers(Index count, const Decay& decay, Index head) {
    for (Index i = 0; i < count; ++i) {
      since[i] = *decay.powers(head, before ? i : i + 1);
      until[i] = *decay.powers(head, count - 1 - i);
    }
    total = decay.split_power(head, count);
  }

 private:
  static float flushed(float x) { return x < std::numeric_limits<float>::min() ? 0 : x; }
};

/// The chunkwise form of one unit of work. Of each head in turn, o_i = a_1 ... a_i (q_i S0) +
/// Σ_j weights_ij v_j and S = a_1 ... a_C S0 + Kᵀ (a_{j+1} ... a_C v_j), by blocks of 32 x 32 sums
/// that stay in the nearest cache. Only the operands of products are rounded to bfloat16: states,
/// decays and sums are float. The heads share q, k and their products.
template <class Decay>
class TileChunks {
 public:
  TileChunks(const LinearStateUnit<float, Decay>& unit, Index terms,
             Context::Scratch<float>& floats, Context::Scratch<bfloat16>& halves)
      : unit_(unit),
        key_blocks_(ceil_div(unit.keys(), side)),
        value_blocks_(ceil_div(unit.values(), side)),
        factors_(floats(C, L).data()),
        products_(floats(C, C).data()),
        weights_(floats(C, C).data()),
        sums_(floats(side, side).data()),
        queries_(halves, C / side, unit.keys(), terms),
        keys_(halves, C / side, unit.keys(), terms),
        writers_(halves, key_blocks_, C, terms),
        scores_(halves, C / side, C, terms),
        values_(halves, value_blocks_, C, terms),
        last_values_(halves, value_blocks_, C, terms),
        states_(halves, unit.heads() * value_blocks_, unit.keys(), terms) {}

  void run() {
    const simd::TileScope scope;
    for (Index h = 0; h < unit_.heads(); ++h) {
      states_.pack_columns(unit_.state[h], h * value_blocks_);
    }
    for (first_ = 0; first_ < unit_.tokens(); first_ += C) {
      start_chunk();
      for (Index h = 0; h < unit_.heads(); ++h) {
        weigh(h);
        pack_values(h);
        read(h);
        write(h);
      }
    }
  }

 private:
  using Batch = simd::Batch<float>;
  static constexpr Index C = tile_chunk_length, L = simd::lanes<float>, side = simd::pair_rows;
  static constexpr bool before = reads_before<Decay>;

  template <class T>
  View<T, 2> of_chunk(const View<T, 2>& rows) const {
    return rows.slice(axis::time, first_, count_);
  }

  /// What the heads share.
  void start_chunk() {
    count_ = std::min(C, unit_.tokens() - first_), blocks_ = ceil_div(count_, side);
    decays_ = {};
    queries_.pack_rows(of_chunk(unit_.q));
    keys_.pack_rows(of_chunk(unit_.k)), keys_.transpose(blocks_);
    writers_.pack_columns(of_chunk(unit_.k)), writers_.transpose(key_blocks_);
    for (Index i = 0; i < blocks_; ++i) {
      for (Index j = 0; j <= i; ++j) {
        multiply_block(queries_, i, keys_, j, queries_.steps(), products_ + side * (i * C + j), C);
      }
    }
  }

  void weigh(Index h) {
    const Index head = unit_.first_head + h;
    if constexpr (by_powers<Decay>) {
      const auto powers = [&](Index n) { return unit_.decay.powers(head, n); };
      weigh_by_powers<before, C>(count_, products_, powers, weights_);
      decays_.template take_powers<before>(count_, unit_.decay, head);
    } else {
      unit_.write_factors(h, first_, count_, factors_, L);
      weigh_by_head<before, C>(count_, products_, factors_, L, weights_);
      decays_.template multiply<before>(count_, factors_, L);
    }
    scores_.pack_rows({weights_, {count_, C}, {C, 1}});
  }

  /// Packs v as it is and as it is left at the end of the chunk, while memory brings the outputs'
  /// rows and the next head's nearer.
  void pack_values(Index h) {
    const View<const float, 2> v = of_chunk(unit_.v.at(axis::head, h));
    const View<const float, 2> o = of_chunk(unit_.o.at(axis::head, h));
    const Index next_head = std::min(h + 1, unit_.heads() - 1);
    const View<const float, 2> next = of_chunk(unit_.v.at(axis::head, next_head));
    const auto fetch = [&](const View<const float, 2>& rows, Index row, Index column) {
      if (row < count_ && column < rows.extent(1)) simd::prefetch(&rows(row, column));
    };
    for (Index j = 0; j < value_blocks_; ++j) {
      for (Index row = 0; row < blocks_ * side; row += 2) {
        const Batch even_left = simd::broadcast(decays_.until[row]);
        const Batch odd_left = simd::broadcast(decays_.until[row + 1]);
        std::array<Batch, 2> rows[2];
        values_.put_rows(j, row, [&](Index half) {
          const Index column = j * side + half * L;
          fetch(o, row, column), fetch(o, row + 1, column);
          fetch(next, row, column), fetch(next, row + 1, column);
          rows[half] = {load_padded(v, row, column), load_padded(v, row + 1, column)};
          return rows[half];
        });
        last_values_.put_rows(j, row, [&](Index half) {
          return std::array<Batch, 2>{rows[half][0] * even_left, rows[half][1] * odd_left};
        });
      }
    }
  }

  void read(Index h) {
    const View<float, 2> o = of_chunk(unit_.o.at(axis::head, h));
    for (Index i = 0; i < blocks_; ++i) {
      for (Index j = 0; j < value_blocks_; ++j) {
        multiply_block(queries_, i, states_, h * value_blocks_ + j, states_.steps(), sums_);
        const auto since = [&](Index row) { return decays_.since[i * side + row]; };
        scale_rows(side, since, sums_, sums_, side);
        multiply_block<true>(scores_, i, values_, j, i + 1, sums_);
        for (Index row = 0; row < side; ++row) {
          for (Index c = 0; c < side; c += L) {
            const Batch sum = simd::load(sums_ + row * side + c);
            store_inside(o, i * side + row, j * side + c, sum * simd::broadcast(unit_.scale));
          }
        }
      }
    }
  }

  /// Advances the state and packs it for the next chunk.
  void write(Index h) {
    const View<float, 2> state = unit_.state[h];
    const Batch whole = simd::broadcast(decays_.total[0]), rest = simd::broadcast(decays_.total[1]);
    const auto advance = [&](Index key, Index value, const float* written) {
      const Batch s = load_padded(state, key, value);
      const Batch sum = simd::fma<float>(whole, s, simd::load(written));
      const Batch advanced = simd::flush_subnormal<float>(simd::fma<float>(rest, s, sum));
      store_inside(state, key, value, advanced);
      return advanced;
    };
    for (Index i = 0; i < key_blocks_; ++i) {
      for (Index j = 0; j < value_blocks_; ++j) {
        multiply_block(writers_, i, last_values_, j, blocks_, sums_);
        for (Index row = 0; row < side; row += 2) {
          states_.put_rows(h * value_blocks_ + j, i * side + row, [&](Index half) {
            const Index key = i * side + row, value = j * side + half * L;
            const float* const written = sums_ + row * side + half * L;
            const Batch even = advance(key, value, written);
            return std::array<Batch, 2>{even, advance(key + 1, value, written + side)};
          });
        }
      }
    }
  }

  const LinearStateUnit<float, Decay>& unit_;
  Index key_blocks_, value_blocks_;
  float *factors_, *products_, *weights_, *sums_;
  TileOperand queries_, keys_, writers_, scores_, values_, last_values_, states_;
  ChunkDecays decays_;
  Index first_ = 0, count_ = 0, blocks_ = 0;  // of the chunk
};

template <class Decay>
void linear_state_on_tiles(const LinearStateUnit<float, Decay>& unit, const Call& call) {
  auto floats = call.scratch<float>();
  auto halves = call.scratch<bfloat16>();
  TileChunks<Decay>(unit, split_terms(call), floats, halves).run();
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix

#endif
