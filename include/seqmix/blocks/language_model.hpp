#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/blocks/norm.hpp"
#include "seqmix/blocks/part_states.hpp"
#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/layers/any_mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which tokens of a call get logits: through the head goes nothing else.
class LogitsOf {
 public:
  /// Logits [B, T, V] of a dense batch, [T, V] of segments.
  static LogitsOf all() { return {}; }
  /// Of the last token of each row, [B, 1, V], or of each segment that has tokens, behind each
  /// other.
  static LogitsOf last() { return LogitsOf(Kind::last, {}); }
  /// Of these tokens of the call, [1, n, V] or [n, V]; a dense batch counts those of row 0 first.
  static LogitsOf tokens(View<const Index, 1> tokens) { return LogitsOf(Kind::tokens, tokens); }

 private:
  template <class Scalar>
  friend class LanguageModel;
  enum class Kind { all, last, tokens };

  LogitsOf() = default;
  LogitsOf(Kind kind, View<const Index, 1> tokens) : kind_(kind), tokens_(tokens) {}

  Kind kind_ = Kind::all;
  View<const Index, 1> tokens_;
};

/// A language model: token embedding, blocks behind each other, a norm and a head over the
/// vocabulary.
///
///   h_t = s E[token_t] + P[t],  h = block_l(h) for each block,  z = m (W_head norm(h) + b)
///   logits = z, or c tanh(z / c) with a cap c
///
/// A tied head (E = W_head) is one parameter: it is kept once, packed for the head's product, and
/// the embedding reads its rows. In a narrower storage both are made of the rounded numbers. A
/// table P of positions ends a stream where it ends.
///
/// Its verbs are those of a mixer, from tokens [B, T] to logits [B, T, V], or of the tokens that
/// `of` says. Side values go from the block that gives them to the later ones that take them; a
/// block that takes indices called `token`, [T, 1], gets the tokens. All blocks are checked before
/// one runs: a verb that throws a `seqmix::Error` has changed the state of none.
template <class Scalar>
class LanguageModel {
 public:
  struct Parts {
    Parameter<Scalar, 2> embedding = {};  // [V, D]; tied: empty, or the head's own parameter
    double embedding_scale = 1;
    Parameter<Scalar, 2> positions = {};  // [P, D], or empty: none
    std::vector<AnyMixer<Scalar>> blocks = {};
    Norm<Scalar> norm = {};
    Projection<Scalar> head = {};  // [V, D] and, if it has one, a bias [V]
    double logit_multiplier = 1;
    double logit_cap = 0;  // 0: none
  };
  struct State {
    PartStates blocks;                 // of each block
    std::optional<Position> position;  // of a model with a table of positions

    static void visit(auto& self, auto&& member) {
      PartStates::visit(self.blocks, member);
      if (self.position) member("position", *self.position);
    }
    const void* origin() const { return blocks.origin(); }
    StateMembers members() { return StateMembers(*this); }
    ConstStateMembers members() const { return ConstStateMembers(*this); }

    /// The bytes that the tokens so far need.
    Index used_bytes() const { return members().used_bytes(); }
    /// The bytes that are held.
    Index reserved_bytes() const { return members().reserved_bytes(); }
  };

  explicit LanguageModel(Parts parts) : parts_(std::move(parts)) {
    check_range(who, "embedding_scale", parts_.embedding_scale, is_finite);
    check_range(who, "logit_multiplier", parts_.logit_multiplier, is_finite);
    check_range(who, "logit_cap", parts_.logit_cap, is_positive.or_zero());
    const auto expect = [](std::string_view name, const auto& parameter, const auto& shape) {
      if (parameter.shape() == shape) return;
      throw ShapeError(std::string(who) + ": " + std::string(name) + " has shape " +
                       parameter.shape().text() + ", expected " + shape.text());
    };
    if (!parts_.head.weight) throw ShapeError(std::string(who) + ": head.weight is missing");
    if (parts_.embedding) expect("embedding", parts_.embedding, parts_.head.weight.shape());
    if (parts_.head.bias) expect("head.bias", parts_.head.bias, Shape<1>{vocabulary()});
    if (parts_.positions) {
      expect("positions", parts_.positions, Shape<2>{parts_.positions.extent(0), d_model()});
    }
    parts_.norm.check(std::string(who) + ": norm", d_model());
    parts_.norm.settle();
    auto names = std::make_shared<PartNames>();
    for (std::size_t l = 0; l < parts_.blocks.size(); ++l) {
      check_block(parts_.blocks[l], l);
      names->push_back("blocks." + std::to_string(l));
    }
    names_ = std::move(names);
    members_ = make_state(1, 1, Memory::shapes_only()).members().list();
    if (parts_.embedding.identity() == parts_.head.weight.identity()) parts_.embedding = {};
    parts_.head.weight.pack();
  }

