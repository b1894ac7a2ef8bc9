#include "seqmix/io/registry/scan.hpp"

#include "support/layers/families.hpp"

namespace support {

template <class S>
void add_scan(seqmix::Registry<S>& registry) {
  seqmix::register_scan(registry);
}
#define SEQMIX_INSTANTIATE(S) template void add_scan(seqmix::Registry<S>&);
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
