// The registry of a further SIMD width: what layers do beside kernels knows no width, so that
// each kernel runs in one layer.

#include "seqmix/io/registry.hpp"
#include "seqmix/layers/attention/aaren.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/attention/block_sparse_attention.hpp"
#include "seqmix/layers/attention/mixed_chunk_attention.hpp"
#include "seqmix/layers/attention/multi_head_latent_attention.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"
#include "seqmix/layers/conv/hyena.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "seqmix/layers/linear/kimi_delta_attention.hpp"
#include "seqmix/layers/linear/linear_attention.hpp"
#include "seqmix/layers/linear/mlstm.hpp"
#include "seqmix/layers/rwkv/rwkv4.hpp"
#include "seqmix/layers/rwkv/rwkv7.hpp"
#include "seqmix/layers/ssm/lru.hpp"
#include "seqmix/layers/ssm/mamba.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"
#include "seqmix/layers/ssm/s4.hpp"
#include "support/layers/registry.hpp"
#include "support/scalars.hpp"

namespace support {
namespace {

template <template <class> class... Definitions, class S>
void add(seqmix::Registry<S>& registry) {
  (registry.template add<Definitions<S>>(), ...);
}

template <class S>
seqmix::Registry<S> one_layer_a_family() {
  using namespace seqmix;
  Registry<S> registry;
  add<AarenDefinition, AttentionDefinition, BlockSparseAttentionDefinition,
      GatedLinearAttentionDefinition, HyenaDefinition, KimiDeltaAttentionDefinition,
      LinearAttentionDefinition, LruDefinition, Mamba2Definition, MambaDefinition,
      MixedChunkAttentionDefinition, MixtureOfExpertsDefinition, MlstmDefinition,
      MultiHeadLatentAttentionDefinition, RgLruDefinition, Rwkv4Definition, Rwkv7Definition,
      S4Definition, AttentionDefinition>(registry);
  return registry;
}

}  // namespace

template <class S>
const seqmix::Registry<S>& registry() {
  static const seqmix::Registry<S> families = one_layer_a_family<S>();
  return families;
}
#define SEQMIX_INSTANTIATE(S) template const seqmix::Registry<S>& registry();
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

}  // namespace support
