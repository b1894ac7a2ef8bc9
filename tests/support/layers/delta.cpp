#include "seqmix/io/registry/delta.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_delta(seqmix::Registry<S>& registry) {
  seqmix::register_delta(registry);
}
template void add_delta(seqmix::Registry<float>&);
template void add_delta(seqmix::Registry<double>&);

}  // namespace support
