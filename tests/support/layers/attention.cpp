#include "seqmix/io/registry/attention.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_attention(seqmix::Registry<S>& registry) {
  seqmix::register_attention(registry);
}
template void add_attention(seqmix::Registry<float>&);
template void add_attention(seqmix::Registry<double>&);

}  // namespace support
