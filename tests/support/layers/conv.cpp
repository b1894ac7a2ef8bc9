#include "seqmix/io/registry/conv.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_conv(seqmix::Registry<S>& registry) {
  seqmix::register_conv(registry);
}
template void add_conv(seqmix::Registry<float>&);
template void add_conv(seqmix::Registry<double>&);

}  // namespace support
