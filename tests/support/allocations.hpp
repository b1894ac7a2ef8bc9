#pragma once

#include <cstdint>

namespace support {

/// The number of calls of any global `operator new` so far, on any thread.
std::int64_t allocations();
/// The bytes that they asked for, whether or not they have been given back.
std::int64_t allocated_bytes();
/// Makes the allocation after `succeeding` more fail, on any thread, and no other; negative: none.
void fail_allocation_after(std::int64_t succeeding);

}  // namespace support
