#pragma once

#include <algorithm>
#include <concepts>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "seqmix/layers/detail/trial.hpp"
#include "seqmix/layers/mixer.hpp"

// What the verbs do. Compilers instantiate what a class defines inside wherever it is used, to
// inline it, even where it is promised to be compiled elsewhere (core/compiled.hpp): hence outside.
//
// clang before 16 instantiates members whose constraints fail, too, where a mixer is instantiated
// explicitly: their bodies name nothing that a definition without them lacks.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class Definition>
Mixer<Definition>::Mixer(Config config, Weights weights, Options options)
    : options_(options), definition_(define(std::move(config), std::move(weights), options)) {
  const State shapes = initial(1, 1, Memory::shapes_only());
  const ConstStateMembers members(shapes);
  members_ = members.list(), origin_ = members.origin();
  State::visit(shapes, [&]<class Member>(const Name&, const Member&) {
    static_assert(
        !requires { Member::source_axis; } || reads_source,
        "a definition whose state holds a Source has read");
  });
}

template <class Definition>
auto Mixer<Definition>::make_state(Index batch, Index capacity) const
    -> State requires Continues<Definition> {
  expect_state();
  return initial(batch, capacity, Memory{});
}

template <class Definition>
void Mixer<Definition>::forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
                                const Side& side) const requires RunsWithoutSource<Definition> {
  expect_source(false);
  check_views(x, y, side);
  position_limit(definition_).check(own_traits().name, 0, x.extent(1));
  if (x.empty()) return;
  auto scope = context.scratch<Scalar>();
  State state = initial(x.extent(0), x.extent(1), Memory(context.arena()));
  run_batch(x, state, y, context, side);
}

template <class Definition>
void Mixer<Definition>::forward(View<const Scalar, 3> x, View<const Scalar, 3> source,
                                View<Scalar, 3> y, Context& context,
                                const Side& side) const requires ReadsSource<Definition> {
  expect_source(true);
  check_views(x, y, side);
  check_source(source);
  position_limit(definition_).check(own_traits().name, 0, x.extent(1));
  if (source.extent(0) != x.extent(0)) {
    throw ShapeError(std::string(own_traits().name) + ": source has shape " +
                     source.shape().text() + ", expected " + std::to_string(x.extent(0)) +
                     " rows as x has");
  }
  if (x.empty()) return;
  auto scope = context.scratch<Scalar>();
  State state =
      initial(x.extent(0), room_for(x.extent(1), source.extent(1)), Memory(context.arena()));
  read_batch(source, state, context);
  run_batch(x, state, y, context, side);
}

template <class Definition>
void Mixer<Definition>::forward_documents(
    View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, View<Scalar, 2> y, Context& context,
    const Side& side) const requires RunsWithoutSource<Definition> {
  expect_source(false);
  const Index documents = check_documents(x, cu_seqlens, y, side),
              longest = longest_document(cu_seqlens);
  position_limit(definition_).check(own_traits().name, 0, longest);
  if (x.empty()) return;
  auto scope = context.scratch<Scalar>();
  State state = initial(documents, longest, Memory(context.arena()));
  run_documents(x, cu_seqlens, state, y, context, side);
}

template <class Definition>
void Mixer<Definition>::read(View<const Scalar, 2> source, Segments segments, State& state,
                             Context& context) const requires ReadsSource<Definition> {
  expect_source(true);
  check_source(source.insert(axis::row));
  check_read(state, segments, source.extent(0), context);
  for (const Segment& segment : segments) StateMembers(state).clear_source(segment.row);
  if (source.empty()) return;
  auto scratch = context.scratch<Segment>();
  Segment* const settled = scratch(std::ssize(segments)).data();
  std::size_t n = 0;
  for (const auto& [row, first, count, form] : segments) {
    if (count > 0) settled[n++] = {row, first, count, Form::parallel};
  }
  seqmix::read(definition_, source, state, Call(context, Segments(settled, n)));
}

template <class Definition>
void Mixer<Definition>::advance(View<const Scalar, 2> x, Segments segments, State& state,
                                View<Scalar, 2> y, Context& context,
                                const Side& side) const requires Continues<Definition> {
  check_views(x.insert(axis::row), y.insert(axis::row), side);
  if constexpr (continues) check(state, segments, x.extent(0), context);
  if (x.empty()) return;
  auto scratch = context.scratch<Segment>();
  Segment* const settled = scratch(std::ssize(segments)).data();
  run(x, state, y, Call(context, detail::settle(context, segments, settled)), side);
}

