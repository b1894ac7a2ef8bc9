#pragma once

#include <array>
#include <cstddef>

#include "seqmix/core/memory.hpp"
#include "seqmix/core/view.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Rows of tokens that memory brings nearer while a state is swept, a line of the cache at a time.
template <class S>
class LinesAhead {
 public:
  /// A line of tokens `stride` apart.
  struct Line {
    const S* at;
    Index stride;
  };

  /// [tokens, columns]
  void add(const View<const S, 2>& rows) {
    if (!rows.empty()) rows_[count_++] = rows;
  }
  /// The next line of `count` tokens: where fewer are left one of them again and again.
  Line next(Index count) {
    if (at_ == count_) return {nothing_, 0};
    const View<const S, 2>& rows = rows_[at_];
    const bool whole = token_ + count <= rows.extent(0);
    const Line line{rows.data() + token_ * rows.stride(0) + column_, whole ? rows.stride(0) : 0};
    token_ += count;
    if (token_ >= rows.extent(0)) {
      token_ = 0, column_ += alignment / static_cast<Index>(sizeof(S));
      if (column_ >= rows.extent(1)) column_ = 0, ++at_;
    }
    return line;
  }

 private:
  std::array<View<const S, 2>, 7> rows_;
  std::size_t count_ = 0, at_ = 0;
  Index token_ = 0, column_ = 0;
  S nothing_[1] = {};
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
