#pragma once

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
  AnyState& operator=(AnyState other) noexcept {
    held_ = std::move(other.held_);
    return *this;
  }
  ~AnyState() = default;

  /// The members with their types erased: what saving, loading and copying rows work on.
  StateMembers members() { return held_ == nullptr ? StateMembers() : held_->members(); }

 private:
  template <class Scalar>
  friend class AnyMixer;

  struct Held {
    virtual ~Held() = default;
    virtual std::unique_ptr<Held> clone() const = 0;
    virtual StateMembers members() = 0;
    virtual const std::type_info& type() const = 0;
  };
  template <class State>
  struct Holder final : Held {
    State state;
    explicit Holder(State value) : state(std::move(value)) {}
    std::unique_ptr<Held> clone() const override { return std::make_unique<Holder>(*this); }
    StateMembers members() override { return StateMembers(state); }
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
    if (held_ == nullptr || held_->type() != typeid(State)) {
      throw ShapeError(std::string(layer) + ": got the state of another layer");
    }
    return static_cast<Holder<State>&>(*held_).state;
  }

  std::unique_ptr<Held> held_;
};

/// A side value, or the source of a layer that reads one, by its name.
template <class Scalar>
struct NamedView {
  std::string_view name;
  View<Scalar, 3> view;
};

/// What a layer takes or gives beside x and y.
struct SideDescription {
  std::string name;
  Index width = 0;
  SideRole role = SideRole::input;
};

/// Any mixer behind its verbs. Copies share the one immutable layer. A verb that the layer does not
/// have throws `Error`; `sides` lists its side values, in any order.
template <class Scalar>
class AnyMixer {
 public:
  using Sides = std::span<const NamedView<Scalar>>;

  AnyMixer() = default;
  template <class Definition>
  requires std::same_as<typename Definition::Scalar, Scalar> AnyMixer(Mixer<Definition> mixer)
      : held_(std::make_shared<const Holder<Definition>>(std::move(mixer))) {}

  std::string_view name() const { return held_->name(); }
  Index d_model() const { return held_->d_model(); }
  /// Whether the layer has a state: else `forward` is its only verb.
  bool continues() const { return held_->continues(); }
  /// The width of the source that states are made from; 0 where there is none.
  Index d_source() const { return held_->d_source(); }
  std::vector<SideDescription> sides() const { return held_->sides(); }

