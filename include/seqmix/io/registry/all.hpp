#pragma once

#include "seqmix/io/registry/attention.hpp"
#include "seqmix/io/registry/channel.hpp"
#include "seqmix/io/registry/conv.hpp"
#include "seqmix/io/registry/linear.hpp"
#include "seqmix/io/registry/ssm.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A registry of every layer. A program that needs one family registers that one: it compiles
/// faster.
template <class S>
Registry<S> registry_of_all_layers() {
  Registry<S> registry;
  register_attention(registry);
  register_linear(registry);
  register_ssm(registry);
  register_conv(registry);
  register_channel(registry);
  return registry;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
