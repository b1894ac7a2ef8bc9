#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "seqmix/core/parameter.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/detail/operands.hpp"
#include "seqmix/kernels/attention/detail/products.hpp"
#include "seqmix/kernels/product/detail/row_products.hpp"
#include "seqmix/simd/reduce.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A vector of each head for each distance of query and key from `least` on; those beyond either
/// end are as at it.
template <class S>
class DistanceRows {
  static constexpr Index lanes = simd::lanes<S>;

 public:
  DistanceRows() = default;
  /// `rows` [H, n, K] are of falling distances, as those of rising keys are: the last is `least`.
  /// `by_column`: keys will be multiplied with them.
  DistanceRows(Tensor<S, 3> rows, Index least, bool by_column) : least_(least) {
    const Index H = rows.extent(0), n = rows.extent(1), K = rows.extent(2);
    if (by_column) {
      Tensor<S, 3> columns({H, K, n + 2 * lanes});
      for (Index h = 0; h < H; ++h) {
        for (Index i = 0; i < n + 2 * lanes; ++i) {
          const Index row = std::clamp<Index>(n - 1 - (i - lanes), 0, n - 1);
          for (Index k = 0; k < K; ++k) columns(h, k, i) = rows(h, row, k);
        }
      }
      columns_ = std::move(columns);
    }
    rows_ = std::move(rows);
  }
  explicit operator bool() const { return static_cast<bool>(rows_); }
  Index count() const { return rows_.extent(1); }

  /// Those of a head, [n, K], by falling distance.
  View<const S, 2> of(Index head) const { return rows_[head]; }
  /// The row of a distance, which may lie outside of those that there are.
  Index row(Index distance) const { return least_ + count() - 1 - distance; }
  Index existing(Index row) const { return std::clamp<Index>(row, 0, count() - 1); }

  /// Their numbers of a head, [K, columns]: a register from `column(distance)` on has those of
  /// rising distances.
  View<const S, 2> by_column(Index head) const { return columns_[head]; }
  Index column(Index distance) const {
    return std::clamp<Index>(distance - least_, -lanes, count()) + lanes;
  }
  /// Whether all of the registers from one column to another are the vector of one distance.
  bool is_one(Index first_column, Index last_column) const {
    return last_column == 0 || first_column == count() + lanes;
  }

 private:
  Index least_ = 0;
  Parameter<S, 3> rows_;     // [H, n, K]
  Parameter<S, 3> columns_;  // [H, K, lanes + n + lanes], or none
};

/// What queries and keys make of their distance: adds (q_t + bias) · r(t - j) + k_j · p(t - j).
///
/// A register of queries is multiplied with the rows of all distances to the keys of a tile, whose
/// products then move to the pair they belong to, a power of two of lanes at a time. A key is
/// multiplied with columns, which are rising distances as the queries of a register have them.
template <class S>
class RelativeProducts final : public PairTerm<S> {
  static constexpr Index tile = detail::attention_tile, lanes = simd::lanes<S>;
  static constexpr Index at_once = 8;  // sums, which do not wait for themselves
  using Batch = simd::Batch<S>;

 public:
  /// q [T, H, K]; bias [H, K], or none. `for_queries` or `for_keys` may be none. Keys k [T, Gk, K]
  /// are only asked for by the latter, and then are all that a query sees; group g of the `groups`
  /// that the heads are reads key head g mod Gk.
  RelativeProducts(In<S, 3> q, In<S, 2> bias, const DistanceRows<S>& for_queries, In<S, 3> k,
                   Index groups, const DistanceRows<S>& for_keys, const Call& call)
      : for_queries_(for_queries),
        for_keys_(for_keys),
        keys_(k),
        heads_per_group_(q.extent(axis::head) / groups),
        scratch_(call.scratch<S>()) {
    const Index T = q.extent(axis::time), H = q.extent(axis::head), K = q.extent(axis::channel);
    if (for_queries) {
      rows_ = scratch_(T, H, K), columns_ = scratch_(H, ceil_div(T, tile), K, tile + lanes);
    }
    if (for_keys) ends_ = scratch_(2, H, T);
    call.parallel_for(H, [&](Index h, const Call&) {
      if (for_queries) place_queries(q, bias, h);
      for (Index t = 0; t < T && for_keys; ++t) {
        const auto rows = for_keys.of(h);
        const auto key = k[t][key_head(h)];
        ends_(0, h, t) = dot(key, rows[rows.extent(0) - 1]), ends_(1, h, t) = dot(key, rows[0]);
      }
    });
  }

