#pragma once

#include "seqmix/io/registry/attention.hpp"
#include "seqmix/io/registry/blocks.hpp"
#include "seqmix/io/registry/channel.hpp"
#include "seqmix/io/registry/conv.hpp"
#include "seqmix/io/registry/delta.hpp"
#include "seqmix/io/registry/linear.hpp"
#include "seqmix/io/registry/rwkv.hpp"
#include "seqmix/io/registry/scan.hpp"
#include "seqmix/io/registry/sparse_attention.hpp"
#include "seqmix/io/registry/ssm.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A registry of every layer. A program that needs one family registers that one: it compiles
/// faster.
template <class S>
Registry<S> registry_of_all_layers() {
  Registry<S> registry;
  register_attention(registry);
  register_channel(registry);
  register_conv(registry);
  register_delta(registry);
  register_linear(registry);
  register_rwkv(registry);
  register_scan(registry);
  register_sparse_attention(registry);
  register_ssm(registry);
  register_blocks(registry);
  return registry;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
