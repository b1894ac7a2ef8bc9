#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/kernels/pointwise/activation.hpp"
#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/any_mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A language model: token embedding, a stack of blocks, a norm and a head over the vocabulary.
///
///   h = s E[token],  h = block_l(h) for each block,  z = W_head rms_norm(h)
///   logits = z, or c tanh(z / c) with a cap c
///
/// A tied head (E = W_head) is one parameter: it is kept once, packed for the head's product, and
/// the embedding reads its rows. In a narrower storage both are made of the rounded numbers.
///
/// Its verbs are those of a mixer, from tokens [B, T] to logits [B, T, V]. Side values go from the
/// block that gives them to the later ones that take them; a block that takes indices called
/// `token`, [T, 1], gets the tokens. All blocks are checked before one runs: a verb that throws a
/// `seqmix::Error` has changed the state of none.
template <class Scalar>
class LanguageModel {
 public:
  struct Parts {
    Parameter<Scalar, 2> embedding;  // [V, D]; tied: empty, or the head's own parameter
    double embedding_scale = 1;
    std::vector<AnyMixer<Scalar>> blocks;
    Parameter<Scalar, 1> norm;  // [D]
    double norm_eps = 1e-6;
    Projection<Scalar> head;  // [V, D]
    double logit_cap = 0;     // 0: none
  };
  struct State {
    std::vector<AnyState> blocks;

    /// The bytes that the tokens so far need.
    Index used_bytes() const {
      Index bytes = 0;
      for (const AnyState& block : blocks) bytes += block.members().used_bytes();
      return bytes;
    }
    /// The bytes that are held.
    Index reserved_bytes() const {
      Index bytes = 0;
      for (const AnyState& block : blocks) bytes += block.members().reserved_bytes();
      return bytes;
    }
  };

  explicit LanguageModel(Parts parts) : parts_(std::move(parts)) {
    check_range("language model", "embedding_scale", parts_.embedding_scale, is_finite);
    check_range("language model", "norm_eps", parts_.norm_eps, at_least(0));
    check_range("language model", "logit_cap", parts_.logit_cap, is_positive.or_zero());
    const auto expect = [](std::string_view name, const auto& parameter, const auto& shape) {
      if (parameter.shape() == shape) return;
      throw ShapeError("language model: " + std::string(name) + " has shape " +
                       parameter.shape().text() + ", expected " + shape.text());
    };
    if (!parts_.head.weight) throw ShapeError("language model: head.weight is missing");
    if (parts_.embedding) expect("embedding", parts_.embedding, parts_.head.weight.shape());
    if (parts_.head.bias) expect("head.bias", parts_.head.bias, Shape<1>{vocabulary()});
    expect("norm", parts_.norm, Shape<1>{d_model()});
    for (std::size_t l = 0; l < parts_.blocks.size(); ++l) {
      const auto& block = parts_.blocks[l];
      for (const Index width : {block.d_in(), block.d_out()}) {
        if (width == d_model()) continue;
        throw ShapeError("language model: " + std::string(block.name()) + ", block " +
                         std::to_string(l) + ", has d_model " + std::to_string(width) +
                         ", expected " + std::to_string(d_model()));
      }
      if (block.d_source() > 0) {
        throw ConfigError("language model: " + std::string(block.name()) + ", block " +
                          std::to_string(l) + ", reads a source, which no token gives");
      }
    }
    for (const auto& block : parts_.blocks) {
      for (SideDescription& side : block.sides()) {
        if (is_token(side)) {
          if (side.width != 1 || side.bound < vocabulary()) {
            throw ConfigError("language model: " + std::string(block.name()) +
                              " takes token of width " + std::to_string(side.width) + " below " +
                              std::to_string(side.bound) + ", expected width 1 below " +
                              std::to_string(vocabulary()));
          }
          continue;
        }
        const auto given = std::find_if(sides_.begin(), sides_.end(),
                                        [&](const auto& other) { return other.name == side.name; });
        if (given == sides_.end() && side.role == SideRole::output) {
          sides_.push_back(std::move(side));
        } else if (given == sides_.end() || given->width != side.width ||
                   given->kind != side.kind) {
          throw ConfigError("language model: " + std::string(block.name()) + " takes " + side.name +
                            " of width " + std::to_string(side.width) +
                            ", which no block before it gives");
        }
      }
    }
    if (parts_.embedding.identity() == parts_.head.weight.identity()) parts_.embedding = {};
    parts_.head.weight.pack();
  }

