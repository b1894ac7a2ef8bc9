#include "seqmix/io/registry/linear.hpp"

#include "support/layers/families.hpp"

namespace support {

template <class S>
void add_linear(seqmix::Registry<S>& registry) {
  seqmix::register_linear(registry);
}
#define SEQMIX_INSTANTIATE(S) template void add_linear(seqmix::Registry<S>&);
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