template <class Definition>
void Mixer<Definition>::prefill(View<const Scalar, 3> x, State& state, View<Scalar, 3> y,
                                Context& context,
                                const Side& side) const requires Continues<Definition> {
  check_views(x, y, side);
  check_state(state, x.extent(0), [&](Index) { return x.extent(1); });
  if (x.empty()) return;
  run_batch(x, state, y, context, side);
}

template <class Definition>
void Mixer<Definition>::prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                                          State& state, View<Scalar, 2> y, Context& context,
                                          const Side& side) const requires Continues<Definition> {
  const Index documents = check_documents(x, cu_seqlens, y, side);
  check_state(state, documents, [&](Index row) { return cu_seqlens[row + 1] - cu_seqlens[row]; });
  if (x.empty()) return;
  run_documents(x, cu_seqlens, state, y, context, side);
}

template <class Definition>
void Mixer<Definition>::step(View<const Scalar, 2> x, State& state, View<Scalar, 2> y,
                             Context& context,
                             const Side& side) const requires Continues<Definition> {
  check_views(x.insert(axis::channel), y.insert(axis::channel), side);
  const Index B = x.extent(0);
  check_state(state, B, [](Index) { return Index{1}; });
  if (x.empty()) return;
  auto segments = context.scratch<Segment>();
  const Form form = detail::settled_form(context, Form::recurrent, 1);
  run(x, state, y, batch_call(context, segments, 0, B, 1, form).with(Precision::fp32), side);
}

template <class Definition>
void Mixer<Definition>::prepare(Context& context, Index rows, Index tokens, Index capacity) const {
  rows = std::min(rows, tokens);
  if (rows < 0 || tokens < 0) {
    throw ShapeError(std::string(own_traits().name) + ": prepare(" + std::to_string(rows) + ", " +
                     std::to_string(tokens) + "), expected numbers of at least 0");
  }
  if (rows == 0) return;
  const Index most = position_limit(definition_).tokens, longest = std::min(tokens, most);
  // A longer call runs in blocks of so many tokens or, where segments are whole, of one that is
  // longer.
  const Index block = std::min(tokens, block_tokens(definition_) + cut_multiple);
  const bool whole = keeps_segments_whole(definition_), reads = d_source() > 0;
  detail::Trial trial(context);
  Context& tried = trial.context();
  detail::TrialNumbers<Mixer> numbers(*this, whole ? std::max(block, longest) : block, tokens);
  const Index room = reads ? room_for(longest, tokens) : longest;
  State state = initial(rows, std::max(room, std::min(capacity, most)), Memory{});
  // What a verb holds while it runs: the state of `forward`, rows that are gathered, the segments
  // of the call and of a block.
  auto scratch = tried.scratch<Scalar>();
  auto lists = tried.scratch<Segment>();
  State fresh = initial(rows, room, Memory(tried.arena()));
  for (const Index width : {d_in(), d_out()}) scratch(block, width);
  lists(2 * rows);
  if constexpr (reads_source) {
    const Segment all{0, 0, tokens};
    if (reads) read(numbers.source(tokens), Segments(&all, 1), state, tried);
  }
  const auto run_split = [&](Segments segments) {
    Tensor<Index, 1> cu_seqlens({std::ssize(segments) + 1});
    for (const Segment& segment : segments) {
      cu_seqlens[segment.row + 1] = segment.first + segment.count;
    }
    const Index count = cu_seqlens[std::ssize(segments)];
    if constexpr (continues) {  // by the last tokens that there may be, and by the first
      for (const Segment& segment : segments) {
        StateMembers(state).set_tokens(segment.row, longest - segment.count);
        StateMembers(fresh).set_tokens(segment.row, 0);
      }
      if (has_state()) {
        advance(numbers.x(count), segments, state, numbers.y(count), tried, numbers.side(count));
      }
    }
    if constexpr (reads_source) {
      if (reads) read(numbers.source(count), segments, fresh, tried);
    }
    run_documents(numbers.x(count), cu_seqlens, fresh, numbers.y(count), tried,
                  numbers.side(count));
  };
  detail::for_each_trial_split(std::min(rows, block), block, longest, run_split);
  if (whole && longest > block) {
    for (const Index count : {longest, longest / 2}) {
      const Segment segment{0, 0, count};
      run_split(Segments(&segment, 1));
    }
  }
  context.reserve_like(tried);
}

template <class Definition>
void Mixer<Definition>::check(const State& state, Segments segments, Index tokens,
                              Context& context) const requires Continues<Definition> {
  check_segments("x", state, segments, tokens, context,
                 [&](Index batch, auto&& coming) { check_state(state, batch, coming); });
}

