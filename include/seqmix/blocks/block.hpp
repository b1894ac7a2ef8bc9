#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/blocks/norm.hpp"
#include "seqmix/blocks/part_states.hpp"
#include "seqmix/layers/any_mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A layer as a part of a block. One that stands in several is a copy, which shares the weights;
/// the block has a state for each.
template <class S>
struct Part {
  std::string name = {};  // what its parameters and the members of its state begin with
  AnyMixer<S> mixer = {};
  Norm<S> before = {}, after = {};  // its own
  double input_multiplier = 1, output_multiplier = 1;
};

/// What a residual goes around: parts side by side on one input.
template <class S>
struct Branch {
  Norm<S> before = {};  // of the input of all parts
  std::vector<Part<S>> parts = {};
  Norm<S> after = {};     // of the sum of the parts
  double multiplier = 1;  // of that sum
  double residual = 1;    // multiplies the branch's input, which is added; 0: none is
  Norm<S> last = {};      // of all that
};

/// The side values that the parts of a block take and give, by name. One of a name is the same for
/// all parts, so that later ones take what an earlier one gave.
class PartSides {
 public:
  /// More names than that in one block are a `ConfigError`.
  static constexpr std::size_t most = 8;

  /// The side values of one more part. Throws `ConfigError` on one that differs in width or kind
  /// from that of its name, or is given behind a part that takes it.
  void add(std::string_view block, std::string_view part, std::vector<SideDescription> sides) {
    for (SideDescription& side : sides) {
      const std::string which =
          std::string(block) + ": " + std::string(part) + ": side value " + side.name;
      const auto known = std::ranges::find(list_, side.name, &SideDescription::name);
      if (known == list_.end()) {
        if (list_.size() == most) {
          throw ConfigError(which + " is one more than " + std::to_string(most));
        }
        list_.push_back(std::move(side));
        continue;
      }
      if (known->width != side.width || known->kind != side.kind) {
        throw ConfigError(which + " has width " + std::to_string(side.width) + ", expected " +
                          std::to_string(known->width) + " and " +
                          (known->kind == SideKind::indices ? "indices" : "numbers") +
                          " as in another part");
      }
      if (known->role == SideRole::input && side.role == SideRole::output) {
        throw ConfigError(which + " is given behind a part that takes it");
      }
      known->bound = std::min(known->bound, side.bound);
    }
  }
  const std::vector<SideDescription>& list() const { return list_; }

 private:
  std::vector<SideDescription> list_;
};

template <class S>
struct BlockConfig {
  std::vector<Branch<S>> branches = {};
  /// The name, which errors have, and what a catalogue says; what follows from the parts is theirs.
  Traits traits{.name = "block", .title = "Residual block"};

  // What follows from the parts: set by the block.
  Index d_model = 0, d_source = 0;
  PartSides sides = {};

  static void visit(auto&, auto&&) {}

  /// Calls `body(part, i)` for all parts in order.
  void for_each_part(auto&& body) const {
    std::size_t i = 0;
    for (const Branch<S>& branch : branches) {
      for (const Part<S>& part : branch.parts) body(part, i++);
    }
  }
};

/// A block of finished layers, as data: branches behind each other, in each parts side by side,
/// around which goes a residual.
///
///   for each branch:  n = before(x)
///                     s = after(Σ_p output_multiplier_p after_p(p(input_multiplier_p
///                     before_p(n)))) x = last(residual x + multiplier s)
///   y = x
///
/// A norm of kind `none` is none: pre-norm blocks have `before`, post-norm ones `last` (BERT),
/// Gemma 2's `before` and `after`; parts on one norm are GPT-J's and Falcon-H1's, parts with norms
/// of their own GPT-NeoX's. x, y and all parts have one width. A source goes to every part that
/// reads one, side values to those that take or give them. One part without a state makes the block
/// one without. The verbs check all parts before one runs; each part runs in its own blocks of
/// time.
///
/// Throws `ConfigError` on a block without parts, on parts whose names are empty or the same, whose
/// widths, sources or side values differ, and on a multiplier that is not finite; `ShapeError` on a
/// norm whose weight is not [D].
///
/// Cost, state and parameters: the sum of the parts'.
template <class S>
struct BlockDefinition {
  using Scalar = S;
  using Config = BlockConfig<S>;
  using State = PartStates;
  static constexpr Traits traits{.name = "block",
                                 .composite = true,
                                 .has_position_limit = true,
                                 .has_start_row = true,
                                 .has_source = true};
  using Sides = typename AnyMixer<S>::Sides;

