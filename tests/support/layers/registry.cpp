#include "support/layers/registry.hpp"

#include "seqmix/io/registry/all.hpp"
#include "support/scalars.hpp"

namespace support {

template <class S>
const seqmix::Registry<S>& registry() {
  static const seqmix::Registry<S> all = seqmix::registry_of_all_layers<S>();
  return all;
}
#define SEQMIX_INSTANTIATE(S) template const seqmix::Registry<S>& registry();
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
