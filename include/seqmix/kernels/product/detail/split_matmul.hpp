#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "seqmix/kernels/product/detail/tile_operand.hpp"
#include "seqmix/kernels/product/packed_matrix.hpp"

#if SEQMIX_MATRIX_UNITS

// Products of float matrices on matrix units, under `Precision::bf16x3` and `bf16`.
//
// x and the weight are split into terms (simd/amx.hpp) block by block: rows of x once, in parallel,
// and a task's part of the weight as it comes, which then serves all these rows. Every sum is one
// chain over ascending k, which starts from zero, from the bias, from y, or from the sum of the
// last two, so that its bits do not depend on the number of rows, its place among them, or the
// threads.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Rows and k of x that are split at a time: at most 8 MB, which stream by once a task.
inline constexpr Index split_row_block = 2048, split_depth_block = 1024;
/// Numbers of the weight that a task splits: 1 MB of bfloat16, which stay in the L2 cache.
inline constexpr Index split_task_numbers = Index{1} << 19;
/// Multiply-adds that are worth a task, and the tasks that are enough for the threads of a call.
inline constexpr Index split_task_products = Index{1} << 22, split_tasks = 4;
/// Bytes of a block of x that stay in the nearest cache while the weight passes by.
inline constexpr Index split_slice_bytes = Index{1} << 15;

/// Splits k [k, k + depth) of the panels [first, last) of a weight: 32 outputs are a block.
inline void split_panels(const PackedMatrix<float>& w, Index first, Index last, Index k,
                         Index depth, const TileOperand& to) {
  constexpr Index lanes = simd::lanes<float>, width = panel_width<float>;
  static_assert(width == simd::pair_rows);
  w.visit([&]<class Stored>(const View<const Stored, 3>& panels) {
    for (Index panel = first; panel < last; ++panel) {
      const Stored* const from = panels[panel][k].data();
      const float* const scales = w.scales() ? w.scales() + panel * width : nullptr;
      const auto load = [&](Index row, Index half) {
        if (row >= depth) return simd::broadcast(0.0F);
        const auto stored = simd::load_as<float>(from + row * width + half * lanes);
        return scales ? stored * simd::load<float>(scales + half * lanes) : stored;
      };
      for (Index row = 0; row < round_up(depth, simd::tile_depth); row += 2) {
        to.put_rows(panel - first, row, [&](Index half) {
          return std::array{load(row, half), load(row + 1, half)};
        });
      }
    }
  });
}

/// A part of a product: y (+)= x wᵀ (+ bias) for k that are split, [M, depth] and [depth, N].
class SplitProduct {
 public:
  SplitProduct(const TileOperand& x, const TileOperand& w, const View<float, 2>& y,
               const float* bias, bool accumulate, Context::Scratch<float>& scratch)
      : x_(x),
        w_(w),
        y_(y),
        bias_(bias),
        accumulate_(accumulate),
        beside_(scratch(TileOperand::blocks_of(y.extent(1)), side, side)) {}

  /// In a `simd::TileScope`.
  void run() const {
    const Index steps = x_.steps(), panels = beside_.extent(0);
    const Index slice = split_slice_bytes / (simd::pair_size(x_.terms()) * Index{sizeof(bfloat16)});
    for (Index row = 0; row < y_.extent(0); row += side) {
      for (Index first = 0; first == 0 || first < steps; first += slice) {
        const Index last = std::min(first + slice, steps);
        for (Index panel = 0; panel < panels; ++panel) multiply(row, panel, first, last);
      }
    }
  }

 private:
  static constexpr Index side = simd::pair_rows;
  /// Lines that a step can fetch at no cost.
  static constexpr Index most_fetched = 8;

  /// The steps [first, last) of a block of 32 x 32 sums. Sums that are not done, or not all inside
  /// y, lie beside.
  void multiply(Index row, Index panel, Index first, Index last) const {
    const Index rows = std::min(side, y_.extent(0) - row), column = panel * side;
    const View<float, 2> block =
        y_.slice<0>(row, rows).slice<1>(column, std::min(side, y_.extent(1) - column));
    const View<float, 2> beside = beside_[panel];
    const bool whole = block.size() == side * side, done = last == x_.steps();
    if (first > 0) {
      simd::load_sums(beside.data(), side);
    } else {
      start(block, whole, bias_ ? bias_ + column : nullptr, beside);
    }
    multiply_steps(x_, row / side, w_, panel, first, last,
                   fetch_ahead(row / side, panel, first, last));
    if (whole && done) return simd::store_sums(block.data(), block.stride(0));
    simd::store_sums(beside.data(), side);
    if (done) {
      copy(beside.slice<0>(0, block.extent(0)).slice<1>(0, block.extent(1)), block);
    }
  }