  Index vocabulary() const { return parts_.head.weight.shape()[0]; }
  Index d_model() const { return parts_.head.weight.shape()[1]; }
  /// The number of weights, each shared one counted once.
  Index parameters() const {
    WeightCount count;
    count(parts_.embedding.identity(), parts_.embedding.size());
    count(parts_.positions.identity(), parts_.positions.size());
    count(parts_.head.weight.identity(), vocabulary() * d_model());
    count(parts_.head.bias.identity(), parts_.head.bias.size());
    parts_.norm.list_weights(count);
    for (const auto& block : parts_.blocks) block.held().list_weights(count);
    return count.total();
  }
  /// The most tokens that a stream may have.
  PositionLimit position_limit() const {
    PositionLimit limit;
    if (parts_.positions) limit = {parts_.positions.extent(0), "positions"};
    for (const auto& block : parts_.blocks) limit = std::min(limit, block.position_limit());
    return limit;
  }

  State make_state(Index batch, Index capacity) const {
    for (const auto& block : parts_.blocks) {
      if (!block.continues()) throw Error(std::string(block.name()) + " has no state");
    }
    return make_state(batch, capacity, Memory{});
  }

  /// Logits [B, T, V] of whole sequences of tokens [B, T] from the initial state.
  void forward(View<const Index, 2> tokens, View<Scalar, 3> logits, Context& context,
               LogitsOf of = LogitsOf::all()) const {
    const Index B = tokens.extent(0), T = tokens.extent(1);
    check(tokens, logits, of);
    position_limit().check(who, 0, T);
    if (tokens.empty()) return;
    auto scratch = context.scratch<Scalar>();
    auto lists = context.scratch<Segment>();
    const auto h = scratch(B, T, d_model());  // [B, T, D]
    const Call call(context, batch(tokens, lists, Form::parallel));
    run_blocks(tokens, nullptr, h, call,
               [&](std::size_t l, Sides sides) { parts_.blocks[l].forward(h, h, context, sides); });
    write_logits(h, logits, of, call);
  }
  /// Continues `state` by tokens [B, T], by the parallel form.
  void prefill(View<const Index, 2> tokens, State& state, View<Scalar, 3> logits, Context& context,
               LogitsOf of = LogitsOf::all()) const {
    continue_batch(tokens, state, logits, context, Form::parallel, of);
  }
  /// Continues `state` by one token a row, [B], by the recurrent form.
  void step(View<const Index, 1> tokens, State& state, View<Scalar, 2> logits,
            Context& context) const {
    continue_batch(tokens.split(axis::row, tokens.extent(axis::row), 1), state,
                   logits.insert(axis::channel), context, Form::recurrent, LogitsOf::all());
  }
  /// Continues rows of `state` by tokens [T] as `segments` say; see `Mixer::advance`. Logits [T,
  /// V].
  void advance(View<const Index, 1> tokens, Segments segments, State& state, View<Scalar, 2> logits,
               Context& context, LogitsOf of = LogitsOf::all()) const {
    const auto row = tokens.insert(axis::row);
    const auto out = logits.insert(axis::row);
    check(state, segments, tokens.extent(0), context);
    auto scratch = context.scratch<Segment>();
    Segment* const settled = scratch(std::ssize(segments)).data();
    const Call call(context, detail::settle(context, segments, settled));
    const bool last = of.kind_ == LogitsOf::Kind::last;
    check(row, out, of, last ? std::ssize(call.segments()) : tokens.extent(0));
    if (!tokens.empty()) continue_checked(row, state, out, call, of);
  }

 private:
  using Sides = typename AnyMixer<Scalar>::Sides;

  static constexpr std::string_view who = "language model", token_side = "token";
  static bool is_token(const SideDescription& side) {
    return side.kind == SideKind::indices && side.name == token_side;
  }

