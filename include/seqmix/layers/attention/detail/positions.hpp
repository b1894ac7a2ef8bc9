#pragma once

#include "seqmix/kernels/positions/rope_scaling.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/layers/mixer.hpp"

// Where the tokens of attention are: what turns queries and keys.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct PositionsConfig {
  Index rotary_dim = 0;           // leading numbers of a head that RoPE rotates; 0: no rotation
  double rope_theta = 10000;      // base of the RoPE wavelengths
  bool rope_interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  RopeScalingConfig rope_scaling = {};
  bool alibi = false;  // a penalty on distance, its slope by head

  static void visit(auto& self, auto&& field) {
    field("rotary_dim", self.rotary_dim, zero_is_legal);
    field("rope_theta", self.rope_theta, is_positive);  // named by models without positions too
    field("rope_interleaved", self.rope_interleaved,
          only_where(self.rotary_dim > 0, "rotary_dim is positive"));
    RopeScalingConfig::visit(self.rope_scaling, field);
    field("alibi", self.alibi);
  }
  void check() const {
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    require(rotary_dim > 0 || rope_scaling.kind == RopeScaling::none,
            "rope_scaling needs rotary positions: rotary_dim");
    rope_scaling.check(rope_theta);
  }
  RotaryLayout layout() const {
    return rope_interleaved ? RotaryLayout::interleaved : RotaryLayout::half_split;
  }
  RotaryFrequencies frequencies() const { return {rotary_dim, rope_theta, rope_scaling}; }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
