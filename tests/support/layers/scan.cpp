#include "seqmix/io/registry/scan.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_scan(seqmix::Registry<S>& registry) {
  seqmix::register_scan(registry);
}
template void add_scan(seqmix::Registry<float>&);
template void add_scan(seqmix::Registry<double>&);

}  // namespace support
