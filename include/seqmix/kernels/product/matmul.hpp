#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <string>
#include <type_traits>

#include "seqmix/core/call.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"
#include "seqmix/kernels/product/detail/split_matmul.hpp"
#include "seqmix/kernels/product/packed_matrix.hpp"
#include "seqmix/simd/transpose.hpp"

// Products of a sequence with packed weights: projections.
//
// One sum, one order: every output is one chain of `simd::fma` over ascending k that starts from
// zero, from the bias, from what is accumulated to, or from the sum of the last two. Lanes are
// outputs, and blocks of k hand the chain on through memory, which rounds nothing. So the bits of
// an output do not depend on the number of rows, its place among them, the path, or the threads.
// Weights that are stored in a narrower type are exactly those that `PackedMatrix::unpack` gives.
// Under `Precision::bf16x3` and `bf16` the products of `matmul` are those of split_matmul.hpp.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Bytes of a cache line.
inline constexpr Index cache_line = alignment;

/// Rows of the tallest micro-kernel, which fills the registers.
#if defined(SEQMIX_SIMD_WIDTH)
inline constexpr Index tall_tile = 4;  // no registers to fill: little code
#elif defined(__AVX512F__)
inline constexpr Index tall_tile = 14;  // 32 registers
#else
inline constexpr Index tall_tile = 6;  // 16 registers
#endif
/// Whether there is a micro-kernel of so many rows. The odd numbers above 8 cost little more as two
/// low tiles, but much to compile.
constexpr bool has_tile(Index rows) { return rows <= 8 || rows % 2 == 0; }

/// k of a panel that stays in the L1 cache while tiles of rows pass: 32 KB with 512-bit registers.
inline constexpr Index depth_slice = 256;
/// Rows and k of x that are packed at a time: 1 MB of floats for the L2 cache. A few rows more than
/// a block go with it, as they would read all weights anew.
inline constexpr Index row_block = round_up(256, tall_tile), depth_block = 1024;
inline constexpr Index most_block_rows = round_up(row_block + row_block / 4, tall_tile);
/// Numbers of a weight, and multiply-adds, that are worth a task.
inline constexpr Index weights_per_task = Index{1} << 15, products_per_task = Index{1} << 22;
/// Fewer rows or panels than these do not repay the packing of x.
inline constexpr Index rows_to_pack = 2 * tall_tile, panels_to_pack = 8;

/// C[row, column] (+)= Σ_k A[row, k] B[k, column] (+ bias[column]). What B is stored as is known at
/// run time, so that only what reads it is compiled for each type.
template <class S>
struct Product {
  Index depth = 0;       // number of k
  const S* a = nullptr;  // A[row, k] at a[row * a_row_stride + k * a_stride]
  Index a_row_stride = 0;
  Index a_stride = 0;
  // B[k, first column of panel p] is number k * b_stride + p * panel_stride of `b`.
  const std::byte* b = nullptr;
  Storage storage = Storage::native;
  Index b_stride = 0;
  Index panel_stride = 0;
  const S* scales = nullptr;    // of the columns, if B is stored as integers
  const char* ahead = nullptr;  // fetched to the L2 cache, one address for each k: what is read
  Index ahead_stride = 0;       // soon, or the panels' first line where nothing is known to be
  S* const* c = nullptr;        // C[row, column] at c[row][column]
  Index columns = 0;
  const S* bias = nullptr;
  bool accumulate = false;

  /// The part of the chains that begins at `k`.
  Product slice(Index k, Index count) const {
    Product part = *this;
    part.depth = std::min(count, depth - k);
    part.a += k * a_stride, part.b += k * b_stride * number_size<S>(storage);
    if (k > 0) part.bias = nullptr, part.accumulate = true;
    return part;
  }
  /// The same with the panel that this slice has in another place.
  Product with_panel(const S* panel) const {
    Product native = *this;
    native.b = reinterpret_cast<const std::byte*>(panel), native.storage = Storage::native;
    native.b_stride = panel_width<S>, native.scales = nullptr;
    return native;
  }
};

