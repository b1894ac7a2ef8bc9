#include "seqmix/io/registry/sparse_attention.hpp"

#include "support/layers/families.hpp"

namespace support {

template <class S>
void add_sparse_attention(seqmix::Registry<S>& registry) {
  seqmix::register_sparse_attention(registry);
}
#define SEQMIX_INSTANTIATE(S) template void add_sparse_attention(seqmix::Registry<S>&);
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
