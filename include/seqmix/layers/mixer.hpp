#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/call.hpp"
#include "seqmix/core/compiled.hpp"
#include "seqmix/layers/detail/state_check.hpp"
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

/// Whether what a layer is follows from what it was made of, as a block follows from its parts: its
/// definition has `own_traits()`, `continues()` and `list_weights(body)`, and may have a source.
template <class Definition>
concept KnownWhenMade = requires(const Definition& definition) {
  { definition.own_traits() } -> std::same_as<const Traits&>;
  { definition.continues() } -> std::same_as<bool>;
};

/// Whether the layer may look at a second sequence, of each row its own, and whether it need not.
template <class Definition>
concept ReadsSource = Definition::traits.has_source;
template <class Definition>
concept RunsWithoutSource = !ReadsSource<Definition> || KnownWhenMade<Definition>;

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

/// The facts of one layer.
template <class Definition>
const Traits& traits_of(const Definition& definition) {
  if constexpr (KnownWhenMade<Definition>) {
    return definition.own_traits();
  } else {
    return Definition::traits;
  }
}

/// Whether one layer continues a sequence.
template <class Definition>
bool has_state(const Definition& definition) {
  if constexpr (KnownWhenMade<Definition>) return definition.continues();
  return Continues<Definition>;
}

/// Whether segments must not be cut: those of a layer without a state, whose outputs see all of
/// them, and of one to which it is faster (an FFT over time).
template <class Definition>
bool keeps_segments_whole(const Definition& definition) {
  return traits_of(definition).whole_sequence || !has_state(definition);
}

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
  const bool whole = keeps_segments_whole(definition);
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
        taken = whole ? (count > 0 ? 0 : rest) : room / cut_multiple * cut_multiple;
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
template <class Definition, class State, class Side = typename detail::SideOf<Definition>::type>
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
template <class Definition>
class Mixer {
 public:
  using Scalar = typename Definition::Scalar;
  using Config = typename Definition::Config;
  using Weights = typename Definition::Weights;
  using State = typename detail::StateOf<Definition>::type;
  using Side = typename detail::SideOf<Definition>::type;
  static constexpr Traits traits = Definition::traits;
  static constexpr std::string_view name = traits.name;
  static constexpr bool continues = Continues<Definition>;
  static constexpr bool reads_source = ReadsSource<Definition>;
  static constexpr bool one_width = requires(const Config& config) { config.d_model; };

  /// Throws `ConfigError` on a config that no layer can have or a weight that `options` cannot
  /// store, and `ShapeError` on a weight whose shape does not fit. Projection weights are packed;
  /// the caller's handles stay as they are.
  Mixer(Config config, Weights weights, Options options = {});
  /// A block, whose parts have the weights.
  explicit Mixer(Config config) requires KnownWhenMade<Definition>
      : Mixer(std::move(config), Weights{}) {}

  const Config& config() const { return definition_.c; }
  const Weights& weights() const { return definition_.w; }
  const Options& options() const { return options_; }
  const Definition& definition() const { return definition_; }
  /// The definition's, or a block's own.
  const Traits& own_traits() const { return traits_of(definition_); }
  /// Whether this layer continues a sequence; one that does not throws `Error` from all verbs but
  /// `forward` and `forward_documents`.
  bool has_state() const { return seqmix::has_state(definition_); }
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
  State make_state(Index batch, Index capacity = 0) const requires Continues<Definition>;

