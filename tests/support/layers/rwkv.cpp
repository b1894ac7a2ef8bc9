#include "seqmix/io/registry/rwkv.hpp"

#include "support/layers/families.hpp"

namespace support {

template <class S>
void add_rwkv(seqmix::Registry<S>& registry) {
  seqmix::register_rwkv(registry);
}
#define SEQMIX_INSTANTIATE(S) template void add_rwkv(seqmix::Registry<S>&);
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