/// A register of B; `scale` counts where B is stored as integers.
template <class S, class Stored>
SEQMIX_ALWAYS_INLINE simd::Batch<S> load_weight(const Stored* from, const simd::Batch<S>& scale) {
  const auto stored = simd::load_as<S>(from);
  if constexpr (std::integral<Stored>) return stored * scale;
  return stored;
}

/// The micro-kernel: rows [row, row + Rows) of `Panels` panels from `panel` on. `Grouped`: the rows
/// are packed as [k][Rows].
///
/// Its loops over registers are unrolled by order, so that g++ keeps `sum` in registers.
template <class S, Index Rows, Index Panels, bool Grouped, class Stored = S>
__attribute__((noinline)) void multiply_tile(const Product<S>& product, Index row, Index panel) {
  constexpr Index lanes = simd::lanes<S>, width = 2 * Panels;  // registers of a row
  const Index column = panel * panel_width<S>, columns = product.columns - column;
  const bool whole = columns >= width * lanes;
  Index lane_count[width];  // of the registers of a row that is not whole
#pragma GCC unroll 16
  for (Index r = 0; r < width; ++r)
    lane_count[r] = std::clamp<Index>(columns - r * lanes, 0, lanes);
  S* const* const c = product.c + row;

  simd::Batch<S> sum[Rows][width];
#pragma GCC unroll 16
  for (Index r = 0; r < width; ++r) {
    simd::Batch<S> start(S(0));
    if (product.bias) {
      const S* const from = product.bias + column + r * lanes;
      start = whole ? simd::load<S>(from) : simd::load<S>(from, lane_count[r]);
    }
#pragma GCC unroll 16
    for (Index i = 0; i < Rows; ++i) sum[i][r] = start;
  }
  // What the chains go on from; a sum with the bias starts them where there are both.
  const auto start_from = [&](const simd::Batch<S>& from, Index i, Index r) {
    sum[i][r] = product.bias ? from + sum[i][r] : from;
  };
  if (product.accumulate && whole) {
#pragma GCC unroll 16
    for (Index i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
      for (Index r = 0; r < width; ++r) {
        start_from(simd::load<S>(c[i] + column + r * lanes), i, r);
      }
    }
  } else if (product.accumulate) {
#pragma GCC unroll 16
    for (Index i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
      for (Index r = 0; r < width; ++r) {
        start_from(simd::load<S>(c[i] + column + r * lanes, lane_count[r]), i, r);
      }
    }
  }
  simd::Batch<S> scale[width];
#pragma GCC unroll 16
  for (Index r = 0; r < width; ++r) {
    if constexpr (std::integral<Stored>) {
      scale[r] = simd::load<S>(product.scales + column + r * lanes);
    }
  }

  const S* a = product.a + row * product.a_row_stride;
  const Stored* b = reinterpret_cast<const Stored*>(product.b) + panel * product.panel_stride;
  const char* ahead = product.ahead;
  const Index a_row_stride = Grouped ? 1 : product.a_row_stride;
  const Index a_stride = Grouped ? Rows : product.a_stride;
  const Index b_stride = product.b_stride, panel_stride = product.panel_stride;
  const Index ahead_stride = product.ahead_stride;
// Two k at a time: which of two ports an instruction waits for is settled by its place among
// others, and a longer loop shares them out better.
#pragma GCC unroll 2
  for (Index k = 0; k < product.depth; ++k, a += a_stride, b += b_stride) {
    // Groups pass through the L1 cache once a panel.
    if constexpr (Grouped) __builtin_prefetch(a + 32 * Rows, 0, 3);
    simd::prefetch(ahead), ahead += ahead_stride;
    simd::Batch<S> weight[width];
#pragma GCC unroll 16
    for (Index r = 0; r < width; ++r) {
      weight[r] = load_weight<S>(b + r / 2 * panel_stride + r % 2 * lanes, scale[r]);
    }
#pragma GCC unroll 16
    for (Index i = 0; i < Rows; ++i) {
      const auto x = simd::broadcast(a[i * a_row_stride]);
#pragma GCC unroll 16
      for (Index r = 0; r < width; ++r) sum[i][r] = simd::fma(x, weight[r], sum[i][r]);
    }
  }

  if (whole) {
#pragma GCC unroll 16
    for (Index i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
      for (Index r = 0; r < width; ++r) simd::store<S>(c[i] + column + r * lanes, sum[i][r]);
    }
  } else {
#pragma GCC unroll 16
    for (Index i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
      for (Index r = 0; r < width; ++r) {
        simd::store<S>(c[i] + column + r * lanes, sum[i][r], lane_count[r]);
      }
    }
  }
}