  /// y [B, T, D] of a whole sequence x [B, T, D] from the initial state, by the parallel form.
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
               const Side& side = {}) const requires RunsWithoutSource<Definition>;
  /// The same of rows that read `source` [B, S, d_source].
  void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
               Context& context, const Side& side = {}) const requires ReadsSource<Definition>;
  /// Documents packed behind each other: y [T, D] of x [T, D], where document i is the tokens from
  /// cu_seqlens[i] to cu_seqlens[i + 1] and none sees another. What is computed token by token runs
  /// over all of them at once.
  void forward_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                         View<Scalar, 2> y, Context& context,
                         const Side& side = {}) const requires RunsWithoutSource<Definition>;

  /// Makes source [S, d_source] what rows of `state` read, as `segments` say: row by row a sequence
  /// of its own length, none where it has no tokens, in place of what the row read before. Tokens
  /// are not touched, nor are rows that no segment names.
  void read(View<const Scalar, 2> source, Segments segments, State& state,
            Context& context) const requires ReadsSource<Definition>;

  /// Continues rows of `state` by the tokens x [T, D] as `segments` say, which lie behind each
  /// other from token 0 to the last and name a row at most once. Rows that none names stay as they
  /// are.
  void advance(View<const Scalar, 2> x, Segments segments, State& state, View<Scalar, 2> y,
               Context& context, const Side& side = {}) const requires Continues<Definition>;
  /// Continues `state` by the tokens x [B, T, D], by the parallel form.
  void prefill(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context,
               const Side& side = {}) const requires Continues<Definition>;
  /// Continues row i of `state` by document i of x [T, D]; see `forward_documents`.
  void prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, State& state,
                         View<Scalar, 2> y, Context& context,
                         const Side& side = {}) const requires Continues<Definition>;
  /// Continues `state` by one token a row, x [B, D], by the recurrent form, in fp32 at any
  /// precision of the context. Once the context is prepared, nothing is allocated and, with a
  /// serial context, nothing is locked.
  void step(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, Context& context,
            const Side& side = {}) const requires Continues<Definition>;

  /// What the verbs do when they have checked: continues `state` by x [T, D] as the segments of a
  /// call say, whose forms are settled.
  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call,
           const Side& side = {}) const {
    seqmix::run(definition_, x, state, y, call, side);
  }

  /// Makes all later calls of at most `rows` segments and `tokens` tokens in all free of
  /// allocation, at the precision, algorithm and form that the context has. What a layer of whole
  /// sequences needs grows with the past: there the tokens of a row before the call count, too.
  /// What attention needs that looks at rows of scores, or forgets, grows with the `capacity` of
  /// its states, where that is larger than `tokens`. Finds out what calls need by computing some:
  /// of a block of time, and of `tokens` for a layer of whole sequences.
  void prepare(Context& context, Index rows, Index tokens, Index capacity = 0) const;

  /// Throws what continuing `state` by these segments of `tokens` tokens would throw.
  void check(const State& state, Segments segments, Index tokens,
             Context& context) const requires Continues<Definition>;

  /// Sets batch row `row` back to the state before its first token; it reads nothing then.
  /// Allocates nothing.
  void reset(State& state, Index row) const requires Continues<Definition>;

  /// Gives the caches of `state` room for `capacity` tokens, and those of a source; what they hold
  /// is kept.
  void grow(State& state, Index capacity) const requires Continues<Definition>;

  /// The state before the first token, in any memory; what a layer without one runs with, too.
  State initial(Index batch, Index capacity, Memory memory) const;

 private:
  static Definition define(Config config, Weights weights, Options options);
  /// The room that a state needs whose rows see `tokens` tokens and read as many as `entries`.
  Index room_for(Index tokens, Index entries) const;

  /// The rows [first, first + count) of a dense batch of T tokens a row, in one form.
  static Call batch_call(Context& context, Context::Scratch<Segment>& scratch, Index first,
                         Index count, Index T, Form form);
  /// A dense batch [B, T, D], by the parallel form. Rows that do not lie behind each other are
  /// gathered, as many as a block of time has tokens for.
  void run_batch(const View<const Scalar, 3>& x, State& state, const View<Scalar, 3>& y,
                 Context& context, const Side& side) const;
  /// Reads source [B, S, d_source], row by row where those do not lie behind each other.
  void read_batch(View<const Scalar, 3> source, State& state, Context& context) const;
  void run_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, State& state,
                     View<Scalar, 2> y, Context& context, const Side& side) const;

  void check_views(const View<const Scalar, 3>& x, const View<Scalar, 3>& y,
                   const Side& side) const;
  void check_source(const View<const Scalar, 3>& source) const;
  /// Throws where the layer reads no source, or needs one.
  void expect_source(bool given) const;
  /// Throws what reading a source of `tokens` tokens as these segments say would throw.
  void check_read(const State& state, Segments segments, Index tokens, Context& context) const;
  /// Returns the number of documents.
  Index check_documents(const View<const Scalar, 2>& x, const View<const Index, 1>& cu_seqlens,
                        const View<Scalar, 2>& y, const Side& side) const;
  static Index longest_document(const View<const Index, 1>& cu_seqlens);
  /// Calls `body(batch, coming)` if the segments fit `tokens` tokens of `which`, of which
  /// `coming(row)` are a row's.
  void check_segments(std::string_view which, const State& state, Segments segments, Index tokens,
                      Context& context, auto&& body) const;
  /// The state of another config, batch or a full cache never runs. `tokens(row)` are about to
  /// come.
  void check_state(const State& state, Index batch, detail::StateCheck::Coming tokens) const;
  /// Throws unless this layer makes such a state of `batch` rows, capacities aside.
  detail::StateCheck check_members(const State& state, Index batch) const;
  void expect_state() const;

  Options options_;
  Definition definition_;
  std::vector<NamedStateMember> members_;  // of each state, as shapes alone
  const void* origin_ = nullptr;
};

/// What is said of a type that is no definition.
template <class Definition>
requires(!MixerDefinition<Definition>) class Mixer<Definition> {
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

 public:
  Mixer(auto&&...) {}
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

#include "seqmix/layers/detail/mixer_verbs.hpp"