  AnyState make_state(Index batch, Index capacity = 0) const {
    return held_->make_state(batch, capacity);
  }
  AnyState make_state(View<const Scalar, 3> source, Context& context) const {
    return held_->make_state(source, context);
  }
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
               Sides sides = {}) const {
    held_->forward(x, y, context, sides);
  }
  void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
               Context& context, Sides sides = {}) const {
    held_->forward(x, source, y, context, sides);
  }
  void forward_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                         View<Scalar, 2> y, Context& context, Sides sides = {}) const {
    held_->forward_documents(x, cu_seqlens, y, context, sides);
  }
  void prefill(View<const Scalar, 3> x, AnyState& state, View<Scalar, 3> y, Context& context,
               Sides sides = {}) const {
    held_->prefill(x, state, y, context, sides);
  }
  void prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, AnyState& state,
                         View<Scalar, 2> y, Context& context, Sides sides = {}) const {
    held_->prefill_documents(x, cu_seqlens, state, y, context, sides);
  }
  void step(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, Context& context,
            Sides sides = {}) const {
    held_->step(x, state, y, context, sides);
  }
  void reset(AnyState& state, Index row) const { held_->reset(state, row); }
  void reserve(AnyState& state, Index capacity) const { held_->reserve(state, capacity); }
  void reserve(Context& context, Index batch) const { held_->reserve(context, batch); }

  /// The number of weights.
  Index parameters() const { return held_->parameters(); }
  /// The same for copies, which share the layer.
  const void* identity() const { return held_.get(); }

 private:
  struct Held {
    virtual ~Held() = default;
    virtual std::string_view name() const = 0;
    virtual Index d_model() const = 0;
    virtual bool continues() const = 0;
    virtual Index d_source() const = 0;
    virtual std::vector<SideDescription> sides() const = 0;
    virtual AnyState make_state(Index batch, Index capacity) const = 0;
    virtual AnyState make_state(View<const Scalar, 3> source, Context&) const = 0;
    virtual void forward(View<const Scalar, 3>, View<Scalar, 3>, Context&, Sides) const = 0;
    virtual void forward(View<const Scalar, 3>, View<const Scalar, 3> source, View<Scalar, 3>,
                         Context&, Sides) const = 0;
    virtual void forward_documents(View<const Scalar, 2>, View<const Index, 1> cu_seqlens,
                                   View<Scalar, 2>, Context&, Sides) const = 0;
    virtual void prefill(View<const Scalar, 3>, AnyState&, View<Scalar, 3>, Context&,
                         Sides) const = 0;
    virtual void prefill_documents(View<const Scalar, 2>, View<const Index, 1> cu_seqlens,
                                   AnyState&, View<Scalar, 2>, Context&, Sides) const = 0;
    virtual void step(View<const Scalar, 2>, AnyState&, View<Scalar, 2>, Context&, Sides) const = 0;
    virtual void reset(AnyState&, Index row) const = 0;
    virtual void reserve(AnyState&, Index capacity) const = 0;
    virtual void reserve(Context&, Index batch) const = 0;
    virtual Index parameters() const = 0;
  };
  template <class Definition>
  struct Holder final : Held {
    using M = Mixer<Definition>;
    using State = typename M::State;
    using Side = typename M::Side;
    M mixer;

    explicit Holder(M value) : mixer(std::move(value)) {}
    std::string_view name() const override { return Definition::name; }
    Index d_model() const override { return mixer.d_model(); }
    bool continues() const override { return M::continues; }
    Index d_source() const override {
      if constexpr (M::reads_source) return mixer.config().d_source;
      return 0;
    }
    std::vector<SideDescription> sides() const override {
      std::vector<SideDescription> result;
      Side side;
      Side::visit(side, mixer.config(),
                  [&](std::string_view side_name, View<Scalar, 3>&, Index width, SideRole role) {
                    result.push_back({std::string(side_name), width, role});
                  });
      return result;
    }
    AnyState make_state(Index batch, Index capacity) const override {
      if constexpr (M::continues && !M::reads_source) {
        return AnyState::hold(mixer.make_state(batch, capacity));
      } else {
        missing(M::continues ? "state without a source" : "state");
      }
    }
    AnyState make_state(View<const Scalar, 3> source, Context& context) const override {
      if constexpr (M::reads_source) {
        return AnyState::hold(mixer.make_state(source, context));
      } else {
        missing("source");
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
    void reset(AnyState& state, Index row) const override {
      with_state(state, [&](const auto& layer, auto& held) {
        if constexpr (M::reads_source) {
          missing("reset: what a row reads stands in its state");
        } else {
          layer.reset(held, row);
        }
      });
    }
    void reserve(AnyState& state, Index capacity) const override {
      with_state(state, [&](const auto& layer, auto& held) {
        if constexpr (!M::reads_source) layer.reserve(held, capacity);
      });
    }
    void reserve(Context& context, Index batch) const override {
      if constexpr (M::continues) mixer.reserve(context, batch);
    }
    Index parameters() const override { return count_parameters(mixer.weights(), mixer.config()); }

   private:
    [[noreturn]] static void missing(std::string_view what) {
      throw Error(std::string(Definition::name) + " has no " + std::string(what));
    }
    // `body` takes the mixer too: what depends on it is checked only where there is a state.
    void with_state(AnyState& state, auto&& body) const {
      if constexpr (M::continues) {
        body(mixer, state.template get<State>(Definition::name));
      } else {
        missing("state");
      }
    }
    /// The layer's side values out of named ones; allocates nothing.
    Side find(Sides sides) const {
      Side result;
      Side::visit(result, mixer.config(),
                  [&](std::string_view wanted, View<Scalar, 3>& view, Index, SideRole) {
                    for (const auto& side : sides) {
                      if (side.name == wanted) view = side.view;
                    }
                  });
      return result;
    }
  };

  std::shared_ptr<const Held> held_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
