#pragma once

#include "seqmix/core/numeric.hpp"

// The limits of the machine, measured in this process on the calling thread: every benchmark says
// which fraction of its own it reaches (`of_limit`). Each is measured once and takes < 1 s.

namespace bench {

/// Floating-point operations a second: fused multiply-adds on registers of float.
double fma_peak();
/// Exponentials of float a second, from and to L1.
double exp_rate();
/// Bytes a second that one thread reads from a buffer of about `bytes`, again and again.
double read_bandwidth(seqmix::Index bytes);

}  // namespace bench
