#pragma once

#include <algorithm>
#include <array>

#include "seqmix/kernels/attention/detail/products.hpp"
#include "seqmix/kernels/product/detail/tile_operand.hpp"

#if SEQMIX_MATRIX_UNITS

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// As `RegisterProducts`, on matrix units: each number becomes the terms of bfloat16 that the
/// call's precision says.
///
/// K, and keys where there are fewer than in a tile, are padded with zeros to whole steps, V to
/// whole pairs of tiles. Lanes stay queries, so that the units see the weights as they are
/// computed.
class TileProducts {
  using Batch = simd::Batch<float>;
  static constexpr Index lanes = simd::lanes<float>, pair = simd::pair_rows;
  static constexpr Index depth = simd::tile_depth;
  static constexpr Index width = query_panel_width<float>, registers = pair / lanes;
  static_assert(lanes == simd::tile_rows && width % pair == 0 && attention_tile % pair == 0);

 public:
  static constexpr Index strip_keys = depth, strip_registers = registers;
  static constexpr Index key_group = depth, channels = pair;

  TileProducts(const Call& worker, Index panels, Index head_k, Index head_v)
      : numbers_(worker.context()),
        tiles_(worker.context()),
        terms_(split_terms(worker)),
        scaled_(numbers_(head_k, width)),
        scores_(numbers_(attention_tile, width)),
        queries_(tiles_, panels * (width / pair), head_k, terms_),
        keys_(tiles_, attention_tile / pair, head_k, terms_),
        values_(tiles_, TileOperand::blocks_of(head_v), attention_tile, terms_),
        weights_(tiles_, width / pair, attention_tile, terms_) {}

  void fetch_along(PanelsAhead& ahead) { ahead_ = &ahead; }
  void set_queries(Index panel, const View<const float, 2>& from, float scale) {
    const auto columns = scaled_.slice<1>(0, from.extent(0));
    scale_transposed<float>(from, scale, columns);
    queries_.pack_columns(columns, panel * (width / pair));
  }
  void set_tile(const View<const float, 2>& keys, const View<const float, 2>& values) {
    keys_.pack_rows(keys);
    values_.pack_columns(values), values_.transpose(TileOperand::blocks_of(values.extent(1)));
  }

  void multiply_keys(Index panel, const Strip& strip, const float* bias) {
    for (Index q = strip.begin / registers; q * registers < strip.end; ++q) {
      for (Index k = strip.first; k < strip.last; k += pair) {
        ahead_->fetch();
        simd::zero_sums();
        multiply_steps(keys_, k / pair, queries_, panel * (width / pair) + q, 0, keys_.steps());
        simd::store_sums(&scores_(k, q * pair), width);
      }
    }
    if (bias == nullptr) return;
    for (Index k = strip.first; k < strip.last; ++k) {
      for (Index r = strip.begin; r < strip.end; ++r) {
        float* const at = &scores_(k, r * lanes);
        const float* const own = bias - (k - strip.first) + (r - strip.begin) * lanes;
        simd::store<float>(at, simd::load<float>(at) + simd::load<float>(own));
      }
    }
  }
  struct Columns {
    float* first;
    bfloat16* weights;
    Index r, terms;

    float* score(Index key, Index i) const { return first + key * width + i * lanes; }
    void set_weights(Index key, Index i, const Batch& even, const Batch& odd) const {
      simd::cut_pairs(even, odd, terms, weights + place_of(key, r + i, terms));
    }
  };
  Columns columns_of(Index r) const {
    return {&scores_(0, r * lanes), weights_.pair(0, 0), r, terms_};
  }
  Batch weight(Index key, Index r) const {
    alignas(64) std::array<float, lanes> sum{};
    for (Index term = 0; term < terms_; ++term) {
      const bfloat16* const pairs =
          weights_.pair(0, 0) + place_of(key, r, terms_) + term * simd::tile_size;
      for (Index i = 0; i < lanes; ++i) {
        sum[static_cast<std::size_t>(i)] += static_cast<float>(pairs[2 * i + key % 2]);
      }
    }
    return simd::load<float>(sum.data());
  }
  void add_values(const Strip& strip, const View<float, 2>& o) {
    for (Index q = strip.begin / registers; q * registers < strip.end; ++q) {
      for (Index channel = 0; channel < o.extent(0); channel += pair) {
        float* const sums = &o(channel, q * pair);
        ahead_->fetch();
        simd::load_sums(sums, width);
        multiply_steps(values_, channel / pair, weights_, q, strip.first / depth,
                       ceil_div(strip.last, depth));
        simd::store_sums(sums, width);
      }
    }
  }

 private:
  /// Where the weights of an even key and the one behind it lie for the queries of a register.
  static Index place_of(Index key, Index r, Index terms) {
    constexpr auto steps = static_cast<std::size_t>(attention_tile / depth);
    const auto of = static_cast<std::size_t>(key), step = of / depth, pairs = of % depth / 2;
    const auto in = static_cast<std::size_t>(r), panel = in / registers, half = in % registers;
    return static_cast<Index>((panel * steps + step) * 2 + half) * terms * simd::tile_size +
           static_cast<Index>(pairs * depth);
  }

  Context::Scratch<float> numbers_;
  Context::Scratch<bfloat16> tiles_;
  Index terms_;
  View<float, 2> scaled_;  // [K, width], queries on their way to `queries_`
  View<float, 2> scores_;  // [attention_tile, width]
  TileOperand queries_;    // [K, queries] of all panels
  TileOperand keys_;       // [keys, K]
  TileOperand values_;     // [V, keys]
  TileOperand weights_;    // [keys, queries]
  PanelsAhead* ahead_ = nullptr;
  simd::TileScope scope_;
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix

#endif
