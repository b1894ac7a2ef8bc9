#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <set>
#include <stdexcept>
#include <vector>

#include "seqmix/core/eigen_thread_pool.hpp"
#include "support/thread_executor.hpp"
#ifdef _OPENMP
#include "seqmix/core/openmp.hpp"
#endif

using namespace seqmix;

namespace {

void check_executor(Executor& executor) {
  Context context(executor);
  CHECK(context.workers() == executor.workers());
  for (const Index count : {0, 1, 2, 7, 100}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
    std::vector<std::atomic<int>> inside(static_cast<std::size_t>(executor.workers()));
    std::atomic<bool> shared = false;
    executor.run(count, [&](Index task, Index worker) {
      shared = shared || ++inside.at(static_cast<std::size_t>(worker)) != 1;
      ++runs.at(static_cast<std::size_t>(task));
      --inside.at(static_cast<std::size_t>(worker));
    });
    CHECK_FALSE(shared);
    for (const auto& run : runs) CHECK(run == 1);
  }
  // Each worker has scratch of its own.
  std::atomic<bool> clean = true;
  context.parallel_for(50, [&](Index task, Context& worker) {
    auto scratch = worker.scratch<double>();
    auto numbers = scratch(1000);
    fill(numbers, static_cast<double>(task));
    for (Index i = 0; i < 1000; ++i) {
      if (numbers[i] != static_cast<double>(task)) clean = false;
    }
  });
  CHECK(clean);
  CHECK_THROWS_AS(context.parallel_for(20,
                                       [](Index task, Context&) {
                                         if (task == 11) throw std::invalid_argument("eleven");
                                       }),
                  std::invalid_argument);
}

}  // namespace

TEST_CASE("a context is serial by default") {
  Context context;
  std::vector<Index> order;
  context.parallel_for(4, [&](Index task, Context& worker) {
    CHECK(&worker == &context);
    order.push_back(task);
  });
  CHECK(order == std::vector<Index>{0, 1, 2, 3});
}

TEST_CASE("the Eigen thread pool runs every task once") {
  for (const int threads : {1, 2, 3}) {
    Eigen::ThreadPool pool(threads);
    EigenThreadPoolExecutor executor(pool);
    CHECK(executor.workers() == threads + 1);
    check_executor(executor);
  }
}

TEST_CASE("an executor whose workers are not what it said is refused") {
  struct Liar final : Executor {
    Index said = 2, used = 0;
    Index workers() const override { return said; }
    void run(Index count, FunctionRef<void(Index, Index)> body) override {
      for (Index task = 0; task < count; ++task) body(task, used);
    }
  } liar;
  Context context(liar);
  Index ran = 0;
  const auto run = [&](Index worker) {
    liar.used = worker;
    context.parallel_for(3, [&](Index, Context&) { ++ran; });
  };
  run(1);
  CHECK(ran == 3);
  CHECK_THROWS_AS(run(2), Error);
  CHECK_THROWS_AS(run(-1), Error);
  CHECK(ran == 3);
  liar.said = 0;
  CHECK_THROWS_AS(Context(liar), Error);
}

TEST_CASE("the tests' own executor runs every task once") {
  support::ThreadExecutor executor(3);
  check_executor(executor);
}

#ifdef _OPENMP
TEST_CASE("OpenMP runs every task once") {
  OpenMpExecutor executor(3);
  check_executor(executor);
  CHECK_THROWS_AS(OpenMpExecutor(0), ConfigError);
}
#endif
