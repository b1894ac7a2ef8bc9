#include "support/layers/instances.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

#define SEQMIX_INSTANTIATE(S) SEQMIX_ATTENTION(, S)
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)

SEQMIX_END_NAMESPACE
}  // namespace seqmix
