#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/call.hpp"
#include "seqmix/simd/convert.hpp"
#include "seqmix/simd/map.hpp"

// How entries come into caches, and out of them. What a cache gives back is stored again as the
// same bits: a number of a narrow type is the nearest of its type to itself, and the scale of an
// 8-bit entry has 8 bits, so that 127 of it is exact and gives the scale again.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Writes x [K] to 8-bit integers and returns their scale, NaN where a number is not finite.
template <class S>
bfloat16 quantize(const View<const S, 1>& x, std::int8_t* to) {
  simd::Batch<S> largest(S(0)), zero(S(0));  // zero stays so unless a number is not finite
  simd::for_each_block<S>(x.extent(0), [&](Index i, auto lane_count) {
    const simd::Batch<S> v = simd::load<S>(x.data() + i, lane_count);
    largest = simd::max<S>(largest, simd::abs<S>(v));
    zero = simd::fma<S>(v, simd::Batch<S>(S(0)), zero);
  });
  const S exact = simd::reduce_max(largest) / S(127) + simd::reduce_add(zero);
  const S most(simd::largest_of<bfloat16>);  // doubles may ask for more
  const bfloat16 scale(static_cast<float>(std::min(exact, most)));
  const auto rounded = static_cast<S>(static_cast<float>(scale));
  const simd::Batch<S> divisor(rounded > 0 ? rounded : S(1));
  simd::for_each_block<S>(x.extent(0), [&](Index i, auto lane_count) {
    simd::store_as<S>(to + i, simd::load<S>(x.data() + i, lane_count) / divisor, lane_count);
  });
  return scale;
}

/// Writes the entry x [K], as the cache stores it. What is finite stays so: a number beyond the
/// largest of a narrow type becomes that. NaN stays NaN, and in 8 bits an entry that is not finite
/// becomes NaN.
template <class S>
void store_entry(const View<const S, 1>& x, const CacheView<S, 1>& to) {
  to.visit([&]<class Number>(const View<Number, 1>& numbers) {
    if constexpr (std::same_as<Number, S>) {
      copy(x, numbers);
    } else if constexpr (std::same_as<Number, std::int8_t>) {
      *to.scales().data() = quantize<S>(x, numbers.data());
    } else {
      simd::for_each_block<S>(x.extent(0), [&](Index i, auto lane_count) {
        const simd::Batch<S> v = simd::load<S>(x.data() + i, lane_count);
        simd::store_as<S>(numbers.data() + i, simd::saturate<Number, S>(v), lane_count);
      });
    }
  });
}

/// Reads entries of a cache.
template <class S, class Number>
void load_rows(const CacheView<const S, 2>& x, const View<const Number, 2>& numbers,
               const View<S, 2>& to) {
  for (Index row = 0; row < to.extent(0); ++row) {
    const Number* const from = numbers.data() + row * numbers.stride(0);
    S* const result = to.data() + row * to.stride(0);
    simd::Batch<S> scale(S(1));
    if constexpr (std::same_as<Number, std::int8_t>) {
      scale = simd::Batch<S>(static_cast<S>(static_cast<float>(x.scales()(row, 0))));
    }
    simd::for_each_block<S>(to.extent(1), [&](Index i, auto lane_count) {
      simd::store<S>(result + i, simd::load_as<S>(from + i, lane_count) * scale, lane_count);
    });
  }
}

}  // namespace detail

/// Writes x, the last dimension contiguous, to a cache of its shape.
template <class S, Index Rank>
void store_entries(In<S, Rank> x, const CacheView<S, Rank>& cache) {
  if (x.shape() != cache.shape()) {
    throw ShapeError("cache: got " + x.shape().text() + ", expected " + cache.shape().text());
  }
  if constexpr (Rank == 1) {
    detail::store_entry<S>(x, cache);
  } else {
    for (Index i = 0; i < x.extent(0); ++i) store_entries<S>(x[i], cache[i]);
  }
}

/// Reads entries of a cache to numbers of its shape, the last dimension contiguous.
template <class S, Index Rank>
void load_entries(CacheIn<S, Rank> cache, const View<S, Rank>& to) {
  if constexpr (Rank == 1) {
    const auto row = []<class T>(const View<T, 1>& view) {
      return View<T, 2>{view.data(), {1, view.extent(0)}, {view.extent(0), view.stride(0)}};
    };
    load_entries<S>(cache.window(row), row(to));
  } else if constexpr (Rank == 2) {
    cache.visit([&](const auto& numbers) { detail::load_rows<S>(cache, numbers, to); });
  } else {
    for (Index i = 0; i < to.extent(0); ++i) load_entries<S>(cache[i], to[i]);
  }
}

/// Makes `to` what a cache gives back that stores the entries x [T, G, K].
template <class S>
void round_entries(In<S, 3> x, Storage storage, const View<S, 3>& to, const Call& call) {
  const Index K = x.extent(axis::channel), bytes = number_size<S>(storage);
  auto scratch = call.scratch<std::byte>();
  bfloat16 scale;
  const CacheView<S, 1> entry(storage, {scratch(K * bytes).data(), {K}, {bytes}},
                              {&scale, {K}, {Index{0}}});
  for (Index t = 0; t < x.extent(axis::time); ++t) {
    for (Index g = 0; g < x.extent(axis::head); ++g) {
      detail::store_entry<S>(x[t][g], entry);
      load_entries<S>(entry, to[t][g]);
    }
  }
}

/// Writes the heads x [T, G, K] of each segment behind the first past[row] entries of its row of a
/// cache [B, G, capacity, K].
template <class S>
void append(In<S, 3> x, In<Index, 1> past, CacheOut<S, 4> cache, const Call& call) {
  for (const Segment& segment : call.segments()) {
    for (Index t = 0; t < segment.count; ++t) {
      store_entries<S>(x[segment.first + t],
                       cache.at(axis::slot, past[segment.row] + t).at(axis::row, segment.row));
    }
  }
}

/// Writes the heads x [T, G, K] of the first positions of a stream to a cache of them alone,
/// [B, G, count, K]; later ones go nowhere.
template <class S>
void append_leading(In<S, 3> x, In<Index, 1> past, CacheOut<S, 4> cache, const Call& call) {
  for (const Segment& segment : call.segments()) {
    const Index before = past[segment.row];
    const Index count = std::min(segment.count, cache.extent(axis::slot) - before);
    for (Index t = 0; t < count; ++t) {
      store_entries<S>(x[segment.first + t],
                       cache.at(axis::slot, before + t).at(axis::row, segment.row));
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
