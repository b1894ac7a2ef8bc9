#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/io/registry.hpp"

namespace support {

/// Which blocks see each other: `layout` [H, n, n] of 0 and 1, a block itself and about half of the
/// earlier ones; `random_blocks` [H, n - 2, r], any block.
inline seqmix::StoredTensor random_blocks(const std::string& name,
                                          const std::vector<seqmix::Index>& shape,
                                          std::mt19937& random) {
  using seqmix::Index;
  seqmix::Tensor<Index, 3> numbers({shape[0], shape[1], shape[2]});
  for (Index h = 0; h < shape[0]; ++h) {
    for (Index i = 0; i < shape[1]; ++i) {
      for (Index j = 0; j < shape[2]; ++j) {
        const auto bits = static_cast<Index>(random() >> 1);
        numbers(h, i, j) =
            name == "layout" ? (i == j || (i > j && bits % 2 == 0) ? 1 : 0) : bits % (shape[1] + 2);
      }
    }
  }
  return seqmix::stored_tensor(name, numbers.view());
}

/// Random weights of a layer, each in the range that its name asks for. They are numbers of float,
/// so that float and double layers have the same ones. `biased`: else all biases but those of time
/// steps are zero.
template <class S>
seqmix::MemoryTensors random_layer_weights(const seqmix::Registry<S>& registry,
                                           const std::string& layer, const seqmix::Json& config,
                                           unsigned seed = 1, bool biased = true) {
  using seqmix::Index;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  std::vector<seqmix::StoredTensor> tensors;
  registry.visit_parameters(
      layer, config, [&](const std::string& name, const std::vector<Index>& shape) {
        Index size = 1;
        for (const Index extent : shape) size *= extent;
        if (name == "layout" || name == "random_blocks") {
          tensors.push_back(random_blocks(name, shape, random));
          return;
        }
        seqmix::Tensor<float, 1> numbers({size});
        const auto is = [&](std::string_view part) { return name.find(part) != std::string::npos; };
        const float fan_in = static_cast<float>(size / std::max<Index>(shape[0], 1));
        const auto draw = [&](Index i) -> float {
          if (is("A_log")) return std::log(0.2F + 5 * uniform(random));
          if (name.ends_with("time_decay") || name == "att.w0") return -6 + 6.5F * uniform(random);
          if (is("time_mix") || is("att.x_") || is("ffn.x_")) return uniform(random);
          if (is("time_maa") && shape[0] == 1) return uniform(random);
          if (is("log_dt") || is("inv_dt")) return std::log(0.01F) + 3 * uniform(random);
          if (is("A_real")) return std::log(0.5F) + 0.3F * normal(random);
          if (is("A_imag")) return 10 * uniform(random);
          if (is("nu_log")) return -4 + 3 * uniform(random);
          if (is("recurrent_param")) return -6 + 6 * uniform(random);
          if (is("dt_bias")) return -1.5F + 0.5F * normal(random);
          if (is("deltas")) return 1 + 6 * uniform(random);
          if (is("pos_emb.t")) return static_cast<float>(i) / static_cast<float>(shape[1]);
          if (is("pos_emb.z")) return normal(random);
          if (is("freq")) return 1 + 0.3F * normal(random);
          if (is("lower_bound")) return 0.9F * uniform(random);
          if (is("bias")) return biased ? 0.3F * normal(random) : 0;
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
