#pragma once

#include <string>
#include <vector>

#include "seqmix/blocks/block.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Layers of one width behind each other, y = layer_n(... layer_1(x)), as what a hybrid model
/// repeats: a block whose branches have no residual. A layer that is there several times has its
/// weights once and a state each time.
///
/// The state of layer i is called `layers.i.` + its own names. `traits`: the name, and what a
/// catalogue says.
template <class S>
Block<S> stack(const std::vector<AnyMixer<S>>& layers,
               Traits traits = {.name = "stack", .title = "Layers behind each other"}) {
  BlockConfig<S> config;
  config.traits = traits;
  for (const AnyMixer<S>& layer : layers) {
    Branch<S> branch;
    branch.residual = 0;
    branch.parts.push_back(
        {.name = "layers." + std::to_string(config.branches.size()), .mixer = layer});
    config.branches.push_back(std::move(branch));
  }
  return Block<S>(std::move(config));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