  void add(detail::HeadOfRow of, const detail::PairBlock<S>& block) const override {
    const bool queries_are_lanes = block.first.step > 0;
    if (for_queries_) queries_are_lanes ? multiply_queries(of, block) : multiply_query(of, block);
    if (for_keys_) queries_are_lanes ? multiply_keys(of, block) : multiply_keys_by_one(of, block);
  }

 private:
  Index key_head(Index head) const { return head / heads_per_group_ % keys_.extent(axis::head); }
  static S dot(const View<const S, 1>& a, const View<const S, 1>& b) {
    Batch sum(S(0));
    simd::for_each_block<S>(a.extent(0), [&](Index i, auto count) {
      sum =
          simd::fma<S>(simd::load<S>(a.data() + i, count), simd::load<S>(b.data() + i, count), sum);
    });
    return simd::reduce_add(sum);
  }

  void place_queries(const View<const S, 3>& q, const View<const S, 2>& bias, Index h) {
    const Index T = q.extent(axis::time), K = q.extent(axis::channel);
    const auto rows = rows_.at(axis::head, h);
    for (Index t = 0; t < T; ++t) {
      if (bias.data() == nullptr) {
        copy(q[t][h], rows[t]);
      } else {
        simd::map<S>(
            K, &rows(t, 0), [](const auto& x, const auto& y) { return x + y; }, &q(t, h, 0),
            &bias(h, 0));
      }
    }
    for (Index begin = 0; begin < T; begin += tile) {
      const Index count = std::min(T - begin, tile + lanes);
      const auto columns = columns_[h][begin / tile];
      detail::scale_transposed<S>(rows.slice(axis::time, begin, count), S(1),
                                  columns.slice(axis::channel, 0, count));
      for (Index k = 0; k < K; ++k) std::fill_n(&columns(k, count), tile + lanes - count, S(0));
    }
  }

  /// The products of a register of queries with `Rows` rows, a register each.
  template <Index Rows>
  static void multiply_rows(const S* rows, const S* queries, Index stride, Index K, S* to) {
    Batch sum[Rows];
#pragma GCC unroll 8
    for (Index m = 0; m < Rows; ++m) sum[m] = simd::broadcast(S(0));
    for (Index k = 0; k < K; ++k) {
      const Batch x = simd::load<S>(queries + k * stride);
#pragma GCC unroll 8
      for (Index m = 0; m < Rows; ++m) {
        sum[m] = simd::fma<S>(x, simd::broadcast(rows[m * K + k]), sum[m]);
      }
    }
#pragma GCC unroll 8
    for (Index m = 0; m < Rows; ++m) simd::store<S>(to + m * lanes, sum[m]);
  }
  /// Adds the products of `Keys` keys with a register of columns each.
  template <Index Keys>
  static void multiply_columns(const std::array<const S*, Keys>& columns, Index stride,
                               const S* keys, Index key_stride, Index K, S* to, Index to_stride) {
    Batch sum[Keys];
    const S* column[Keys];
#pragma GCC unroll 8
    for (Index m = 0; m < Keys; ++m) {
      sum[m] = simd::load<S>(to + m * to_stride), column[m] = columns[static_cast<std::size_t>(m)];
    }
    for (Index k = 0; k < K; ++k) {
#pragma GCC unroll 8
      for (Index m = 0; m < Keys; ++m) {
        sum[m] = simd::fma<S>(simd::load<S>(column[m] + k * stride),
                              simd::broadcast(keys[m * key_stride + k]), sum[m]);
      }
    }
#pragma GCC unroll 8
    for (Index m = 0; m < Keys; ++m) simd::store<S>(to + m * to_stride, sum[m]);
  }

