#pragma once

#include <cmath>
#include <vector>

#include "seqmix/kernels/positions/position_rule.hpp"
#include "seqmix/kernels/positions/rope_scaling.hpp"
#include "seqmix/kernels/positions/rotary.hpp"
#include "seqmix/kernels/positions/rotary_frequencies.hpp"
#include "seqmix/kernels/positions/rotary_sections.hpp"
#include "seqmix/kernels/positions/xpos.hpp"
#include "seqmix/layers/attention/detail/remap.hpp"
#include "seqmix/layers/mixer.hpp"

// Where the tokens of attention are: what turns queries and keys.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// By what queries and keys are turned. What a query sees, and what sharpens its scores, counts the
/// tokens of the stream in any case; rotations do so as well, or take the positions that come
/// beside x (`given`): one a token, which may jump and restart (Zhu et al. 2023, arXiv:2309.10400,
/// PoSE; Ratner et al. 2022, arXiv:2212.10947, parallel context windows; Cho et al. 2024,
/// arXiv:2405.20671, position coupling; He et al. 2024, arXiv:2401.16421, BiPE's segments), or one
/// on each of three axes (Wang et al. 2024, arXiv:2409.12191, section 2.1).
struct PositionsConfig {
  Index rotary_dim = 0;           // numbers of a head that RoPE rotates; 0: no rotation
  Index rotary_offset = 0;        // numbers of a head before these
  double rope_theta = 10000;      // base of the RoPE wavelengths
  bool rope_interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  RopeScalingConfig rope_scaling = {};
  double rope_xpos = 0;  // tokens of a power of xPos, 512 in the paper; 0: turned alone
  Index given = 0;       // positions of a token that come beside x: none, 1 or 3
  std::vector<Index> rope_sections = {};  // given 3: pairs that each axis turns, [3]
  SectionOrder rope_section_order = SectionOrder::chunked;
  RemapConfig remap = {};

  static void visit(auto& self, auto&& field) {
    const auto rotated = only_where(self.rotary_dim > 0, "rotary_dim is positive");
    field("rotary_dim", self.rotary_dim, zero_is_legal);
    field("rotary_offset", self.rotary_offset, zero_is_legal, rotated);
    field("rope_theta", self.rope_theta, is_positive);  // named by models without positions too
    field("rope_interleaved", self.rope_interleaved, rotated);
    RopeScalingConfig::visit(self.rope_scaling, field);
    field("rope_xpos", self.rope_xpos, at_least(4).or_zero(), rotated);
    const auto with_axes = only_where(self.given == 3, "given is 3");
    field("given", self.given, zero_is_legal, flat_key("given_positions"), rotated);
    field("rope_sections", self.rope_sections, zero_is_legal, with_axes);
    field("rope_section_order", self.rope_section_order, with_axes);
    RemapConfig::visit(self.remap, field);
  }
  void check() const {
    require(rotary_dim % 2 == 0, "rotary_dim must be even");
    require(given == 0 || given == 1 || given == 3, "given must be 0, 1 or 3");
    require(given != 3 || std::ssize(rope_sections) == 3, "given 3 needs rope_sections of 3 axes");
    require(given == 0 || rope_xpos == 0, "rope_xpos needs given to be 0");
    require(given == 0 || !rope_scaling.by_call, "rope_by_call needs given to be 0");
    static_cast<void>(sections());
    require(remap.kind == Remap::none || rotary_dim > 0,
            "remap needs rotary positions: rotary_dim");
    require(remap.kind == Remap::none || given == 0, "remap needs given to be 0");
    require(remap.kind == Remap::none || rope_xpos == 0, "remap needs rope_xpos to be 0");
    require(remap.kind != Remap::rpe_3d || rope_theta > 1,
            "remap rpe_3d needs a rope_theta above 1");
    remap.check();
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
  RotarySections sections() const {
    if (given != 3) return {};
    return {rope_sections, rope_section_order, rotary_dim / 2};
  }
  XPosDecay decay() const { return rope_xpos > 0 ? XPosDecay(rotary_dim, rope_xpos) : XPosDecay(); }
};

/// The positions that a layer of attention asks for beside x.
struct GivenPositions {
  View<const Index, 2> positions;  // [T, given]

  static void visit(auto& self, const auto& c, auto&& side) {
    const Index given = c.positions.given;
    if (given > 0) side("positions", self.positions, given, SideRole::input);
  }
};

/// Where the tokens of a call are.
struct TokenPlaces {
  View<const Index, 1> past;  // [B], tokens of a row before the call; none: zeros
  View<const Index, 2> given = {};
};

/// What turns heads to their positions.
class Rotation {
 public:
  explicit Rotation(const PositionsConfig& c)
      : c_(c), frequencies_(c.frequencies()), sections_(c.sections()) {}

  /// Turns heads [T, H, K] by the angles of the layer, or where they follow the length of the call
  /// (`by_call`) by those of each segment, which are made anew: such a call allocates.
  template <class S>
  void operator()(View<S, 3> heads, const TokenPlaces& at, const Call& call,
                  const PositionRule& rule = {}) const {
    const auto turned = heads.slice(axis::channel, c_.rotary_offset, c_.rotary_dim);
    const RotaryLayout layout = c_.layout();
    if (c_.given > 0) {
      return rope_at(turned, frequencies_, at.given, layout, call, sections_, rule);
    }
    if (!c_.rope_scaling.by_call) return rope(turned, frequencies_, at.past, layout, call, rule);
    for (const Segment& segment : call.segments()) {
      const RotaryFrequencies own(c_.rotary_dim, c_.rope_theta, c_.rope_scaling, segment.count);
      const Segment alone{segment.row, 0, segment.count, segment.form};
      rope(turned.slice(axis::time, segment.first, segment.count), own, at.past, layout,
           call.with(Segments(&alone, 1)), rule);
    }
  }

  /// Turns all pairs of heads [T, H, K] by the angle of the chunk that lies so many `before` that
  /// of their token, where chunks have angles.
  template <class S>
  void turn_by_chunk(View<S, 3> heads, View<const Index, 1> past, Index before,
                     const Call& call) const {
    if (c_.remap.kind != Remap::rpe_3d) return;
    const Index pairs = c_.rotary_dim / 2, size = c_.remap.chunk_tokens();
    const auto angle_of = [&](Index position) {
      return std::pow(c_.rope_theta, static_cast<double>(before - position / size));
    };
    rope_by_one_angle(heads.slice(axis::channel, c_.rotary_offset, 2 * pairs), pairs, past,
                      c_.layout(), call, angle_of);
  }

 private:
  PositionsConfig c_;
  RotaryFrequencies frequencies_;
  RotarySections sections_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
