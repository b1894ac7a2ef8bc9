#pragma once

#include <tuple>

#include "seqmix/core/platform.hpp"

// The number types that the layers are tested in. The native width has both, the further ones one
// each: 2 lanes of double, 8 lanes of float. Fuzzers ask for float alone.

namespace support {

#if defined(SEQMIX_TEST_FLOAT_ONLY)
using TestScalars = std::tuple<float>;
#define SEQMIX_FOR_EACH_TEST_SCALAR(apply) apply(float)
#elif !defined(SEQMIX_TEST_WIDTH)
using TestScalars = std::tuple<float, double>;
#define SEQMIX_FOR_EACH_TEST_SCALAR(apply) apply(float) apply(double)
#elif SEQMIX_TEST_WIDTH == 128
using TestScalars = std::tuple<double>;
#define SEQMIX_FOR_EACH_TEST_SCALAR(apply) apply(double)
#else
using TestScalars = std::tuple<float>;
#define SEQMIX_FOR_EACH_TEST_SCALAR(apply) apply(float)
#endif

}  // namespace support
