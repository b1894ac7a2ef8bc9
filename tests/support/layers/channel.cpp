#include "seqmix/io/registry/channel.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_channel(seqmix::Registry<S>& registry) {
  seqmix::register_channel(registry);
}
template void add_channel(seqmix::Registry<float>&);
template void add_channel(seqmix::Registry<double>&);

}  // namespace support
