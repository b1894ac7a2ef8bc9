#pragma once

#include <algorithm>
#include <concepts>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/call.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/layers/detail/checks.hpp"
#include "seqmix/layers/detail/trial.hpp"
#include "seqmix/layers/detail/weights.hpp"
#include "seqmix/layers/initializer.hpp"
#include "seqmix/layers/state.hpp"
#include "seqmix/layers/traits.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Who writes a side value.
enum class SideRole { input, output };

/// What a layer needs or gives at each token beside x and y (RWKV-7's value residual): a definition
/// that has some declares
///
///   struct Side {
///     View<Scalar, 2> value_first;  // [T, D]
///     static void visit(auto& self, const Config& c, auto&& side) {
///       side("value_first", self.value_first, c.d_model, SideRole::input);
///     }
///   };
///
/// A `View<const Index, 2>` in place of numbers is an input of indices (token ids, given
/// positions); behind its role `side` may name a bound, which all of them are below then, and not
/// negative. It takes what it declares in `run(x, state, side, y, call)`. Its T are all tokens of a
/// call: of a dense batch [B, T, D] those of row 0, then those of row 1. All others have none.
struct NoSide {
  static void visit(auto&, const auto&, auto&&) {}
};

namespace detail {

template <class Definition>
struct SideOf {
  using type = NoSide;
};
template <class Definition>
requires requires { typename Definition::Side; }
struct SideOf<Definition> {
  using type = typename Definition::Side;
};

/// The state of a definition that remembers; `NoState` of one whose every output needs all of x.
template <class Definition>
struct StateOf {
  using type = NoState;
};
template <class Definition>
requires requires { typename Definition::State; }
struct StateOf<Definition> {
  using type = typename Definition::State;
};

}  // namespace detail

/// Whether the layer continues a sequence. One whose output at a token depends on later tokens has
/// no state and `forward` alone: its definition has `run(x, y, call)`.
template <class Definition>
concept Continues = requires {
  typename Definition::State;
};

namespace detail {

template <class Definition>
concept HasTraits = std::same_as<std::remove_cvref_t<decltype(Definition::traits)>, Traits>;
template <class Definition>
concept HasConfig = requires(const Definition& definition, typename Definition::Config& config) {
  Definition::Config::visit(config, AnyVisitor{});
  { definition.c } -> std::convertible_to<const typename Definition::Config&>;
  requires requires {
    { definition.c.d_model } -> std::convertible_to<Index>;
  } || requires {
    { definition.c.d_in } -> std::convertible_to<Index>;
    { definition.c.d_out } -> std::convertible_to<Index>;
  };
};
template <class Definition>
concept HasWeights = requires(const Definition& definition, typename Definition::Weights& weights,
                              const typename Definition::Config& config) {
  { definition.w } -> std::convertible_to<const typename Definition::Weights&>;
  Definition::Weights::visit(weights, config, AnyVisitor{});
};
template <class Definition>
concept HasState = !Continues<Definition> || requires(const Definition& definition,
                                                      typename StateOf<Definition>::type& state) {
  { definition.make_state(Index{}, Index{}, Memory{}) } -> std::same_as<typename Definition::State>;
  StateOf<Definition>::type::visit(state, AnyVisitor{});
};
template <class Definition>
concept HasRun = requires(const Definition& definition,
                          View<const typename Definition::Scalar, 2> x,
                          typename StateOf<Definition>::type& state,
                          const typename SideOf<Definition>::type& side,
                          View<typename Definition::Scalar, 2> y, const Call& call) {
  requires requires {
    requires !Continues<Definition> && std::same_as<typename SideOf<Definition>::type, NoSide>;
    definition.run(x, y, call);
  } || requires {
    requires !Continues<Definition> && !std::same_as<typename SideOf<Definition>::type, NoSide>;
    definition.run(x, side, y, call);
  } || requires {
    requires Continues<Definition> && std::same_as<typename SideOf<Definition>::type, NoSide>;
    definition.run(x, state, y, call);
  } || requires {
    requires Continues<Definition>;
    definition.run(x, state, side, y, call);
  };
};

}  // namespace detail

/// What makes a layer this layer: its facts, the numbers that fix its shape and maths, weights,
/// what the rows of a batch remember, and `run`, which continues `state` by the tokens of x [T, D]
/// and writes y. `Mixer` says in a sentence what a type lacks that is none.
template <class Definition>
concept MixerDefinition = detail::HasTraits<Definition> && detail::HasConfig<Definition> &&
    detail::HasWeights<Definition> && detail::HasState<Definition> && detail::HasRun<Definition>;

