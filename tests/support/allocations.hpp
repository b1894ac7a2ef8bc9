#pragma once

#include <cstdint>
#include <new>
#include <stdexcept>

namespace support {

/// The number of calls of any global `operator new` so far, on any thread.
std::int64_t allocations();

/// The bytes that are allocated, and the most that were since `forget_peak()`.
std::int64_t allocated_bytes();
std::int64_t peak_bytes();
void forget_peak();

/// Every allocation fails once `count` more have been made, as if memory were exhausted then;
/// negative: none does.
void fail_allocations_after(std::int64_t count);

/// Calls `call` with memory that ends after each number of allocations, until it succeeds. Whatever
/// it throws, nothing may end the program.
void exhaust(auto&& call) {
  for (std::int64_t count = 0; count < 10'000; ++count) {
    bool succeeded = false;
    fail_allocations_after(count);
    try {
      call();
      succeeded = true;
    } catch (const std::bad_alloc&) {
    } catch (...) {
      fail_allocations_after(-1);
      throw;
    }
    fail_allocations_after(-1);
    if (succeeded) return;
  }
  throw std::runtime_error("never succeeds");
}

}  // namespace support
