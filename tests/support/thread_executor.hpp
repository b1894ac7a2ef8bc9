#pragma once

#include "seqmix/testing/thread_executor.hpp"

namespace support {

using seqmix::testing::ThreadExecutor;

}  // namespace support
