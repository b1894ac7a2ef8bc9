#pragma once

#include <cstring>

#include "seqmix/testing/compare.hpp"

namespace support {

using seqmix::Index;
using seqmix::View;

using seqmix::testing::failed;
using seqmix::testing::numbers_of;
using seqmix::testing::relative_error;

/// The same numbers to the last bit; NaN equals NaN of the same bits.
template <class T, class U, Index Rank>
bool same_bits(const View<T, Rank>& a, const View<U, Rank>& b) {
  if (a.shape() != b.shape()) return false;
  const auto left = numbers_of(a);
  const auto right = numbers_of(b);
  return left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(left[0])) == 0;
}

}  // namespace support
