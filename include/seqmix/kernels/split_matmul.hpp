#pragma once

#include <algorithm>
#include <type_traits>

#include "seqmix/core/context.hpp"
#include "seqmix/kernels/packed_matrix.hpp"
#include "seqmix/simd/amx.hpp"

// Products of float matrices on matrix units, under `Precision::bf16x3` and `bf16`.
//
// x and the weight are split into terms (simd/amx.hpp) block by block: rows of x once, in parallel,
// and a task's part of the weight as it comes, which then serves all these rows. A split operand is
//
//   [32 rows of x, or outputs][k / 32][pair of tiles]
//
// with zeros beyond its end. Every sum is one chain over ascending k, which starts from zero, from
// the bias, from y, or from the sum of the last two, so that its bits do not depend on the number
// of rows, its place among them, or the threads.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Whether products of floats go to matrix units in this call.
inline bool on_matrix_units(const Context& context) {
  return context.precision() != Precision::fp32 && simd::matrix_units();
}

#if SEQMIX_MATRIX_UNITS

/// The steps over k, and the numbers of a split operand of `count` rows (of B: columns).
constexpr Index split_steps(Index depth) { return ceil_div(depth, simd::tile_depth); }
template <Index terms>
constexpr Index split_size(Index count, Index depth) {
  return ceil_div(count, simd::pair_rows) * split_steps(depth) * simd::pair_size<terms>;
}

/// Up to 32 rows of x [rows, K], whose k are contiguous, as pairs of tiles of A, [k / 32][pair].
template <Index terms>
void split_rows(const View<const float, 2>& x, bfloat16* to) {
  constexpr Index lanes = simd::lanes<float>;
  const Index depth = x.extent(1);
  for (Index k = 0; k < depth; k += simd::tile_depth, to += simd::pair_size<terms>) {
    const Index first = std::min(depth - k, lanes), second = std::min(depth - k - first, lanes);
    for (Index row = 0; row < simd::pair_rows; ++row) {
      bfloat16* const tiles = to + row / simd::tile_rows * terms * simd::tile_size;
      auto lower = simd::broadcast(0.0F), upper = lower;
      if (row < x.extent(0)) {
        const float* const from = x.data() + row * x.stride(0) + k;
        lower = simd::load<float>(from, first), upper = simd::load<float>(from + first, second);
      }
      simd::split_row<terms>(lower, upper, tiles + row % simd::tile_rows * simd::tile_depth);
    }
  }
}

/// One block of C, of up to 32 x 32 sums.
template <Index a_terms, Index b_terms>
void multiply_split_block(const bfloat16* a, const bfloat16* b, Index steps,
                          const View<float, 2>& c, const float* bias, bool accumulate) {
  constexpr Index width = simd::pair_rows;
  const Index rows = c.extent(0), columns = c.extent(1);
  const bool in_place = rows == width && columns == width && !(bias && accumulate);
  alignas(alignment) float beside[width * width];
  float* const sums = in_place ? c.data() : beside;
  const Index stride = in_place ? c.stride(0) : width;
  if (!in_place && (bias || accumulate)) {
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) {
        const float start = bias ? bias[j] : 0.0F;
        beside[i * width + j] = accumulate ? c(i, j) + start : start;
      }
    }
  }
  if (in_place && bias) {
    simd::load_sums(bias, 0);  // all rows start from the same
  } else if (bias || accumulate) {
    simd::load_sums(sums, stride);
  } else {
    simd::zero_sums();
  }
  for (Index step = 0; step < steps; ++step) {
    simd::multiply_pairs<a_terms, b_terms>(a + step * simd::pair_size<a_terms>,
                                           b + step * simd::pair_size<b_terms>);
  }
  simd::store_sums(sums, stride);
  if (in_place) return;
  for (Index i = 0; i < rows; ++i) std::copy_n(beside + i * width, columns, c[i].data());
}

/// C [M, N] = A B, or += A B, + bias [N] or none, from split operands; in a `simd::TileScope`. The
/// rows of C are contiguous.
template <Index a_terms, Index b_terms>
void multiply_split(const bfloat16* a, const bfloat16* b, Index depth, const View<float, 2>& c,
                    const float* bias = nullptr, bool accumulate = false) {
  constexpr Index width = simd::pair_rows;
  const Index steps = split_steps(depth);
  for (Index row = 0; row < c.extent(0); row += width) {
    const auto rows = c.template slice<0>(row, std::min(width, c.extent(0) - row));
    for (Index column = 0; column < c.extent(1); column += width) {
      multiply_split_block<a_terms, b_terms>(
          a + row / width * steps * simd::pair_size<a_terms>,
          b + column / width * steps * simd::pair_size<b_terms>, steps,
          rows.template slice<1>(column, std::min(width, c.extent(1) - column)),
          bias ? bias + column : nullptr, accumulate);
    }
  }
}

/// Rows and k of x that are split at a time: at most 8 MB, which stream by once a task.
inline constexpr Index split_row_block = 2048, split_depth_block = 1024;
/// Numbers of the weight that a task splits: 1 MB of bfloat16, which stay in the L2 cache.
inline constexpr Index split_task_numbers = Index{1} << 19;
/// Multiply-adds that are worth a task, and the tasks that are enough for the threads of a call.
inline constexpr Index split_task_products = Index{1} << 22, split_tasks = 4;

/// A weight as `PackedMatrix` stores it: panels [panel, K, 32], times the scales of the outputs.
template <class Stored>
struct StoredWeight {
  View<const Stored, 3> panels;
  const float* scales = nullptr;
};