/// The height of the next tile where `left` rows are to be done. All are about as high: a low one
/// waits for the panel that it reads, and for its few chains.
inline Index next_tile(Index left) {
  const Index share = ceil_div(left, ceil_div(left, tall_tile));
  return has_tile(share) || share == left ? share : share + 1;
}

/// One tile of `height` rows from `row` on, at most `Most`.
template <class S, Index Most = tall_tile>
void multiply_tile_of(Index height, const Product<S>& product, Index row, Index panel) {
  // Calls, as g++ 12 chooses among addresses by a condition that it has overwritten.
  if constexpr (Most > 1) {
    if (height < Most) return multiply_tile_of<S, Most - 1>(height, product, row, panel);
  }
  if constexpr (has_tile(Most)) {
    multiply_tile<S, Most, 1, false>(product, row, panel);
  } else {
    constexpr Index upper = ceil_div(Most, 2);
    multiply_tile<S, upper, 1, false>(product, row, panel);
    multiply_tile<S, Most - upper, 1, false>(product, row + upper, panel);
  }
}

/// All rows of one panel of numbers to compute with.
template <class S>
void multiply_rows(Product<S> product, Index rows, Index panel) {
  for (Index row = 0; row < rows;) {
    const Index tile = next_tile(rows - row);
    multiply_tile_of(tile, product, row, panel);
    row += tile;
    product.ahead += product.depth * product.ahead_stride;
  }
}

/// One, two or four rows, which use a number of B too seldom to store it anew; several panels at
/// once give the fewest rows enough independent chains. Returns the first panel that is left to do.
template <class S, class Stored>
Index multiply_few(const Product<S>& product, Index rows, Index panel, Index last_panel) {
  constexpr bool narrow = !std::same_as<Stored, S>;
  const auto multiply = [&]<Index Rows>(std::integral_constant<Index, Rows>) {
    constexpr Index at_once = 4 / Rows;
    for (; panel + at_once <= last_panel; panel += at_once) {
      multiply_tile<S, Rows, at_once, false, Stored>(product, 0, panel);
    }
  };
  if constexpr (!narrow || std::same_as<S, float>) {
    if (rows == 1) multiply(std::integral_constant<Index, 1>{});
    if (rows == 2) multiply(std::integral_constant<Index, 2>{});
  }
  if constexpr (narrow && std::same_as<S, float>) {
    if (rows == 4) multiply(std::integral_constant<Index, 4>{});
  }
  return panel;
}

/// The part of the chains of a panel that begins at `k`. Where panels lie behind each other, the
/// numbers behind its own are fetched, which hides the time that memory takes.
template <class S>
Product<S> panel_slice(const Product<S>& product, Index panel, Index k, Index count) {
  const Index size = number_size<S>(product.storage);
  Product<S> slice = product.slice(k, count);
  slice.b += panel * slice.panel_stride * size, slice.panel_stride = 0;
  slice.ahead = reinterpret_cast<const char*>(slice.b + slice.depth * slice.b_stride * size);
  slice.ahead_stride = cache_line;
  return slice;
}

