#pragma once

#include <cstddef>
#include <iterator>
#include <utility>

#include "seqmix/simd/math.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace simd {

/// A constant that stays in its register: g++ would load it again wherever it is used, which costs
/// functions that are called in loops a third of their speed.
template <class S>
SEQMIX_ALWAYS_INLINE Batch<S> held(S value) {
  Batch<S> constant(value);
#if defined(__AVX512F__) && !defined(SEQMIX_SIMD_WIDTH)
  asm("" : "+v"(constant.data));
#endif
  return constant;
}

/// e^x of x <= 64 for loops, which hold its constants. In fewer instructions than `exp`: its
/// relative error grows by |x| / 2^25 in float, as that of a weight may that lies beside others.
template <class S>
class WeightExp {
  using C = detail::Coefficients<S>;
  static constexpr std::size_t count = std::size(C::centred_exp2);

 public:
  SEQMIX_ALWAYS_INLINE WeightExp() : WeightExp(std::make_index_sequence<count>{}) {}
  SEQMIX_ALWAYS_INLINE Batch<S> operator()(const Batch<S>& any_x) const {
    const Batch<S> x = simd::max(any_x, lowest_);
    const Batch<S> field = simd::fma(x, log2e_, zero_);
    const Batch<S> r = simd::fma(x, log2e_, zero_ - field);
    Batch<S> sum = c_[count - 1];
    const auto steps = [&]<std::size_t... I>(std::index_sequence<I...>)
        __attribute__((always_inline)) {
      ((sum = simd::fma(sum, r, c_[count - 2 - I])), ...);
    };
    steps(std::make_index_sequence<count - 1>{});
    return sum * detail::power_of_two(field);
  }

 private:
  template <std::size_t... I>
  SEQMIX_ALWAYS_INLINE explicit WeightExp(std::index_sequence<I...>)
      : c_{held(C::centred_exp2[I])...} {}

  // The lowest exponent counts as 0.
  Batch<S> lowest_ = held(static_cast<S>(-C::bias * detail::ln2));
  Batch<S> log2e_ = held(static_cast<S>(detail::log2e));
  Batch<S> zero_ = held(detail::rounder<S> + S(C::bias));
  Batch<S> c_[count];
};

}  // namespace simd
SEQMIX_END_NAMESPACE
}  // namespace seqmix
