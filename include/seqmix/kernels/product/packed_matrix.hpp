#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <sstream>
#include <type_traits>
#include <utility>
#include <variant>

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

[[noreturn]] inline void refuse_overflow(Index output, double number, Storage storage,
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
    std::visit([&](const auto& panels) { read(panels.view()); }, packed_->panels);
  }
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
  template <class Stored>
  using Panels = Tensor<Stored, 3>;  // [panels, K, panel width]
  struct Packed {
    std::variant<Panels<S>, Panels<bfloat16>, Panels<float16>, Panels<std::int8_t>> panels;
    Tensor<S, 1> scales;  // [panels * panel width], or none
  };

  static S widened(S number) { return number; }
  static S widened(simd::Narrow auto number) { return static_cast<S>(static_cast<float>(number)); }

  static Packed pack(View<const S, 2> weight, Storage storage) {
    switch (storage) {
      case Storage::native:
        return {arranged<S>(weight, [](Index, S w) { return w; }), {}};
      case Storage::bf16:
        return {rounded<bfloat16>(weight, storage), {}};
      case Storage::f16:
        return {rounded<float16>(weight, storage), {}};
      case Storage::int8:
        break;
    }
    Tensor<S, 1> scales = row_scales(weight);
    auto panels = arranged<std::int8_t>(weight, [&](Index n, S w) {
      const S scale = scales(n);
      return simd::narrow<std::int8_t>(scale == 0 ? 0.0F : static_cast<float>(w / scale));
    });
    return {std::move(panels), std::move(scales)};
  }
  template <class Stored>
  static Panels<Stored> rounded(View<const S, 2> weight, Storage storage) {
    return arranged<Stored>(weight, [storage](Index n, S w) {
      const auto stored = simd::narrow<Stored>(static_cast<float>(w));
      if (std::isfinite(w) && !std::isfinite(static_cast<float>(stored))) {
        detail::refuse_overflow(n, static_cast<double>(w), storage, simd::largest_of<Stored>);
      }
      return stored;
    });
  }
  /// The panels of `store(output, number)`.
  template <class Stored>
  static Panels<Stored> arranged(View<const S, 2> weight, auto&& store) {
    constexpr Index width = detail::panel_width<S>;
    const Index N = weight.extent(0), K = weight.extent(1);
    Panels<Stored> panels({ceil_div(N, width), K, width});
    for (Index n = 0; n < N; ++n) {
      Stored* to = panels.data() + n / width * K * width + n % width;
      for (Index k = 0; k < K; ++k) to[k * width] = store(n, weight(n, k));
    }
    return panels;
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
