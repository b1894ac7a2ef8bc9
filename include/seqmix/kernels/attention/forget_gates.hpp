#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "seqmix/core/call.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/detail/operands.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What gates of each head have let through of a key at j when a query at t sees it: adds
/// Σ_{i = j + 1 .. t} log f_i, of causal attention. Lin et al. 2025, arXiv:2503.02130, eq. 6.
///
/// Every sum goes from the older token to the newer one, none is a difference of two: what a tile
/// of keys forgets to its end, what the tiles between forget, and what the query's own tile forgets
/// up to the query. Where both lie in one tile the logarithms are added from the query back. So a
/// sum depends on its two positions alone, not on how a call is cut.
template <class S>
class ForgetGates final : public PairTerm<S> {
  static constexpr Index tile = detail::attention_tile, lanes = simd::lanes<S>;
  using Batch = simd::Batch<S>;

 public:
  /// `logs` [T, H] are those of the call, which the cache [B, H, slots, 1] of the others, position
  /// p in slot p mod slots, need not have yet. A query looks back on `reach` positions, its own
  /// among them, or on all where that is 0. Scratch does not grow from one step to the next.
  ForgetGates(In<S, 2> logs, CacheIn<S, 4> cache, In<Index, 1> past, Index reach, const Call& call)
      : indices_(call.scratch<Index>()), scratch_(call.scratch<S>()) {
    const Index H = logs.extent(1), slots = cache.extent(axis::slot);
    Index tokens = 0, units = 0;
    for (const Segment& segment : call.segments()) tokens = std::max(tokens, segment.count);
    const Index positions = reach > 0 ? reach + tokens + tile : std::max(slots, tokens);
    tiles_ = ceil_div(positions, tile) + 1;
    for (Index length = 1; length < tiles_; length *= 2) ++levels_;
    const Index segments = std::ssize(call.segments()), width = tiles_ * tile;
    first_ = indices_(past.extent(0)), unit_ = indices_(past.extent(0));
    logs_ = scratch_(segments, H, width), after_ = scratch_(segments, H, width);
    upto_ = scratch_(segments, H, width), tiles_from_ = scratch_(segments, H, levels_ * tiles_);
    for (const Segment& segment : call.segments()) {
      const Index begin = reach > 0 ? std::max<Index>(past[segment.row] - reach + 1, 0) : 0;
      first_[segment.row] = begin / tile * tile, unit_[segment.row] = units++;
    }
    for_each_unit(
        call, detail::attention_task_numbers,
        [&](const Segment& segment) {
          const Index before = past[segment.row] - first_[segment.row];
          return SegmentWork{segment.count > 0 ? H : 0, before + segment.count};
        },
        [&](const Unit& unit, const Call&) {
          const Index row = unit.row(), begin = first_[row], now = past[row];
          const Index seen = reach > 0 ? std::max(now - reach + 1, begin) : begin;
          const auto known = cache.at(axis::head, unit.item).at(axis::row, row).native();
          S* const own = &logs_(unit_[row], unit.item, 0);
          std::fill_n(own, seen - begin, S(0));  // nobody sees what is forgotten there
          for (Index p = seen, slot = seen % std::max<Index>(slots, 1); p < now; ++p) {
            own[p - begin] = known(slot, 0), slot = slot + 1 == slots ? 0 : slot + 1;
          }
          for (Index t = 0; t < unit.tokens(); ++t) {
            own[now + t - begin] = logs(unit.segment.first + t, unit.item);
          }
          add_up(unit_[row], unit.item, now + unit.tokens() - begin, now - begin);
        });
  }

  void add(detail::HeadOfRow of, const detail::PairBlock<S>& block) const override {
    block.first.step > 0 ? add_to_queries(of, block) : add_to_keys(of, block);
  }

 private:
  /// The sums of one head, by position.
  struct Sums {
    Index first;
    const S *logs, *after, *upto, *tiles_from;
    Index tiles;

    /// What is forgotten from the end of tile `from` up to a query in a later one.
    S since(Index from, Index query) const {
      const Index begin = from + 1 - first / tile, count = query / tile - from - 1;
      S sum = 0;
      Index at = begin, level = 0;
      for (Index left = count; left > 0; left /= 2, ++level) {
        if (left % 2 == 0) continue;
        sum += tiles_from[level * tiles + at], at += Index{1} << level;
      }
      return sum + upto[query - first];
    }
  };