  Index vocabulary() const { return parts_.head.weight.shape()[0]; }
  Index d_model() const { return parts_.head.weight.shape()[1]; }
  /// The number of weights, each shared one counted once.
  Index parameters() const {
    Index count = parts_.embedding.size() + parts_.norm.size() + vocabulary() * d_model() +
                  parts_.head.bias.size();
    std::set<const void*> counted;
    for (const auto& block : parts_.blocks) {
      if (counted.insert(block.identity()).second) count += block.parameters();
    }
    return count;
  }

  State make_state(Index batch, Index capacity) const {
    State state;
    for (const auto& block : parts_.blocks) {
      state.blocks.push_back(block.make_state(batch, capacity));
    }
    return state;
  }

  /// Logits [B, T, V] of whole sequences of tokens [B, T] from the initial state.
  void forward(View<const Index, 2> tokens, View<Scalar, 3> logits, Context& context) const {
    check(tokens, logits);
    if (tokens.empty()) return;
    auto scratch = context.scratch<Scalar>();
    const Index B = tokens.extent(0), T = tokens.extent(1);
    const auto h = scratch(B, T, d_model());  // [B, T, D]
    run_batch(tokens, h, logits, Call(context, {}),
              [&](std::size_t l, Sides sides) { parts_.blocks[l].forward(h, h, context, sides); });
  }
  /// Continues `state` by tokens [B, T], by the parallel form.
  void prefill(View<const Index, 2> tokens, State& state, View<Scalar, 3> logits,
               Context& context) const {
    check(tokens, logits);
    continue_batch(tokens, state, logits, context, Form::parallel);
  }
  /// Continues `state` by one token a row, [B], by the recurrent form.
  void step(View<const Index, 1> tokens, State& state, View<Scalar, 2> logits,
            Context& context) const {
    const auto column = tokens.split(axis::row, tokens.extent(axis::row), 1);
    const auto out = logits.insert(axis::channel);
    check(column, out);
    continue_batch(column, state, out, context, Form::recurrent);
  }
  /// Continues rows of `state` by tokens [T] as `segments` say; see `Mixer::advance`.
  void advance(View<const Index, 1> tokens, Segments segments, State& state, View<Scalar, 2> logits,
               Context& context) const {
    const auto row = tokens.insert(axis::row);
    const auto out = logits.insert(axis::row);
    check(row, out);
    check(state, segments, tokens.extent(0), context);
    if (tokens.empty()) return;
    auto scratch = context.scratch<Segment>();
    Segment* const settled = scratch(std::ssize(segments)).data();
    const Segments kept = detail::settle(context, segments, settled);
    continue_checked(row, state, out, Call(context, kept));
  }

 private:
  using Sides = typename AnyMixer<Scalar>::Sides;

  static constexpr std::string_view token_side = "token";
  static bool is_token(const SideDescription& side) {
    return side.kind == SideKind::indices && side.name == token_side;
  }

