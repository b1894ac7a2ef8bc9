#include "seqmix/io/registry/sparse_attention.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_sparse_attention(seqmix::Registry<S>& registry) {
  seqmix::register_sparse_attention(registry);
}
template void add_sparse_attention(seqmix::Registry<float>&);
template void add_sparse_attention(seqmix::Registry<double>&);

}  // namespace support
