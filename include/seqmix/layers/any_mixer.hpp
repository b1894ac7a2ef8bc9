#pragma once

#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/layers/mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The state of some layer: a value whose copy is a snapshot.
class AnyState {
 public:
  AnyState() = default;
  AnyState(const AnyState& other) {
    if (other.held_ != nullptr) held_ = other.held_->clone();
  }
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

  /// What a layer holds as its state, itself in `memory`, too.
  template <class State>
  static AnyState hold(State state, Memory memory = {}) {
    using Holding = Holder<State>;
    constexpr auto bytes = static_cast<Index>(sizeof(Holding));
    AnyState result;
    result.held_ =
        Pointer(::new (memory.allocate(bytes)) Holding(std::move(state)), Release{memory, bytes});
    return result;
  }
  /// What is held; throws `ShapeError` where that is no `State`.
  template <class State>
  State& get(std::string_view layer) {
    return const_cast<State&>(std::as_const(*this).template get<State>(layer));
  }
  template <class State>
  const State& get(std::string_view layer) const {
    if (held_ == nullptr || held_->type() != &detail::type_mark<State>) {
      throw ShapeError(std::string(layer) + ": got the state of another layer");
    }
    return static_cast<const Holder<State>&>(*held_).state;
  }

  /// The members with their types erased: what saving, loading and copying rows work on.
  StateMembers members() { return held_ == nullptr ? StateMembers() : held_->members(); }
  ConstStateMembers members() const {
    return held_ == nullptr ? ConstStateMembers() : std::as_const(*held_).members();
  }

 private:
  struct Held;
  struct Release {
    Memory memory;
    Index bytes;
    Release() : Release({}, 0) {}
    Release(Memory of, Index size) : memory(of), bytes(size) {}
    void operator()(Held* held) const {
      held->~Held();
      memory.free(held, bytes);
    }
  };
  using Pointer = std::unique_ptr<Held, Release>;
  struct Held {
    virtual ~Held() = default;
    virtual Pointer clone() const = 0;
    /// Whether `other` holds the same type, whose value is then taken over.
    virtual bool assign(const Held& other) = 0;
    virtual StateMembers members() = 0;
    virtual ConstStateMembers members() const = 0;
    virtual const void* type() const = 0;
  };
  template <class State>
  struct Holder final : Held {
    State state;
    explicit Holder(State value) : state(std::move(value)) {}
    Pointer clone() const override { return hold(state).held_; }
    bool assign(const Held& other) override {
      if (other.type() != type()) return false;
      state = static_cast<const Holder&>(other).state;
      return true;
    }
    StateMembers members() override { return StateMembers(state); }
    ConstStateMembers members() const override { return ConstStateMembers(state); }
    const void* type() const override { return &detail::type_mark<State>; }
  };

  Pointer held_;
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

/// What stands behind an `AnyMixer`: a layer, or something else that has a layer's verbs. Those are
/// what `Mixer` says of them; what the layer does not have throws `Error`.
template <class Scalar>
class AbstractMixer {
 public:
  using Sides = std::span<const NamedView<Scalar>>;
  using WeightBody = FunctionRef<void(const void* identity, Index size)>;

  virtual ~AbstractMixer() = default;

  virtual const Traits& traits() const = 0;
  virtual Index d_in() const = 0;
  virtual Index d_out() const = 0;
  virtual bool continues() const = 0;
  virtual PositionLimit position_limit() const = 0;
  virtual Index d_source() const = 0;
  virtual std::vector<SideDescription> sides() const = 0;
  /// Calls `body` for each weight; copies of one handle are of one identity.
  virtual void list_weights(WeightBody body) const = 0;

  /// The state before the first token, in any memory; of a layer that does not continue what it
  /// runs with.
  virtual AnyState make_state(Index batch, Index capacity, Memory) const = 0;
  virtual void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context&, Sides) const = 0;
  virtual void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
                       Context&, Sides) const = 0;
  virtual void forward_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                                 View<Scalar, 2> y, Context&, Sides) const = 0;
  virtual void read(View<const Scalar, 2> source, Segments, AnyState&, Context&) const = 0;
  virtual void advance(View<const Scalar, 2> x, Segments, AnyState&, View<Scalar, 2> y, Context&,
                       Sides) const = 0;
  virtual void prefill(View<const Scalar, 3> x, AnyState&, View<Scalar, 3> y, Context&,
                       Sides) const = 0;
  virtual void prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                                 AnyState&, View<Scalar, 2> y, Context&, Sides) const = 0;
  virtual void step(View<const Scalar, 2> x, AnyState&, View<Scalar, 2> y, Context&,
                    Sides) const = 0;
  virtual void check(const AnyState&, Segments, Index tokens, Context&) const = 0;
  virtual void reset(AnyState&, Index row) const = 0;
  virtual void grow(AnyState&, Index capacity) const = 0;
  virtual void prepare(Context&, Index rows, Index tokens, Index capacity) const = 0;

  // What is left of `advance`, `read` and `reset` when they have checked.
  virtual void run(View<const Scalar, 2> x, AnyState&, View<Scalar, 2> y, const Call&,
                   Sides) const = 0;
  virtual void run_read(View<const Scalar, 2> source, AnyState&, const Call&) const = 0;
  virtual void start_row(AnyState&, Index row) const = 0;
};

