#pragma once

#include <omp.h>

#include <exception>

#include "seqmix/core/context.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Runs tasks on OpenMP's threads; needs the compiler's OpenMP flag.
class OpenMpExecutor final : public Executor {
 public:
  explicit OpenMpExecutor(Index workers = omp_get_max_threads()) : workers_(workers) {
    if (workers < 1) throw ConfigError("OpenMpExecutor: workers must be at least 1");
  }

  Index workers() const override { return workers_; }

  void run(Index count, FunctionRef<void(Index, Index)> body) override {
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast <int>(workers_))
    for (Index task = 0; task < count; ++task) {
      try {
        body(task, omp_get_thread_num());
      } catch (...) {
#pragma omp critical(seqmix_executor_failure)
        if (failure == nullptr) failure = std::current_exception();
      }
    }
    if (failure != nullptr) std::rethrow_exception(failure);
  }

 private:
  Index workers_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
