#pragma once

#include "seqmix/kernels/positions/position_rule.hpp"
#include "seqmix/kernels/positions/rope_scaling.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/kernels/positions/xpos.hpp"
#include "seqmix/layers/mixer.hpp"

// Where the tokens of attention are: what turns queries and keys.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct PositionsConfig {
  Index rotary_dim = 0;           // numbers of a head that RoPE rotates; 0: no rotation
  Index rotary_offset = 0;        // numbers of a head before these
  double rope_theta = 10000;      // base of the RoPE wavelengths
  bool rope_interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  RopeScalingConfig rope_scaling = {};
  double rope_xpos = 0;  // tokens of a power of xPos, 512 in the paper; 0: turned alone

  static void visit(auto& self, auto&& field) {
    const auto rotated = only_where(self.rotary_dim > 0, "rotary_dim is positive");
    field("rotary_dim", self.rotary_dim, zero_is_legal);
    field("rotary_offset", self.rotary_offset, zero_is_legal, rotated);
    field("rope_theta", self.rope_theta, is_positive);  // named by models without positions too
    field("rope_interleaved", self.rope_interleaved, rotated);
    RopeScalingConfig::visit(self.rope_scaling, field);
    field("rope_xpos", self.rope_xpos, at_least(4).or_zero(), rotated);
  }
  void check() const {
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    rope_scaling.check(rope_theta, rotary_dim);
  }
  /// What a layer asks for whose heads have so many numbers.
  void check_fits(Index head_dim) const {
    require(rotary_offset + rotary_dim <= head_dim,
            "positions.rotary_offset and positions.rotary_dim must not exceed heads.head_dim");
  }

  RotaryLayout layout() const {
    return rope_interleaved ? RotaryLayout::interleaved : RotaryLayout::half_split;
  }
  RotaryFrequencies frequencies() const { return {rotary_dim, rope_theta, rope_scaling}; }
  XPosDecay decay() const { return rope_xpos > 0 ? XPosDecay(rotary_dim, rope_xpos) : XPosDecay(); }
};

/// Turns heads [T, H, K] to their positions by the angles of a layer, or where they follow the
/// length of the call (`by_call`) by those of each segment, which are made anew: such a call
/// allocates.
template <class S>
void rotate(const PositionsConfig& c, const RotaryFrequencies& frequencies, View<S, 3> heads,
            View<const Index, 1> past, const Call& call, PositionRule rule = {}) {
  const auto turned = heads.slice(axis::channel, c.rotary_offset, c.rotary_dim);
  if (!c.rope_scaling.by_call) return rope(turned, frequencies, past, c.layout(), call, rule);
  for (const Segment& segment : call.segments()) {
    const RotaryFrequencies own(c.rotary_dim, c.rope_theta, c.rope_scaling, segment.count);
    const Segment alone{segment.row, 0, segment.count, segment.form};
    rope(turned.slice(axis::time, segment.first, segment.count), own, past, c.layout(),
         call.with(Segments(&alone, 1)), rule);
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
