#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "seqmix/core/memory.hpp"
#include "seqmix/core/segment.hpp"
#include "seqmix/core/view.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A reference to a callable; it owns nothing and must not outlive it.
template <class Signature>
class FunctionRef;
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <class Callable>
  requires(!std::same_as<std::remove_cvref_t<Callable>, FunctionRef> &&
           std::is_invocable_r_v<Result, Callable&, Arguments...>) FunctionRef(Callable&& callable)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Arguments... arguments) -> Result {
          return (*static_cast<std::remove_reference_t<Callable>*>(object))(
              std::forward<Arguments>(arguments)...);
        }) {}
  Result operator()(Arguments... arguments) const {
    return call_(object_, std::forward<Arguments>(arguments)...);
  }

 private:
  void* object_;
  Result (*call_)(void*, Arguments...);
};

/// Runs independent tasks; the caller owns the threads behind it.
///
/// Adapters: `core/eigen_thread_pool.hpp`, `core/openmp.hpp`. How work is split never depends on
/// `workers()`, so results do not either.
class Executor {
 public:
  virtual ~Executor() = default;
  /// The number of tasks that may run at the same time.
  virtual Index workers() const = 0;
  /// Calls `body(task, worker)` once for each task in [0, count) and returns when all are done.
  /// `worker` is in [0, workers()) and no two running calls share one. The first exception that a
  /// body throws is thrown again here.
  virtual void run(Index count, FunctionRef<void(Index task, Index worker)> body) = 0;
  /// Whether a worker takes a lone task, too, which the caller's thread does else.
  virtual bool takes_lone_tasks() const { return false; }
};

/// Listens to the intermediates that layers name (`Call::trace`), as `verify --trace` does.
class Trace {
 public:
  virtual ~Trace() = default;
  /// The tokens from `first` of the whole call on: the row-major numbers of `shape`, [count, ...],
  /// which are gone afterwards. A long call comes in several blocks of time.
  virtual void hear(std::string_view name, Index first, std::span<const Index> shape,
                    std::span<const double> numbers) = 0;
};

/// Scratch memory and executor of one caller. One context serves one call at a time.
class Context {
 public:
  /// Serial unless an executor is given, which must outlive the context.
  Context() = default;
  explicit Context(Executor& executor) : executor_(&executor) {
    if (executor.workers() < 1) {
      throw Error("executor: has " + std::to_string(executor.workers()) +
                  " workers, expected at least 1");
    }
    for (Index worker = 0; worker < executor.workers(); ++worker) {
      workers_.push_back(std::make_unique<Context>());
    }
  }
  Context(Context&&) = default;
  Context& operator=(Context&&) = default;

  /// A scope of scratch: its views are valid until it ends.
  template <class Scalar>
  class Scratch {
   public:
    explicit Scratch(Context& context) : context_(context), mark_(context.arena_.enter()) {}
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { context_.arena_.leave(mark_); }

    /// Uninitialised numbers of the given extents (NaN where the context poisons its scratch).
    template <std::convertible_to<Index>... Extents>
    View<Scalar, static_cast<Index>(sizeof...(Extents))> operator()(Extents... extents) {
      const Shape<static_cast<Index>(sizeof...(Extents))> shape{extents...};
      const Index count = shape.size();
      auto* data = static_cast<Scalar*>(
          context_.arena_.allocate(checked_product(count, static_cast<Index>(sizeof(Scalar)))));
      if constexpr (std::floating_point<Scalar>) {
        if (context_.poison_) {
          std::uninitialized_fill_n(data, count, std::numeric_limits<Scalar>::quiet_NaN());
        }
      }
      return {data, shape};
    }

   private:
    Context& context_;
    Arena::Mark mark_;
  };
  template <class Scalar>
  Scratch<Scalar> scratch() {
    return Scratch<Scalar>(*this);
  }

  /// Calls `body(task, context)` for each task; the context is the worker's own.
  template <std::invocable<Index, Context&> Body>
  void parallel_for(Index count, Body&& body) {
    if (executor_ == nullptr || (count <= 1 && !executor_->takes_lone_tasks())) {
      for (Index task = 0; task < count; ++task) body(task, *this);
      return;
    }
    for (auto& worker : workers_) worker->poison_ = poison_;
    executor_->run(count, [&](Index task, Index worker) {
      if (worker < 0 || worker >= std::ssize(workers_)) refuse_worker(worker);
      body(task, *workers_[static_cast<std::size_t>(worker)]);
    });
  }

  /// Whether there is no executor.
  bool serial() const { return executor_ == nullptr; }
  Index workers() const { return executor_ == nullptr ? 1 : executor_->workers(); }
  Algorithm algorithm() const { return algorithm_; }
  void set_algorithm(Algorithm algorithm) { algorithm_ = algorithm; }
  Precision precision() const { return precision_; }
  void set_precision(Precision precision) { precision_ = precision; }
  /// The form of all segments of a call, whatever they say themselves, unless it is `automatic`.
  Form form() const { return form_; }
  void set_form(Form form) { form_ = form; }
  /// Who listens to intermediates, or null; must outlive the calls.
  Trace* trace() const { return trace_; }
  void set_trace(Trace* trace) { trace_ = trace; }
  /// Fills scratch with NaN when it is handed out; the default of debug builds.
  void set_poison(bool poison) { poison_ = poison; }
  Arena& arena() { return arena_; }

  /// Makes the scratch of this context, and of each worker, hold a quarter more than that of
  /// `trial`, whose executor takes lone tasks: a call is cut into work by its own split. This one
  /// holds what a worker needs beside, as it does the lone tasks, and all without an executor.
  void reserve_like(const Context& trial) {
    Index worker = 0;
    for (const auto& context : trial.workers_) worker = std::max(worker, context->reserved());
    const auto more = [](Index bytes) { return bytes + bytes / 4; };
    arena_.reserve(more(trial.arena_.reserved() + worker));
    for (auto& context : workers_) context->arena_.reserve(more(worker));
  }
  /// The bytes of scratch that are held, workers included.
  Index reserved() const {
    Index total = arena_.reserved();
    for (const auto& worker : workers_) total += worker->reserved();
    return total;
  }

 private:
  [[noreturn]] SEQMIX_COLD void refuse_worker(Index worker) const {
    throw Error("executor: worker " + std::to_string(worker) + ", expected one of " +
                std::to_string(workers_.size()) + " as it had when the context was made");
  }

  Arena arena_;
  Executor* executor_ = nullptr;
  std::vector<std::unique_ptr<Context>> workers_;
  Algorithm algorithm_ = Algorithm::automatic;
  Precision precision_ = Precision::fp32;
  Form form_ = Form::automatic;
  Trace* trace_ = nullptr;
#ifdef NDEBUG
  bool poison_ = false;
#else
  bool poison_ = true;
#endif
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