/// A call runs in blocks of time, so that scratch does not grow with T and activations stay in
/// cache. A block is a run of consecutive tokens, whatever rows they continue, of about
/// `block_tokens`. A segment is cut only at multiples of `cut_multiple` from its own first token,
/// hence of every chunk length, so that the cut changes no bit; a rest below that goes with the
/// last block.
inline constexpr Index usual_block_tokens = 192;
inline constexpr Index cut_multiple = 64;
/// The same of a composite, whose parts cut inside again.
inline constexpr Index composite_block_tokens = 2048;

/// Whether segments must not be cut: those of a definition without a state, whose outputs see all
/// of them, and of one to which it is faster (an FFT over time).
template <class Definition>
inline constexpr bool keeps_segments_whole =
    Definition::traits.whole_sequence || !Continues<Definition>;

/// The tokens that a block of time of this definition should have. One whose products see a part of
/// the tokens each says `block_tokens()`.
template <class Definition>
Index block_tokens(const Definition& definition) {
  if constexpr (Definition::traits.has_block_tokens) return definition.block_tokens();
  return Definition::traits.composite ? composite_block_tokens : usual_block_tokens;
}

/// The most tokens that a stream of this definition may have. One that counts positions to an end
/// says `position_limit()` and has a `Position` in its state, if it has one.
template <class Definition>
PositionLimit position_limit(const Definition& definition) {
  if constexpr (Definition::traits.has_position_limit) return definition.position_limit();
  return {};
}

/// Sets what a row of zeros starts at where that is something else: a definition that has such says
/// `start_row(state, row)`.
template <class Definition, class State>
void start_row(const Definition& definition, State& state, Index row) {
  if constexpr (Definition::traits.has_start_row) definition.start_row(state, row);
}

namespace detail {

template <class Definition>
concept HasBlockTokens = requires(const Definition& definition) {
  definition.block_tokens();
};
template <class Definition>
concept HasPositionLimit = requires(const Definition& definition) {
  definition.position_limit();
};
template <class Definition>
concept HasStartRow = requires(const Definition& definition,
                               typename StateOf<Definition>::type& state) {
  definition.start_row(state, Index{});
};

template <class Definition>
concept HasSource = requires(const Definition& definition,
                             View<const typename Definition::Scalar, 2> source,
                             typename StateOf<Definition>::type& state, const Call& call) {
  { definition.c.d_source } -> std::convertible_to<Index>;
  definition.read(source, state, call);
};

/// Whether each hook of a definition has its switch in the traits and each switch its hook.
template <class Definition>
inline constexpr bool hooks_match_traits =
    Definition::traits.has_block_tokens == bool{HasBlockTokens<Definition>} &&
    Definition::traits.has_position_limit == bool{HasPositionLimit<Definition>} &&
    Definition::traits.has_start_row == bool{HasStartRow<Definition>} &&
    Definition::traits.has_source == bool{HasSource<Definition>};

/// Calls `body(first, count, call)` for each block of time of a call. Each has its own segments,
/// which count from its first token.
template <class Definition>
void for_each_block(const Definition& definition, const Call& call, auto&& body) {
  const Segments segments = call.segments();
  const Index most = block_tokens(definition);
  Index left = call.tokens();  // of this and later blocks
  if (left <= most + cut_multiple) return body(Index{0}, left, call);
  auto scratch = call.scratch<Segment>();
  Segment* const pieces = scratch(std::ssize(segments)).data();
  Index first = 0, count = 0;
  std::size_t n = 0;
  const auto run = [&] {
    body(first, count, call.with(Segments(pieces, n), first));
    first += count, left -= count, count = 0, n = 0;
  };
  for (const Segment& segment : segments) {
    for (Index done = 0; done < segment.count;) {
      const Index rest = segment.count - done;
      const Index room = left <= most + cut_multiple ? left : most - count;
      Index taken = rest;
      if (rest > room) {
        taken = keeps_segments_whole<Definition> ? (count > 0 ? 0 : rest)
                                                 : room / cut_multiple * cut_multiple;
      }
      if (taken > 0) pieces[n++] = {segment.row, count, taken, segment.form};
      done += taken, count += taken;
      if (done < segment.count) run();
    }
  }
  if (count > 0) run();
}

/// The tokens [first, first + count) of side values.
template <class Definition, class Side>
Side tokens_of(const Definition& definition, Side side, Index first, Index count) {
  Side::visit(side, definition.c, [&](std::string_view, auto& view, auto&&...) {
    view = view.slice(axis::time, first, count);
  });
  return side;
}

}  // namespace detail

