#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/core/error.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/numeric.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How the pairs of a head are dealt to the axes of a position: one axis after another (Qwen2-VL),
/// or in turn, what is left to the first axis (Qwen3-VL).
enum class SectionOrder { chunked, interleaved };
constexpr std::array<std::string_view, 2> names_of(SectionOrder) {
  return {"chunked", "interleaved"};
}

/// Which axis of a position turns each pair, where tokens have more than one: of an image its time,
/// height and width. Wang et al. 2024, arXiv:2409.12191, section 2.1.
class RotarySections {
 public:
  static constexpr Index most_axes = 4;

  /// One axis, of any pairs.
  RotarySections() = default;
  /// `counts`: how many of the `pairs` each axis has.
  RotarySections(const std::vector<Index>& counts, SectionOrder order, Index pairs)
      : axes_(std::ssize(counts)) {
    require(axes_ <= most_axes, "rope_sections has at most 4 axes");
    Index total = 0;
    for (const Index count : counts) {
      require(count >= 0, "rope_sections must not be negative");
      total += count;
    }
    if (total != pairs || counts.empty()) {
      throw ConfigError("rope_sections has " + std::to_string(total) + " pairs, expected " +
                        std::to_string(pairs) + ", half of rotary_dim");
    }
    axis_of_.resize(static_cast<std::size_t>(pairs));
    Index next = 0;
    for (Index axis = 0; axis < axes_; ++axis) {
      const Index count = counts[static_cast<std::size_t>(axis)];
      if (order == SectionOrder::interleaved) {
        if (axis == 0) continue;  // has what the others leave
        require(count == 0 || axis + (count - 1) * axes_ < pairs,
                "an interleaved section of rope_sections reaches beyond the last pair");
      }
      for (Index i = 0; i < count; ++i) {
        const Index n = order == SectionOrder::interleaved ? axis + i * axes_ : next++;
        axis_of_[static_cast<std::size_t>(n)] = axis;
      }
    }
  }

  Index axes() const { return axes_; }
  Index pairs() const { return std::ssize(axis_of_); }
  Index axis_of(Index pair) const { return axis_of_[static_cast<std::size_t>(pair)]; }

 private:
  Index axes_ = 1;
  std::vector<Index> axis_of_;  // [pairs]
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
