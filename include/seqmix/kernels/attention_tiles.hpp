#pragma once

#include <algorithm>
#include <array>

#include "seqmix/kernels/attention_products.hpp"
#include "seqmix/simd/amx.hpp"

#if SEQMIX_MATRIX_UNITS

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// As `RegisterProducts`, on matrix units: each number becomes `terms` of bfloat16.
///
/// K, and keys where there are fewer than in a tile, are padded with zeros to whole steps, V to
/// whole pairs of tiles. Lanes stay queries, so that the units see the weights as they are
/// computed.
template <Index terms>
class TileProducts {
  using Batch = simd::Batch<float>;
  static constexpr Index lanes = simd::lanes<float>, pair = simd::pair_rows;
  static constexpr Index depth = simd::tile_depth;
  static constexpr Index width = query_panel_width<float>, registers = pair / lanes;
  static constexpr Index steps_of_tile = attention_tile / depth;
  static_assert(lanes == simd::tile_rows && width % pair == 0 && attention_tile % pair == 0);

 public:
  static constexpr Index strip_keys = depth, strip_registers = pair / lanes;
  static constexpr Index key_group = depth, channels = pair;

  TileProducts(Context& worker, Index panels, Index head_k, Index head_v)
      : numbers_(worker),
        terms_(worker),
        steps_(ceil_div(head_k, depth)),
        channel_pairs_(ceil_div(head_v, pair)),
        scaled_(numbers_(head_k, width)),
        scores_(numbers_(attention_tile, width)),
        queries_(terms_(panels, width / pair, steps_, simd::pair_size<terms>)),
        keys_(terms_(attention_tile / pair, steps_, simd::pair_size<terms>)),
        values_(terms_(channel_pairs_, steps_of_tile, simd::pair_size<terms>)),
        weights_(terms_(width / pair, steps_of_tile, simd::pair_size<terms>)) {}

  void set_queries(Index panel, const View<const float, 2>& from, float scale) {
    scale_transposed<float>(from, scale, scaled_.slice<1>(0, from.extent(0)));
    const Index head_k = scaled_.extent(0), padded = round_up(from.extent(0), lanes);
    fill(scaled_.slice<1>(from.extent(0), padded - from.extent(0)), 0.0F);
    for (Index column = 0; column < padded; column += lanes) {
      for (Index k = 0; k < steps_ * depth; k += 2) {
        const auto row = [&](Index i) {
          return i < head_k ? simd::load<float>(&scaled_(i, column)) : Batch(0.0F);
        };
        bfloat16* const tiles = &queries_(panel, column / pair, k / depth, 0);
        simd::split_pairs<terms>(row(k), row(k + 1), tiles + place(column, k % depth / 2));
      }
    }
  }

  void set_tile(const View<const float, 2>& keys, const View<const float, 2>& values) {
    pack_keys(keys);
    pack_values(values);
  }

  void multiply_keys(Index panel, const Strip& strip) {
    for (Index q = strip.begin / registers; q * registers < strip.end; ++q) {
      for (Index k = strip.first; k < strip.last; k += pair) {
        simd::zero_sums();
        for (Index step = 0; step < steps_; ++step) {
          simd::multiply_pairs<terms, terms>(&keys_(k / pair, step, 0),
                                             &queries_(panel, q, step, 0));
        }
        simd::store_sums(&scores_(k, q * pair), width);
      }
    }
  }
  struct Columns {
    float* first;
    bfloat16* weights;
    Index r;

