#pragma once

#include "reference/longformer_attention.hpp"

namespace reference {

/// Zaheer et al. 2020, arXiv:2007.14062, section 2; a random block counts each time it is listed.
template <class S>
Output<S> big_bird_attention(const Input<S>& in) {
  const Index block = in.size("block"), last = (in.T() - 1) / block, draws = in.size("n_random");
  const Array<S>* const random = draws > 0 ? &in.weight("random_blocks") : nullptr;
  const auto weight = [&](Index, Index h, Index i, Index j) {
    const Index of_query = i / block, of_key = j / block;
    const bool edge = of_query == 0 || of_query == last;
    int count = edge || of_key == 0 || of_key == last || std::abs(of_query - of_key) <= 1 ? 1 : 0;
    for (Index draw = 0; draw < draws && !edge; ++draw) {
      if (static_cast<Index>((*random)(h, of_query - 1, draw)) == of_key) ++count;
    }
    return count;
  };
  return encoder_attention(in, weight, [](Index, Index) { return std::string(); });
}

inline const std::vector<std::string> big_bird_attention_configs{
    R"({"d_model": 16, "n_heads": 2, "block": 16, "n_random": 2, "n_blocks": 40, "bias": true})",
    R"({"d_model": 21, "n_heads": 3, "block": 7, "n_random": 3, "n_blocks": 90, "bias": false})",
    R"({"d_model": 10, "n_heads": 1, "block": 64, "n_random": 0, "n_blocks": 2, "bias": true})"};

}  // namespace reference