  /// Block `l` has the model's width and gets what it takes.
  void check_block(const AnyMixer<Scalar>& block, std::size_t l) {
    const std::string model(who), name(block.name());
    for (const Index width : {block.d_in(), block.d_out()}) {
      if (width == d_model()) continue;
      throw ShapeError(model + ": " + name + ", block " + std::to_string(l) + ", has d_model " +
                       std::to_string(width) + ", expected " + std::to_string(d_model()));
    }
    if (block.d_source() > 0) {
      throw ConfigError(model + ": " + name + ", block " + std::to_string(l) +
                        ", reads a source, which no token gives");
    }
    for (SideDescription& side : block.sides()) {
      if (is_token(side)) {
        if (side.width == 1 && side.bound >= vocabulary()) continue;
        throw ConfigError(model + ": " + name + " takes token of width " +
                          std::to_string(side.width) + " below " + std::to_string(side.bound) +
                          ", expected width 1 below " + std::to_string(vocabulary()));
      }
      const auto given = std::ranges::find(sides_, side.name, &SideDescription::name);
      if (given == sides_.end() && side.role == SideRole::output) {
        sides_.push_back(std::move(side));
      } else if (given == sides_.end() || given->width != side.width || given->kind != side.kind) {
        throw ConfigError(model + ": " + name + " takes " + side.name + " of width " +
                          std::to_string(side.width) + ", which no block before it gives");
      }
    }
  }
  State make_state(Index batch, Index capacity, Memory memory) const {
    State state{PartStates(names_, memory), std::nullopt};
    for (const auto& block : parts_.blocks) {
      state.blocks.add(block.held().make_state(batch, capacity, memory));
    }
    if (parts_.positions) state.position = Position(batch, memory);
    return state;
  }

  /// The segments of a dense batch.
  static Segments batch(View<const Index, 2> tokens, Context::Scratch<Segment>& scratch,
                        Form form) {
    const Index B = tokens.extent(0), T = tokens.extent(1);
    Segment* const segments = scratch(B).data();
    for (Index b = 0; b < B; ++b) segments[b] = {b, b * T, T, form};
    return {segments, static_cast<std::size_t>(B)};
  }
  void continue_batch(View<const Index, 2> tokens, State& state, View<Scalar, 3> logits,
                      Context& context, Form form, LogitsOf of) const {
    check(tokens, logits, of);
    auto scratch = context.scratch<Segment>();
    const Segments all =
        batch(tokens, scratch, detail::settled_form(context, form, tokens.extent(1)));
    check(state, all, tokens.size(), context);
    if (tokens.empty()) return;
    const Call call(context, all);
    continue_checked(tokens, state, logits,
                     form == Form::recurrent ? call.with(Precision::fp32) : call, of);
  }
  void continue_checked(View<const Index, 2> tokens, State& state, View<Scalar, 3> logits,
                        const Call& call, LogitsOf of) const {
    auto scratch = call.scratch<Scalar>();
    const auto h = scratch(tokens.extent(0), tokens.extent(1), d_model());  // [B, T, D]
    run_blocks(tokens, &state, h, call, [&](std::size_t l, Sides sides) {
      const auto flat = h.merge(axis::row);
      parts_.blocks[l].run(flat, state.blocks[l], flat, call, sides);
    });
    write_logits(h, logits, of, call);
  }

  /// Writes what comes out of the last block to h [B, T, D]. `state`: null where rows begin.
  void run_blocks(View<const Index, 2> tokens, State* state, View<Scalar, 3> h, const Call& call,
                  auto&& run_block) const {
    const Index B = tokens.extent(0), T = tokens.extent(1);
    auto scratch = call.scratch<Scalar>();
    for (Index b = 0; b < B; ++b) {
      for (Index t = 0; t < T; ++t) embed(tokens(b, t), h[b][t]);
    }
    if (parts_.embedding_scale != 1) scale(h, parts_.embedding_scale, call);
    if (parts_.positions) add_positions(h.merge(axis::row), state, call);
    auto views = call.scratch<NamedView<Scalar>>();
    auto indices = call.scratch<Index>();
    const auto ids = indices(B, T);
    copy(tokens, ids);
    const View<NamedView<Scalar>, 1> sides = views(static_cast<Index>(sides_.size()) + 1);
    for (std::size_t i = 0; i < sides_.size(); ++i) {
      sides.data()[i] = {sides_[i].name, scratch(B * T, sides_[i].width)};
    }
    sides.data()[sides_.size()] = {token_side, View<const Index, 2>(ids.data(), {B * T, 1})};
    for (std::size_t l = 0; l < parts_.blocks.size(); ++l) {
      run_block(l, Sides(sides.data(), sides_.size() + 1));
    }
  }
  /// Writes the unscaled embedding of `token`, [D].
  void embed(Index token, View<Scalar, 1> h) const {
    if (parts_.embedding) {
      copy(parts_.embedding[token], h);
    } else {
      parts_.head.weight.read_row(token, h);
    }
  }
  /// Adds the table's rows to h [T, D] and moves the positions on.
  void add_positions(View<Scalar, 2> h, State* state, const Call& call) const {
    for (const Segment& segment : call.segments()) {
      const auto of_segment = h.slice(axis::time, segment.first, segment.count);
      const Index first = state == nullptr ? 0 : (*state->position)[segment.row];
      elementwise(call, std::plus<>(), of_segment, of_segment,
                  parts_.positions.view().template slice<0>(first, segment.count));
      if (state != nullptr) (*state->position)[segment.row] += segment.count;
    }
  }
  static void scale(View<Scalar, 3> numbers, double by, const Call& call) {
    const auto multiplier = static_cast<Scalar>(by);
    elementwise(
        call, [multiplier](auto v) { return v * multiplier; }, numbers, numbers);
  }
  /// The logits of the tokens that `of` says, of h [B, T, D], which is gone afterwards.
  void write_logits(View<Scalar, 3> h, View<Scalar, 3> logits, LogitsOf of,
                    const Call& call) const {
    auto scratch = call.scratch<Scalar>();
    if (of.kind_ != LogitsOf::Kind::all) {
      const auto chosen = scratch(logits.extent(0), logits.extent(1), d_model());
      const auto to = chosen.merge(axis::row);
      const auto from = h.merge(axis::row);
      Index n = 0;
      for (const Segment& segment : call.segments()) {
        if (of.kind_ != LogitsOf::Kind::last) break;
        copy(from[segment.first + segment.count - 1], to[n++]);
      }
      for (Index i = 0; i < of.tokens_.extent(0); ++i) copy(from[of.tokens_[i]], to[n++]);
      h = chosen;
    }
    if (logits.empty()) return;
    if (parts_.norm) parts_.norm.template apply<3>(h, h, call);
    if (logits.mergeable(axis::row)) {
      project(h.merge(axis::row), {{parts_.head, logits.merge(axis::row)}}, call);
    } else {
      for (Index b = 0; b < h.extent(0); ++b) project(h[b], {{parts_.head, logits[b]}}, call);
    }
    if (parts_.logit_multiplier != 1) scale(logits, parts_.logit_multiplier, call);
    if (parts_.logit_cap > 0) soft_cap(logits, parts_.logit_cap, call);
  }

