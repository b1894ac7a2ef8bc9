#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "seqmix/core/context.hpp"

namespace support {

/// Runs tasks on threads that live for one call. Tasks go to whichever thread is free, so that a
/// result that depended on the split would not be the same twice.
class ThreadExecutor final : public seqmix::Executor {
 public:
  explicit ThreadExecutor(seqmix::Index workers) : workers_(workers) {}

  seqmix::Index workers() const override { return workers_; }

  void run(seqmix::Index count,
           seqmix::FunctionRef<void(seqmix::Index, seqmix::Index)> body) override {
    std::atomic<seqmix::Index> next = 0;
    std::exception_ptr failure;
    std::mutex failure_mutex;
    std::vector<std::thread> threads;
    for (seqmix::Index worker = 0; worker < workers_; ++worker) {
      threads.emplace_back([&, worker] {
        for (seqmix::Index task = next++; task < count; task = next++) {
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
  seqmix::Index workers_;
};

}  // namespace support
