#pragma once

#include "seqmix/io/registry.hpp"

namespace support {

/// The registry of every layer, compiled once for all programs that need it.
template <class S>
const seqmix::Registry<S>& registry();

}  // namespace support