  void check(View<const Index, 2> tokens, View<Scalar, 3> logits, LogitsOf of) const {
    check(
        tokens, logits, of,
        of.kind_ == LogitsOf::Kind::last ? std::min<Index>(tokens.extent(1), 1) : tokens.extent(1));
  }
  void check(View<const Index, 2> tokens, View<Scalar, 3> logits, LogitsOf of, Index ends) const {
    const Index B = tokens.extent(0), T = tokens.extent(1);
    const bool listed = of.kind_ == LogitsOf::Kind::tokens;
    const Shape<3> shape =
        listed ? Shape<3>{1, of.tokens_.extent(0), vocabulary()} : Shape<3>{B, ends, vocabulary()};
    if (logits.shape() != shape) {
      throw ShapeError(std::string(who) + ": logits have shape " + logits.shape().text() +
                       ", expected " + shape.text());
    }
    if (logits.extent(2) > 1 && logits.stride(2) != 1) {
      throw ShapeError(std::string(who) + ": the last dimension of logits has stride " +
                       std::to_string(logits.stride(2)) + ", expected 1");
    }
    detail::check_output(who, "logits", logits.shape(), logits.strides());
    for (Index i = 0; i < of.tokens_.extent(0); ++i) {
      if (of.tokens_[i] >= 0 && of.tokens_[i] < B * T) continue;
      throw ShapeError(std::string(who) + ": logits are asked of token " +
                       std::to_string(of.tokens_[i]) + " of " + std::to_string(B * T));
    }
    for (Index b = 0; b < B; ++b) {
      for (Index t = 0; t < T; ++t) {
        if (tokens(b, t) >= 0 && tokens(b, t) < vocabulary()) continue;
        throw ShapeError(std::string(who) + ": token " + std::to_string(tokens(b, t)) +
                         " is not in the vocabulary of " + std::to_string(vocabulary()));
      }
    }
  }
  void check(const State& state, Segments segments, Index tokens, Context& context) const {
    if (state.blocks.size() != parts_.blocks.size()) {
      throw ShapeError(std::string(who) + ": the state has " + std::to_string(state.blocks.size()) +
                       " blocks, expected " + std::to_string(parts_.blocks.size()));
    }
    const ConstStateMembers members(state);
    const Index rows = members.batch();
    auto scratch = context.scratch<Index>();
    const View<Index, 1> coming = scratch(rows);
    detail::check_segments(who, "tokens", segments, tokens, !members_.empty(), coming);
    const detail::StateCheck check(who, members);
    check.check_members(rows, names_.get(), members_);
    check.check_tokens(rows, position_limit(), [&](Index row) { return coming[row]; });
  }

  Parts parts_;
  std::vector<SideDescription> sides_;  // that some block gives
  std::shared_ptr<const PartNames> names_;
  std::vector<NamedStateMember> members_;  // of each state, as shapes alone
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