    float* score(Index key, Index i) const { return first + key * width + i * lanes; }
    void set_weights(Index key, Index i, const Batch& even, const Batch& odd) const {
      simd::cut_pairs<terms>(even, odd, weights + place_of(key, r + i));
    }
  };
  Columns columns_of(Index r) const { return {&scores_(0, r * lanes), weights_.data(), r}; }
  Batch weight(Index key, Index r) const {
    alignas(64) std::array<float, lanes> sum{};
    for (Index term = 0; term < terms; ++term) {
      const bfloat16* const pairs = weights_.data() + place_of(key, r) + term * simd::tile_size;
      for (Index i = 0; i < lanes; ++i) {
        sum[static_cast<std::size_t>(i)] += static_cast<float>(pairs[2 * i + key % 2]);
      }
    }
    return simd::load<float>(sum.data());
  }
  void add_values(const Strip& strip, const View<float, 2>& o) {
    for (Index q = strip.begin / registers; q * registers < strip.end; ++q) {
      for (Index channel = 0; channel < channel_pairs_; ++channel) {
        float* const sums = &o(channel * pair, q * pair);
        simd::load_sums(sums, width);
        for (Index step = strip.first / depth; step * depth < strip.last; ++step) {
          simd::multiply_pairs<terms, terms>(&values_(channel, step, 0), &weights_(q, step, 0));
        }
        simd::store_sums(sums, width);
      }
    }
  }

 private:
  /// Where a row of the tile lies that has `column`, or row, of a pair of tiles.
  static Index place(Index column, Index row) {
    return column % pair / lanes * terms * simd::tile_size + row * depth;
  }

  /// Where the weights of an even key and the one behind it lie for the queries of a register.
  static Index place_of(Index key, Index r) {
    const auto of = static_cast<std::size_t>(key), step = of / depth, pairs = of % depth / 2;
    const auto in = static_cast<std::size_t>(r), panel = in / registers, half = in % registers;
    return static_cast<Index>((panel * steps_of_tile + step) * simd::pair_size<terms> +
                              half * terms * simd::tile_size + pairs * depth);
  }

  void pack_keys(const View<const float, 2>& keys) {
    const Index head_k = keys.extent(1);
    for (Index key = 0; key < round_up(keys.extent(0), pair); ++key) {
      for (Index step = 0; step < steps_; ++step) {
        bfloat16* const to = &keys_(key / pair, step, 0) + place(key, key % lanes);
        const auto half = [&](Index k) {
          return simd::load<float>(&keys(key, 0) + k, std::clamp<Index>(head_k - k, 0, lanes));
        };
        if (key < keys.extent(0)) {
          simd::split_row<terms>(half(step * depth), half(step * depth + lanes), to);
        } else {
          simd::split_row<terms>(Batch(0.0F), Batch(0.0F), to);
        }
      }
    }
  }

  void pack_values(const View<const float, 2>& values) {
    const Index keys = values.extent(0), head_v = values.extent(1);
    for (Index channel = 0; channel < channel_pairs_ * pair; channel += lanes) {
      const Index count = std::clamp<Index>(head_v - channel, 0, lanes);
      const auto row = [&](Index key) {
        return key < keys ? simd::load<float>(&values(key, 0) + channel, count) : Batch(0.0F);
      };
      for (Index step = 0; step * depth < keys; ++step) {
        bfloat16* const tiles = &values_(channel / pair, step, 0) + place(channel, 0);
        for (Index key = 0; key < depth; key += 2) {
          simd::split_pairs<terms>(row(step * depth + key), row(step * depth + key + 1),
                                   tiles + key / 2 * depth);
        }
        for (Index term = 0; term < terms; ++term) {
          simd::transpose_tile(tiles + term * simd::tile_size);
        }
      }
    }
  }

  Context::Scratch<float> numbers_;
  Context::Scratch<bfloat16> terms_;
  Index steps_, channel_pairs_;  // of K, and pairs of tiles of V
  View<float, 2> scaled_;        // [K, width], queries on their way to `queries_`
  View<float, 2> scores_;        // [attention_tile, width]
  View<bfloat16, 4> queries_;    // [panels, pairs of 32 queries, steps, pair of tiles]
  View<bfloat16, 3> keys_;       // [pairs of 32 keys, steps, pair of tiles]
  View<bfloat16, 3> values_;     // [pairs of 32 channels, steps of keys, pair of tiles]
  View<bfloat16, 3> weights_;    // [pairs of 32 queries, steps of keys, pair of tiles]
  simd::TileScope scope_;
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix

#endif
