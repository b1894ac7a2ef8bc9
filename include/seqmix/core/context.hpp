#pragma once

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
};

/// The two forms of a layer: the whole sequence at once, or one token after another.
enum class Form { parallel, recurrent };

/// What a kernel that has two algorithms uses: the faster for the shape, or the one that is named.
enum class Algorithm { automatic, chunked, recurrent };

/// How the parallel forms multiply float matrices where the processor has matrix units for
/// bfloat16: not on them, on them with two terms a number, or with one. Sums are always float.
///
/// A product of N(0, 1) numbers differs from the exact one by at most 2e-5 of its rms (about 4e-6)
/// under `bf16x3`, and by 4e-3 (about 2e-3) under `bf16`; under `bf16x3` a number that is infinite
/// or above 3.38e38 gives NaN in its row. Units take several tokens of a row at a time: a NaN may
/// change earlier ones of them, which under `fp32` it does not. The same bits for any thread count
/// and batch hold at all three. Everything else is as under `fp32`: products of doubles, `step`,
/// which waits for memory, and all of it where `simd::matrix_units()` is false.
enum class Precision { fp32, bf16x3, bf16 };
constexpr std::array<std::string_view, 3> names_of(Precision) { return {"fp32", "bf16x3", "bf16"}; }

/// A run of tokens of one packed document: tokens [first, first + count) of the packed row continue
/// row `row` of the state.
struct Piece {
  Index row = 0, first = 0, count = 0;
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
    if (executor_ == nullptr || count <= 1) {
      for (Index task = 0; task < count; ++task) body(task, *this);
      return;
    }
    for (auto& worker : workers_) {
      worker->poison_ = poison_, worker->algorithm_ = algorithm_, worker->precision_ = precision_;
    }
    executor_->run(count, [&](Index task, Index worker) {
      if (worker < 0 || worker >= std::ssize(workers_)) {
        throw Error("executor: worker " + std::to_string(worker) + ", expected one of " +
                    std::to_string(workers_.size()) + " as it had when the context was made");
      }
      body(task, *workers_[static_cast<std::size_t>(worker)]);
    });
  }

  Index workers() const { return executor_ == nullptr ? 1 : executor_->workers(); }
  Algorithm algorithm() const { return algorithm_; }
  void set_algorithm(Algorithm algorithm) { algorithm_ = algorithm; }
  Precision precision() const { return precision_; }
  void set_precision(Precision precision) { precision_ = precision; }
  /// Another precision until the scope ends.
  class PrecisionScope {
   public:
    PrecisionScope(Context& context, Precision precision)
        : context_(context), before_(std::exchange(context.precision_, precision)) {}
    PrecisionScope(const PrecisionScope&) = delete;
    PrecisionScope& operator=(const PrecisionScope&) = delete;
    ~PrecisionScope() { context_.precision_ = before_; }

   private:
    Context& context_;
    Precision before_;
  };
  /// Fills scratch with NaN when it is handed out; the default of debug builds.
  void set_poison(bool poison) { poison_ = poison; }
  Arena& arena() { return arena_; }

  /// Whether the tokens of this call are documents packed in one row. Whatever continues a state
  /// then runs on each piece of them as on a row of its own.
  bool packed() const { return !pieces_.empty(); }
  std::span<const Piece> pieces() const { return pieces_; }
  /// Calls `body(piece)` for each piece, in this context, which is not packed meanwhile.
  void for_each_piece(std::invocable<const Piece&> auto&& body) {
    const PackedScope unpacked(*this, {});
    for (const Piece& piece : unpacked.before()) body(piece);
  }

  /// Makes the context a packed one until the scope ends; `pieces` must outlive it.
  class PackedScope {
   public:
    PackedScope(Context& context, std::span<const Piece> pieces)
        : context_(context), before_(std::exchange(context.pieces_, pieces)) {}
    PackedScope(const PackedScope&) = delete;
    PackedScope& operator=(const PackedScope&) = delete;
    ~PackedScope() { context_.pieces_ = before_; }
    std::span<const Piece> before() const { return before_; }

   private:
    Context& context_;
    std::span<const Piece> before_;
  };
  /// The bytes of scratch that are held, workers included.
  Index reserved() const {
    Index total = arena_.reserved();
    for (const auto& worker : workers_) total += worker->reserved();
    return total;
  }

 private:
  Arena arena_;
  Executor* executor_ = nullptr;
  std::vector<std::unique_ptr<Context>> workers_;
  Algorithm algorithm_ = Algorithm::automatic;
  Precision precision_ = Precision::fp32;
  std::span<const Piece> pieces_;
#ifdef NDEBUG
  bool poison_ = false;
#else
  bool poison_ = true;
#endif
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
