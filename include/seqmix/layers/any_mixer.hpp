#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>

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

/// Any mixer behind its verbs. Copies share the one immutable layer.
template <class Scalar>
class AnyMixer {
 public:
  AnyMixer() = default;
  template <class Definition>
  requires std::same_as<typename Definition::Scalar, Scalar> AnyMixer(Mixer<Definition> mixer)
      : held_(std::make_shared<const Holder<Definition>>(std::move(mixer))) {}

  std::string_view name() const { return held_->name(); }
  Index d_model() const { return held_->d_model(); }
  AnyState make_state(Index batch, Index capacity = 0) const {
    return held_->make_state(batch, capacity);
  }
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context) const {
    held_->forward(x, y, context);
  }
  void prefill(View<const Scalar, 3> x, AnyState& state, View<Scalar, 3> y,
               Context& context) const {
    held_->prefill(x, state, y, context);
  }
  void step(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, Context& context) const {
    held_->step(x, state, y, context);
  }
  void reset(AnyState& state, Index row) const { held_->reset(state, row); }
  void reserve(AnyState& state, Index capacity) const { held_->reserve(state, capacity); }
  void reserve(Context& context, Index batch) const { held_->reserve(context, batch); }

  /// The number of weights.
  Index parameters() const { return held_->parameters(); }

 private:
  struct Held {
    virtual ~Held() = default;
    virtual std::string_view name() const = 0;
    virtual Index d_model() const = 0;
    virtual AnyState make_state(Index batch, Index capacity) const = 0;
    virtual void forward(View<const Scalar, 3>, View<Scalar, 3>, Context&) const = 0;
    virtual void prefill(View<const Scalar, 3>, AnyState&, View<Scalar, 3>, Context&) const = 0;
    virtual void step(View<const Scalar, 2>, AnyState&, View<Scalar, 2>, Context&) const = 0;
    virtual void reset(AnyState&, Index row) const = 0;
    virtual void reserve(AnyState&, Index capacity) const = 0;
    virtual void reserve(Context&, Index batch) const = 0;
    virtual Index parameters() const = 0;
  };
  template <class Definition>
  struct Holder final : Held {
    using State = typename Definition::State;
    Mixer<Definition> mixer;

    explicit Holder(Mixer<Definition> value) : mixer(std::move(value)) {}
    State& state_of(AnyState& state) const { return state.get<State>(Definition::name); }
    std::string_view name() const override { return Definition::name; }
    Index d_model() const override { return mixer.d_model(); }
    AnyState make_state(Index batch, Index capacity) const override {
      return AnyState::hold(mixer.make_state(batch, capacity));
    }
    void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context) const override {
      mixer.forward(x, y, context);
    }
    void prefill(View<const Scalar, 3> x, AnyState& state, View<Scalar, 3> y,
                 Context& context) const override {
      mixer.prefill(x, state_of(state), y, context);
    }
    void step(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y,
              Context& context) const override {
      mixer.step(x, state_of(state), y, context);
    }
    void reset(AnyState& state, Index row) const override { mixer.reset(state_of(state), row); }
    void reserve(AnyState& state, Index capacity) const override {
      mixer.reserve(state_of(state), capacity);
    }
    void reserve(Context& context, Index batch) const override { mixer.reserve(context, batch); }
    Index parameters() const override { return count_parameters(mixer.weights(), mixer.config()); }
  };

  std::shared_ptr<const Held> held_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
