#pragma once

#include <algorithm>
#include <concepts>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/context.hpp"
#include "seqmix/layers/checks.hpp"
#include "seqmix/layers/state.hpp"
#include "seqmix/layers/weights.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Who writes a side value.
enum class SideRole { input, output };

/// What a layer needs or gives at each token beside x and y (RWKV-7's value residual): a definition
/// that has some declares
///
///   struct Side {
///     View<Scalar, 3> value_first;  // [B, T, D]
///     static void visit(auto& self, const Config& c, auto&& side) {
///       side("value_first", self.value_first, c.d_model, SideRole::input);
///     }
///   };
///
/// and takes it in `run(x, state, side, y, context)`. All others have none.
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
/// no state and `forward` alone: its definition has `run(x, y, context)`.
template <class Definition>
concept Continues = requires {
  typename Definition::State;
};

/// Whether the layer reads a second sequence that stands before the first token: its definition
/// makes the state from `source` [B, S, config.d_source].
template <class Definition>
concept ReadsSource = requires(const Definition& definition,
                               View<const typename Definition::Scalar, 3> source,
                               Context& context) {
  { definition.make_state(source, Memory{}, context) } -> std::same_as<typename Definition::State>;
};

/// What makes a layer this layer: numbers that fix its shape and maths, weights, what the rows of a
/// batch remember, and `run`, which continues `state` by the tokens of x [B, T, D] and writes y.
template <class Definition>
concept MixerDefinition = requires(const Definition& definition,
                                   const typename Definition::Config& config) {
  { Definition::name } -> std::convertible_to<std::string_view>;
  { config.d_model } -> std::convertible_to<Index>;
  { definition.c } -> std::convertible_to<const typename Definition::Config&>;
  { definition.w } -> std::convertible_to<const typename Definition::Weights&>;
};

/// Long sequences run in blocks of time, so that scratch does not grow with T and activations stay
/// in cache. A block has about `time_block_rows` rows over the whole batch and is a multiple of
/// `time_block_multiple` tokens, hence of every chunk length, so that the cut changes no bit. A
/// definition whose products see a part of the rows each says `block_rows()`.
inline constexpr Index time_block_rows = 256;
inline constexpr Index time_block_multiple = 64;

/// Whether one call over all of T is faster than blocks (an FFT over time): preference, not
/// meaning.
template <class Definition>
inline constexpr bool prefers_whole_sequence = [] {
  if constexpr (requires { Definition::whole_sequence; }) {
    return Definition::whole_sequence;
  } else {
    return false;
  }
}();

/// The rows that a block of time of this definition should have.
template <class Definition>
Index block_rows(const Definition& definition) {
  if constexpr (requires { definition.block_rows(); }) return definition.block_rows();
  return time_block_rows;
}

/// The most tokens that a stream of this definition may have. One that counts positions to an end
/// says `position_limit()` and has a `Position` in its state, if it has one.
template <class Definition>
PositionLimit position_limit(const Definition& definition) {
  if constexpr (requires { definition.position_limit(); }) return definition.position_limit();
  return {};
}

/// Sets what a row of zeros starts at where that is something else: a definition that has such says
/// `start_row(state, row)`.
template <class Definition, class State>
void start_row(const Definition& definition, State& state, Index row) {
  if constexpr (requires { definition.start_row(state, row); }) definition.start_row(state, row);
}

/// A layer: immutable after construction, so that many streams and threads share one.
///
/// The three verbs agree: for any split of a sequence into prefill pieces and steps, outputs and
/// final state are those of one `forward`. x and y are the same view or disjoint, no number of y
/// belongs to two tokens, and their last dimension is contiguous. `side` holds the side values of a
/// layer that declares some, [B, T, width] each, disjoint from y and, where the layer writes them,
/// from x; all others have none.
///
/// A verb that throws a `seqmix::Error` has written nothing: it checks first. After any other
/// exception (no memory, an executor's own) the state is valid and its numbers are unspecified:
/// `reset` and assigning a copy make it good again.
template <MixerDefinition Definition>
class Mixer {
 public:
  using Scalar = typename Definition::Scalar;
  using Config = typename Definition::Config;
  using Weights = typename Definition::Weights;
  using State = typename detail::StateOf<Definition>::type;
  using Side = typename detail::SideOf<Definition>::type;
  static constexpr std::string_view name = Definition::name;
  static constexpr bool continues = Continues<Definition>;
  static constexpr bool reads_source = ReadsSource<Definition>;

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
  Index d_model() const { return definition_.c.d_model; }

