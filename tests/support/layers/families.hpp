#pragma once

#include "seqmix/io/registry.hpp"
#include "support/scalars.hpp"

// The families of layers, each compiled once, in a file of its own, for all tests of a SIMD width.

namespace support {

template <class S>
void add_attention(seqmix::Registry<S>& registry);
template <class S>
void add_blocks(seqmix::Registry<S>& registry);
template <class S>
void add_channel(seqmix::Registry<S>& registry);
template <class S>
void add_conv(seqmix::Registry<S>& registry);
template <class S>
void add_delta(seqmix::Registry<S>& registry);
template <class S>
void add_linear(seqmix::Registry<S>& registry);
template <class S>
void add_rwkv(seqmix::Registry<S>& registry);
template <class S>
void add_scan(seqmix::Registry<S>& registry);
template <class S>
void add_sparse_attention(seqmix::Registry<S>& registry);
template <class S>
void add_ssm(seqmix::Registry<S>& registry);

}  // namespace support
