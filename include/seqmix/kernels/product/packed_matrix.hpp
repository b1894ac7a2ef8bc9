#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <sstream>
#include <type_traits>
#include <utility>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/error.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/tensor.hpp"
#include "seqmix/simd/convert.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Outputs of a panel: two registers.
template <class S>
inline constexpr Index panel_width = 2 * simd::lanes<S>;

/// Calls `body(std::type_identity<Stored>{})` with the type of the numbers in a storage: S,
/// bfloat16, float16 or std::int8_t.
template <class S>
auto with_stored(Storage storage, auto&& body) {
  switch (storage) {
    case Storage::bf16:
      return body(std::type_identity<bfloat16>{});
    case Storage::f16:
      return body(std::type_identity<float16>{});
    case Storage::int8:
      return body(std::type_identity<std::int8_t>{});
    default:
      return body(std::type_identity<S>{});
  }
}

[[noreturn]] SEQMIX_COLD inline void refuse_overflow(Index output, double number, Storage storage,
                                                     float largest) {
  std::ostringstream text;
  text << "a number of row " << output << " is " << number << ", expected at most " << largest
       << " in size: " << to_string(storage) << " holds no more";
  throw ConfigError(text.str());
}

}  // namespace detail

/// A weight [N, K] (out, in) in the order in which `matmul` reads it, behind a shared handle.
///
/// Panels of two registers of outputs, [panel][k][output], in every storage; the last one is filled
/// up with zeros. The number that is computed with is the stored one, which is the nearest to the
/// weight, times the scale of its output if it is an integer (the largest weight of the output is
/// 127 of these). A finite number that would become infinite is a `ConfigError`; what is not finite
/// stays so.
template <class S>
class PackedMatrix {
 public:
  PackedMatrix() = default;
  explicit PackedMatrix(In<S, 2> weight, Storage storage = Storage::native)
      : rows_(weight.extent(0)),
        cols_(weight.extent(1)),
        packed_(std::make_shared<const Packed>(pack(weight, storage))) {}

  explicit operator bool() const { return packed_ != nullptr; }
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  /// The same for copies, which share the numbers.
  const void* identity() const { return packed_.get(); }
  /// Calls `read(panels)` with the numbers as they are stored: `View<const Stored, 3>`, [panels, K,
  /// panel width], where Stored is S, bfloat16, float16 or std::int8_t.
  void visit(auto&& read) const {
    detail::with_stored<S>(storage(), [&]<class Stored>(std::type_identity<Stored>) {
      constexpr Index width = detail::panel_width<S>;
      const auto* const numbers = reinterpret_cast<const Stored*>(bytes());
      read(View<const Stored, 3>(numbers, {panels(), cols_, width}));
    });
  }
  Storage storage() const { return packed_->storage; }
  Index panels() const { return packed_->bytes.extent(0); }
  const std::byte* bytes() const { return packed_->bytes.data(); }
  /// Of the integers of each output, the last panel filled up with zeros; null in other storages.
  const S* scales() const { return packed_->scales.data(); }
  /// Writes row `n` of the numbers that are computed with, [K].
  void read_row(Index n, View<S, 1> row) const {
    constexpr Index width = detail::panel_width<S>;
    const S scale = scales() ? scales()[n] : S(1);
    visit([&](auto panels) {
      for (Index k = 0; k < cols_; ++k) row[k] = scale * widened(panels(n / width, k, n % width));
    });
  }
  /// The numbers that are computed with, [N, K].
  Tensor<S, 2> unpack() const {
    Tensor<S, 2> weight({rows_, cols_});
    for (Index n = 0; n < rows_; ++n) read_row(n, weight[n]);
    return weight;
  }

 private:
  struct Packed {
    Storage storage = Storage::native;
    Tensor<std::byte, 3> bytes;  // [panels, K, bytes of a panel's width]
    Tensor<S, 1> scales;         // [panels * panel width], or none
  };

  static S widened(S number) { return number; }
  static S widened(simd::Narrow auto number) { return static_cast<S>(static_cast<float>(number)); }

  static Packed pack(View<const S, 2> weight, Storage storage) {
    constexpr Index width = detail::panel_width<S>;
    const Index K = weight.extent(1);
    const Shape<3> shape{ceil_div(weight.extent(0), width), K, width * number_size<S>(storage)};
    Packed packed{storage, Tensor<std::byte, 3>(shape), {}};
    if (storage == Storage::int8) packed.scales = row_scales(weight);
    const S* const scales = packed.scales.data();
    detail::with_stored<S>(storage, [&]<class Stored>(std::type_identity<Stored>) {
      for (Index n = 0; n < weight.extent(0); ++n) {
        auto* const to = reinterpret_cast<Stored*>(packed.bytes.data()) + n / width * K * width;
        for (Index k = 0; k < K; ++k) {
          to[k * width + n % width] = stored<Stored>(weight(n, k), scales ? scales[n] : S(1), n);
        }
      }
    });
    return packed;
  }
  /// A number w of output n as it is stored.
  template <class Stored>
  static Stored stored(S w, S scale, Index n) {
    if constexpr (std::same_as<Stored, S>) {
      return w;
    } else if constexpr (std::integral<Stored>) {
      return simd::narrow<Stored>(scale == 0 ? 0.0F : static_cast<float>(w / scale));
    } else {
      const auto nearest = simd::narrow<Stored>(static_cast<float>(w));
      if (std::isfinite(w) && !std::isfinite(static_cast<float>(nearest))) {
        constexpr bool is_f16 = std::same_as<Stored, float16>;
        detail::refuse_overflow(n, static_cast<double>(w), is_f16 ? Storage::f16 : Storage::bf16,
                                simd::largest_of<Stored>);
      }
      return nearest;
    }
  }
  /// A row that has a NaN has NaN.
  static Tensor<S, 1> row_scales(View<const S, 2> weight) {
    Tensor<S, 1> scales({round_up(weight.extent(0), detail::panel_width<S>)});
    const S most = std::nextafter(std::numeric_limits<S>::max() / 127, S(0));  // 127 are finite
    for (Index n = 0; n < weight.extent(0); ++n) {
      S largest = 0;
      for (Index k = 0; k < weight.extent(1); ++k) {
        const S size = std::abs(weight(n, k));
        if (size > largest || std::isnan(size)) largest = size;
      }
      scales(n) = std::isfinite(largest) ? std::min(largest / 127, most) : largest;
    }
    return scales;
  }

  Index rows_ = 0, cols_ = 0;
  std::shared_ptr<const Packed> packed_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
