#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "seqmix/core/call.hpp"
#include "seqmix/simd/amx.hpp"

// Operands of products on matrix units, under `Precision::bf16x3` and `bf16`.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// The precision of products of S in this call: `fp32` unless matrix units compute them.
template <class S>
Precision matrix_precision(const Call& call) {
  if constexpr (std::is_same_v<S, float>) {
    if (simd::matrix_units()) return call.precision();
  }
  return Precision::fp32;
}

#if SEQMIX_MATRIX_UNITS

/// The terms of bfloat16 that a float becomes.
inline Index split_terms(const Call& call) { return call.precision() == Precision::bf16x3 ? 2 : 1; }

/// 16 numbers of a row, zeros beyond the matrix.
SEQMIX_ALWAYS_INLINE simd::Batch<float> load_padded(const View<const float, 2>& x, Index row,
                                                    Index column) {
  constexpr Index L = simd::lanes<float>;
  if (row >= x.extent(0) || column >= x.extent(1)) return simd::broadcast(0.0F);
  const float* const from = x.data() + row * x.stride(0) + column;
  return column + L <= x.extent(1) ? simd::load(from) : simd::load(from, x.extent(1) - column);
}

/// An operand of products on matrix units: blocks of 32 rows (of a left one) or 32 columns (of a
/// right one), each a pair of tiles for every 32 of the depth that the products sum over. Filled up
/// with zeros. It owns no memory.
class TileOperand {
 public:
  TileOperand(bfloat16* tiles, Index depth, Index terms)
      : steps_(steps_of(depth)), terms_(terms), tiles_(tiles) {}
  TileOperand(Context::Scratch<bfloat16>& scratch, Index blocks, Index depth, Index terms)
      : TileOperand(scratch(size(blocks, depth, terms)).data(), depth, terms) {}

  static constexpr Index blocks_of(Index count) { return ceil_div(count, simd::pair_rows); }
  static constexpr Index steps_of(Index depth) { return ceil_div(depth, simd::tile_depth); }
  /// The numbers of bfloat16 that it takes.
  static constexpr Index size(Index blocks, Index depth, Index terms) {
    return blocks * steps_of(depth) * simd::pair_size(terms);
  }

  Index steps() const { return steps_; }
  Index terms() const { return terms_; }
  bfloat16* pair(Index block, Index step) const {
    return tiles_ + (block * steps_ + step) * simd::pair_size(terms_);
  }

  /// The left operand x, [rows, depth], in blocks from `block` on.
  void pack_rows(const View<const float, 2>& x, Index block = 0) const {
    constexpr Index side = simd::pair_rows, width = simd::tile_depth, half = width / 2;
    for (Index first = 0; first < x.extent(0); first += side, ++block) {
      for (Index c = 0; c < x.extent(1); c += width) {
        bfloat16* const to = pair(block, c / width);
        for (Index row = 0; row < side; ++row) {
          simd::split_row(load_padded(x, first + row, c), load_padded(x, first + row, c + half),
                          terms_, to + tile_row(row));
        }
      }
    }
  }
  /// The right operand x, [depth, columns], in blocks from `block` on.
  void pack_columns(const View<const float, 2>& x, Index block = 0) const {
    for (Index c = 0; c < x.extent(1); c += simd::pair_rows, ++block) {
      for (Index row = 0; row < round_up(x.extent(0), simd::tile_depth); row += 2) {
        put_rows(block, row, [&](Index half) {
          const Index column = c + half * simd::tile_rows;
          return std::array{load_padded(x, row, column), load_padded(x, row + 1, column)};
        });
      }
    }
  }
  /// Rows [row, row + 2) of a block of a right operand: numbers(half) are 16 columns of both.
  SEQMIX_ALWAYS_INLINE void put_rows(Index block, Index row, auto&& numbers) const {
    constexpr Index width = simd::tile_depth;
    bfloat16* const to = pair(block, row / width) + row % width / 2 * width;
#pragma GCC unroll 2
    for (Index half = 0; half < 2; ++half) {
      const std::array<simd::Batch<float>, 2> rows = numbers(half);
      simd::split_pairs(rows[0], rows[1], terms_, to + half * terms_ * simd::tile_size);
    }
  }
  /// Makes the first blocks of a right operand those of a left one that is its transpose, and back.
  void transpose(Index blocks) const {
    for (Index i = 0; i < blocks * steps_ * 2 * terms_; ++i) {
      simd::transpose_tile(tiles_ + i * simd::tile_size);
    }
  }

 private:
  /// Where a row of a block lies in its pair of tiles.
  Index tile_row(Index row) const {
    return row / simd::tile_rows * terms_ * simd::tile_size +
           row % simd::tile_rows * simd::tile_depth;
  }

  Index steps_, terms_;
  bfloat16* tiles_;
};

/// Memory that steps bring nearer as they go: `share` lines each, from `next` on.
struct FetchAhead {
  const bfloat16* next = nullptr;
  Index share = 0;
};

template <Index a_terms, Index b_terms>
SEQMIX_ALWAYS_INLINE void multiply_steps(const bfloat16* a, const bfloat16* b, Index steps,
                                         FetchAhead ahead) {
  constexpr Index line = alignment / static_cast<Index>(sizeof(bfloat16));
  for (; steps > 0; --steps) {
    for (Index i = 0; i < ahead.share; ++i, ahead.next += line) {
      simd::prefetch(ahead.next);
    }
    simd::multiply_pairs<a_terms, b_terms>(a, b);
    a += simd::pair_size(a_terms), b += simd::pair_size(b_terms);
  }
}

/// The sums of a `simd::TileScope` += block i of `a` times block j of `b`, which has no more terms,
/// over steps [first, last).
inline void multiply_steps(const TileOperand& a, Index i, const TileOperand& b, Index j,
                           Index first, Index last, FetchAhead ahead = {}) {
  const bfloat16 *const left = a.pair(i, first), *const right = b.pair(j, first);
  if (a.terms() == 1) return multiply_steps<1, 1>(left, right, last - first, ahead);
  if (b.terms() == 1) return multiply_steps<2, 1>(left, right, last - first, ahead);
  multiply_steps<2, 2>(left, right, last - first, ahead);
}

#endif

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