  /// What a panel brings nearer of the next rows of x in the steps [first, last).
  FetchAhead fetch_ahead(Index block, Index panel, Index first, Index last) const {
    constexpr Index line = alignment / static_cast<Index>(sizeof(bfloat16));
    const Index share = ceil_div(simd::pair_size(x_.terms()) / line, beside_.extent(0));
    if ((block + 1) * side >= y_.extent(0) || share > most_fetched) return {};
    return {x_.pair(block + 1, first) + panel * (last - first) * share * line, share};
  }

  /// Sets the sums to what they start from.
  void start(const View<float, 2>& block, bool whole, const float* bias,
             const View<float, 2>& beside) const {
    if (!bias && !accumulate_) return simd::zero_sums();
    if (whole && !bias) return simd::load_sums(block.data(), block.stride(0));
    if (whole && !accumulate_) return simd::load_sums(bias, 0);  // all rows start from the same
    for (Index i = 0; i < block.extent(0); ++i) {
      for (Index j = 0; j < block.extent(1); ++j) {
        const float from = bias ? bias[j] : 0.0F;
        beside(i, j) = accumulate_ ? block(i, j) + from : from;
      }
    }
    simd::load_sums(beside.data(), side);
  }

  const TileOperand& x_;
  const TileOperand& w_;
  View<float, 2> y_;  // [M, N]
  const float* bias_;
  bool accumulate_;
  View<float, 3> beside_;  // [panels, 32, 32]
};

/// y (+)= x wᵀ (+ bias) for rows of x [M, depth] that are split, and k [k, k + depth) of w.
inline void multiply_split(const TileOperand& x, const PackedMatrix<float>& w, Index k, Index depth,
                           const View<float, 2>& y, const Call& call, const float* bias,
                           bool accumulate) {
  constexpr Index width = simd::pair_rows;
  const Index count = TileOperand::blocks_of(w.rows());
  Index terms = x.terms();
  w.visit([&]<class Stored>(const View<const Stored, 3>&) {
    if (std::is_same_v<Stored, bfloat16>) terms = 1;  // the rest is zero
  });
  const Index numbers = std::max<Index>(TileOperand::size(1, depth, terms), 1);
  const Index products = std::max<Index>(y.extent(0) * width * depth, 1);
  const Index worth_a_task =
      std::max(ceil_div(count, split_tasks), ceil_div(split_task_products, products));
  const Index tasks =
      ceil_div(count, std::min(worth_a_task, ceil_div(split_task_numbers, numbers)));
  call.parallel_for(tasks, [&](Index task, const Call& worker) {
    const Index first = task * count / tasks, last = (task + 1) * count / tasks;
    auto floats = worker.scratch<float>();
    auto tiles = worker.scratch<bfloat16>();
    const TileOperand split(tiles, last - first, depth, terms);
    split_panels(w, first, last, k, depth, split);
    const Index column = first * width, columns = std::min(y.extent(1), last * width) - column;
    const simd::TileScope scope;
    SplitProduct(x, split, y.slice<1>(column, columns), bias ? bias + column : nullptr, accumulate,
                 floats)
        .run();
  });
}

/// y = x wᵀ + bias, or y += x wᵀ + bias: x [M, K], w [N, K], y [M, N].
inline void matmul_split(const View<const float, 2>& x, const PackedMatrix<float>& w,
                         const View<float, 2>& y, const Call& call, const float* bias,
                         bool accumulate) {
  constexpr Index side = simd::pair_rows;
  const Index M = x.extent(0), K = x.extent(1), terms = split_terms(call);
  auto scratch = call.scratch<bfloat16>();
  bfloat16* const tiles =
      scratch(TileOperand::size(TileOperand::blocks_of(std::min(M, split_row_block)),
                                std::min(K, split_depth_block), terms))
          .data();
  for (Index row = 0; row < M; row += split_row_block) {
    const Index rows = std::min(split_row_block, M - row);
    for (Index k = 0; k == 0 || k < K; k += split_depth_block) {
      const Index depth = std::min(split_depth_block, K - k);
      const TileOperand split(tiles, depth, terms);
      call.parallel_for(TileOperand::blocks_of(rows), [&](Index block, const Call&) {
        const Index first = block * side, height = std::min(side, rows - first);
        split.pack_rows(x.slice<0>(row + first, height).slice<1>(k, depth), block);
      });
      multiply_split(split, w, k, depth, y.slice<0>(row, rows), call, k == 0 ? bias : nullptr,
                     accumulate || k > 0);
    }
  }
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix

#endif
