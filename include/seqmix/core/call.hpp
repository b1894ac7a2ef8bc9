#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include "seqmix/core/context.hpp"
#include "seqmix/core/view.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What a verb hands down to a definition and its kernels: the segments of x, how to compute, and
/// where. Inside a call activations are flat, [T, ...] over all tokens; a state's rows are had
/// through segments alone. A value; no form in it is `automatic`.
class Call {
 public:
  /// `first`: how many tokens of the whole call lie before these segments.
  Call(Context& context, Segments segments, Index first = 0)
      : context_(&context),
        segments_(segments),
        first_(first),
        algorithm_(context.algorithm()),
        precision_(context.precision()) {}

  Segments segments() const { return segments_; }
  /// Of all segments.
  Index tokens() const {
    return segments_.empty() ? 0 : segments_.back().first + segments_.back().count;
  }
  Algorithm algorithm() const { return algorithm_; }
  Precision precision() const { return precision_; }
  /// Whether all tasks run here, one after another.
  bool serial() const { return context_->serial(); }
  Context& context() const { return *context_; }

  /// `first`: the token of this call at which theirs begin.
  Call with(Segments segments, Index first = 0) const {
    Call call = *this;
    call.segments_ = segments, call.first_ += first;
    return call;
  }
  Call with(Precision precision) const {
    Call call = *this;
    call.precision_ = precision;
    return call;
  }
  Call with(Algorithm algorithm) const {
    Call call = *this;
    call.algorithm_ = algorithm;
    return call;
  }
  Call on(Context& worker) const {
    Call call = *this;
    call.context_ = &worker;
    return call;
  }

  template <class Scalar>
  Context::Scratch<Scalar> scratch() const {
    return context_->scratch<Scalar>();
  }
  /// Calls `body(task, call)` for each task; the call is on the worker's own context.
  void parallel_for(Index count, auto&& body) const {
    context_->parallel_for(count,
                           [&](Index task, Context& worker) { body(task, this->on(worker)); });
  }

  /// Names an intermediate [T, C] or [T, H, C] where the published code has one: nothing happens
  /// unless the context has a listener. Outside of units of work alone: a worker has none.
  template <class T, Index Rank>
  requires(Rank == 2 || Rank == 3) void trace(std::string_view name,
                                              const View<T, Rank>& values) const {
    if (context_->trace() != nullptr) [[unlikely]]
      tell(name, values);
  }

 private:
  template <class T, Index Rank>
  void tell(std::string_view name, const View<T, Rank>& values) const {
    std::vector<double> numbers(static_cast<std::size_t>(values.size()));
    copy(values, View<double, Rank>(numbers.data(), values.shape()));
    context_->trace()->hear(name, first_, values.shape().extents, numbers);
  }

  Context* context_;
  Segments segments_;
  Index first_;
  Algorithm algorithm_;
  Precision precision_;
};

/// What a kernel does for one segment: `items` that do not see each other, of `cost` each.
struct SegmentWork {
  Index items = 0, cost = 1;
};

/// One item of one segment.
struct Unit {
  const Segment& segment;
  Index item;

  Index row() const { return segment.row; }
  Index tokens() const { return segment.count; }
  /// The segment's tokens of an activation [T, ...].
  auto tokens_of(const auto& view) const {
    return view.slice(axis::time, segment.first, segment.count);
  }
  /// The segment's row of a state [B, ...].
  auto row_of(const auto& state) const { return state.at(axis::row, segment.row); }
};

namespace detail {

/// Calls `body(unit, call)` for the units of segments [begin, end) whose first number of cost lies
/// in [low, high), where `costs[i]` is what comes before segment begin + i.
inline void run_units(const Call& call, const Index* costs, Index low, Index high, auto&& work_of,
                      auto&& body) {
  const Segments segments = call.segments();
  const auto count = std::ssize(segments);
  const Index* const next = std::upper_bound(costs, costs + count, low);
  for (Index i = std::max<Index>(next - costs - 1, 0); i < count && costs[i] < high; ++i) {
    const Segment& segment = segments[static_cast<std::size_t>(i)];
    const SegmentWork work = work_of(segment);
    const Index cost = std::max<Index>(work.cost, 1);
    const Index first = low > costs[i] ? ceil_div(low - costs[i], cost) : 0;
    const Index last = std::min(work.items, ceil_div(high - costs[i], cost));
    for (Index item = first; item < last; ++item) body(Unit{segment, item}, call);
  }
}

}  // namespace detail

/// Calls `body(unit, call)` for all items of all segments, in parallel: tasks are runs of units
/// that cost at least `cost_per_task`. `work_of(segment)` says how many items a segment has and
/// what each costs, at least 1. How units make tasks depends on the company of a segment and
/// never touches its numbers.
void for_each_unit(const Call& call, Index cost_per_task, auto&& work_of, auto&& body) {
  const Segments segments = call.segments();
  if (call.serial()) {
    for (const Segment& segment : segments) {
      const Index items = work_of(segment).items;
      for (Index item = 0; item < items; ++item) body(Unit{segment, item}, call);
    }
    return;
  }
  auto scratch = call.scratch<Index>();
  Index* const costs = scratch(std::ssize(segments) + 1).data();
  Index total = 0, units = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const SegmentWork work = work_of(segments[i]);
    costs[i] = total;
    total += work.items * std::max<Index>(work.cost, 1), units += work.items;
  }
  if (units == 0) return;
  const Index tasks = std::clamp<Index>(total / std::max<Index>(cost_per_task, 1), 1, units);
  const Index size = ceil_div(total, tasks);
  call.parallel_for(tasks, [&](Index task, const Call& worker) {
    detail::run_units(worker, costs, task * size, (task + 1) * size, work_of, body);
  });
}

/// Of `whole` what falls to a segment by its share of the call's tokens, at least 1 where it has
/// some.
inline Index share_of(const Call& call, const Segment& segment, Index whole) {
  return ceil_div(whole * segment.count, std::max<Index>(call.tokens(), 1));
}

/// Calls `body(form, first, count, call)` for each longest run of segments of one form, whose
/// tokens are [first, first + count) and begin at 0 in its call: for what is computed in another
/// way by each form over all tokens.
void for_each_form(const Call& call, auto&& body) {
  const Segments segments = call.segments();
  auto scratch = call.scratch<Segment>();
  Segment* const run = scratch(std::ssize(segments)).data();
  for (std::size_t i = 0; i < segments.size();) {
    const Form form = segments[i].form;
    const Index first = segments[i].first;
    std::size_t n = 0;
    Index count = 0;
    for (; i < segments.size() && segments[i].form == form; ++i, ++n) {
      run[n] = segments[i];
      run[n].first -= first, count += run[n].count;
    }
    body(form, first, count, call.with(Segments(run, n), first));
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
