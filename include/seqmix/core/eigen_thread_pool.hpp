#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#if __has_include(<unsupported/Eigen/CXX11/ThreadPool>)
#include <unsupported/Eigen/CXX11/ThreadPool>
#else
#include <Eigen/ThreadPool>
#endif

#include "seqmix/core/context.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Runs tasks on an Eigen thread pool that the caller owns and that must outlive this adapter. The
/// calling thread works too, so a pool of n - 1 threads gives n workers.
class EigenThreadPoolExecutor final : public Executor {
 public:
  explicit EigenThreadPoolExecutor(Eigen::ThreadPoolInterface& pool) : pool_(pool) {}

  Index workers() const override { return pool_.NumThreads() + 1; }

  void run(Index count, FunctionRef<void(Index, Index)> body) override {
    const Index helpers = std::min<Index>(pool_.NumThreads(), count - 1);
    std::atomic<Index> next = 0;
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const auto work = [&](Index worker) {
      for (Index task = next++; task < count; task = next++) {
        try {
          body(task, worker);
        } catch (...) {
          const std::lock_guard lock(failure_mutex);
          if (failure == nullptr) failure = std::current_exception();
          next = count;
        }
      }
    };
    Eigen::Barrier finished(static_cast<unsigned>(std::max<Index>(helpers, 0)));
    for (Index worker = 1; worker <= helpers; ++worker) {
      pool_.Schedule([&, worker] {
        work(worker);
        finished.Notify();
      });
    }
    work(0);
    finished.Wait();
    if (failure != nullptr) std::rethrow_exception(failure);
  }

 private:
  Eigen::ThreadPoolInterface& pool_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