namespace detail {

/// A `Mixer` as an `AbstractMixer`.
template <class Definition>
class HeldMixer final : public AbstractMixer<typename Definition::Scalar> {
  using M = Mixer<Definition>;
  using Scalar = typename M::Scalar;
  using State = typename M::State;
  using Side = typename M::Side;
  using Sides = typename AbstractMixer<Scalar>::Sides;

 public:
  /// `known_as`: its traits, for as long as it lives; or null.
  HeldMixer(M mixer, const Traits* known_as) : mixer_(std::move(mixer)), known_as_(known_as) {}

  const Traits& traits() const override {
    return known_as_ != nullptr ? *known_as_ : mixer_.own_traits();
  }
  Index d_in() const override { return mixer_.d_in(); }
  Index d_out() const override { return mixer_.d_out(); }
  bool continues() const override { return mixer_.has_state(); }
  PositionLimit position_limit() const override {
    return seqmix::position_limit(mixer_.definition());
  }
  Index d_source() const override { return mixer_.d_source(); }
  std::vector<SideDescription> sides() const override {
    std::vector<SideDescription> result;
    Side side;
    Side::visit(side, mixer_.config(),
                [&]<class T>(std::string_view side_name, View<T, 2>&, Index width, SideRole role,
                             auto... bound) {
                  result.push_back({std::string(side_name), width, role});
                  if constexpr (std::is_const_v<T>) result.back().kind = SideKind::indices;
                  ((result.back().bound = bound), ...);
                });
    return result;
  }
  void list_weights(typename AbstractMixer<Scalar>::WeightBody body) const override {
    if constexpr (KnownWhenMade<Definition>) {
      mixer_.definition().list_weights(body);
    } else {
      visit_identities(mixer_.weights(), mixer_.config(), body);
    }
  }

  AnyState make_state(Index batch, Index capacity, Memory memory) const override {
    return AnyState::hold(mixer_.initial(batch, capacity, memory), memory);
  }
  void forward(View<const Scalar, 3> x, View<Scalar, 3> y, Context& context,
               Sides sides) const override {
    if constexpr (RunsWithoutSource<Definition>) {
      mixer_.forward(x, y, context, find(sides));
    } else {
      missing("forward without a source");
    }
  }
  void forward(View<const Scalar, 3> x, View<const Scalar, 3> source, View<Scalar, 3> y,
               Context& context, Sides sides) const override {
    if constexpr (M::reads_source) {
      mixer_.forward(x, source, y, context, find(sides));
    } else {
      missing("source");
    }
  }
  void forward_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens,
                         View<Scalar, 2> y, Context& context, Sides sides) const override {
    if constexpr (RunsWithoutSource<Definition>) {
      mixer_.forward_documents(x, cu_seqlens, y, context, find(sides));
    } else {
      missing("forward without a source");
    }
  }
  void read(View<const Scalar, 2> source, Segments segments, AnyState& state,
            Context& context) const override {
    if constexpr (M::reads_source) {
      mixer_.read(source, segments, get(state), context);
    } else {
      missing("source");
    }
  }
  void advance(View<const Scalar, 2> x, Segments segments, AnyState& state, View<Scalar, 2> y,
               Context& context, Sides sides) const override {
    with_state(state, [&](const auto& mixer, auto& held) {
      mixer.advance(x, segments, held, y, context, find(sides));
    });
  }
  void prefill(View<const Scalar, 3> x, AnyState& state, View<Scalar, 3> y, Context& context,
               Sides sides) const override {
    with_state(state, [&](const auto& mixer, auto& held) {
      mixer.prefill(x, held, y, context, find(sides));
    });
  }
  void prefill_documents(View<const Scalar, 2> x, View<const Index, 1> cu_seqlens, AnyState& state,
                         View<Scalar, 2> y, Context& context, Sides sides) const override {
    with_state(state, [&](const auto& mixer, auto& held) {
      mixer.prefill_documents(x, cu_seqlens, held, y, context, find(sides));
    });
  }
  void step(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, Context& context,
            Sides sides) const override {
    with_state(state, [&](const auto& mixer, auto& held) {
      mixer.step(x, held, y, context, find(sides));
    });
  }
  void check(const AnyState& state, Segments segments, Index tokens,
             Context& context) const override {
    with_state(state, [&](const auto& mixer, const auto& held) {
      mixer.check(held, segments, tokens, context);
    });
  }
  void reset(AnyState& state, Index row) const override {
    with_state(state, [&](const auto& mixer, auto& held) { mixer.reset(held, row); });
  }
  void grow(AnyState& state, Index capacity) const override {
    with_state(state, [&](const auto& mixer, auto& held) { mixer.grow(held, capacity); });
  }
  void prepare(Context& context, Index rows, Index tokens, Index capacity) const override {
    mixer_.prepare(context, rows, tokens, capacity);
  }

