#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "seqmix/io/registry.hpp"
#include "seqmix/testing/random_weights.hpp"

namespace support {

/// Random weights of a layer, drawn as its parameters say. `biased`: else what starts at a constant
/// is that constant, biases zero.
template <class S>
seqmix::MemoryTensors random_layer_weights(const seqmix::Registry<S>& registry,
                                           const std::string& layer, const seqmix::Json& config,
                                           unsigned seed = 1, bool biased = true) {
  using seqmix::Index;
  seqmix::testing::RandomNumbers random(seed, biased);
  std::vector<seqmix::StoredTensor> tensors;
  registry.visit_parameters(
      layer, config,
      [&](const std::string& name, const std::vector<Index>& shape,
          const seqmix::Initializer& initializer) {
        Index size = 1;
        for (const Index extent : shape) size *= extent;
        seqmix::Tensor<float, 1> numbers({size});
        random.fill(initializer, shape, {numbers.data(), static_cast<std::size_t>(size)});
        const auto store = [&](const auto& values) {
          auto tensor = seqmix::stored_tensor(name, values.view());
          tensor.shape = shape;
          tensors.push_back(std::move(tensor));
        };
        if (!initializer.is_integral()) return store(numbers);
        seqmix::Tensor<Index, 1> integers({size});
        std::transform(numbers.data(), numbers.data() + size, integers.data(),
                       [](float x) { return static_cast<Index>(x); });
        store(integers);
      });
  return seqmix::MemoryTensors(std::move(tensors), "random weights of " + layer);
}

}  // namespace support