  void continue_batch(View<const Index, 2> tokens, State& state, View<Scalar, 3> logits,
                      Context& context, Form form) const {
    const Index B = tokens.extent(0), T = tokens.extent(1);
    auto scratch = context.scratch<Segment>();
    Segment* const segments = scratch(B).data();
    const Form settled = detail::settled_form(context, form, T);
    for (Index b = 0; b < B; ++b) segments[b] = {b, b * T, T, settled};
    const Segments all(segments, static_cast<std::size_t>(B));
    check(state, all, B * T, context);
    if (tokens.empty()) return;
    const Call call(context, all);
    continue_checked(tokens, state, logits,
                     form == Form::recurrent ? call.with(Precision::fp32) : call);
  }
  void continue_checked(View<const Index, 2> tokens, State& state, View<Scalar, 3> logits,
                        const Call& call) const {
    auto scratch = call.scratch<Scalar>();
    const auto h = scratch(tokens.extent(0), tokens.extent(1), d_model());  // [B, T, D]
    run_batch(tokens, h, logits, call, [&](std::size_t l, Sides sides) {
      const auto flat = h.merge(axis::row);
      parts_.blocks[l].run(flat, state.blocks[l], flat, call, sides);
    });
  }
  void run_batch(View<const Index, 2> tokens, View<Scalar, 3> h, View<Scalar, 3> logits,
                 const Call& call, auto&& run_block) const {
    const Index B = tokens.extent(0), T = tokens.extent(1);
    auto scratch = call.scratch<Scalar>();
    for (Index b = 0; b < B; ++b) {
      for (Index t = 0; t < T; ++t) embed(tokens(b, t), h[b][t]);
    }
    if (parts_.embedding_scale != 1) {
      const auto scale = static_cast<Scalar>(parts_.embedding_scale);
      elementwise(
          call, [scale](auto e) { return e * scale; }, h, h);
    }
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
    rms_norm(h, parts_.norm, parts_.norm_eps, h, call);
    if (logits.mergeable(axis::row)) {
      project(h.merge(axis::row), {{parts_.head, logits.merge(axis::row)}}, call);
    } else {
      for (Index b = 0; b < B; ++b) project(h[b], {{parts_.head, logits[b]}}, call);
    }
    if (parts_.logit_cap > 0) soft_cap(logits, parts_.logit_cap, call);
  }
  /// Writes the unscaled embedding of `token`, [D].
  void embed(Index token, View<Scalar, 1> h) const {
    if (parts_.embedding) {
      copy(parts_.embedding[token], h);
    } else {
      parts_.head.weight.read_row(token, h);
    }
  }
  void check(View<const Index, 2> tokens, View<Scalar, 3> logits) const {
    const Index B = tokens.extent(0), T = tokens.extent(1);
    if (logits.shape() != Shape<3>{B, T, vocabulary()}) {
      throw ShapeError("language model: logits have shape " + logits.shape().text() +
                       ", expected " + Shape<3>{B, T, vocabulary()}.text());
    }
    if (logits.extent(2) > 1 && logits.stride(2) != 1) {
      throw ShapeError("language model: the last dimension of logits has stride " +
                       std::to_string(logits.stride(2)) + ", expected 1");
    }
    detail::check_output("language model", "logits", logits.shape(), logits.strides());
    for (Index b = 0; b < B; ++b) {
      for (Index t = 0; t < T; ++t) {
        if (tokens(b, t) >= 0 && tokens(b, t) < vocabulary()) continue;
        throw ShapeError("language model: token " + std::to_string(tokens(b, t)) +
                         " is not in the vocabulary of " + std::to_string(vocabulary()));
      }
    }
  }
  void check(const State& state, Segments segments, Index tokens, Context& context) const {
    if (state.blocks.size() != parts_.blocks.size()) {
      throw ShapeError("language model: the state has " + std::to_string(state.blocks.size()) +
                       " blocks, expected " + std::to_string(parts_.blocks.size()));
    }
    for (std::size_t l = 0; l < state.blocks.size(); ++l) {
      parts_.blocks[l].check(state.blocks[l], segments, tokens, context);
    }
  }

  Parts parts_;
  std::vector<SideDescription> sides_;  // that some block gives
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
