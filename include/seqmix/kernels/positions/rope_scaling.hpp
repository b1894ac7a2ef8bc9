#pragma once

#include <array>
#include <cmath>
#include <string_view>

#include "seqmix/core/field.hpp"
#include "seqmix/core/named_enum.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How the angles of a longer context are made from those of the context that was trained on.
enum class RopeScaling { none, linear, ntk, yarn, llama3 };
constexpr std::array<std::string_view, 5> names_of(RopeScaling) {
  return {"none", "linear", "ntk", "yarn", "llama3"};
}

/// A way of scaling and its numbers, fields of the config of a layer that rotates.
///
/// With s = factor, L = original_length and θ_n of the unscaled angles:
///   linear   θ_n / s: position interpolation. Chen et al. 2023, arXiv:2306.15595
///   ntk      base s^(d / (d - 2)) in place of base: the first angle stays, the last is θ_n / s
///   yarn     θ_n / s where a pair turns less than beta_slow times within L, θ_n where more than
///            beta_fast times, a linear ramp over n between; cos and sin times attention_factor.
///            Peng et al. 2023, arXiv:2309.00071, eq. 19-23
///   llama3   the same with a ramp over the turns themselves, low_freq_factor to high_freq_factor.
///            Llama team 2024, arXiv:2407.21783
struct RopeScalingConfig {
  RopeScaling kind = RopeScaling::none;
  double factor = 1;
  Index original_length = 0;  // tokens of the context that was trained on
  double beta_fast = 32, beta_slow = 1;
  double attention_factor = 0;  // 0: 0.1 ln(factor) + 1
  double low_freq_factor = 1, high_freq_factor = 4;

  static void visit(auto& self, auto&& field) {
    const auto scaled = only_where(self.kind != RopeScaling::none, "rope_scaling is not none");
    const auto by_turns = only_where(self.by_turns(), "rope_scaling is yarn or llama3");
    const auto yarn = only_where(self.kind == RopeScaling::yarn, "rope_scaling is yarn");
    const auto llama3 = only_where(self.kind == RopeScaling::llama3, "rope_scaling is llama3");
    field("rope_scaling", self.kind), field("rope_factor", self.factor, at_least(1), scaled);
    field("rope_original_length", self.original_length, zero_is_legal, by_turns);
    field("rope_beta_fast", self.beta_fast, is_positive, yarn);
    field("rope_beta_slow", self.beta_slow, is_positive, yarn);
    field("rope_attention_factor", self.attention_factor, is_positive.or_zero(), yarn);
    field("rope_low_freq_factor", self.low_freq_factor, is_positive, llama3);
    field("rope_high_freq_factor", self.high_freq_factor, is_positive, llama3);
  }
  void check(double rope_theta) const {
    require(!by_turns() || original_length > 0,
            "rope_scaling yarn and llama3 need rope_original_length");
    require(kind != RopeScaling::yarn || rope_theta > 1,
            "rope_scaling yarn needs a rope_theta above 1");
    require(beta_fast > beta_slow, "rope_beta_fast must exceed rope_beta_slow");
    require(high_freq_factor > low_freq_factor,
            "rope_high_freq_factor must exceed rope_low_freq_factor");
  }
  bool by_turns() const { return kind == RopeScaling::yarn || kind == RopeScaling::llama3; }
  /// What cos and sin are multiplied by.
  double amplitude() const {
    if (kind != RopeScaling::yarn) return 1;
    return attention_factor > 0 ? attention_factor : 0.1 * std::log(factor) + 1;
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
