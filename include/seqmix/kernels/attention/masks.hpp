#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <span>

#include "seqmix/core/memory.hpp"
#include "seqmix/core/segment.hpp"
#include "seqmix/core/view.hpp"
#include "seqmix/kernels/attention/pairs.hpp"
#include "seqmix/simd/math.hpp"
#include "seqmix/simd/reduce.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A query sees the keys up to its own.
///
/// A mask is any type with `of`, `visibility` and `allows`. It sees positions only, never how they
/// are tiled. It may have `reach`, outside of which it hides every key: the tiles there are not
/// even looked at. And `narrowed(Span queries, Span keys) const`: a mask of its own type that
/// agrees with it on these positions and may be cheaper to ask. One that depends on how many
/// positions there are has `of(row, head, count)`; one of tokens, where nothing is remembered,
/// `of(row, head, count, first)` with the token of the call at position 0.
struct Causal {
  /// The mask of one query head of a segment, whose row of the state this is.
  Causal of(Index /*row*/, Index /*head*/) const { return *this; }
  Span reach(Span queries) const { return {0, queries.end}; }
  Visibility visibility(Span queries, Span keys) const {
    if (keys.begin >= queries.end) return Visibility::none;
    return keys.end <= queries.begin + 1 ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    return pairs.key <= pairs.query;
  }
};

/// A query sees the keys of one stretch of positions that lie near enough: sliding windows, the
/// first tokens of a stream, all of another sequence.
struct Band {
  static constexpr Index unlimited = std::numeric_limits<Index>::max() / 4;

  Index first = 0, last = unlimited;  // the keys of [first, last),
  Index back = unlimited, ahead = 0;  // at most so far before and behind the query

  /// The last `width` keys, the query's own among them; of them those from `first` on.
  static Band window(Index width, Index first = 0) { return {.first = first, .back = width - 1}; }
  /// The first `count` keys of the stream up to the query's own.
  static Band leading(Index count) { return {.last = count}; }
  /// `count` keys, or all there are, whatever the position of the query.
  static Band everything(Index count = unlimited) { return {.last = count, .ahead = unlimited}; }

  Band of(Index /*row*/, Index /*head*/) const { return *this; }
  Span reach(Span queries) const {
    return {std::max({Index{0}, first, queries.begin - back}), std::min(last, queries.end + ahead)};
  }
  Visibility visibility(Span queries, Span keys) const {
    const Span near = reach(queries);
    if (keys.begin >= near.end || keys.end <= near.begin) return Visibility::none;
    const bool all = keys.begin >= first && keys.end <= last &&
                     keys.begin + back >= queries.end - 1 && keys.end - 1 <= queries.begin + ahead;
    return all ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    using Batch = simd::Batch<S>;
    const auto number = [](Index value) { return Batch(static_cast<S>(value)); };
    const Batch distance = pairs.query - pairs.key;
    return distance <= number(back) && distance >= number(-ahead) &&
           pairs.key >= number(first - pairs.origin) && pairs.key < number(last - pairs.origin);
  }
};

/// A query sees the last keys up to its own, or in `both_sides` as many behind it: how many, its
/// head decides.
struct Windows {
  std::span<const Index> widths;  // [n] of n equal shares of the heads, a query's own key counted
  Index n_heads = 1;
  Index first = 0;  // of the keys that may be seen
  bool both_sides = false;

  Band of(Index /*row*/, Index head) const {
    const auto count = static_cast<Index>(widths.size());
    const Index share = count > 1 ? head * count / n_heads : 0;
    const Index near = widths[static_cast<std::size_t>(share)] - 1;
    return {.first = first, .back = near, .ahead = both_sides ? near : 0};
  }
};

/// A query sees the first keys of its row, `of_rows[row]` of them, wherever it stands: those of
/// another sequence.
struct Lengths {
  View<const Index, 1> of_rows;  // [B]

  Band of(Index row, Index /*head*/) const { return Band::everything(of_rows[row]); }
};

/// A query at i sees the keys j <= i + ahead that lie in its window, j >= i - back, or among the
/// first `prefix`.
struct WindowAndPrefix {
  Index back = 0, ahead = 0, prefix = 0;

  WindowAndPrefix of(Index /*row*/, Index /*head*/) const { return *this; }
  Span reach(Span queries) const {
    return {prefix > 0 ? 0 : std::max<Index>(queries.begin - back, 0), queries.end + ahead};
  }
  Visibility visibility(Span queries, Span keys) const {
    const bool passed = keys.begin >= prefix && keys.end + back <= queries.begin;
    if (passed || keys.begin >= queries.end + ahead) return Visibility::none;
    const bool all = keys.end <= queries.begin + ahead + 1 &&
                     (keys.end <= prefix || keys.begin + back + 1 >= queries.end);
    return all ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    using Batch = simd::Batch<S>;
    const Batch distance = pairs.query - pairs.key;
    return distance >= Batch(static_cast<S>(-ahead)) &&
           (distance <= Batch(static_cast<S>(back)) ||
            pairs.key < Batch(static_cast<S>(prefix - pairs.origin)));
  }
};

