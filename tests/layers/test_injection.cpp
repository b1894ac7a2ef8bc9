// Failures in the middle of a verb: memory that runs out and executors that throw, at every place
// where they can.
// No register's width changes it: once is enough.

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <new>
#include <stdexcept>

#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/layer_case.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;

/// Runs tasks one after another on two workers and fails before task number `tasks` of its life.
class FailingExecutor final : public seqmix::Executor {
 public:
  explicit FailingExecutor(std::int64_t tasks) : left_(tasks) {}

  Index workers() const override { return 2; }
  void run(Index count, seqmix::FunctionRef<void(Index, Index)> body) override {
    for (Index task = 0; task < count; ++task) {
      if (left_-- == 0) throw std::runtime_error("an executor's own");
      body(task, task % 2);
    }
  }
  bool has_failed() const { return left_ < 0; }
  void heal() { left_ = std::numeric_limits<std::int64_t>::max(); }

 private:
  std::int64_t left_;
};

/// One layer whose verbs fail, and what they give where they do not.
struct InjectionCase {
  const LayerCase<float>& layer;
  Tensor<float, 3> first, x, y, expected;
  AnyState warm, end, state;

  explicit InjectionCase(const LayerCase<float>& of)
      : layer(of),
        first(of.random_input(2, 5, 3)),
        x(of.random_input(2, 66, 4)),
        y(x.shape()),
        expected(x.shape()),
        warm(of.make_state(2, 80)) {
    Context context;
    Tensor<float, 3> ignored(first.shape());
    layer.prefill(first, warm, ignored, context);
    end = state = warm;
    layer.prefill(x, end, expected, context);
  }

  void call(Verb verb, Context& context) {
    if (verb == Verb::forward) {
      layer.forward(x, y, context);
    } else {
      advance<float>(layer, x.view().slice<1>(0, verb == Verb::step ? 1 : x.extent(1)), state,
                     y.view().slice<1>(0, verb == Verb::step ? 1 : x.extent(1)), context,
                     verb == Verb::step);
    }
  }
  /// After a failure the state can go on, a reset row starts again, and a copy restores it.
  void check(Context& context) {
    const seqmix::Segment segments[] = {{0, 0, 1}, {1, 1, 1}};
    layer.mixer().check(state, segments, 2, context);
    layer.reset(state, 0), layer.reset(state, 1);
    Tensor<float, 3> fresh(first.shape());
    layer.prefill(first, state, fresh, context);
    CHECK(valid_numbers(state) == valid_numbers(warm));
    state = warm;
    layer.prefill(x, state, y, context);
    CHECK(same_bits(y.view(), expected.view()));
    CHECK(valid_numbers(state) == valid_numbers(end));
    state = warm;
  }
};

}  // namespace

TEST_CASE("after a failed allocation a state is valid, resets and restores") {
  Index failures = 0;
  for_each_continuing_layer<float>([&](const LayerCase<float>& layer) {
    InjectionCase test(layer);
    for (const Verb verb : {Verb::forward, Verb::prefill, Verb::step}) {
      for (std::int64_t left = 0;; ++left) {
        INFO(layer.text() << " verb " << static_cast<int>(verb) << " allocation " << left);
        Context context;
        bool failed = false;
        fail_allocations_after(left);
        try {
          test.call(verb, context);
        } catch (const std::bad_alloc&) {
          failed = true;
        }
        fail_allocations_after(-1);
        if (!failed) break;
        ++failures;
        test.check(context);
      }
      test.state = test.warm;
    }
  });
  CHECK(failures > 300);
}

TEST_CASE("after an executor's exception a state is valid, resets and restores") {
  Index failures = 0;
  for_each_continuing_layer<float>([&](const LayerCase<float>& layer) {
    InjectionCase test(layer);
    for (const Verb verb : {Verb::prefill, Verb::step}) {
      for (std::int64_t left = 0, step = 1;; left += step, step += left / 16) {
        INFO(layer.text() << " verb " << static_cast<int>(verb) << " task " << left);
        FailingExecutor executor(left);
        Context context(executor);
        try {
          test.call(verb, context);
        } catch (const std::runtime_error&) {
        }
        if (!executor.has_failed()) break;
        executor.heal();
        ++failures;
        test.check(context);
      }
      test.state = test.warm;
    }
  });
  CHECK(failures > 200);
}
