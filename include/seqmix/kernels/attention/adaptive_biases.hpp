#pragma once

#include <algorithm>

#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/detail/operands.hpp"
#include "seqmix/kernels/attention/detail/recurrent.hpp"
#include "seqmix/kernels/product/detail/row_products.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A network of all heads of a pair, with a hidden layer of M numbers.
template <class S>
struct PairNetwork {
  View<const S, 2> hidden_weight;  // [M, 2 H]
  View<const S, 1> hidden_bias;    // [M]
  View<const S, 2> out_weight;     // [H, M]
  View<const S, 1> out_bias;       // [H]
};

/// Biases by distance that adapt to what a pair says: with the scaled products a [H] of all heads
/// and their biases b [H], scores are a + b + W_2 f(W_1 [a, b] + b_1) + b_2, f(x) = max(x, 0.01 x).
/// Zheng et al. 2024, arXiv:2405.14722, eq. 3.
template <class S>
class AdaptiveBiases final : public PairTerm<S> {
  static constexpr Index tile = detail::attention_tile, lanes = simd::lanes<S>, at_once = 8;
  using Batch = simd::Batch<S>;

 public:
  /// `biases` makes scores of products that biases alone are added to.
  AdaptiveBiases(const detail::ScorePolicy<S>& biases, const PairNetwork<S>& network)
      : PairTerm<S>(PairTerm<S>::Kind::of_heads), biases_(biases), network_(network) {}

  void mix(detail::HeadOfRow of, const detail::HeadRows<S>& rows,
           const Call& worker) const override {
    const Index H = network_.out_bias.extent(0), M = network_.hidden_bias.extent(0);
    auto scratch = worker.scratch<S>();
    // A tile of each head: products, 0 of hidden pairs, then biases.
    const auto inputs = scratch(2 * H, tile);
    const auto hidden = scratch(M, lanes);
    for (Index begin = 0; begin < rows.size; begin += tile) {
      const Index key = rows.first + begin;
      for (Index h = 0; h < H; ++h) {
        const S* const products = rows.of(h) + begin;
        for (Index i = 0; i < tile; i += lanes) {
          const Batch product = simd::load<S>(products + i);
          simd::store<S>(&inputs(h, i), simd::select<S>(is_hidden(product), Batch(S(0)), product));
        }
        detail::HeadOfRow head = of;
        head.head += h;
        fill(inputs[H + h], S(0));
        biases_.score(head,
                      detail::pairs_of_query(rows.query, Span{key, key + tile}, &inputs(H + h, 0)));
      }
      for (Index i = 0; i < tile; i += lanes) {
        multiply(inputs, i, network_.hidden_weight, network_.hidden_bias, [&](Index m, auto& x) {
          simd::store<S>(&hidden(m, 0), simd::select<S>(x < Batch(S(0)), x * S(0.01), x));
        });
        multiply(hidden, 0, network_.out_weight, network_.out_bias, [&](Index h, auto& x) {
          S* const score = rows.of(h) + begin + i;
          const Batch product = simd::load<S>(score);
          const Batch whole = product + simd::load<S>(&inputs(H + h, i)) + x;
          simd::store<S>(score, simd::select<S>(is_hidden(product), product, whole));
        });
      }
    }
  }

 private:
  static auto is_hidden(const Batch& product) {
    return product == Batch(detail::minus_infinity<S>);
  }

  /// Calls `take(m, w_m · x + b_m)` for a register x of columns.
  static void multiply(const View<S, 2>& x, Index column, const View<const S, 2>& weight,
                       const View<const S, 1>& bias, auto&& take) {
    detail::for_each_block_of_rows<at_once>(bias.extent(0), [&](Index m, auto count) {
      multiply_block<count>(x, column, weight, bias, m, take);
    });
  }
  template <Index Count>
  static void multiply_block(const View<S, 2>& x, Index column, const View<const S, 2>& weight,
                             const View<const S, 1>& bias, Index first, auto&& take) {
    Batch sum[Count];
    const S* rows[Count];
#pragma GCC unroll 8
    for (Index m = 0; m < Count; ++m) {
      sum[m] = simd::broadcast(bias[first + m]), rows[m] = &weight(first + m, 0);
    }
    for (Index k = 0; k < x.extent(0); ++k) {
      const Batch number = simd::load<S>(&x(k, column));
#pragma GCC unroll 8
      for (Index m = 0; m < Count; ++m) {
        sum[m] = simd::fma<S>(number, simd::broadcast(rows[m][k]), sum[m]);
      }
    }
#pragma GCC unroll 8
    for (Index m = 0; m < Count; ++m) take(first + m, sum[m]);
  }

  const detail::ScorePolicy<S>& biases_;
  PairNetwork<S> network_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
