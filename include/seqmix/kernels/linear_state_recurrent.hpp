#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "seqmix/kernels/linear_state_unit.hpp"
#include "seqmix/kernels/matmul.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Rows that memory brings nearer while a block of tokens is computed: each pass of the tokens
/// through a tile fetches one line of two of them.
template <class S>
class RowsAhead {
 public:
  struct Line {
    const S* first;  // of token 0
    Index stride;    // between tokens
  };

  void add(const View<const S, 2>& rows) { rows_[count_++] = rows; }
  /// The next two lines. When all are fetched the last ones come again, from the nearest cache.
  std::array<Line, 2> next() { return {next_line(), next_line()}; }
  SEQMIX_ALWAYS_INLINE void fetch(const std::array<Line, 2>& lines, Index token) const {
    __builtin_prefetch(lines[0].first + token * lines[0].stride, 0, 2);
    __builtin_prefetch(lines[1].first + token * lines[1].stride, 0, 2);
  }

 private:
  Line next_line() {
    const View<const S, 2>& rows = rows_[at_];
    const Line line{rows.data() + column_, rows.stride(0)};
    column_ += alignment / static_cast<Index>(sizeof(S));  // a line of the cache
    if (column_ >= rows.extent(1) && at_ + 1 < count_) ++at_, column_ = 0;
    column_ = std::min(column_, rows_[at_].extent(1) - 1);
    return line;
  }

  std::array<View<const S, 2>, 5> rows_;
  std::size_t count_ = 0, at_ = 0;
  Index column_ = 0;
};

/// What is written of head h in the block of tokens from `first` on, and read in the next one.
template <class S, class Decay>
RowsAhead<S> rows_ahead(const LinearStateUnit<S, Decay>& unit, Index h, Index first, Index block) {
  RowsAhead<S> ahead;
  ahead.add(unit.o.template at<1>(h).template slice<0>(first, block));
  if (first + 2 * block > unit.tokens()) return ahead;
  const auto next = [&](const View<const S, 2>& rows) {
    ahead.add(rows.template slice<0>(first + block, block));
  };
  next(unit.q), next(unit.k), next(unit.v.template at<1>(h));
  if constexpr (Decay::by_channel) next(unit.decay.of_head(unit.batch_row, unit.first_head + h));
  return ahead;
}

/// The literal recurrence, tile by tile over blocks of time.
template <class S, class Decay>
void linear_state_recurrent(const LinearStateUnit<S, Decay>& unit, Context& context) {
  constexpr bool by_channel = Decay::by_channel;
  const Index T = unit.tokens();
  const Index block = std::min(T, packed_tokens);
  const Index k_stride = unit.key_stride(), v_stride = unit.value_stride();
  const Index a_stride = unit.factor_stride();
  auto scratch = context.scratch<S>();
  S* const q = scratch(block, k_stride).data();
  S* const k = scratch(block, k_stride).data();
  S* const a = scratch(block, a_stride).data();
  S* const v = scratch(block, v_stride).data();
  S* const o = scratch(block, v_stride).data();

  for (Index first = 0; first < T; first += block) {
    const Index tokens = std::min(block, T - first);
    pack_padded<S>(unit.q.template slice<0>(first, tokens), q, k_stride);
    pack_padded<S>(unit.k.template slice<0>(first, tokens), k, k_stride);
    for (Index h = 0; h < unit.heads(); ++h) {
      const View<S, 2> state = unit.state[h];
      unit.decay.write_factors(unit.batch_row, unit.first_head + h, first, tokens, a, a_stride);
      pack_padded<S>(unit.v.template at<1>(h).template slice<0>(first, tokens), v, v_stride);
      std::fill_n(o, tokens * v_stride, S(0));
      RowsAhead<S> ahead = rows_ahead(unit, h, first, block);
      for_each_tile(state, [&](S* place, Index stride, Index row, Index column) {
        StateTile<S> tile(place, stride);
        const auto lines = ahead.next();
        for (Index t = 0; t < tokens; ++t) {
          ahead.fetch(lines, t);
          if (reads_before<Decay>) tile.read(q + t * k_stride + row, o + t * v_stride + column);
          const S* const key = k + t * k_stride + row;
          const S* const value = v + t * v_stride + column;
          if constexpr (std::is_base_of_v<NoDecay, Decay>) {
            tile.write(key, value);
          } else {
            const S* const factors = a + t * a_stride + (by_channel ? row : 0);
            tile.template decay_and_write<by_channel>(factors, key, value);
          }
          if (!reads_before<Decay>) tile.read(q + t * k_stride + row, o + t * v_stride + column);
        }
        tile.store(place, stride);
      });
      unpack_padded<S>(o, v_stride, unit.o.template at<1>(h).template slice<0>(first, tokens),
                       [&](const simd::Batch<S>& x) { return x * simd::broadcast(unit.scale); });
    }
  }
}

}  // namespace detail

SEQMIX_END_NAMESPACE
}  // namespace seqmix
