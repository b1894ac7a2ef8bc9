#pragma once

#include <cmath>
#include <cstring>
#include <iomanip>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
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

/// The same numbers to the last bit; NaN equals NaN of the same bits.
template <class T>
bool same_bits(const T& a, const T& b) requires std::is_arithmetic_v<T> {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}
template <class T, class U, Index Rank>
bool same_bits(const View<T, Rank>& a, const View<U, Rank>& b) {
  if (a.shape() != b.shape()) return false;
  const auto left = numbers_of(a);
  const auto right = numbers_of(b);
  return left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(left[0])) == 0;
}

/// Visits the numbers of [B, T, C] in the order that counts as first: by token, then row, then
/// channel. Calls `body(i, place)` with the place in words, as a callable, until that returns true.
inline auto by_token(Shape<3> shape) {
  return [shape](auto&& body) {
    for (Index t = 0; t < shape[1]; ++t) {
      for (Index b = 0; b < shape[0]; ++b) {
        for (Index c = 0; c < shape[2]; ++c) {
          const auto place = [&] {
            return "token " + std::to_string(t) + ", channel " + std::to_string(c) + ", row " +
                   std::to_string(b);
          };
          if (body(static_cast<std::size_t>((b * shape[1] + t) * shape[2] + c), place)) return;
        }
      }
    }
  };
}

/// The first place, in the order of `visit` (as `by_token` makes one), where
/// `differs(got, expected)`: "first differs at token 3, channel 1, row 0: got 1, expected 2, apart
/// by 1", or nothing.
template <class T, class U>
std::string first_difference(std::span<const T> got, std::span<const U> expected, auto&& visit,
                             auto&& differs) {
  std::string result;
  visit([&](std::size_t i, auto&& place) {
    if (!differs(got[i], expected[i])) return false;
    std::ostringstream text;
    text << "first differs at " << place() << std::setprecision(17) << ": got " << got[i]
         << ", expected " << expected[i] << std::setprecision(2) << ", apart by "
         << std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    result = text.str();
    return true;
  });
  return result;
}

/// The same where numbers are apart by more than `tolerance` times the root mean square of what is
/// expected: there is such a place wherever the relative error exceeds the tolerance, unless zeros
/// alone are expected.
template <class T, class U>
std::string first_beyond(std::span<const T> got, std::span<const U> expected, double tolerance,
                         auto&& visit) {
  if (got.size() != expected.size()) {
    return "has " + std::to_string(got.size()) + " numbers, expected " +
           std::to_string(expected.size());
  }
  double squares = 0;
  for (const U value : expected) {
    const auto wide = static_cast<double>(value);
    squares += std::isfinite(wide) ? wide * wide : 0;
  }
  const double rms = std::sqrt(squares / static_cast<double>(expected.size()));
  const std::string text = first_difference(got, expected, visit, [&](T a, U b) {
    return !(std::abs(static_cast<double>(a) - static_cast<double>(b)) <= tolerance * rms);
  });
  if (text.empty()) return "is expected to be zeros alone, which have no relative error";
  std::ostringstream limit;
  limit << std::setprecision(2) << "; tolerance " << tolerance << " of " << rms
        << ", the root mean square";
  return text + limit.str();
}

}  // namespace testing
SEQMIX_END_NAMESPACE
}  // namespace seqmix