  void run(View<const Scalar, 2> x, AnyState& state, View<Scalar, 2> y, const Call& call,
           Sides sides) const override {
    mixer_.run(x, get(state), y, call, find(sides));
  }
  void run_read(View<const Scalar, 2> source, AnyState& state, const Call& call) const override {
    seqmix::read(mixer_.definition(), source, get(state), call);
  }
  void start_row(AnyState& state, Index row) const override {
    seqmix::start_row(mixer_.definition(), get(state), row);
  }

 private:
  [[noreturn]] void missing(const std::string& what) const {
    throw Error(std::string(mixer_.own_traits().name) + " has no " + what);
  }
  [[noreturn, gnu::cold, gnu::noinline]] void refuse_kind(std::string_view side,
                                                          bool wants_indices) const {
    throw ShapeError(
        std::string(mixer_.own_traits().name) + ": side value " + std::string(side) +
        (wants_indices ? " is numbers, expected indices" : " is indices, expected numbers"));
  }
  auto& get(auto& state) const { return state.template get<State>(mixer_.own_traits().name); }
  // `body` takes the mixer too: what depends on it is checked only where there is a state.
  void with_state(auto& state, auto&& body) const {
    if constexpr (M::continues) {
      if (mixer_.has_state()) return body(mixer_, get(state));
    }
    missing("state");
  }
  /// The layer's side values out of named ones; allocates nothing.
  Side find(Sides sides) const {
    Side result;
    Side::visit(result, mixer_.config(),
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

  M mixer_;
  const Traits* known_as_;
};

}  // namespace detail

/// Any layer behind its verbs. Copies share the one immutable layer. A verb that the layer does not
/// have throws `Error`; `sides` lists its side values, in any order.
template <class Scalar>
class AnyMixer {
 public:
  using Sides = typename AbstractMixer<Scalar>::Sides;

  AnyMixer() = default;
  /// Whether it holds a layer; one that does not throws `Error` from each member.
  explicit operator bool() const { return held_ != nullptr; }
  explicit AnyMixer(std::shared_ptr<const AbstractMixer<Scalar>> layer) : held_(std::move(layer)) {}
  template <class Definition>
  requires std::same_as<typename Definition::Scalar, Scalar> AnyMixer(Mixer<Definition> mixer)
      : AnyMixer(std::make_shared<const detail::HeldMixer<Definition>>(std::move(mixer), nullptr)) {
  }
  /// `known_as`: what the layer is called, for as long as any copy lives.
  template <class Definition>
  requires std::same_as<typename Definition::Scalar, Scalar> AnyMixer(Mixer<Definition> mixer,
                                                                      const Traits& known_as)
      : AnyMixer(
            std::make_shared<const detail::HeldMixer<Definition>>(std::move(mixer), &known_as)) {}

  std::string_view name() const { return traits().name; }
  const Traits& traits() const { return held().traits(); }
  Index d_in() const { return held().d_in(); }
  Index d_out() const { return held().d_out(); }
  /// The one width of a layer whose x and y have the same; else throws `Error`.
  Index d_model() const {
    if (d_in() == d_out()) return d_in();
    throw Error(std::string(name()) + " has no d_model: x has the width " + std::to_string(d_in()) +
                ", y " + std::to_string(d_out()));
  }
  /// Whether the layer has a state: else `forward` is its only verb.
  bool continues() const { return held().continues(); }
  /// The most tokens that a stream may have.
  PositionLimit position_limit() const { return held().position_limit(); }
  /// The width of what `read` takes; 0 where there is none.
  Index d_source() const { return held().d_source(); }
  std::vector<SideDescription> sides() const { return held().sides(); }

  AnyState make_state(Index batch, Index capacity = 0) const {
    if (!continues()) throw Error(std::string(name()) + " has no state");
    return held().make_state(batch, capacity, Memory{});
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
  /// Throws what continuing `state` by these segments of `tokens` tokens would throw: what a model
  /// asks of all its blocks before one of them runs.
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

  /// The number of weights, of parts that share some each once.
  Index parameters() const {
    WeightCount count;
    held().list_weights(count);
    return count.total();
  }
  /// What the verbs go to.
  const AbstractMixer<Scalar>& held() const {
    if (held_ == nullptr) throw Error("AnyMixer: holds no layer; it was made by its default");
    return *held_;
  }

 private:
  std::shared_ptr<const AbstractMixer<Scalar>> held_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