/// A query sees the keys of a window and those of runs of positions, which lie apart and in order.
struct WindowAndRuns {
  Band window;
  std::span<const Span> runs;   // of all segments behind each other, then of one
  Segments segments = {};       // of the call
  const Index* ends = nullptr;  // of each segment: the runs up to its last one

  WindowAndRuns of(Index row, Index /*head*/) const {
    const auto i = std::ranges::find(segments, row, &Segment::row) - segments.begin();
    const Index first = i == 0 ? 0 : ends[i - 1];
    return {window, runs.subspan(static_cast<std::size_t>(first),
                                 static_cast<std::size_t>(ends[i] - first))};
  }
  /// The runs that meet `keys`.
  WindowAndRuns narrowed(Span /*queries*/, Span keys) const {
    const auto first = std::ranges::upper_bound(runs, keys.begin, {}, &Span::end);
    return {window,
            {first, std::ranges::lower_bound(first, runs.end(), keys.end, {}, &Span::begin)}};
  }
  Span reach(Span queries) const {
    const Span near = window.reach(queries);
    if (runs.empty()) return near;
    return {std::min(runs.front().begin, near.begin), std::max(runs.back().end, near.end)};
  }
  Visibility visibility(Span queries, Span keys) const {
    const Visibility near = window.visibility(queries, keys);
    const auto met = narrowed(queries, keys).runs;
    if (near == Visibility::all || met.empty()) return near;
    const bool all = met.front().begin <= keys.begin && met.front().end >= keys.end;
    return all ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    const auto number = [&](Index position) {
      return simd::Batch<S>(static_cast<S>(position - pairs.origin));
    };
    auto seen = window.allows(pairs);
    for (const Span& run : runs) {
      seen = seen || (pairs.key >= number(run.begin) && pairs.key < number(run.end));
    }
    return seen;
  }
};

/// Writes the runs of neighbours among those tokens t of each segment for which
/// `chosen(segment, t)`, and where the runs of each segment end. Returns how many tokens they are.
Index find_runs(Segments segments, auto&& chosen, Span* runs, Index* ends) {
  Index n = 0, tokens = 0;
  for (const Segment& segment : segments) {
    const Index before = n;
    for (Index t = 0; t < segment.count; ++t) {
      if (!chosen(segment, t)) continue;
      if (n == before || runs[n - 1].end < t) runs[n++] = {t, t};
      runs[n - 1].end = t + 1, ++tokens;
    }
    *ends++ = n;
  }
  return tokens;
}

/// A query sees the keys up to its own and the first `count`, which see each other. Liu et al.
/// 2018, arXiv:1801.10198; Raffel et al. 2019, arXiv:1910.10683, figure 4.
struct Prefix {
  Index count = 0;

  Prefix of(Index /*row*/, Index /*head*/) const { return *this; }
  Span reach(Span queries) const { return {0, std::max(queries.end, count)}; }
  Visibility visibility(Span queries, Span keys) const {
    if (keys.begin >= std::max(queries.end, count)) return Visibility::none;
    const bool all = keys.end <= std::max(queries.begin + 1, count);
    return all ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    return pairs.key <= pairs.query ||
           pairs.key < simd::Batch<S>(static_cast<S>(count - pairs.origin));
  }
};

/// Of the keys that `mask` shows a query, those whose token has a mark other than 0: padding has
/// none. Keys and queries are those of one call.
template <class Mask>
struct MarkedKeys {
  Mask mask;
  View<const Index, 2> marks;  // [T, 1]
  Index count = 0, token = 0;  // of one segment: its tokens, its first one in the call

  auto of(Index row, Index head, Index tokens, Index first) const {
    return MarkedKeys<decltype(mask.of(row, head))>{mask.of(row, head), marks, tokens, first};
  }
  Span reach(Span queries) const { return mask.reach(queries); }
  Visibility visibility(Span queries, Span keys) const {
    const Visibility unmarked = mask.visibility(queries, keys);
    if (unmarked == Visibility::none) return unmarked;
    Index shown = 0;
    for (Index key = keys.begin; key < keys.end; ++key) shown += is_marked(key) ? 1 : 0;
    if (shown == 0) return Visibility::none;
    return shown == keys.size() ? unmarked : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    const Index first = pairs.origin - static_cast<Index>(simd::reduce_max(-pairs.key));
    alignas(alignment) std::array<S, static_cast<std::size_t>(simd::lanes<S>)> marked;
    const Index step = pairs.step == 1 ? 0 : 1;  // from the key of a lane to that of the next
    for (Index lane = 0; lane < simd::lanes<S>; ++lane) {
      marked[static_cast<std::size_t>(lane)] = is_marked(first + lane * step) ? S(1) : S(0);
    }
    return simd::load<S>(marked.data()) > simd::Batch<S>(S(0)) && mask.allows(pairs);
  }

 private:
  bool is_marked(Index key) const { return key < count && marks(token + key, 0) != 0; }
};
template <class Mask>
MarkedKeys(Mask, View<const Index, 2>) -> MarkedKeys<Mask>;

SEQMIX_END_NAMESPACE
}  // namespace seqmix
