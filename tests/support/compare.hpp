#pragma once

#include "seqmix/testing/compare.hpp"

namespace support {

using seqmix::Index;
using seqmix::View;

using seqmix::testing::failed;
using seqmix::testing::numbers_of;
using seqmix::testing::relative_error;
using seqmix::testing::same_bits;

}  // namespace support