  /// The state before the first token. `capacity`: the tokens that its caches have room for; layers
  /// without a cache ignore it.
  State make_state(Index batch, Index capacity = 0) const requires(continues && !reads_source) {
    if (batch < 0 || capacity < 0) {
      throw ShapeError(std::string(name) + ": make_state(" + std::to_string(batch) + ", " +
                       std::to_string(capacity) + "), expected sizes of at least 0");
    }
    return start(batch, capacity, Memory{});
  }
  /// The state before the first token of rows that read `source` [B, S, d_source].
  State make_state(View<const Scalar, 3> source, Context& context) const requires reads_source {
    check_source(source);
    return definition_.make_state(source, Memory{}.with_caches(options_.caches), context);
  }

  /// y [B, T, D] of a whole sequence x [B, T, D] from the initial state, by the parallel form.
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
               const Side& side = {}) const requires(!reads_source) {
    check_views(x, y, side);
    position_limit(definition_).check(name, 0, x.extent(1));
    if (x.empty()) return;
    if constexpr (continues) {
      auto scope = context.scratch<Scalar>();
      State state = start(x.extent(0), x.extent(1), Memory(context.arena()));
      run_blocks(x, state, y, context, side);
    } else {
      definition_.run(x, y, context);
    }
  }
  /// The same of a layer that reads `source` [B, S, d_source].
  void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
               Context& context, const Side& side = {}) const requires reads_source {
    check_views(x, y, side);
    check_source(source);
    if (source.extent(0) != x.extent(0)) {
      throw ShapeError(std::string(name) + ": source has shape " + source.shape().text() +
                       ", expected " + std::to_string(x.extent(0)) + " rows as x has");
    }
    if (x.empty()) return;
    auto scope = context.scratch<Scalar>();
    State state = definition_.make_state(
        source, Memory(context.arena()).with_caches(options_.caches), context);
    run_blocks(x, state, y, context, side);
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
    if constexpr (continues) {
      auto scope = context.scratch<Scalar>();
      State state = start(documents, longest, Memory(context.arena()));
      run_documents(x, cu_seqlens, state, y, context, side);
    } else {
      for (Index i = 0; i < documents; ++i) {
        const Index first = cu_seqlens[i], count = cu_seqlens[i + 1] - first;
        if (count == 0) continue;
        definition_.run(x.template slice<0>(first, count).template insert<0>(),
                        y.template slice<0>(first, count).template insert<0>(), context);
      }
    }
  }

  /// Continues `state` by the tokens x [B, T, D], by the parallel form.
  void prefill(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context,
               const Side& side = {}) const requires continues {
    check_views(x, y, side);
    check_state(state, x.extent(0), [&](Index) { return x.extent(1); });
    if (x.empty()) return;
    run_blocks(x, state, y, context, side);
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
  /// precision of the context. Once the context has grown, nothing is allocated and, with a serial
  /// context, nothing is locked.
  void step(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, Context& context,
            const Side& side = {}) const requires continues {
    const auto token = x.template insert<1>();
    const auto out = y.template insert<1>();
    check_views(token, out, side);
    check_state(state, token.extent(0), [](Index) { return Index{1}; });
    if (token.empty()) return;
    const Context::PrecisionScope exact(context, Precision::fp32);
    run<Form::recurrent>(token, state, out, context, side);
  }

  /// Makes the next `step` of `batch` rows free of allocation, the first one too.
  void reserve(Context& context, Index batch) const requires continues {
    State state = [&] {
      if constexpr (reads_source) {
        return make_state(Tensor<Scalar, 3>({batch, 1, definition_.c.d_source}), context);
      } else {
        return make_state(batch, 1);
      }
    }();
    Tensor<Scalar, 2> x({batch, d_model()});
    std::vector<Tensor<Scalar, 3>> values;
    Side side;
    Side::visit(side, definition_.c,
                [&](std::string_view, View<Scalar, 3>& view, Index width, SideRole) {
                  view = values.emplace_back(Shape<3>{batch, 1, width});
                });
    step(x, state, x, context, side);
  }

  /// Throws what continuing `state` by `tokens` tokens of each of `batch` rows would throw.
  void check(const State& state, Index batch, Index tokens) const requires continues {
    check_state(state, batch, [&](Index) { return tokens; });
  }

  /// Sets batch row `row` back to the state before its first token. Allocates nothing.
  void reset(State& state, Index row) const requires(continues && !reads_source) {
    const StateMembers members(state);
    check_members(state, members.batch());
    members.clear_row(row);
    start_row(definition_, state, row);
  }

  /// Gives the caches of `state` room for `capacity` tokens; what they hold is kept.
  void reserve(State& state, Index capacity) const requires(continues && !reads_source) {
    const ConstStateMembers members(state);
    State larger = make_state(members.batch(), capacity);
    const StateMembers larger_members(larger);
    for (Index row = 0; row < members.batch(); ++row) larger_members.copy_row(members, row, row);
    state = std::move(larger);
  }

 private:
  /// The state before the first token, in any memory.
  State start(Index batch, Index capacity, Memory memory) const {
    State state = definition_.make_state(batch, capacity, memory.with_caches(options_.caches));
    for (Index row = 0; row < batch; ++row) start_row(definition_, state, row);
    return state;
  }

  static Definition define(Config config, Weights weights, Options options) {
    check_config(name, config);
    Weights::visit(weights, std::as_const(config),
                   [&]<class P>(const Name& parameter_name, P& parameter, Shape<P::rank> expected,
                                auto... tags) {
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

  /// Calls `body(first, count)` for each block of time of `tokens` tokens of `batch` rows.
  void for_each_block(Index batch, Index tokens, auto&& body) const {
    Index block = round_up(ceil_div(block_rows(definition_), batch), time_block_multiple);
    if constexpr (prefers_whole_sequence<Definition>) block = tokens;
    for (Index first = 0; first < tokens; first += block) {
      body(first, std::min(block, tokens - first));
    }
  }
  void run_blocks(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context,
                  const Side& side) const {
    for_each_block(x.extent(0), x.extent(1), [&](Index first, Index count) {
      run<Form::parallel>(x.template slice<1>(first, count), state,
                          y.template slice<1>(first, count), context, slice_of(side, first, count));
    });
  }
  void run_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, State& state,
                     View<Scalar, 2> y, Context& context, const Side& side) const {
    auto scratch = context.scratch<Piece>();
    const View<Piece, 1> pieces = scratch(cu_seqlens.extent(0) - 1);
    for_each_block(1, x.extent(0), [&](Index first, Index count) {
      std::size_t n = 0;
      for (Index row = 0; row + 1 < cu_seqlens.extent(0); ++row) {
        const Index begin = std::max(first, cu_seqlens[row]);
        const Index end = std::min(first + count, cu_seqlens[row + 1]);
        if (begin < end) pieces.data()[n++] = {row, begin - first, end - begin};
      }
      const Context::PackedScope packed(context, {pieces.data(), n});
      run<Form::parallel>(x.template slice<0>(first, count).template insert<0>(), state,
                          y.template slice<0>(first, count).template insert<0>(), context,
                          slice_of(side, first, count));
    });
  }
  Side slice_of(Side side, Index first, Index count) const {
    Side::visit(side, definition_.c, [&](std::string_view, View<Scalar, 3>& view, Index, SideRole) {
      view = view.template slice<1>(first, count);
    });
    return side;
  }

  template <Form form>
  void run(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context,
           const Side& side) const {
    if constexpr (std::same_as<Side, NoSide>) {
      definition_.template run<form>(x, state, y, context);
    } else {
      definition_.template run<form>(x, state, side, y, context);
    }
    State::visit(state, [&]<class Member>(const Name&, Member& member) {
      if constexpr (std::same_as<Member, Position>) {
        if (context.packed()) {
          for (const Piece& piece : context.pieces()) member[piece.row] += piece.count;
        } else {
          for (Index row = 0; row < x.extent(0); ++row) member[row] += x.extent(1);
        }
      }
    });
  }

  void check_views(const View<const Scalar, 3>& x, const View<Scalar, 3>& y,
                   const Side& side) const {
    detail::check_view(name, "x", x.shape(), x.strides(), d_model());
    detail::check_view(name, "y", y.shape(), y.strides(), d_model());
    if (x.shape() != y.shape()) {
      throw ShapeError(std::string(name) + ": y has shape " + y.shape().text() +
                       ", expected that of x, " + x.shape().text());
    }
    if (!(x == View<const Scalar, 3>(y)) && !disjoint(x, y)) {
      throw ShapeError(std::string(name) + ": x and y overlap; they must be one view or disjoint");
    }
    detail::check_output(name, "y", y.shape(), y.strides());
    Side::visit(
        side, definition_.c,
        [&](std::string_view which, const View<Scalar, 3>& view, Index width, SideRole role) {
          detail::check_side(name, which, view.shape(), view.strides(),
                             {x.extent(0), x.extent(1), width});
          if (role == SideRole::output) {
            detail::check_output(name, which, view.shape(), view.strides());
          }
          if (disjoint(view, y) && (role == SideRole::input || disjoint(view, x))) return;
          throw ShapeError(std::string(name) + ": side value " + std::string(which) +
                           " overlaps x or y; it must be disjoint from what is written");
        });
  }
  void check_source(const View<const Scalar, 3>& source) const requires reads_source {
    detail::check_view(name, "source", source.shape(), source.strides(), definition_.c.d_source);
  }
  /// Returns the number of documents.
  Index check_documents(const View<const Scalar, 2>& x, const View<const Index, 1>& cu_seqlens,
                        const View<Scalar, 2>& y, const Side& side) const {
    check_views(x.template insert<0>(), y.template insert<0>(), side);
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
    });
    check.check_end();
    return check;
  }

  static constexpr Index any_extent = detail::StateCheck::any_extent;
  std::vector<Index> list_expected_extents() const {
    std::vector<Index> extents;
    if constexpr (reads_source) {
      // What the length of the source decides may be anything.
      extents = extents_with_source(1);
      const std::vector<Index> longer = extents_with_source(2);
      for (std::size_t i = 0; i < extents.size(); ++i) {
        if (extents[i] != longer[i]) extents[i] = any_extent;
      }
    } else if constexpr (continues) {
      extents = extents_of(
          definition_.make_state(1, 1, Memory::shapes_only().with_caches(options_.caches)));
    }
    return extents;
  }
  std::vector<Index> extents_with_source(Index length) const {
    Context context;
    return extents_of(definition_.make_state(Tensor<Scalar, 3>({1, length, definition_.c.d_source}),
                                             Memory{}.with_caches(options_.caches), context));
  }
  static std::vector<Index> extents_of(const State& fresh) {
    std::vector<Index> extents;
    State::visit(fresh, [&]<class Member>(const Name&, const Member& member) {
      const auto& shape = state_tensor(member).shape().extents;
      extents.insert(extents.end(), shape.begin(), shape.end());
      if constexpr (requires { Member::axis; }) {
        extents[extents.size() - shape.size() + static_cast<std::size_t>(Member::axis)] =
            any_extent;
      }
      if constexpr (requires { state_tensor(member).storage(); }) {
        extents.push_back(static_cast<Index>(state_tensor(member).storage()));
      }
      if constexpr (requires { member.reached; }) {
        extents.push_back(1), extents.push_back(member.window);
      }
    });
    return extents;
  }

  Options options_;
  Definition definition_;
  // Of every state member in the order of `visit`, of a cache with its storage behind them, of a
  // ring with the extent of its marks and its window, too.
  std::vector<Index> expected_extents_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