/// Continues `state` by x [T, D] as the segments of a call say and writes y, in blocks of time;
/// nothing is checked. What a mixer does, and a composite with each of its parts.
template <class Definition, class State, class Side = NoSide>
void run(const Definition& definition, View<const typename Definition::Scalar, 2> x, State& state,
         View<typename Definition::Scalar, 2> y, const Call& call, const Side& side = {}) {
  static_assert(detail::hooks_match_traits<Definition>,
                "a hook without its switch in the traits, or a switch without its hook: "
                "block_tokens, position_limit, start_row or read, which goes with d_source in the "
                "config");
  detail::for_each_block(definition, call, [&](Index first, Index count, const Call& block) {
    const auto in = x.slice(axis::time, first, count);
    const auto out = y.slice(axis::time, first, count);
    if constexpr (!Continues<Definition> && std::same_as<Side, NoSide>) {
      definition.run(in, out, block);
    } else if constexpr (!Continues<Definition>) {
      definition.run(in, detail::tokens_of(definition, side, first, count), out, block);
    } else if constexpr (std::same_as<Side, NoSide>) {
      definition.run(in, state, out, block);
    } else {
      definition.run(in, state, detail::tokens_of(definition, side, first, count), out, block);
    }
    if constexpr (Definition::traits.composite) return;  // whose parts have counted
    State::visit(state, [&]<class Member>(const Name&, Member& member) {
      if constexpr (std::same_as<Member, Position>) {
        for (const Segment& segment : block.segments()) member[segment.row] += segment.count;
      }
    });
  });
}

/// Puts `source` [S, d_source] behind what the rows that the segments of a call name read already,
/// in blocks; nothing is checked. A definition that reads says `read(source, state, call)`, which
/// puts the entries of a segment behind those that the `Source` members of its row count.
template <class Definition, class State>
void read(const Definition& definition, View<const typename Definition::Scalar, 2> source,
          State& state, const Call& call) {
  detail::for_each_block(definition, call, [&](Index first, Index count, const Call& block) {
    if constexpr (Definition::traits.has_source) {
      definition.read(source.slice(axis::time, first, count), state, block);
    }
    if constexpr (Definition::traits.composite) return;  // whose parts have counted
    State::visit(state, [&]<class Member>(const Name&, Member& member) {
      if constexpr (requires { member.length; }) {
        for (const Segment& segment : block.segments()) member.length[segment.row] += segment.count;
      }
    });
  });
}

/// What is said of a type that is no definition.
template <class Definition>
class Mixer {
  static_assert(detail::HasTraits<Definition>,
                "a definition has `static constexpr Traits traits`, with its name at least");
  static_assert(detail::HasConfig<Definition>,
                "a definition has a Config with d_model, or d_in and d_out, and `static void "
                "visit(auto& self, auto&& field)`, and one as its member c");
  static_assert(
      detail::HasWeights<Definition>,
      "a definition has Weights with `static void visit(auto& self, const Config&, auto&& "
      "parameter)`, and some as its member w");
  static_assert(detail::HasState<Definition>,
                "a definition with a State has `State make_state(Index batch, Index capacity, "
                "Memory) const`, and its State `static void visit(auto& self, auto&& member)`");
  static_assert(detail::HasRun<Definition>,
                "a definition has `void run(View<const Scalar, 2> x, State&, View<Scalar, 2> y, "
                "const Call&) const`, with `const Side&` before y where it declares one, and "
                "without a state where it has none");
  static_assert(!MixerDefinition<Definition>);

 public:
  Mixer(auto&&...) {}
};

/// A layer: immutable after construction, so that many streams and threads share one.
///
/// `advance` is the general verb: each segment of a call continues a row of the state by some
/// tokens; the others are names for calls of one kind. They agree: for any split of a sequence into
/// calls, in any company of other rows, outputs and final state are those of one `forward`. The
/// bits of a segment depend on neither company, order nor threads, and a cut of a sequence into
/// calls changes none of them where it lies at a multiple of 64 from the segment's start and leaves
/// no single token to the recurrent form.
///
/// x and y are the same view or disjoint, no number of y belongs to two tokens, and their last
/// dimension is contiguous. `side` holds the side values of a layer that declares some,
/// [tokens, width] each, disjoint from y and, where the layer writes them, from x; all others have
/// none. `context.form()` and a segment's own say which form it takes; else one token is taken by
/// recurrence and more are in parallel.
///
/// A layer that looks at a second sequence, of each row its own, has `read`, which puts what it
/// keeps of that one into the state.
///
/// A verb that throws a `seqmix::Error` has written nothing: it checks first. After any other
/// exception (no memory, an executor's own) the state is valid and its numbers are unspecified:
/// `reset` and assigning a copy make it good again.
template <MixerDefinition Definition>
class Mixer<Definition> {
 public:
  using Scalar = typename Definition::Scalar;
  using Config = typename Definition::Config;
  using Weights = typename Definition::Weights;
  using State = typename detail::StateOf<Definition>::type;
  using Side = typename detail::SideOf<Definition>::type;
  static constexpr Traits traits = Definition::traits;
  static constexpr std::string_view name = traits.name;
  static constexpr bool continues = Continues<Definition>;
  static constexpr bool reads_source = Definition::traits.has_source;
  static constexpr bool one_width = requires(const Config& config) { config.d_model; };

