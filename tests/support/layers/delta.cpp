#include "seqmix/io/registry/delta.hpp"

#include "support/layers/families.hpp"

namespace support {

template <class S>
void add_delta(seqmix::Registry<S>& registry) {
  seqmix::register_delta(registry);
}
#define SEQMIX_INSTANTIATE(S) template void add_delta(seqmix::Registry<S>&);
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
