#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "seqmix/core/context.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace testing {

/// Runs tasks on threads that live for one call. Tasks go to whichever thread is free, so that a
/// result that depended on the split would not be the same twice.
class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(Index workers) : workers_(workers) {}

  Index workers() const override { return workers_; }

  void run(Index count, FunctionRef<void(Index, Index)> body) override {
    std::atomic<Index> next = 0;
    std::exception_ptr failure;
    std::mutex failure_mutex;
    std::vector<std::thread> threads;
    for (Index worker = 0; worker < workers_; ++worker) {
      threads.emplace_back([&, worker] {
        for (Index task = next++; task < count; task = next++) {
          try {
            body(task, worker);
          } catch (...) {
            const std::lock_guard lock(failure_mutex);
            if (failure == nullptr) failure = std::current_exception();
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (failure != nullptr) std::rethrow_exception(failure);
  }

 private:
  Index workers_;
};

}  // namespace testing
SEQMIX_END_NAMESPACE
}  // namespace seqmix