  /// Throws `ConfigError` on a config that no layer can have or a weight that `options` cannot
  /// store, and `ShapeError` on a weight whose shape does not fit. Projection weights are packed;
  /// the caller's handles stay as they are.
  Mixer(Config config, Weights weights, Options options = {})
      : options_(options),
        definition_(define(std::move(config), std::move(weights), options)),
        expected_extents_(list_expected_extents()) {}

  const Config& config() const { return definition_.c; }
  const Weights& weights() const { return definition_.w; }
  const Options& options() const { return options_; }
  const Definition& definition() const { return definition_; }
  /// The widths of x and y, and the one of both where they are one.
  Index d_in() const {
    if constexpr (one_width) {
      return definition_.c.d_model;
    } else {
      return definition_.c.d_in;
    }
  }
  Index d_out() const {
    if constexpr (one_width) {
      return definition_.c.d_model;
    } else {
      return definition_.c.d_out;
    }
  }
  Index d_model() const requires one_width { return definition_.c.d_model; }
  /// The width of what `read` takes; 0 where there is none.
  Index d_source() const {
    if constexpr (reads_source) return definition_.c.d_source;
    return 0;
  }

  /// The state before the first token, whose rows read nothing. `capacity`: the tokens that its
  /// caches have room for, and those of a source; layers without a cache ignore it.
  State make_state(Index batch, Index capacity = 0) const requires continues {
    if (batch < 0 || capacity < 0) {
      throw ShapeError(std::string(name) + ": make_state(" + std::to_string(batch) + ", " +
                       std::to_string(capacity) + "), expected sizes of at least 0");
    }
    return initial(batch, capacity, Memory{});
  }

