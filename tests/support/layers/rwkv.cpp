#include "seqmix/io/registry/rwkv.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_rwkv(seqmix::Registry<S>& registry) {
  seqmix::register_rwkv(registry);
}
template void add_rwkv(seqmix::Registry<float>&);
template void add_rwkv(seqmix::Registry<double>&);

}  // namespace support
