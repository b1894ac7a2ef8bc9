#pragma once

#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>
#include <vector>

#include "seqmix/layers/mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class Scalar>
class AnyMixer;

/// The state of some mixer: a value whose copy is a snapshot.
class AnyState {
 public:
  AnyState() = default;
  AnyState(const AnyState& other)
      : held_(other.held_ == nullptr ? nullptr : other.held_->clone()) {}
  AnyState(AnyState&&) noexcept = default;
  AnyState& operator=(AnyState&&) noexcept = default;
  /// Takes over a state of the same shapes in place; nothing is allocated then.
  AnyState& operator=(const AnyState& other) {
    if (held_ == nullptr || other.held_ == nullptr || !held_->assign(*other.held_)) {
      *this = AnyState(other);
    }
    return *this;
  }
  ~AnyState() = default;

  /// The members with their types erased: what saving, loading and copying rows work on.
  StateMembers members() { return held_ == nullptr ? StateMembers() : held_->members(); }
  ConstStateMembers members() const {
    return held_ == nullptr ? ConstStateMembers() : held_->members();
  }

 private:
  template <class Scalar>
  friend class AnyMixer;

  struct Held {
    virtual ~Held() = default;
    virtual std::unique_ptr<Held> clone() const = 0;
    /// Whether `other` holds the same type, whose value is then taken over.
    virtual bool assign(const Held& other) = 0;
    virtual StateMembers members() = 0;
    virtual ConstStateMembers members() const = 0;
    virtual const std::type_info& type() const = 0;
  };
  template <class State>
  struct Holder final : Held {
    State state;
    explicit Holder(State value) : state(std::move(value)) {}
    std::unique_ptr<Held> clone() const override { return std::make_unique<Holder>(*this); }
    bool assign(const Held& other) override {
      if (other.type() != type()) return false;
      state = static_cast<const Holder&>(other).state;
      return true;
    }
    StateMembers members() override { return StateMembers(state); }
    ConstStateMembers members() const override { return ConstStateMembers(state); }
    const std::type_info& type() const override { return typeid(State); }
  };

  template <class State>
  static AnyState hold(State state) {
    AnyState result;
    result.held_ = std::make_unique<Holder<State>>(std::move(state));
    return result;
  }
  template <class State>
  State& get(std::string_view layer) {
    return const_cast<State&>(std::as_const(*this).template get<State>(layer));
  }
  template <class State>
  const State& get(std::string_view layer) const {
    if (held_ == nullptr || held_->type() != typeid(State)) {
      throw ShapeError(std::string(layer) + ": got the state of another layer");
    }
    return static_cast<const Holder<State>&>(*held_).state;
  }

  std::unique_ptr<Held> held_;
};

/// A side value by its name: [T, width] of all tokens of a call, of a dense batch those of row 0
/// first.
template <class Scalar>
struct NamedView {
  std::string_view name;
  View<Scalar, 2> view;  // numbers, or
  View<const Index, 2> indices;

  NamedView() = default;
  NamedView(std::string_view of, View<Scalar, 2> numbers) : name(of), view(numbers) {}
  NamedView(std::string_view of, View<const Index, 2> integers) : name(of), indices(integers) {}
};

/// What a side value is made of.
enum class SideKind { numbers, indices };

/// What a layer takes or gives beside x and y.
struct SideDescription {
  std::string name;
  Index width = 0;
  SideRole role = SideRole::input;
  SideKind kind = SideKind::numbers;
  Index bound = std::numeric_limits<Index>::max();  // of indices, which are below
};

/// Any mixer behind its verbs. Copies share the one immutable layer. A verb that the layer does not
/// have throws `Error`; `sides` lists its side values, in any order.
template <class Scalar>
class AnyMixer {
 public:
  using Sides = std::span<const NamedView<Scalar>>;

  AnyMixer() = default;
  /// Whether it holds a layer; one that does not throws `Error` from each member.
  explicit operator bool() const { return held_ != nullptr; }
  /// `traits`: what the layer is known as, for as long as any copy lives.
  template <class Definition>
  requires std::same_as<typename Definition::Scalar, Scalar> AnyMixer(
      Mixer<Definition> mixer, const Traits& traits = Definition::traits)
      : held_(std::make_shared<const Holder<Definition>>(std::move(mixer))), traits_(&traits) {}

  std::string_view name() const { return traits().name; }
  const Traits& traits() const {
    static_cast<void>(held());
    return *traits_;
  }
  Index d_in() const { return held().d_in(); }
  Index d_out() const { return held().d_out(); }
  /// The one width of a layer whose x and y have the same; else throws `Error`.
  Index d_model() const { return held().d_model(); }
  /// Whether the layer has a state: else `forward` is its only verb.
  bool continues() const { return held().continues(); }
  /// The most tokens that a stream may have.
  PositionLimit position_limit() const { return held().position_limit(); }
  /// The width of what `read` takes; 0 where there is none.
  Index d_source() const { return held().d_source(); }
  std::vector<SideDescription> sides() const { return held().sides(); }

