#include "seqmix/io/registry.hpp"

#include "support/families.hpp"
#include "support/layer_case.hpp"

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
template const seqmix::Registry<float>& registry();
template const seqmix::Registry<double>& registry();

}  // namespace support