  /// Adds the products of a register of queries with the rows of their distances to the keys.
  void multiply_queries(detail::HeadOfRow of, const detail::PairBlock<S>& block) const {
    const auto rows = for_queries_.of(of.head);
    const Index token = of.origin + block.queries.begin;
    const auto queries = columns_[of.head][token / tile];
    const S* const query = &queries(0, token % tile);
    const Index K = rows.extent(1), stride = queries.stride(0), count = block.count + lanes - 1;
    // The row of the first key and the last query, and from there on.
    const Index begin = for_queries_.row(block.queries.begin + lanes - 1 - block.keys.begin);
    const Index first = for_queries_.existing(begin);
    const Index last = for_queries_.existing(begin + count - 1);
    alignas(alignment) std::array<S, static_cast<std::size_t>((tile + lanes) * lanes)> numbers;
    const auto at = [&](Index i) { return numbers.data() + i * lanes; };
    const Index before = first == last ? 0 : first - begin;
    detail::for_each_block_of_rows<at_once>(last - first + 1, [&](Index i, auto many) {
      multiply_rows<many>(&rows(first + i, 0), query, stride, K, at(before + i));
    });
    if (first == last) {
      const Batch product = simd::load<S>(at(0));
      for (Index i = 0; i < block.count; ++i) {
        simd::store<S>(block.at(i), simd::load<S>(block.at(i)) + product);
      }
      return;
    }
    for (Index i = 0; i < before; ++i) std::copy_n(at(before), lanes, at(i));
    for (Index i = last - begin + 1; i < count; ++i) {
      std::copy_n(at(last - begin), lanes, at(i));
    }
    // Lane l of the result for a key comes from lanes - 1 - l rows further on.
    Batch rest = simd::broadcast(static_cast<S>(lanes - 1)) - simd::counting_from<S>(0);
    Index left = count;
    for (Index power = lanes / 2; power > 0; power /= 2) {
      const Batch step = simd::broadcast(static_cast<S>(power));
      const auto moves = rest >= step;
      const auto moved = [&](Index i) {
        return simd::select<S>(moves, simd::load<S>(at(i + power)), simd::load<S>(at(i)));
      };
      rest = simd::select<S>(moves, rest - step, rest);
      left -= power;
      if (power > 1) {
        for (Index i = 0; i < left; ++i) simd::store<S>(at(i), moved(i));
      } else {
        for (Index i = 0; i < left; ++i) {
          simd::store<S>(block.at(i), simd::load<S>(block.at(i)) + moved(i));
        }
      }
    }
  }

  /// The same of one query, where lanes are keys.
  void multiply_query(detail::HeadOfRow of, const detail::PairBlock<S>& block) const {
    const auto rows = for_queries_.of(of.head);
    const Index query = block.queries.begin, count = block.keys.size();
    const Index begin = for_queries_.row(query - block.keys.begin);
    const Index first = for_queries_.existing(begin);
    const Index last = for_queries_.existing(begin + count - 1);
    alignas(alignment) std::array<S, static_cast<std::size_t>(tile + lanes)> numbers;
    const View<S, 2> products(numbers.data(), {1, tile + lanes});
    detail::dot_rows<S>(rows_[of.origin + query].slice(axis::row, of.head, 1),
                        rows.slice(axis::row, first, last - first + 1), {}, products);
    for (Index i = 0; i < count; ++i) {
      block.numbers[i] += products(0, for_queries_.existing(begin + i) - first);
    }
  }

  /// Adds the products of keys with the columns of their distances to a register of queries.
  void multiply_keys(detail::HeadOfRow of, const detail::PairBlock<S>& block) const {
    const auto columns = for_keys_.by_column(of.head);
    const auto keys = keys_.at(axis::head, key_head(of.head));
    const Index K = columns.extent(0), stride = columns.stride(0);
    const Index key = of.origin + block.keys.begin, distance = block.first.distance;
    const Index nearest = for_keys_.column(distance - (block.count - 1));
    if (for_keys_.is_one(nearest, for_keys_.column(distance))) {
      const S* const products = &ends_(nearest == 0 ? 0 : 1, of.head, key);
      for (Index i = 0; i < block.count; ++i) {
        simd::store<S>(block.at(i), simd::load<S>(block.at(i)) + simd::broadcast(products[i]));
      }
      return;
    }
    detail::for_each_block_of_rows<at_once>(block.count, [&](Index i, auto many) {
      std::array<const S*, many> column;
      for (Index m = 0; m < many; ++m) {
        column[static_cast<std::size_t>(m)] = &columns(0, for_keys_.column(distance - i - m));
      }
      multiply_columns<many>(column, stride, &keys(key + i, 0), keys.stride(0), K, block.at(i),
                             block.stride);
    });
  }

  /// The same where lanes are keys.
  void multiply_keys_by_one(detail::HeadOfRow of, const detail::PairBlock<S>& block) const {
    const auto rows = for_keys_.of(of.head);
    const auto keys = keys_.at(axis::head, key_head(of.head));
    const Index first = for_keys_.row(block.queries.begin - block.keys.begin);
    for (Index i = 0; i < block.keys.size(); ++i) {
      block.numbers[i] +=
          dot(keys[of.origin + block.keys.begin + i], rows[for_keys_.existing(first + i)]);
    }
  }

  const DistanceRows<S>&for_queries_, &for_keys_;
  View<const S, 3> keys_;  // [T, Gk, K]
  Index heads_per_group_;
  Context::Scratch<S> scratch_;
  View<S, 3> rows_;  // [T, H, K], queries with their bias
  // The same of each `tile` tokens and those behind it that a register may have, whose channels lie
  // near each other: [H, tiles, K, tile + lanes].
  View<S, 4> columns_;
  View<S, 3> ends_;  // [2, H, T], keys with the least and the largest distance
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