  Sums sums(detail::HeadOfRow of) const {
    const Index unit = unit_[of.row];
    return {first_[of.row],           &logs_(unit, of.head, 0),       &after_(unit, of.head, 0),
            &upto_(unit, of.head, 0), &tiles_from_(unit, of.head, 0), tiles_};
  }

  /// Of `count` tokens, of which those from `query` on ask.
  void add_up(Index unit, Index head, Index count, Index query) {
    S* const logs = &logs_(unit, head, 0);
    S *const after = &after_(unit, head, 0), *const upto = &upto_(unit, head, 0);
    S* const from = &tiles_from_(unit, head, 0);
    const Index width = round_up(count, tile), used = width / tile;
    std::fill(logs + count, logs + width, S(0));
    for (Index n = 0; n < used; ++n) {
      const Index begin = n * tile, end = begin + tile;
      S sum = 0;
      for (Index i = begin; i < end && end > query; ++i) upto[i] = sum += logs[i];
      sum = 0;
      for (Index i = end - 1; i >= begin; --i) after[i] = sum, sum += logs[i];
      from[n] = sum;
    }
    for (Index level = 1; level < levels_; ++level) {
      const Index half = Index{1} << (level - 1);
      const S* const halves = from + (level - 1) * tiles_;
      for (Index n = 0; n + 2 * half <= used; ++n) {
        from[level * tiles_ + n] = halves[n] + halves[n + half];
      }
    }
  }

  /// Lanes are keys, from the first one of a tile on.
  void add_to_keys(detail::HeadOfRow of, const detail::PairBlock<S>& block) const {
    const Sums sum = sums(of);
    const Index query = block.queries.begin, begin = block.keys.begin, own = query / tile;
    if (own < begin / tile) return;
    alignas(alignment) std::array<S, static_cast<std::size_t>(tile)> walked{};
    const S* from = sum.after + (begin - sum.first);
    Batch since(S(0));
    if (own > begin / tile) {
      since = simd::broadcast(sum.since(begin / tile, query));
    } else {
      S forgotten = 0;
      for (Index key = query; key > begin; --key) {
        walked[static_cast<std::size_t>(key - 1 - begin)] = forgotten += sum.logs[key - sum.first];
      }
      from = walked.data();
    }
    for (Index i = 0; i < block.count; ++i) {
      S* const at = block.at(i);
      simd::store<S>(at, simd::load<S>(at) + (since + simd::load<S>(from + i * lanes)));
    }
  }

  /// Lanes are queries, which may lie in two tiles.
  void add_to_queries(detail::HeadOfRow of, const detail::PairBlock<S>& block) const {
    const Sums sum = sums(of);
    const Index number = block.keys.begin / tile, begin = block.keys.begin, end = block.keys.end;
    const Index first = block.queries.begin, last = block.queries.end - 1;
    if (last / tile < number) return;
    alignas(alignment) std::array<S, static_cast<std::size_t>(lanes)> since{}, later{};
    for (Index query = first; query <= last; ++query) {
      const auto lane = static_cast<std::size_t>(query - first);
      if (query / tile <= number) continue;
      since[lane] = sum.since(number, query), later[lane] = S(1);
    }
    const Batch known = simd::load<S>(since.data());
    const auto add = [&](Index key, const Batch& forgotten) {
      S* const at = block.at(key - begin);
      simd::store<S>(at, simd::load<S>(at) + forgotten);
    };
    const auto after = [&](Index key) {
      return known + simd::broadcast(sum.after[key - sum.first]);
    };
    if (first / tile > number) {
      for (Index key = begin; key < end; ++key) add(key, after(key));
      return;
    }
    const auto is_later = simd::load<S>(later.data()) > Batch(S(0));
    const Batch zero(S(0));
    Batch forgotten = zero;
    for (Index key = std::min(last, (number + 1) * tile - 1); key >= begin; --key) {
      if (key < end) add(key, simd::select<S>(is_later, after(key), forgotten));
      const auto before = simd::counting_from<S>(first - key) < zero;
      forgotten += simd::select<S>(before, zero, simd::broadcast(sum.logs[key - sum.first]));
    }
  }

  Context::Scratch<Index> indices_;
  Context::Scratch<S> scratch_;
  Index tiles_ = 0, levels_ = 1;
  View<Index, 1> first_, unit_;  // [B], the first position of a row and its number of the sums
  // [segments, H, positions]: of each token, from it to the end of its tile, up to it where
  // it asks
  View<S, 3> logs_, after_, upto_;
  View<S, 3> tiles_from_;  // [segments, H, levels * tiles], of 2^level tiles from one on
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