  AnyState make_state(Index batch, Index capacity = 0) const {
    return held().make_state(batch, capacity);
  }
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
               Sides sides = {}) const {
    held().forward(x, y, context, sides);
  }
  void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
               Context& context, Sides sides = {}) const {
    held().forward(x, source, y, context, sides);
  }
  void forward_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                         View<Scalar, 2> y, Context& context, Sides sides = {}) const {
    held().forward_documents(x, cu_seqlens, y, context, sides);
  }
  void read(View<const Scalar, 2> source, Segments segments, AnyState& state,
            Context& context) const {
    held().read(source, segments, state, context);
  }
  void advance(View<const Scalar, 2> x, Segments segments, AnyState& state, View<Scalar, 2> y,
               Context& context, Sides sides = {}) const {
    held().advance(x, segments, state, y, context, sides);
  }
  void prefill(View<const Scalar, 3> x, AnyState& state, View<Scalar, 3> y, Context& context,
               Sides sides = {}) const {
    held().prefill(x, state, y, context, sides);
  }
  void prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, AnyState& state,
                         View<Scalar, 2> y, Context& context, Sides sides = {}) const {
    held().prefill_documents(x, cu_seqlens, state, y, context, sides);
  }
  void step(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, Context& context,
            Sides sides = {}) const {
    held().step(x, state, y, context, sides);
  }
  /// Throws what continuing `state` by these segments of `tokens` tokens would throw: what a stack
  /// of mixers asks of all before one of them runs.
  void check(const AnyState& state, Segments segments, Index tokens, Context& context) const {
    held().check(state, segments, tokens, context);
  }
  /// What the verbs do when they have checked.
  void run(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, const Call& call,
           Sides sides = {}) const {
    held().run(x, state, y, call, sides);
  }
  void reset(AnyState& state, Index row) const { held().reset(state, row); }
  void grow(AnyState& state, Index capacity) const { held().grow(state, capacity); }
  void prepare(Context& context, Index rows, Index tokens, Index capacity = 0) const {
    held().prepare(context, rows, tokens, capacity);
  }

  /// The number of weights.
  Index parameters() const { return held().parameters(); }
  /// The same for copies, which share the layer.
  const void* identity() const { return held_.get(); }

 private:
  struct Held {
    virtual ~Held() = default;
    virtual Index d_in() const = 0;
    virtual Index d_out() const = 0;
    virtual Index d_model() const = 0;
    virtual bool continues() const = 0;
    virtual PositionLimit position_limit() const = 0;
    virtual Index d_source() const = 0;
    virtual std::vector<SideDescription> sides() const = 0;
    virtual AnyState make_state(Index batch, Index capacity) const = 0;
    virtual void forward(View<const Scalar, 3>, View<Scalar, 3>, Context&, Sides) const = 0;
    virtual void forward(View<const Scalar, 3>, View<const Scalar, 3> source, View<Scalar, 3>,
                         Context&, Sides) const = 0;
    virtual void forward_documents(View<const Scalar, 2>, View<const Index, 1> cu_seqlens,
                                   View<Scalar, 2>, Context&, Sides) const = 0;
    virtual void read(View<const Scalar, 2> source, Segments, AnyState&, Context&) const = 0;
    virtual void advance(View<const Scalar, 2>, Segments, AnyState&, View<Scalar, 2>, Context&,
                         Sides) const = 0;
    virtual void prefill(View<const Scalar, 3>, AnyState&, View<Scalar, 3>, Context&,
                         Sides) const = 0;
    virtual void prefill_documents(View<const Scalar, 2>, View<const Index, 1> cu_seqlens,
                                   AnyState&, View<Scalar, 2>, Context&, Sides) const = 0;
    virtual void step(View<const Scalar, 2>, AnyState&, View<Scalar, 2>, Context&, Sides) const = 0;
    virtual void check(const AnyState&, Segments, Index tokens, Context&) const = 0;
    virtual void run(View<const Scalar, 2>, AnyState&, View<Scalar, 2>, const Call&,
                     Sides) const = 0;
    virtual void reset(AnyState&, Index row) const = 0;
    virtual void grow(AnyState&, Index capacity) const = 0;
    virtual void prepare(Context&, Index rows, Index tokens, Index capacity) const = 0;
    virtual Index parameters() const = 0;
  };
  template <class Definition>
  struct Holder final : Held {
    using M = Mixer<Definition>;
    using State = typename M::State;
    using Side = typename M::Side;
    M mixer;

    explicit Holder(M value) : mixer(std::move(value)) {}
    Index d_in() const override { return mixer.d_in(); }
    Index d_out() const override { return mixer.d_out(); }
    Index d_model() const override {
      if constexpr (M::one_width) {
        return mixer.d_model();
      } else {
        missing("d_model: x has the width " + std::to_string(mixer.d_in()) + ", y " +
                std::to_string(mixer.d_out()));
      }
    }
    bool continues() const override { return M::continues; }
    PositionLimit position_limit() const override {
      return seqmix::position_limit(mixer.definition());
    }
    Index d_source() const override { return mixer.d_source(); }
    std::vector<SideDescription> sides() const override {
      std::vector<SideDescription> result;
      Side side;
      Side::visit(side, mixer.config(),
                  [&]<class T>(std::string_view side_name, View<T, 2>&, Index width, SideRole role,
                               auto... bound) {
                    result.push_back({std::string(side_name), width, role});
                    if constexpr (std::is_const_v<T>) result.back().kind = SideKind::indices;
                    ((result.back().bound = bound), ...);
                  });
      return result;
    }
    AnyState make_state(Index batch, Index capacity) const override {
      if constexpr (M::continues) {
        return AnyState::hold(mixer.make_state(batch, capacity));
      } else {
        missing("state");
      }
    }
    void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
                 Sides sides) const override {
      if constexpr (M::reads_source) {
        missing("forward without a source");
      } else {
        mixer.forward(x, y, context, find(sides));
      }
    }
    void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
                 Context& context, Sides sides) const override {
      if constexpr (M::reads_source) {
        mixer.forward(x, source, y, context, find(sides));
      } else {
        missing("source");
      }
    }
    void forward_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                           View<Scalar, 2> y, Context& context, Sides sides) const override {
      if constexpr (M::reads_source) {
        missing("forward without a source");
      } else {
        mixer.forward_documents(x, cu_seqlens, y, context, find(sides));
      }
    }
    void read(View<const Scalar, 2> source, Segments segments, AnyState& state,
              Context& context) const override {
      if constexpr (M::reads_source) {
        mixer.read(source, segments, state.template get<State>(Definition::traits.name), context);
      } else {
        missing("source");
      }
    }
    void advance(View<const Scalar, 2> x, Segments segments, AnyState& state, View<Scalar, 2> y,
                 Context& context, Sides sides) const override {
      with_state(state, [&](const auto& layer, auto& held) {
        layer.advance(x, segments, held, y, context, find(sides));
      });
    }
    void prefill(View<const Scalar, 3> x, AnyState& state, View<Scalar, 3> y, Context& context,
                 Sides sides) const override {
      with_state(state, [&](const auto& layer, auto& held) {
        layer.prefill(x, held, y, context, find(sides));
      });
    }
    void prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                           AnyState& state, View<Scalar, 2> y, Context& context,
                           Sides sides) const override {
      with_state(state, [&](const auto& layer, auto& held) {
        layer.prefill_documents(x, cu_seqlens, held, y, context, find(sides));
      });
    }
    void step(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, Context& context,
              Sides sides) const override {
      with_state(state, [&](const auto& layer, auto& held) {
        layer.step(x, held, y, context, find(sides));
      });
    }
    void check(const AnyState& state, Segments segments, Index tokens,
               Context& context) const override {
      with_state(state, [&](const auto& layer, const auto& held) {
        layer.check(held, segments, tokens, context);
      });
    }
    void run(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, const Call& call,
             Sides sides) const override {
      with_state(state,
                 [&](const auto& layer, auto& held) { layer.run(x, held, y, call, find(sides)); });
    }
    void reset(AnyState& state, Index row) const override {
      with_state(state, [&](const auto& layer, auto& held) { layer.reset(held, row); });
    }
    void grow(AnyState& state, Index capacity) const override {
      with_state(state, [&](const auto& layer, auto& held) { layer.grow(held, capacity); });
    }
    void prepare(Context& context, Index rows, Index tokens, Index capacity) const override {
      mixer.prepare(context, rows, tokens, capacity);
    }
    Index parameters() const override { return count_parameters(mixer.weights(), mixer.config()); }

   private:
    [[noreturn]] static void missing(const std::string& what) {
      throw Error(std::string(Definition::traits.name) + " has no " + what);
    }
    [[noreturn, gnu::cold, gnu::noinline]] static void refuse_kind(std::string_view side,
                                                                   bool wants_indices) {
      throw ShapeError(
          std::string(Definition::traits.name) + ": side value " + std::string(side) +
          (wants_indices ? " is numbers, expected indices" : " is indices, expected numbers"));
    }
    // `body` takes the mixer too: what depends on it is checked only where there is a state.
    void with_state(auto& state, auto&& body) const {
      if constexpr (M::continues) {
        body(mixer, state.template get<State>(Definition::traits.name));
      } else {
        missing("state");
      }
    }
    /// The layer's side values out of named ones; allocates nothing.
    Side find(Sides sides) const {
      Side result;
      Side::visit(result, mixer.config(),
                  [&]<class T>(std::string_view wanted, View<T, 2>& view, auto&&...) {
                    for (const auto& side : sides) {
                      if (side.name != wanted) continue;
                      constexpr bool integral = std::is_const_v<T>;
                      if (integral ? side.view.data() != nullptr : side.indices.data() != nullptr) {
                        refuse_kind(side.name, integral);
                      }
                      if constexpr (integral) {
                        view = side.indices;
                      } else {
                        view = side.view;
                      }
                    }
                  });
      return result;
    }
  };

  const Held& held() const {
    if (held_ == nullptr) throw Error("AnyMixer: holds no layer; it was made by its default");
    return *held_;
  }

  std::shared_ptr<const Held> held_;
  const Traits* traits_ = nullptr;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
