#pragma once

#include <cstdint>

namespace support {

/// The number of calls of any global `operator new` so far, on any thread.
std::int64_t allocations();
/// The bytes that they asked for, whether or not they have been given back.
std::int64_t allocated_bytes();

}  // namespace support