template <class Definition>
void Mixer<Definition>::check_read(const State& state, Segments segments, Index tokens,
                                   Context& context) const {
  check_segments("source", state, segments, tokens, context, [&](Index batch, auto&& coming) {
    check_members(state, batch).check_room_for_sources(batch, coming);
  });
}

template <class Definition>
void Mixer<Definition>::reset(State& state, Index row) const requires Continues<Definition> {
  const StateMembers members(state);
  check_members(state, members.batch());
  members.clear_row(row);
  start_row(definition_, state, row);
}

template <class Definition>
void Mixer<Definition>::grow(State& state, Index capacity) const requires Continues<Definition> {
  const ConstStateMembers members(state);
  check_members(state, members.batch());
  State larger = initial(members.batch(), capacity, Memory{});
  const StateMembers larger_members(larger);
  for (Index row = 0; row < members.batch(); ++row) larger_members.copy_row(members, row, row);
  state = std::move(larger);
}

template <class Definition>
auto Mixer<Definition>::initial(Index batch, Index capacity, Memory memory) const -> State {
  if constexpr (continues) {
    if (batch < 0 || capacity < 0) {
      throw ShapeError(std::string(own_traits().name) + ": make_state(" + std::to_string(batch) +
                       ", " + std::to_string(capacity) + "), expected sizes of at least 0");
    }
    State state = definition_.make_state(batch, capacity, memory.with_caches(options_.caches));
    for (Index row = 0; row < batch && !memory.is_none(); ++row) {
      start_row(definition_, state, row);
    }
    return state;
  } else {
    return {};
  }
}

template <class Definition>
Index Mixer<Definition>::room_for(Index tokens, Index entries) const {
  const bool has_cache = std::ranges::any_of(members_, [](const StateMember& member) {
    return member.kind == StateMember::Kind::appended;
  });
  return has_cache ? std::max(tokens, entries) : entries;
}

template <class Definition>
Definition Mixer<Definition>::define(Config config, Weights weights, Options options) {
  check_config(name, config);
  list_parameters<Scalar>(weights, config, [&](const ListedParameter<Scalar>& parameter) {
    take_weight(name, parameter, options.weights);
  });
  return Definition{std::move(config), std::move(weights)};
}

template <class Definition>
inline Call Mixer<Definition>::batch_call(Context& context, Context::Scratch<Segment>& scratch,
                                          Index first, Index count, Index T, Form form) {
  Segment* const segments = scratch(count).data();
  for (Index i = 0; i < count; ++i) segments[i] = {first + i, i * T, T, form};
  return Call(context, Segments(segments, static_cast<std::size_t>(count)), first * T);
}

template <class Definition>
void Mixer<Definition>::run_batch(const View<const Scalar, 3>& x, State& state,
                                  const View<Scalar, 3>& y, Context& context,
                                  const Side& side) const {
  const Index B = x.extent(0), T = x.extent(1);
  const bool flat = x.mergeable(axis::row) && y.mergeable(axis::row);
  const Index at_once = flat ? B : std::max<Index>(block_tokens(definition_) / T, 1);
  for (Index first = 0; first < B; first += at_once) {
    const Index rows = std::min(at_once, B - first);
    const auto in = x.slice(axis::row, first, rows);
    const auto out = y.slice(axis::row, first, rows);
    auto segments = context.scratch<Segment>();
    auto numbers = context.scratch<Scalar>();
    const Form form = detail::settled_form(context, Form::parallel, T);
    const Call call = batch_call(context, segments, first, rows, T, form);
    const Side of_rows = detail::tokens_of(definition_, side, first * T, rows * T);
    if (in.mergeable(axis::row) && out.mergeable(axis::row)) {
      run(in.merge(axis::row), state, out.merge(axis::row), call, of_rows);
    } else {
      const auto gathered = numbers(rows, T, d_in());
      const auto result = one_width ? gathered : numbers(rows, T, d_out());
      copy(in, gathered);
      run(gathered.merge(axis::row), state, result.merge(axis::row), call, of_rows);
      copy(result, out);
    }
  }
}

template <class Definition>
void Mixer<Definition>::read_batch(View<const Scalar, 3> source, State& state,
                                   Context& context) const {
  const Index B = source.extent(0), S = source.extent(1);
  const Index at_once = source.mergeable(axis::row) ? B : 1;
  for (Index first = 0; first < B && S > 0; first += at_once) {
    auto segments = context.scratch<Segment>();
    seqmix::read(definition_, source.slice(axis::row, first, at_once).merge(axis::row), state,
                 batch_call(context, segments, first, at_once, S, Form::parallel));
  }
}

