#pragma once

#include <cstdint>

namespace support {

/// The number of calls of any global `operator new` so far, on any thread.
std::int64_t allocations();

}  // namespace support
