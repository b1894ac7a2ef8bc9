#pragma once

#include <algorithm>
#include <concepts>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/context.hpp"
#include "seqmix/layers/state.hpp"
#include "seqmix/layers/weights.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// What makes a layer this layer: numbers that fix its shape and maths, weights, what the rows of a
/// batch remember, and `run`, which continues `state` by the tokens of x [B, T, D] and writes y.
template <class Definition>
concept MixerDefinition = requires(const Definition& definition,
                                   const typename Definition::Config& config,
                                   typename Definition::State& state,
                                   View<const typename Definition::Scalar, 3> x,
                                   View<typename Definition::Scalar, 3> y, Context& context) {
  { Definition::name } -> std::convertible_to<std::string_view>;
  { config.d_model } -> std::convertible_to<Index>;
  { definition.c } -> std::convertible_to<const typename Definition::Config&>;
  { definition.w } -> std::convertible_to<const typename Definition::Weights&>;
  { definition.make_state(Index{}, Index{}, Memory{}) } -> std::same_as<typename Definition::State>;
  definition.template run<Form::parallel>(x, state, y, context);
  definition.template run<Form::recurrent>(x, state, y, context);
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

/// A layer: immutable after construction, so that many streams and threads share one.
///
/// The three verbs agree: for any split of a sequence into prefill pieces and steps, outputs and
/// final state are those of one `forward`. Each checks shapes first and throws before anything is
/// written. x and y are the same view or disjoint; their last dimension is contiguous.
template <MixerDefinition Definition>
class Mixer {
 public:
  using Scalar = typename Definition::Scalar;
  using Config = typename Definition::Config;
  using Weights = typename Definition::Weights;
  using State = typename Definition::State;
  static constexpr std::string_view name = Definition::name;

  /// Throws `ConfigError` on a config that no layer can have and `ShapeError` on a weight whose
  /// shape does not fit it. Projection weights are packed; the caller's handles stay as they are.
  Mixer(Config config, Weights weights)
      : definition_(define(std::move(config), std::move(weights))),
        expected_extents_(list_expected_extents()) {}

  const Config& config() const { return definition_.c; }
  const Weights& weights() const { return definition_.w; }
  const Definition& definition() const { return definition_; }
  Index d_model() const { return definition_.c.d_model; }

  /// The state before the first token. `capacity`: the tokens that its caches have room for; layers
  /// without a cache ignore it.
  State make_state(Index batch, Index capacity = 0) const {
    if (batch < 0 || capacity < 0) {
      throw ShapeError(std::string(name) + ": make_state(" + std::to_string(batch) + ", " +
                       std::to_string(capacity) + "), expected sizes of at least 0");
    }
    return definition_.make_state(batch, capacity, {});
  }

  /// y [B, T, D] of a whole sequence x [B, T, D] from the initial state, by the parallel form.
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context) const {
    check_views(x, y);
    if (x.empty()) return;
    auto scope = context.scratch<Scalar>();
    State state = definition_.make_state(x.extent(0), x.extent(1), Memory(context.arena()));
    run_blocks(x, state, y, context);
  }

  /// Continues `state` by the tokens x [B, T, D], by the parallel form.
  void prefill(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context) const {
    check_views(x, y);
    check_state(state, x.extent(0), x.extent(1));
    if (x.empty()) return;
    run_blocks(x, state, y, context);
  }

  /// Continues `state` by one token a row, x [B, D], by the recurrent form. Once the context has
  /// grown, nothing is allocated and, with a serial context, nothing is locked.
  void step(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, Context& context) const {
    const auto token = x.template insert<1>();
    const auto out = y.template insert<1>();
    check_views(token, out);
    check_state(state, token.extent(0), 1);
    if (token.empty()) return;
    run<Form::recurrent>(token, state, out, context);
  }

  /// Makes the next `step` of `batch` rows free of allocation, the first one too.
  void reserve(Context& context, Index batch) const {
    State state = make_state(batch, 1);
    Tensor<Scalar, 2> x({batch, d_model()});
    step(x, state, x, context);
  }

  /// Sets batch row `row` back to the state before its first token.
  void reset(State& state, Index row) const {
    State fresh = make_state(1, 0);
    StateMembers(state).copy_row(StateMembers(fresh), 0, row);
  }

  /// Gives the caches of `state` room for `capacity` tokens; what they hold is kept.
  void reserve(State& state, Index capacity) const {
    const StateMembers members(state);
    State larger = make_state(members.batch(), capacity);
    const StateMembers larger_members(larger);
    for (Index row = 0; row < members.batch(); ++row) larger_members.copy_row(members, row, row);
    state = std::move(larger);
  }

 private:
  static Definition define(Config config, Weights weights) {
    check_config(name, config);
    Weights::visit(weights, std::as_const(config),
                   [&]<class P>(const Name& parameter_name, P& parameter, Shape<P::rank> expected) {
                     if (parameter.shape() != expected) {
                       throw ShapeError(std::string(name) + ": weight " + parameter_name.text() +
                                        " has shape " + parameter.shape().text() + ", expected " +
                                        expected.text());
                     }
                     if constexpr (requires { parameter.pack(); }) parameter.pack();
                   });
    return Definition{std::move(config), std::move(weights)};
  }

  Index block_length(Index batch) const {
    return round_up(ceil_div(block_rows(definition_), batch), time_block_multiple);
  }

  void run_blocks(View<const Scalar, 3> x, State& state, View<Scalar, 3> y,
                  Context& context) const {
    Index block = block_length(x.extent(0));
    if constexpr (prefers_whole_sequence<Definition>) block = x.extent(1);
    for (Index first = 0; first < x.extent(1); first += block) {
      const Index count = std::min(block, x.extent(1) - first);
      run<Form::parallel>(x.template slice<1>(first, count), state,
                          y.template slice<1>(first, count), context);
    }
  }

  template <Form form>
  void run(View<const Scalar, 3> x, State& state, View<Scalar, 3> y, Context& context) const {
    definition_.template run<form>(x, state, y, context);
    State::visit(state, [&]<class Member>(const Name&, Member& member) {
      if constexpr (std::same_as<Member, Position>) {
        for (Index row = 0; row < x.extent(0); ++row) member[row] += x.extent(1);
      }
    });
  }

  void check_views(const View<const Scalar, 3>& x, const View<Scalar, 3>& y) const {
    check_view("x", x.shape(), x.strides());
    check_view("y", y.shape(), y.strides());
    if (x.shape() != y.shape()) {
      throw ShapeError(std::string(name) + ": y has shape " + y.shape().text() +
                       ", expected that of x, " + x.shape().text());
    }
    if (!(x == View<const Scalar, 3>(y)) && !disjoint(x, y)) {
      throw ShapeError(std::string(name) + ": x and y overlap; they must be one view or disjoint");
    }
  }
  void check_view(std::string_view which, const Shape<3>& shape, const Shape<3>& strides) const {
    if (shape[0] < 0 || shape[1] < 0 || shape[2] != d_model()) {
      throw ShapeError(std::string(name) + ": " + std::string(which) + " has shape " +
                       shape.text() + ", expected [B, T, " + std::to_string(d_model()) + "]");
    }
    if (shape[2] > 1 && strides[2] != 1) {
      throw ShapeError(std::string(name) + ": the last dimension of " + std::string(which) +
                       " has stride " + std::to_string(strides[2]) + ", expected 1");
    }
  }
  /// Compares without allocating: the state of another config, batch or a full cache never runs.
  void check_state(State& state, Index batch, Index tokens) const {
    Index longest = 0;
    State::visit(state, [&]<class Member>(const Name&, Member& member) {
      if constexpr (std::same_as<Member, Position>) {
        for (Index row = 0; row < member.tokens.extent(0); ++row) {
          longest = std::max(longest, member[row]);
        }
      }
    });
    auto expected = expected_extents_.begin();
    State::visit(state, [&]<class Member>(const Name& member_name, Member& member) {
      const auto& shape = state_tensor(member).shape();
      for (std::size_t axis = 0; axis < shape.extents.size(); ++axis, ++expected) {
        const Index wanted = axis == 0 ? batch : *expected;
        if (wanted == any_extent || shape.extents[axis] == wanted) continue;
        throw ShapeError(std::string(name) + ": state " + member_name.text() + " has shape " +
                         shape.text() + ", expected " + std::to_string(wanted) + " on axis " +
                         std::to_string(axis));
      }
      if constexpr (requires { Member::axis; }) {
        if (longest + tokens > member.capacity()) {
          throw CapacityError(std::string(name) + ": state " + member_name.text() + " holds " +
                              std::to_string(longest) + " tokens, " + std::to_string(tokens) +
                              " more do not fit in its capacity of " +
                              std::to_string(member.capacity()) + "; reserve more");
        }
      }
    });
  }

  static constexpr Index any_extent = -1;
  std::vector<Index> list_expected_extents() const {
    std::vector<Index> extents;
    State fresh = definition_.make_state(1, 1, {});
    State::visit(fresh, [&]<class Member>(const Name&, Member& member) {
      const auto& shape = state_tensor(member).shape().extents;
      extents.insert(extents.end(), shape.begin(), shape.end());
      if constexpr (requires { Member::axis; }) {
        extents[extents.size() - shape.size() + static_cast<std::size_t>(Member::axis)] =
            any_extent;
      }
    });
    return extents;
  }

  Definition definition_;
  std::vector<Index> expected_extents_;  // of every state member, in the order of `visit`
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