/// Writes a slice of a panel as numbers to compute with, [k][panel width].
template <class S, class Stored>
void widen(const Product<S>& slice, Index panel, S* wide) {
  constexpr Index lanes = simd::lanes<S>;
  for (Index r = 0; r < 2; ++r) {
    const S* const scales = slice.scales + panel * panel_width<S> + r * lanes;
    const Stored* const from = reinterpret_cast<const Stored*>(slice.b) + r * lanes;
    const auto scale = std::integral<Stored> ? simd::load<S>(scales) : simd::broadcast(S(1));
    for (Index k = 0; k < slice.depth; ++k) {
      simd::store<S>(wide + k * panel_width<S> + r * lanes,
                     load_weight<S>(from + k * slice.b_stride, scale));
    }
  }
}
/// The slice with numbers to compute with, in `wide` where they are stored as others.
template <class S>
Product<S> widened(const Product<S>& slice, Index panel, S* wide) {
  if (slice.storage == Storage::native) return slice;
  with_stored<S>(slice.storage, [&]<class Stored>(std::type_identity<Stored>) {
    if constexpr (!std::same_as<Stored, S>) widen<S, Stored>(slice, panel, wide);
  });
  return slice.with_panel(wide);
}

/// All rows of panels [panel, last_panel), in slices of k if more than one tile of rows reads them
/// or if they are stored anew, in `wide`.
template <class S>
void multiply_panels(const Product<S>& product, Index rows, Index panel, Index last_panel,
                     S* wide = nullptr) {
  const bool once = product.storage == Storage::native && rows <= tall_tile && has_tile(rows);
  const Index count = once ? std::max<Index>(product.depth, 1) : depth_slice;
  with_stored<S>(product.storage, [&]<class Stored>(std::type_identity<Stored>) {
    panel = multiply_few<S, Stored>(product, rows, panel, last_panel);
  });
  for (; panel < last_panel; ++panel) {
    for (Index k = 0; k == 0 || k < product.depth; k += count) {
      Product<S> slice = widened(panel_slice(product, panel, k, count), panel, wide);
      if (once) {  // one tile, whose own lines come in time
        slice.ahead = reinterpret_cast<const char*>(slice.b);
        slice.ahead_stride = slice.b_stride * static_cast<Index>(sizeof(S));
      }
      multiply_rows(slice, rows, panel);
    }
  }
}

template <class S, Index Rank>
std::array<S*, most_block_rows> row_addresses(const View<S, Rank>& view, Index first, Index count) {
  std::array<S*, most_block_rows> rows;
  for (Index i = 0; i < count; ++i) {
    rows[static_cast<std::size_t>(i)] = row_address(view, first + i);
  }
  return rows;
}

/// [row][k] to [k][row], in squares that are transposed in registers; `rows` has addresses for all
/// rows of the last square.
template <class S>
void pack_group(const S* const* rows, Index height, Index depth, S* to) {
  constexpr Index side = simd::lanes<S>;
  Index k = 0;
  for (; k + side <= depth; k += side) {
    for (Index row = 0; row < height; row += side) {
      simd::Square<S, side> square;
#pragma GCC unroll 16
      for (Index i = 0; i < side; ++i) square.load_row(i, rows[row + i] + k);
      square.transpose();
      const Index count = std::min(side, height - row);
#pragma GCC unroll 16
      for (Index i = 0; i < side; ++i) {
        simd::store<S>(to + (k + i) * height + row, square.row(i), count);
      }
    }
  }
  for (; k < depth; ++k) {
    for (Index row = 0; row < height; ++row) to[k * height + row] = rows[row][k];
  }
}

/// Where group `group` of packed rows begins: all are tall but the last two, which share the rest.
inline Index group_begin(Index rows, Index group) {
  const Index groups = ceil_div(rows, tall_tile);
  const Index rest = std::max<Index>(groups - 2, 0) * tall_tile;  // where it begins
  if (group * tall_tile <= rest) return group * tall_tile;
  return group == groups ? rows : rest + next_tile(rows - rest);
}

/// Groups [first, last) of the rows of x [T, K] and k [k, k + depth) of them, [group][k][height].
template <class S>
void pack_rows(const View<const S, 2>& x, Index first, Index last, Index k, Index depth, S* to) {
  for (Index group = first; group < last; ++group) {
    const Index row = group_begin(x.extent(0), group);
    const Index height = group_begin(x.extent(0), group + 1) - row;
    const S* from[round_up(tall_tile, simd::lanes<S>)];
    for (Index i = 0; const S*& address : from) {
      address = x.data() + (row + std::min(i++, height - 1)) * x.stride(0) + k;
    }
    pack_group<S>(from, height, depth, to + row * depth);
  }
}