/// Splits k [k, k + depth) of one panel.
template <Index terms, class Stored>
void split_panel(const StoredWeight<Stored>& w, Index panel, Index k, Index depth, bfloat16* to) {
  constexpr Index lanes = simd::lanes<float>;
  static_assert(panel_width<float> == simd::pair_rows);
  const Stored* const from = w.panels[panel][k].data();
  const float* const scales = w.scales ? w.scales + panel * panel_width<float> : nullptr;
  const auto load = [&](Index row, Index half) {
    if (row >= depth) return simd::broadcast(0.0F);
    const auto stored = simd::load_as<float>(from + (2 * row + half) * lanes);
    return scales ? stored * simd::load<float>(scales + half * lanes) : stored;
  };
  for (Index first = 0; first < depth; first += simd::tile_depth, to += simd::pair_size<terms>) {
    for (Index row = 0; row < simd::tile_depth; row += 2) {
      for (Index half = 0; half < 2; ++half) {
        simd::split_pairs<terms>(load(first + row, half), load(first + row + 1, half),
                                 to + half * terms * simd::tile_size + row / 2 * simd::tile_depth);
      }
    }
  }
}

/// As `split_rows`, in parallel.
template <Index terms>
void split_all_rows(const View<const float, 2>& x, bfloat16* to, Context& context) {
  constexpr Index height = simd::pair_rows;
  context.parallel_for(ceil_div(x.extent(0), height), [&](Index block, Context&) {
    const Index first = block * height, rows = std::min(height, x.extent(0) - first);
    split_rows<terms>(x.template slice<0>(first, rows), to + split_size<terms>(first, x.extent(1)));
  });
}

/// The part of a product that has k [k, k + depth): y (+)= x wᵀ (+ bias) for split rows of x.
template <Index terms, class Stored>
void multiply_split_panels(const bfloat16* x, const StoredWeight<Stored>& w, Index k, Index depth,
                           const View<float, 2>& y, Context& context, const float* bias,
                           bool accumulate) {
  constexpr Index width = simd::pair_rows;
  constexpr Index w_terms = std::is_same_v<Stored, bfloat16> ? 1 : terms;  // the rest is zero
  const Index count = w.panels.extent(0);
  const Index numbers = std::max<Index>(split_size<w_terms>(width, depth), 1);
  const Index products = std::max<Index>(y.extent(0) * width * depth, 1);
  const Index worth_a_task =
      std::max(ceil_div(count, split_tasks), ceil_div(split_task_products, products));
  const Index tasks =
      ceil_div(count, std::min(worth_a_task, ceil_div(split_task_numbers, numbers)));
  context.parallel_for(tasks, [&](Index task, Context& worker) {
    const Index first = task * count / tasks, last = (task + 1) * count / tasks;
    auto scratch = worker.scratch<bfloat16>();
    bfloat16* const split = scratch((last - first) * numbers).data();
    for (Index panel = first; panel < last; ++panel) {
      split_panel<w_terms>(w, panel, k, depth, split + (panel - first) * numbers);
    }
    const simd::TileScope scope;
    const Index column = first * width, columns = std::min(y.extent(1), last * width) - column;
    multiply_split<terms, w_terms>(x, split, depth, y.template slice<1>(column, columns),
                                   bias ? bias + column : nullptr, accumulate);
  });
}

/// y = x wᵀ + bias, or y += x wᵀ + bias: x [M, K], w [N, K], y [M, N].
template <Index terms, class Stored>
void matmul_split(const View<const float, 2>& x, const StoredWeight<Stored>& w,
                  const View<float, 2>& y, Context& context, const float* bias, bool accumulate) {
  const Index M = x.extent(0), K = x.extent(1);
  auto scratch = context.scratch<bfloat16>();
  const Index numbers =
      split_size<terms>(std::min(M, split_row_block), std::min(K, split_depth_block));
  bfloat16* const split = scratch(numbers).data();
  for (Index row = 0; row < M; row += split_row_block) {
    const Index rows = std::min(split_row_block, M - row);
    for (Index k = 0; k == 0 || k < K; k += split_depth_block) {
      const Index depth = std::min(split_depth_block, K - k);
      split_all_rows<terms>(x.template slice<0>(row, rows).template slice<1>(k, depth), split,
                            context);
      multiply_split_panels<terms>(split, w, k, depth, y.template slice<0>(row, rows), context,
                                   k == 0 ? bias : nullptr, accumulate || k > 0);
    }
  }
}

/// The same for x [B, T, K] and y [B, T, N], in the terms that the context asks for.
inline void matmul_split(const View<const float, 3>& x, const PackedMatrix<float>& w,
                         const View<float, 3>& y, Context& context, const float* bias,
                         bool accumulate) {
  w.visit([&]<class Stored>(View<const Stored, 3> panels) {
    const StoredWeight<Stored> stored{panels, w.scales()};
    const auto multiply =
        context.precision() == Precision::bf16 ? matmul_split<1, Stored> : matmul_split<2, Stored>;
    if (x.template mergeable<0>() && y.template mergeable<0>()) {
      return multiply(x.template merge<0>(), stored, y.template merge<0>(), context, bias,
                      accumulate);
    }
    for (Index row = 0; row < x.extent(0); ++row) {
      multiply(x[row], stored, y[row], context, bias, accumulate);
    }
  });
}

#endif

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
