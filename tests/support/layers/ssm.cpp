#include "seqmix/io/registry/ssm.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_ssm(seqmix::Registry<S>& registry) {
  seqmix::register_ssm(registry);
}
template void add_ssm(seqmix::Registry<float>&);
template void add_ssm(seqmix::Registry<double>&);

}  // namespace support