/// As `multiply_panels`, for rows that `pack_rows` has packed.
template <class S>
void multiply_packed(Product<S> product, Index rows, Index panel, Index last_panel, S* wide) {
  const Index width = panel_width<S> * number_size<S>(product.storage);
  const Index groups = ceil_div(rows, tall_tile);
  const S* const packed = product.a;
  product.a_row_stride = 1;
  for (Index p = panel; p < last_panel; ++p) {
    for (Index k = 0; k == 0 || k < product.depth; k += depth_slice) {
      Product<S> slice = widened(panel_slice(product, p, k, depth_slice), p, wide);
      // Each tile fetches its share of the next slice.
      slice.ahead_stride = ceil_div(width, groups);
      for (Index group = 0; group < groups; ++group) {
        const Index row = group_begin(rows, group), height = group_begin(rows, group + 1) - row;
        slice.a = packed + row * product.depth + k * height, slice.a_stride = height;
        slice.c = product.c + row;
        if (height == tall_tile) {
          multiply_tile<S, tall_tile, 1, true>(slice, 0, p);
        } else {
          multiply_tile_of(height, slice, 0, p);
        }
        slice.ahead += slice.depth * slice.ahead_stride;
      }
    }
  }
}

/// Scratch for `widened`: nothing where the panels are stored as they are computed with.
template <class S>
S* slice_scratch(const Product<S>& product, Context::Scratch<S>& scratch) {
  const bool native = product.storage == Storage::native;
  return native ? nullptr : scratch(depth_slice, panel_width<S>).data();
}

/// Reads x [T, K] where it is.
template <class S>
void multiply_unpacked(const Product<S>& product, const View<const S, 2>& x, Index panels,
                       const View<S, 2>& y, const Call& call) {
  const Index rows = x.extent(0), depth = product.depth;
  const bool few = rows < rows_to_pack;
  const Index row_products = std::max<Index>(depth * product.columns, 1);
  const Index panel_weights = std::max<Index>(depth * panel_width<S>, 1);
  const Index task_rows = few ? rows
                              : std::clamp(round_up(products_per_task / row_products, tall_tile),
                                           4 * tall_tile, row_block);
  const Index task_panels = few ? round_up(ceil_div(weights_per_task, panel_weights), 4) : panels;
  const Index column_tasks = ceil_div(panels, task_panels);
  call.parallel_for(ceil_div(rows, task_rows) * column_tasks, [&](Index task, const Call& worker) {
    const Index row = task / column_tasks * task_rows, panel = task % column_tasks * task_panels;
    const Index count = std::min(task_rows, rows - row);
    const auto c = row_addresses(y, row, count);
    auto scratch = worker.scratch<S>();
    Product<S> part = product;
    part.c = c.data(), part.a_stride = 1;
    part.a = x.data() + row * x.stride(0), part.a_row_stride = x.stride(0);
    multiply_panels(part, count, panel, std::min(panels, panel + task_panels),
                    slice_scratch(product, scratch));
  });
}

/// Packs x [T, K] block by block, then sends each block through all panels.
template <class S>
void multiply_in_blocks(const Product<S>& product, const View<const S, 2>& x, Index panels,
                        const View<S, 2>& y, const Call& call) {
  const Index rows = x.extent(0), depth = product.depth;
  const Index blocks = std::max<Index>(ceil_div(rows - row_block / 4, row_block), 1);
  const Index block = round_up(ceil_div(rows, blocks), tall_tile);
  constexpr Index task_groups = 4;
  auto scratch = call.scratch<S>();
  S* const packed = scratch(std::min(rows, block), std::min(depth, depth_block)).data();
  for (Index row = 0; row < rows; row += block) {
    const Index count = std::min(block, rows - row), groups = ceil_div(count, tall_tile);
    const auto c = row_addresses(y, row, count);
    for (Index k = 0; k == 0 || k < depth; k += depth_block) {
      Product<S> part = product.slice(k, depth_block);
      part.a = packed, part.c = c.data();
      call.parallel_for(ceil_div(groups, task_groups), [&](Index task, const Call&) {
        const Index first = task * task_groups;
        pack_rows<S>(x.slice(axis::time, row, count), first, std::min(groups, first + task_groups),
                     k, part.depth, packed);
      });
      const Index panel_products = std::max<Index>(count * part.depth * panel_width<S>, 1);
      const Index task_panels = ceil_div(products_per_task, panel_products);
      call.parallel_for(ceil_div(panels, task_panels), [&](Index task, const Call& worker) {
        const Index panel = task * task_panels;
        auto slices = worker.scratch<S>();
        multiply_packed(part, count, panel, std::min(panels, panel + task_panels),
                        slice_scratch(product, slices));
      });
    }
  }
}

