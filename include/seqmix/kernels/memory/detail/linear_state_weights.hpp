#pragma once

#include <algorithm>

#include "seqmix/kernels/memory/decay.hpp"

// Weights between the tokens of a long chunk, for decays by head.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// A product times what is left of it: nothing of an infinite one that a reset hides.
template <class S>
SEQMIX_ALWAYS_INLINE simd::Batch<S> weighed(const simd::Batch<S>& product,
                                            const simd::Batch<S>& left) {
  const simd::Batch<S> zero(S(0));
  return simd::select<S>(left == zero, zero, product * left);
}

/// weights[i, j] = products[i, j] a_{j+1} ... a_i for j <= i, or where tokens read `before` they
/// write, products[i, j] a_{j+1} ... a_{i-1} for j < i; else 0.
template <bool before, Index C, class S>
void weigh_by_head(Index tokens, const S* products, const S* a, Index a_stride, S* weights) {
  constexpr Index L = simd::lanes<S>;
  static_assert(C % L == 0);
  for (Index c = 0; c < C; c += L) {
    const simd::Batch<S> column = simd::counting_from<S>(c);
    DecayProduct<S> decay;
    for (Index i = 0; i < std::min(c, tokens); ++i) {
      simd::store<S>(weights + i * C + c, simd::broadcast(S(0)));
    }
    for (Index i = c; i < tokens; ++i) {
      const simd::Batch<S> row = simd::broadcast(static_cast<S>(i));
      const simd::Batch<S> factor = simd::load(a + i * a_stride);
      if (!before) decay.multiply(factor, column < row);
      const simd::Mask<S> counts = before ? column < row : column <= row;
      const simd::Batch<S> left = simd::select<S>(counts, decay.value(), simd::broadcast(S(0)));
      simd::store<S>(weights + i * C + c, weighed<S>(simd::load(products + i * C + c), left));
      if (before) decay.multiply(factor, column < row);
    }
  }
}

/// weights[i, j] = products[i, j] γ^(i-j) for j <= i, or with `before` γ^(i-1-j) for j < i; else 0.
/// powers(n) is γ^n, γ^(n-1), ..., 1.
template <bool before, Index C, class S>
void weigh_by_powers(Index tokens, const S* products, auto&& powers, S* weights) {
  constexpr Index L = simd::lanes<S>;
  for (Index i = 0; i < tokens; ++i) {
    const Index count = before ? i : i + 1;
    const S* const decays = powers(std::max<Index>(count - 1, 0));
    for (Index c = 0; c < C; c += L) {
      const Index at = i * C + c;
      const simd::Batch<S> counted = simd::load(products + at, std::clamp<Index>(count - c, 0, L));
      simd::store<S>(weights + at, weighed<S>(counted, simd::load(decays + c)));
    }
  }
}

/// to_i = factor(i) from_i, rows of `stride` numbers.
template <class S>
void scale_rows(Index tokens, auto&& factor, const S* from, S* to, Index stride) {
  for (Index i = 0; i < tokens; ++i, from += stride, to += stride) {
    const simd::Batch<S> by = simd::broadcast(factor(i));
    for (Index c = 0; c < stride; c += simd::lanes<S>) {
      simd::store<S>(to + c, simd::load(from + c) * by);
    }
  }
}

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