template <class Definition>
void Mixer<Definition>::run_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                                      State& state, View<Scalar, 2> y, Context& context,
                                      const Side& side) const {
  auto scratch = context.scratch<Segment>();
  Segment* const segments = scratch(cu_seqlens.extent(0) - 1).data();
  std::size_t n = 0;
  for (Index row = 0; row + 1 < cu_seqlens.extent(0); ++row) {
    const Index first = cu_seqlens[row], count = cu_seqlens[row + 1] - first;
    if (count == 0) continue;
    segments[n++] = {row, first, count, detail::settled_form(context, Form::parallel, count)};
  }
  run(x, state, y, Call(context, Segments(segments, n)), side);
}

template <class Definition>
inline void Mixer<Definition>::check_views(const View<const Scalar, 3>& x, const View<Scalar, 3>& y,
                                           const Side& side) const {
  const std::string_view who = own_traits().name;
  detail::check_view(who, "x", x.shape(), x.strides(), d_in());
  detail::check_view(who, "y", y.shape(), y.strides(), d_out());
  if (x.extent(0) != y.extent(0) || x.extent(1) != y.extent(1)) {
    detail::refuse_output(who, x.shape(), y.shape());
  }
  if (!(x == View<const Scalar, 3>(y)) && !disjoint(x, y)) detail::refuse_overlap(who);
  detail::check_output(who, "y", y.shape(), y.strides());
  Side::visit(side, definition_.c,
              [&]<class T>(std::string_view which, const View<T, 2>& side_view, Index width,
                           SideRole role, auto... bound) {
                detail::check_side(who, which, side_view.shape(), side_view.strides(),
                                   {x.extent(0) * x.extent(1), width});
                if constexpr (std::is_const_v<T>) {
                  static_assert(std::same_as<T, const Index>, "a side value is numbers or indices");
                  (detail::check_indices(who, which, side_view, bound), ...);
                } else {
                  const View<Scalar, 3> view = side_view.insert(axis::row);
                  if (role == SideRole::output) {
                    detail::check_output(who, which, view.shape(), view.strides());
                  }
                  if (disjoint(view, y) && (role == SideRole::input || disjoint(view, x))) return;
                  throw ShapeError(std::string(who) + ": side value " + std::string(which) +
                                   " overlaps x or y; it must be disjoint from what is written");
                }
              });
}

template <class Definition>
void Mixer<Definition>::check_source(const View<const Scalar, 3>& source) const {
  detail::check_view(own_traits().name, "source", source.shape(), source.strides(), d_source());
}

template <class Definition>
void Mixer<Definition>::expect_source(bool given) const {
  if (given == (d_source() > 0)) return;
  throw Error(std::string(own_traits().name) + " has no " +
              (given ? "source" : "forward without a source"));
}

template <class Definition>
Index Mixer<Definition>::check_documents(const View<const Scalar, 2>& x,
                                         const View<const Index, 1>& cu_seqlens,
                                         const View<Scalar, 2>& y, const Side& side) const {
  check_views(x.insert(axis::row), y.insert(axis::row), side);
  detail::check_offsets(own_traits().name, cu_seqlens, x.extent(0));
  return cu_seqlens.extent(0) - 1;
}

template <class Definition>
Index Mixer<Definition>::longest_document(const View<const Index, 1>& cu_seqlens) {
  Index longest = 0;
  for (Index i = 1; i < cu_seqlens.extent(0); ++i) {
    longest = std::max(longest, cu_seqlens[i] - cu_seqlens[i - 1]);
  }
  return longest;
}

template <class Definition>
void Mixer<Definition>::check_segments(std::string_view which, const State& state,
                                       Segments segments, Index tokens, Context& context,
                                       auto&& body) const {
  const Index batch = ConstStateMembers(state).batch();
  const bool has_rows = !members_.empty();
  auto scratch = context.scratch<Index>();
  const View<Index, 1> coming = scratch(has_rows ? batch : 0);
  detail::check_segments(own_traits().name, which, segments, tokens, has_rows, coming);
  body(batch, [&](Index row) { return coming[row]; });
}

template <class Definition>
inline void Mixer<Definition>::check_state(const State& state, Index batch,
                                           detail::StateCheck::Coming tokens) const {
  check_members(state, batch).check_tokens(batch, position_limit(definition_), tokens);
}

template <class Definition>
inline detail::StateCheck Mixer<Definition>::check_members(const State& state, Index batch) const {
  expect_state();
  const detail::StateCheck check(own_traits().name, ConstStateMembers(state));
  check.check_members(batch, origin_, members_);
  return check;
}

template <class Definition>
inline void Mixer<Definition>::expect_state() const {
  if (has_state()) return;
  throw Error(std::string(own_traits().name) + " has no state");
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