/// What `matmul` refuses of x, of a weight of this shape, and of y.
inline void check_product(const Shape<2>& x, const Shape<2>& x_strides, const Shape<2>& w,
                          bool has_weight, const Shape<2>& y, const Shape<2>& y_strides) {
  if (!has_weight) {
    throw ShapeError("matmul: there is no weight, expected one of shape " +
                     Shape<2>{y[1], x[1]}.text() +
                     "; every weight of a layer must be named by its Weights::visit");
  }
  if (x[1] != w[1]) {
    throw ShapeError("matmul: x has shape " + x.text() + ", expected [T, " + std::to_string(w[1]) +
                     "] for a weight of shape " + w.text());
  }
  if (y != Shape<2>{x[0], w[0]}) {
    throw ShapeError("matmul: y has shape " + y.text() + ", expected " +
                     Shape<2>{x[0], w[0]}.text());
  }
  if ((w[1] > 1 && x_strides[1] != 1) || (w[0] > 1 && y_strides[1] != 1)) {
    throw ShapeError("matmul: the last dimensions of x and y have strides " +
                     std::to_string(x_strides[1]) + " and " + std::to_string(y_strides[1]) +
                     ", expected 1");
  }
}

}  // namespace detail

/// y = x wᵀ + bias, or y += x wᵀ + bias: x [T, K], w [N, K], y [T, N], bias [N] or none.
///
/// The last dimensions of x and y are contiguous, and x and y share no number. A few rows are read
/// where they are while the weights stream by; many are packed first, which keeps rows whose stride
/// is a power of two from evicting each other.
template <class S>
void matmul(In<S, 2> x, const PackedMatrix<S>& w, View<S, 2> y, const Call& call,
            const S* bias = nullptr, bool accumulate = false) {
  using namespace detail;
  const Index rows = x.extent(0);
  const Index outputs = w.rows(), depth = w.cols();
  check_product(x.shape(), x.strides(), {outputs, depth}, bool{w}, y.shape(), y.strides());
  if (!disjoint(x, y)) throw ShapeError("matmul: x and y overlap");
  if (rows == 0 || outputs == 0) return;

#if SEQMIX_MATRIX_UNITS
  if constexpr (std::is_same_v<S, float>) {
    if (matrix_precision<S>(call) != Precision::fp32) {
      return matmul_split(x, w, y, call, bias, accumulate);
    }
  }
#endif

  const Product<S> product{.depth = depth,
                           .b = w.bytes(),
                           .storage = w.storage(),
                           .b_stride = panel_width<S>,
                           .panel_stride = depth * panel_width<S>,
                           .scales = w.scales(),
                           .ahead = reinterpret_cast<const char*>(w.bytes()),
                           .columns = outputs,
                           .bias = bias,
                           .accumulate = accumulate};
  if (rows < rows_to_pack || w.panels() < panels_to_pack) {
    multiply_unpacked(product, x, w.panels(), y, call);
  } else {
    multiply_in_blocks(product, x, w.panels(), y, call);
  }
}

#define SEQMIX_MATMUL(S) \
  void matmul(In<S, 2>, const PackedMatrix<S>&, View<S, 2>, const Call&, const S*, bool)
SEQMIX_COMPILE(SEQMIX_MATMUL);
#undef SEQMIX_MATMUL

SEQMIX_END_NAMESPACE
}  // namespace seqmix