  /// y [B, T, D] of a whole sequence x [B, T, D] from the initial state, by the parallel form.
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
               const Side& side = {}) const requires(!reads_source) {
    check_views(x, y, side);
    position_limit(definition_).check(name, 0, x.extent(1));
    if (x.empty()) return;
    auto scope = context.scratch<Scalar>();
    State state = initial(x.extent(0), x.extent(1), Memory(context.arena()));
    run_batch(x, state, y, context, side, Form::parallel);
  }
  /// The same of rows that read `source` [B, S, d_source].
  void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
               Context& context, const Side& side = {}) const requires reads_source {
    check_views(x, y, side);
    check_source(source);
    position_limit(definition_).check(name, 0, x.extent(1));
    if (source.extent(0) != x.extent(0)) {
      throw ShapeError(std::string(name) + ": source has shape " + source.shape().text() +
                       ", expected " + std::to_string(x.extent(0)) + " rows as x has");
    }
    if (x.empty()) return;
    auto scope = context.scratch<Scalar>();
    State state =
        initial(x.extent(0), room_for(x.extent(1), source.extent(1)), Memory(context.arena()));
    read_batch(source, state, context);
    run_batch(x, state, y, context, side, Form::parallel);
  }
  /// Documents packed behind each other: y [T, D] of x [T, D], where document i is the tokens from
  /// cu_seqlens[i] to cu_seqlens[i + 1] and none sees another. What is computed token by token runs
  /// over all of them at once.
  void forward_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                         View<Scalar, 2> y, Context& context, const Side& side = {}) const
      requires(!reads_source) {
    const Index documents = check_documents(x, cu_seqlens, y, side),
                longest = longest_document(cu_seqlens);
    position_limit(definition_).check(name, 0, longest);
    if (x.empty()) return;
    auto scope = context.scratch<Scalar>();
    State state = initial(documents, longest, Memory(context.arena()));
    run_documents(x, cu_seqlens, state, y, context, side);
  }

  /// Makes source [S, d_source] what rows of `state` read, as `segments` say: row by row a sequence
  /// of its own length, none where it has no tokens, in place of what the row read before. Tokens
  /// are not touched, nor are rows that no segment names.
  void read(View<const Scalar, 2> source, Segments segments, State& state,
            Context& context) const requires reads_source {
    check_source(source.insert(axis::row));
    check_read(state, segments, source.extent(0), context);
    State::visit(state, [&]<class Member>(const Name&, Member& member) {
      if constexpr (requires { member.length; }) {
        for (const Segment& segment : segments) member.length[segment.row] = 0;
      }
    });
    if (source.empty()) return;
    auto scratch = context.scratch<Segment>();
    Segment* const settled = scratch(std::ssize(segments)).data();
    std::size_t n = 0;
    for (const auto& [row, first, count, form] : segments) {
      if (count > 0) settled[n++] = {row, first, count, Form::parallel};
    }
    seqmix::read(definition_, source, state, Call(context, Segments(settled, n)));
  }

  /// Continues rows of `state` by the tokens x [T, D] as `segments` say, which lie behind each
  /// other from token 0 to the last and name a row at most once. Rows that none names stay as they
  /// are.
  void advance(View<const Scalar, 2> x, Segments segments, State& state, View<Scalar, 2> y,
               Context& context, const Side& side = {}) const requires continues {
    check_views(x.insert(axis::row), y.insert(axis::row), side);
    check(state, segments, x.extent(0), context);
    if (x.empty()) return;
    auto scratch = context.scratch<Segment>();
    Segment* const settled = scratch(std::ssize(segments)).data();
    run(x, state, y, Call(context, detail::settle(context, segments, settled)), side);
  }
  /// Continues `state` by the tokens x [B, T, D], by the parallel form.
  void prefill(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context,
               const Side& side = {}) const requires continues {
    check_views(x, y, side);
    check_state(state, x.extent(0), [&](Index) { return x.extent(1); });
    if (x.empty()) return;
    run_batch(x, state, y, context, side, Form::parallel);
  }
  /// Continues row i of `state` by document i of x [T, D]; see `forward_documents`.
  void prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, State& state,
                         View<Scalar, 2> y, Context& context,
                         const Side& side = {}) const requires continues {
    const Index documents = check_documents(x, cu_seqlens, y, side);
    check_state(state, documents, [&](Index row) { return cu_seqlens[row + 1] - cu_seqlens[row]; });
    if (x.empty()) return;
    run_documents(x, cu_seqlens, state, y, context, side);
  }
  /// Continues `state` by one token a row, x [B, D], by the recurrent form, in fp32 at any
  /// precision of the context. Once the context is prepared, nothing is allocated and, with a
  /// serial context, nothing is locked.
  void step(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, Context& context,
            const Side& side = {}) const requires continues {
    const auto token = x.insert(axis::channel);
    const auto out = y.insert(axis::channel);
    check_views(token, out, side);
    check_state(state, token.extent(0), [](Index) { return Index{1}; });
    if (token.empty()) return;
    run_batch(token, state, out, context, side, Form::recurrent);
  }

  /// What the verbs do when they have checked: continues `state` by x [T, D] as the segments of a
  /// call say, whose forms are settled.
  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call,
           const Side& side = {}) const {
    seqmix::run(definition_, x, state, y, call, side);
  }

  /// Makes all later calls of at most `rows` segments and `tokens` tokens in all free of
  /// allocation, at the precision, algorithm and form that the context has. What a layer of whole
  /// sequences needs grows with the past: there the tokens of a row before the call count, too.
  /// Finds out what calls need by computing some.
  void prepare(Context& context, Index rows, Index tokens) const {
    rows = std::min(rows, tokens);
    if (rows < 0 || tokens < 0) {
      throw ShapeError(std::string(name) + ": prepare(" + std::to_string(rows) + ", " +
                       std::to_string(tokens) + "), expected numbers of at least 0");
    }
    detail::Trial trial(context);
    Tensor<Scalar, 2> x({tokens, d_in()}), y({tokens, d_out()}), source({tokens, d_source()});
    std::vector<Tensor<Scalar, 2>> values;
    std::vector<Tensor<Index, 2>> indices;
    Side side;
    Side::visit(side, definition_.c,
                [&]<class T>(std::string_view, View<T, 2>& view, Index width, auto&&...) {
                  if constexpr (std::is_const_v<T>) {
                    view = indices.emplace_back(Shape<2>{tokens, width}).view();
                  } else {
                    view = values.emplace_back(Shape<2>{tokens, width}).view();
                  }
                });
    const Index longest = std::min(tokens, position_limit(definition_).tokens);
    detail::for_each_trial_split(rows, tokens, longest, [&](Segments segments) {
      auto scope = trial.context().template scratch<Scalar>();
      for (const Index width : {d_in(), d_out()}) {  // rows that are gathered
        scope(std::min(tokens, block_tokens(definition_)), width);
      }
      Tensor<Index, 1> cu_seqlens({std::ssize(segments) + 1});
      for (const Segment& segment : segments) {
        cu_seqlens[segment.row + 1] = segment.first + segment.count;
      }
      const Index count = cu_seqlens[std::ssize(segments)];
      const View<const Scalar, 2> part = x.view().slice(axis::time, 0, count);
      const auto out = y.view().slice(axis::time, 0, count);
      const Side sides = detail::tokens_of(definition_, side, 0, count);
      const View<const Scalar, 2> of_source = source.view().slice(axis::time, 0, count);
      if constexpr (continues) {
        constexpr bool grows = Definition::traits.whole_sequence;
        const Index room = grows ? longest : longest_document(cu_seqlens);
        State state = make_state(std::ssize(segments), room);
        if constexpr (reads_source) read(of_source, segments, state, trial.context());
        advance(part, segments, state, out, trial.context(), sides);
        if constexpr (grows) {  // and as the last tokens that there is room for
          for (const Segment& segment : segments) {
            StateMembers(state).set_tokens(segment.row, room - segment.count);
          }
          advance(part, segments, state, out, trial.context(), sides);
        }
      }
      if constexpr (reads_source) {  // as `forward` does
        const Index room = longest_document(cu_seqlens);
        State state =
            initial(std::ssize(segments), room_for(room, room), Memory(trial.context().arena()));
        read(of_source, segments, state, trial.context());
        run_documents(part, cu_seqlens, state, out, trial.context(), sides);
      } else {
        forward_documents(part, cu_seqlens, out, trial.context(), sides);
      }
    });
    context.reserve_like(trial.context());
  }

  /// Throws what continuing `state` by these segments of `tokens` tokens would throw.
  void check(const State& state, Segments segments, Index tokens,
             Context& context) const requires continues {
    check_segments("x", state, segments, tokens, context,
                   [&](Index batch, auto&& coming) { check_state(state, batch, coming); });
  }

  /// Throws what reading a source of `tokens` tokens as these segments say would throw.
  void check_read(const State& state, Segments segments, Index tokens,
                  Context& context) const requires reads_source {
    check_segments("source", state, segments, tokens, context, [&](Index batch, auto&& coming) {
      const detail::StateCheck check = check_members(state, batch);
      State::visit(state, [&]<class Member>(const Name& member_name, const Member& member) {
        if constexpr (requires { member.length; }) {
          for (Index row = 0; row < batch; ++row) {
            check.check_length(member_name, row, coming(row), member.capacity());
          }
        }
      });
    });
  }

  /// Sets batch row `row` back to the state before its first token; it reads nothing then.
  /// Allocates nothing.
  void reset(State& state, Index row) const requires continues {
    const StateMembers members(state);
    check_members(state, members.batch());
    members.clear_row(row);
    start_row(definition_, state, row);
  }

  /// Gives the caches of `state` room for `capacity` tokens, and those of a source; what they hold
  /// is kept.
  void grow(State& state, Index capacity) const requires continues {
    const ConstStateMembers members(state);
    State larger = make_state(members.batch(), capacity);
    const StateMembers larger_members(larger);
    for (Index row = 0; row < members.batch(); ++row) larger_members.copy_row(members, row, row);
    state = std::move(larger);
  }

 private:
  // clang before 16 instantiates members whose constraints fail, too, where a mixer is instantiated
  // explicitly: their bodies name nothing that a definition without them lacks.

  /// The state before the first token, in any memory.
  State initial(Index batch, Index capacity, Memory memory) const {
    if constexpr (continues) {
      State state = definition_.make_state(batch, capacity, memory.with_caches(options_.caches));
      for (Index row = 0; row < batch; ++row) start_row(definition_, state, row);
      return state;
    } else {
      return {};
    }
  }

  /// One that has no numbers.
  State initial_shapes() const {
    if constexpr (continues) {
      return definition_.make_state(1, 1, Memory::shapes_only().with_caches(options_.caches));
    } else {
      return {};
    }
  }
  /// The room that a state needs whose rows see `tokens` tokens and read as many as `entries`.
  Index room_for(Index tokens, Index entries) const {
    const State shapes = initial_shapes();
    State::visit(shapes, [&]<class Member>(const Name&, const Member&) {
      if constexpr (requires { Member::axis; }) entries = std::max(entries, tokens);
    });
    return entries;
  }

  static Definition define(Config config, Weights weights, Options options) {
    check_config(name, config);
    Weights::visit(weights, std::as_const(config),
                   [&]<class P>(const Name& parameter_name, P& parameter, Shape<P::rank> expected,
                                auto... tags) {
                     static_assert(P::rank > 1 || has_initializer<decltype(tags)...>,
                                   "a parameter of one axis says where a fresh one comes from: "
                                   "ones, zeros, uniform(a, b) ...");
                     if (parameter.shape() != expected) {
                       throw ShapeError(std::string(name) + ": weight " + parameter_name.text() +
                                        (parameter ? " has shape " + parameter.shape().text()
                                                   : std::string(" is missing")) +
                                        ", expected " + expected.text());
                     }
                     if constexpr (requires { parameter.pack(options.weights); }) {
                       pack_weight(name, parameter_name, parameter, options.weights, tags...);
                     }
                   });
    return Definition{std::move(config), std::move(weights)};
  }

  /// The rows [first, first + count) of a dense batch of T tokens a row, in one form.
  static Call batch_call(Context& context, Context::Scratch<Segment>& scratch, Index first,
                         Index count, Index T, Form form) {
    Segment* const segments = scratch(count).data();
    for (Index i = 0; i < count; ++i) segments[i] = {first + i, i * T, T, form};
    return Call(context, Segments(segments, static_cast<std::size_t>(count)), first * T);
  }
  /// A dense batch [B, T, D]. Rows that do not lie behind each other are gathered, as many as a
  /// block of time has tokens for.
  void run_batch(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context,
                 const Side& side, Form form) const {
    const Index B = x.extent(0), T = x.extent(1);
    const bool flat = x.mergeable(axis::row) && y.mergeable(axis::row);
    const Index at_once = flat ? B : std::max<Index>(block_tokens(definition_) / T, 1);
    for (Index first = 0; first < B; first += at_once) {
      const Index rows = std::min(at_once, B - first);
      const auto in = x.slice(axis::row, first, rows);
      const auto out = y.slice(axis::row, first, rows);
      auto segments = context.scratch<Segment>();
      auto numbers = context.scratch<Scalar>();
      Call call =
          batch_call(context, segments, first, rows, T, detail::settled_form(context, form, T));
      if (form == Form::recurrent) call = call.with(Precision::fp32);
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
  /// Reads source [B, S, d_source], row by row where those do not lie behind each other.
  void read_batch(View<const Scalar, 3> source, State& state, Context& context) const {
    const Index B = source.extent(0), S = source.extent(1);
    const Index at_once = source.mergeable(axis::row) ? B : 1;
    for (Index first = 0; first < B && S > 0; first += at_once) {
      auto segments = context.scratch<Segment>();
      seqmix::read(definition_, source.slice(axis::row, first, at_once).merge(axis::row), state,
                   batch_call(context, segments, first, at_once, S, Form::parallel));
    }
  }
  void run_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, State& state,
                     View<Scalar, 2> y, Context& context, const Side& side) const {
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

  void check_views(const View<const Scalar, 3>& x, const View<Scalar, 3>& y,
                   const Side& side) const {
    detail::check_view(name, "x", x.shape(), x.strides(), d_in());
    detail::check_view(name, "y", y.shape(), y.strides(), d_out());
    if (x.extent(0) != y.extent(0) || x.extent(1) != y.extent(1)) {
      throw ShapeError(std::string(name) + ": y has shape " + y.shape().text() +
                       ", expected the rows and tokens of x, " + x.shape().text());
    }
    if (!(x == View<const Scalar, 3>(y)) && !disjoint(x, y)) {
      throw ShapeError(std::string(name) + ": x and y overlap; they must be one view or disjoint");
    }
    detail::check_output(name, "y", y.shape(), y.strides());
    Side::visit(side, definition_.c,
                [&]<class T>(std::string_view which, const View<T, 2>& side_view, Index width,
                             SideRole role, auto... bound) {
                  detail::check_side(name, which, side_view.shape(), side_view.strides(),
                                     {x.extent(0) * x.extent(1), width});
                  if constexpr (std::is_const_v<T>) {
                    static_assert(std::same_as<T, const Index>,
                                  "a side value is numbers or indices");
                    (detail::check_indices(name, which, side_view, bound), ...);
                  } else {
                    const View<Scalar, 3> view = side_view.insert(axis::row);
                    if (role == SideRole::output) {
                      detail::check_output(name, which, view.shape(), view.strides());
                    }
                    if (disjoint(view, y) && (role == SideRole::input || disjoint(view, x))) return;
                    throw ShapeError(std::string(name) + ": side value " + std::string(which) +
                                     " overlaps x or y; it must be disjoint from what is written");
                  }
                });
  }
  void check_source(const View<const Scalar, 3>& source) const requires reads_source {
    detail::check_view(name, "source", source.shape(), source.strides(), d_source());
  }
  /// Returns the number of documents.
  Index check_documents(const View<const Scalar, 2>& x, const View<const Index, 1>& cu_seqlens,
                        const View<Scalar, 2>& y, const Side& side) const {
    check_views(x.insert(axis::row), y.insert(axis::row), side);
    detail::check_offsets(name, cu_seqlens, x.extent(0));
    return cu_seqlens.extent(0) - 1;
  }
  static Index longest_document(const View<const Index, 1>& cu_seqlens) {
    Index longest = 0;
    for (Index i = 1; i < cu_seqlens.extent(0); ++i) {
      longest = std::max(longest, cu_seqlens[i] - cu_seqlens[i - 1]);
    }
    return longest;
  }
  /// Calls `body(batch, coming)` if the segments fit `tokens` tokens of `which`, of which
  /// `coming(row)` are a row's.
  void check_segments(std::string_view which, const State& state, Segments segments, Index tokens,
                      Context& context, auto&& body) const {
    const Index batch = ConstStateMembers(state).batch();
    const bool has_rows = !expected_extents_.empty();
    auto scratch = context.scratch<Index>();
    const View<Index, 1> coming = scratch(has_rows ? batch : 0);
    detail::check_segments(name, which, segments, tokens, has_rows, coming);
    body(batch, [&](Index row) { return coming[row]; });
  }
  /// Compares without allocating: the state of another config, batch or a full cache never runs.
  /// `tokens(row)` are about to come.
  void check_state(const State& state, Index batch, auto&& tokens) const {
    const detail::StateCheck check = check_members(state, batch);
    Index past = 0, coming = 0;  // of the row that will be longest
    State::visit(state, [&]<class Member>(const Name& member_name, const Member& member) {
      if constexpr (std::same_as<Member, Position>) {
        for (Index row = 0; row < batch; ++row) {
          check.check_position(member_name, row, member[row], tokens(row));
          if (member[row] + tokens(row) <= past + coming) continue;
          past = member[row], coming = tokens(row);
        }
      }
      if constexpr (requires { member.length; }) {
        for (Index row = 0; row < batch; ++row) {
          check.check_length(member_name, row, member.length[row], member.capacity());
        }
      }
    });
    position_limit(definition_).check(name, past, coming);
    State::visit(state, [&]<class Member>(const Name& member_name, const Member& member) {
      if constexpr (requires { Member::axis; }) {
        check.check_room(member_name, past, coming, member.capacity());
      }
    });
  }
  /// Whether this layer makes such a state of `batch` rows, capacities aside.
  detail::StateCheck check_members(const State& state, Index batch) const {
    detail::StateCheck check(name, batch, expected_extents_);
    State::visit(state, [&]<class Member>(const Name& member_name, const Member& member) {
      const auto& numbers = state_tensor(member);
      check.check_extents(member_name, numbers.shape().extents);
      if constexpr (requires { numbers.storage(); }) {
        check.check_storage(member_name, numbers.storage());
      }
      if constexpr (requires { member.reached; }) {
        check.check_extents(member_name, member.reached.shape().extents);
        check.check_window(member_name, member.window);
      }
      if constexpr (requires { member.length; }) {
        check.check_extents(member_name, member.length.shape().extents);
      }
    });
    check.check_end();
    return check;
  }

  static constexpr Index any_extent = detail::StateCheck::any_extent;
  std::vector<Index> list_expected_extents() const {
    std::vector<Index> extents;
    const State fresh = initial_shapes();
    State::visit(fresh, [&]<class Member>(const Name&, const Member& member) {
      const auto& shape = state_tensor(member).shape().extents;
      for (const Index extent : shape) extents.push_back(extent);
      const auto allow_any = [&](Index axis) {
        extents[extents.size() - shape.size() + static_cast<std::size_t>(axis)] = any_extent;
      };
      if constexpr (requires { Member::axis; }) allow_any(Member::axis);
      if constexpr (requires { Member::source_axis; }) {
        static_assert(Member::source_axis > 0 && reads_source,
                      "a definition whose state holds a Source has read");
        allow_any(Member::source_axis);
      }
      if constexpr (requires { state_tensor(member).storage(); }) {
        extents.push_back(static_cast<Index>(state_tensor(member).storage()));
      }
      if constexpr (requires { member.reached; }) {
        extents.push_back(1), extents.push_back(member.window);
      }
      if constexpr (requires { member.length; }) extents.push_back(1);
    });
    return extents;
  }

  Options options_;
  Definition definition_;
  // Of every state member in the order of `visit`, of a cache with its storage behind them, of a
  // ring with the extent of its marks and its window, of a source with that of its lengths, too.
  std::vector<Index> expected_extents_;
};

/// The mixers of a layer's definition for each scalar; see core/compiled.hpp.
#define SEQMIX_COMPILE_MIXER(Definition)                         \
  SEQMIX_IF_FLOAT(SEQMIX_COMPILE_MIXER_OF(Definition<float>);)   \
  SEQMIX_IF_DOUBLE(SEQMIX_COMPILE_MIXER_OF(Definition<double>);) \
  static_assert(true)
#define SEQMIX_COMPILE_MIXER_OF(Definition)                                               \
  SEQMIX_EXTERN template class Mixer<Definition>;                                         \
  SEQMIX_EXTERN template void run(const Definition&, View<const Definition::Scalar, 2>,   \
                                  Mixer<Definition>::State&, View<Definition::Scalar, 2>, \
                                  const Call&, const Mixer<Definition>::Side&)

SEQMIX_END_NAMESPACE
}  // namespace seqmix