  struct Weights {
    static void visit(auto&, const Config&, auto&&) {}
  };

  struct Side {
    std::array<NamedView<S>, PartSides::most> views = {};

    static void visit(auto& self, const Config& c, auto&& side) {
      auto view = self.views.begin();
      for (const SideDescription& of : c.sides.list()) {
        if constexpr (requires { view->name = of.name; }) view->name = of.name;
        if (of.kind == SideKind::numbers) {
          side(of.name, view->view, of.width, of.role);
        } else if (of.bound == SideDescription().bound) {
          side(of.name, view->indices, of.width, of.role);
        } else {
          side(of.name, view->indices, of.width, of.role, of.bound);
        }
        ++view;
      }
    }
  };

  Config c;
  Weights w;

  BlockDefinition(Config config, Weights) : c(std::move(config)), traits_(c.traits) {
    auto names = std::make_shared<PartNames>();
    traits_.composite = true;
    c.for_each_part([&](const Part<S>& part, std::size_t) {
      names->push_back(part.name);
      take(part);
    });
    if (names->empty()) throw ConfigError(std::string(traits_.name) + ": has no parts");
    names_ = std::move(names);
    for (Branch<S>& branch : c.branches) settle(branch);
  }

  const Traits& own_traits() const { return traits_; }
  bool continues() const { return continues_; }
  PositionLimit position_limit() const {
    PositionLimit limit;
    c.for_each_part([&](const Part<S>& part, std::size_t) {
      limit = std::min(limit, part.mixer.position_limit());
    });
    return limit;
  }
  void list_weights(typename AbstractMixer<S>::WeightBody body) const {
    for (const Branch<S>& branch : c.branches) {
      for_each_norm(branch, [&](const Norm<S>& norm) { norm.list_weights(body); });
    }
    c.for_each_part(
        [&](const Part<S>& part, std::size_t) { part.mixer.held().list_weights(body); });
  }

  State make_state(Index batch, Index capacity, Memory memory) const {
    State state(names_, memory);
    c.for_each_part([&](const Part<S>& part, std::size_t) {
      state.add(part.mixer.held().make_state(batch, capacity, memory));
    });
    return state;
  }
  void start_row(State& state, Index row) const {
    c.for_each_part(
        [&](const Part<S>& part, std::size_t i) { part.mixer.held().start_row(state[i], row); });
  }

  void read(View<const S, 2> source, State& state, const Call& call) const {
    c.for_each_part([&](const Part<S>& part, std::size_t i) {
      if (part.mixer.d_source() > 0) part.mixer.held().run_read(source, state[i], call);
    });
  }
  void run(View<const S, 2> x, State& state, const Side& side, View<S, 2> y,
           const Call& call) const {
    const Sides sides(side.views.data(), c.sides.list().size());
    std::size_t part = 0;
    for (const Branch<S>& branch : c.branches) {
      run_branch(branch, x, state, part, sides, y, call);
      x = y, part += branch.parts.size();
    }
  }

