#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/io/registry.hpp"

namespace support {

/// Random weights of a layer, each in the range that its name asks for. They are numbers of float,
/// so that float and double layers have the same ones.
template <class S>
seqmix::MemoryTensors random_layer_weights(const seqmix::Registry<S>& registry,
                                           const std::string& layer, const seqmix::Json& config,
                                           unsigned seed = 1) {
  using seqmix::Index;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  std::vector<seqmix::StoredTensor> tensors;
  registry.visit_parameters(
      layer, config, [&](const std::string& name, const std::vector<Index>& shape) {
        Index size = 1;
        for (const Index extent : shape) size *= extent;
        seqmix::Tensor<float, 1> numbers({size});
        const auto is = [&](std::string_view part) { return name.find(part) != std::string::npos; };
        const float fan_in = static_cast<float>(size / std::max<Index>(shape[0], 1));
        const auto draw = [&](Index i) -> float {
          if (is("A_log")) return std::log(0.2F + 5 * uniform(random));
          if (is("dt_bias")) return -1.5F + 0.5F * normal(random);
          if (is("deltas")) return 1 + 6 * uniform(random);
          if (is("pos_emb.t")) return static_cast<float>(i) / static_cast<float>(shape[1]);
          if (is("pos_emb.z")) return normal(random);
          if (is("freq")) return 1 + 0.3F * normal(random);
          if (is("bias")) return 0.3F * normal(random);
          if (shape.size() == 1) return 1 + 0.2F * normal(random);
          return normal(random) / std::sqrt(fan_in);
        };
        for (Index i = 0; i < size; ++i) numbers[i] = draw(i);
        auto tensor = seqmix::stored_tensor(name, numbers.view());
        tensor.shape = shape;
        tensors.push_back(std::move(tensor));
      });
  return seqmix::MemoryTensors(std::move(tensors), "random weights of " + layer);
}

}  // namespace support
