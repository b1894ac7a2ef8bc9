#pragma once

#include <cmath>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "seqmix/core/tensor.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace testing {

/// A relative error that no tolerance accepts.
inline constexpr double failed = std::numeric_limits<double>::infinity();

/// |got - expected| / |expected| in Euclidean norms. Infinite, hence a failure, where a number is
/// not finite, the expected norm is zero or the sizes differ. Nothing against nothing is 0.
template <class T, class U>
double relative_error(std::span<const T> got, std::span<const U> expected) {
  if (got.size() != expected.size()) return failed;
  if (expected.empty()) return 0;
  long double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto a = static_cast<long double>(got[i]), b = static_cast<long double>(expected[i]);
    if (!std::isfinite(a) || !std::isfinite(b)) return failed;
    error += (a - b) * (a - b), norm += b * b;
  }
  return norm == 0 ? failed : static_cast<double>(std::sqrt(error / norm));
}

/// The numbers of a view, row-major.
template <class T, Index Rank>
std::vector<std::remove_const_t<T>> numbers_of(const View<T, Rank>& view) {
  Tensor<std::remove_const_t<T>, Rank> dense(view.shape());
  copy(view, dense.view());
  return {dense.data(), dense.data() + dense.size()};
}

template <class T, class U, Index Rank>
double relative_error(const View<T, Rank>& got, const View<U, Rank>& expected) {
  if (got.shape() != expected.shape()) return failed;
  const auto a = numbers_of(got);
  const auto b = numbers_of(expected);
  return relative_error<std::remove_const_t<T>, std::remove_const_t<U>>(a, b);
}

}  // namespace testing
SEQMIX_END_NAMESPACE
}  // namespace seqmix
