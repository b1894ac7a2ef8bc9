#pragma once

#include <cstdint>

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

}  // namespace support
