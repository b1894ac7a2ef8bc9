#include "seqmix/io/registry/linear.hpp"

#include "support/families.hpp"

namespace support {

template <class S>
void add_linear(seqmix::Registry<S>& registry) {
  seqmix::register_linear(registry);
}
template void add_linear(seqmix::Registry<float>&);
template void add_linear(seqmix::Registry<double>&);

}  // namespace support
