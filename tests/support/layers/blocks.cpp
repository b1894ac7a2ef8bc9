#include "seqmix/io/registry/blocks.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_blocks(seqmix::Registry<S>& registry) {
  seqmix::register_blocks(registry);
}
template void add_blocks(seqmix::Registry<float>&);
template void add_blocks(seqmix::Registry<double>&);

}  // namespace support
