#include "support/layers/registry.hpp"

#include "support/layers/families.hpp"

namespace support {

template <class S>
const seqmix::Registry<S>& registry() {
  static const seqmix::Registry<S> all = [] {
    seqmix::Registry<S> result;
    add_attention(result);
    add_blocks(result);
    add_channel(result);
    add_conv(result);
    add_delta(result);
    add_linear(result);
    add_rwkv(result);
    add_scan(result);
    add_sparse_attention(result);
    add_ssm(result);
    return result;
  }();
  return all;
}
#define SEQMIX_INSTANTIATE(S) template const seqmix::Registry<S>& registry();
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