 private:
  /// Refuses a part that does not fit those before it; else the block follows from it, too.
  void take(const Part<S>& part) {
    const std::string who = std::string(traits_.name) + ": " + part.name;
    const AnyMixer<S>& mixer = part.mixer;
    if (part.name.empty()) {
      throw ConfigError(who + std::string(mixer.name()) + ": a part needs a name");
    }
    if (c.d_model == 0) c.d_model = mixer.d_in();
    for (const Index width : {mixer.d_in(), mixer.d_out()}) {
      if (width == c.d_model) continue;
      throw ConfigError(who + ": has d_model " + std::to_string(width) + ", expected " +
                        std::to_string(c.d_model) + " as other parts have");
    }
    if (const Index width = mixer.d_source(); width > 0) {
      if (c.d_source == 0) c.d_source = width;
      if (width != c.d_source) {
        throw ConfigError(who + ": has d_source " + std::to_string(width) + ", expected " +
                          std::to_string(c.d_source) + " as another part has");
      }
    }
    c.sides.add(traits_.name, part.name, mixer.sides());
    continues_ = continues_ && mixer.continues();
    const Traits& of_part = mixer.traits();
    traits_.whole_sequence = traits_.whole_sequence || of_part.whole_sequence || !mixer.continues();
    traits_.tolerance = std::max(traits_.tolerance, of_part.tolerance);
  }
  void settle(Branch<S>& branch) {
    const std::string block(traits_.name);
    if (branch.parts.empty()) throw ConfigError(block + ": a branch has no parts");
    const std::string who = block + ": " + branch.parts.front().name;
    check_range(who, "multiplier", branch.multiplier, is_finite);
    check_range(who, "residual", branch.residual, is_finite);
    for (const Part<S>& part : branch.parts) {
      const std::string which = block + ": " + part.name;
      check_range(which, "input_multiplier", part.input_multiplier, is_finite);
      check_range(which, "output_multiplier", part.output_multiplier, is_finite);
      if (std::ranges::count(*names_, part.name) > 1) {
        throw ConfigError(which + ": two parts have this name");
      }
    }
    for_each_norm(branch, [&](Norm<S>& norm) {
      norm.check(who + ": norm", c.d_model);
      norm.settle();
    });
  }
  static void for_each_norm(auto& branch, auto&& body) {
    body(branch.before), body(branch.after), body(branch.last);
    for (auto& part : branch.parts) body(part.before), body(part.after);
  }

  static void scale(View<const S, 2> x, double multiplier, View<S, 2> y, const Call& call) {
    const auto by = static_cast<S>(multiplier);
    elementwise(
        call, [by](auto v) { return by * v; }, y, x);
  }
  /// `first`: the part of the block that is the branch's first. y may be x.
  void run_branch(const Branch<S>& branch, View<const S, 2> x, State& state, std::size_t first,
                  Sides sides, View<S, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time);
    auto scratch = call.scratch<S>();
    View<const S, 2> input = x;  // [T, D]
    if (branch.before) {
      const View<S, 2> normed = scratch(T, c.d_model);
      branch.before.apply(x, normed, call);
      input = normed;
    }
    const bool alone = branch.parts.size() == 1 && branch.residual == 0;
    const View<S, 2> sum = alone ? y : scratch(T, c.d_model);
    for (std::size_t i = 0; i < branch.parts.size(); ++i) {
      const Part<S>& part = branch.parts[i];
      auto own = call.scratch<S>();
      const View<S, 2> out = i == 0 ? sum : own(T, c.d_model);
      run_part(part, input, state[first + i], sides, out, call);
      if (i > 0) elementwise(call, std::plus<>(), sum, sum, out);
    }
    if (branch.after) branch.after.apply(sum, sum, call);
    add_residual(branch, x, sum, y, call);
    if (branch.last) branch.last.apply(y, y, call);
  }
  void run_part(const Part<S>& part, View<const S, 2> x, AnyState& state, Sides sides, View<S, 2> y,
                const Call& call) const {
    auto scratch = call.scratch<S>();
    if (part.before || part.input_multiplier != 1) {
      const View<S, 2> own = scratch(x.extent(axis::time), c.d_model);
      if (part.before) part.before.apply(x, own, call), x = own;
      if (part.input_multiplier != 1) scale(x, part.input_multiplier, own, call), x = own;
    }
    part.mixer.run(x, state, y, call, sides);
    if (part.after) part.after.apply(y, y, call);
    if (part.output_multiplier != 1) scale(y, part.output_multiplier, y, call);
  }
  static void add_residual(const Branch<S>& branch, View<const S, 2> x, View<const S, 2> sum,
                           View<S, 2> y, const Call& call) {
    const auto kept = static_cast<S>(branch.residual), by = static_cast<S>(branch.multiplier);
    if (kept == 1 && by == 1) {
      elementwise(call, std::plus<>(), y, x, sum);
    } else if (kept != 0) {
      elementwise(
          call, [kept, by](auto a, auto b) { return kept * a + by * b; }, y, x, sum);
    } else if (by != 1 || sum.data() != y.data()) {
      scale(sum, branch.multiplier, y, call);
    }
  }

  Traits traits_;
  bool continues_ = true;
  std::shared_ptr<const PartNames> names_;
};

template <class Scalar = float>
using Block = Mixer<BlockDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(BlockDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
