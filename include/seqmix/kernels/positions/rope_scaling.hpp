#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/core/field.hpp"
#include "seqmix/core/named_enum.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How the angles of a longer context are made from those of the context that was trained on.
enum class RopeScaling { none, linear, ntk, yarn, llama3, dynamic, longrope, table };
constexpr std::array<std::string_view, 8> names_of(RopeScaling) {
  return {"none", "linear", "ntk", "yarn", "llama3", "dynamic", "longrope", "table"};
}

/// The angles of rotary positions: a way of scaling and its numbers, fields of the config of a
/// layer that rotates.
///
/// With s = factor, L = original_length and θ_n of the unscaled angles:
///   linear   θ_n / s: position interpolation. Chen et al. 2023, arXiv:2306.15595
///   ntk      base s^(d / (d - 2)) in place of base: the first angle stays, the last is θ_n / s
///   dynamic  the same with s length / L - (s - 1) in place of s beyond L; θ_n up to there
///   yarn     θ_n / s where a pair turns less than beta_slow times within L, θ_n where more than
///            beta_fast times, a linear ramp over n between; cos and sin times attention_factor.
///            Peng et al. 2023, arXiv:2309.00071, eq. 19-23
///   llama3   the same with a ramp over the turns themselves, low_freq_factor to high_freq_factor.
///            Llama team 2024, arXiv:2407.21783
///   longrope θ_n / long_factor[n] beyond L, θ_n / short_factor[n] up to there; cos and sin times
///            attention_factor. Ding et al. 2024, arXiv:2402.13753
///   table    angles[n]: whatever else makes angles before a layer does (CLEX, E²-LLM)
///
/// What length counts for dynamic and longrope is fixed in a layer, so that a sequence in pieces is
/// the sequence as a whole. Published code takes that of the call and turns the same token by other
/// angles then; `by_call` is that mode, for layers that have `forward` alone.
struct RopeScalingConfig {
  RopeScaling kind = RopeScaling::none;
  double factor = 1;
  Index original_length = 0;  // tokens of the context that was trained on
  Index length = 0;           // tokens of the context that is served; 0: original_length
  bool by_call = false;       // the tokens of each sequence of a call in place of `length`
  double beta_fast = 32, beta_slow = 1;
  bool truncate = true;  // whether the ramp of yarn begins and ends at whole pairs; gpt-oss: false
  double mscale = 0, mscale_all_dim = 0;  // attention_factor is the ratio of two then; DeepSeek
  double attention_factor = 0;            // 0: yarn 0.1 ln(s) + 1, longrope sqrt(1 + ln(s) / ln(L))
  double low_freq_factor = 1, high_freq_factor = 4;
  std::vector<double> short_factor = {}, long_factor = {};  // [rotary_dim / 2]
  std::vector<double> angles = {};                          // [rotary_dim / 2]
  bool closed = false;     // θ_n = base^(-n / (d / 2 - 1)), the last one 1 / base; YOCO
  bool resonance = false;  // wavelengths 2π / θ_n rounded to whole tokens; arXiv:2403.00071

  static void visit(auto& self, auto&& field) {
    const bool given_factor = self.attention_factor > 0;
    const auto scaled = only_where(
        self.kind != RopeScaling::none && self.kind != RopeScaling::table &&
            !(self.kind == RopeScaling::longrope && given_factor),
        "rope_scaling is not none, nor table, nor longrope with a rope_attention_factor");
    const auto trained = only_where(self.by_turns() || self.by_length(),
                                    "rope_scaling is yarn or llama3, dynamic or longrope");
    const auto by_length = only_where(self.by_length(), "rope_scaling is dynamic or longrope");
    const auto fixed = only_where(self.by_length() && !self.by_call,
                                  "rope_scaling is dynamic or longrope without rope_by_call");
    const auto yarn = only_where(self.kind == RopeScaling::yarn, "rope_scaling is yarn");
    const auto ratio = only_where(self.kind == RopeScaling::yarn && !given_factor,
                                  "rope_scaling is yarn without a rope_attention_factor");
    const auto amplified = only_where(self.amplified(), "rope_scaling is yarn or longrope");
    const auto llama3 = only_where(self.kind == RopeScaling::llama3, "rope_scaling is llama3");
    const auto longrope =
        only_where(self.kind == RopeScaling::longrope, "rope_scaling is longrope");
    const auto table = only_where(self.kind == RopeScaling::table, "rope_scaling is table");
    const auto powers =
        only_where(self.kind == RopeScaling::none || self.kind == RopeScaling::linear,
                   "rope_scaling is none or linear");
    field("rope_scaling", self.kind), field("rope_factor", self.factor, at_least(1), scaled);
    field("rope_original_length", self.original_length, zero_is_legal, trained);
    field("rope_length", self.length, zero_is_legal, fixed);
    field("rope_by_call", self.by_call, by_length);
    field("rope_beta_fast", self.beta_fast, is_positive, yarn);
    field("rope_beta_slow", self.beta_slow, is_positive, yarn);
    field("rope_truncate", self.truncate, yarn);
    field("rope_mscale", self.mscale, is_positive.or_zero(), ratio);
    field("rope_mscale_all_dim", self.mscale_all_dim, is_positive.or_zero(), ratio);
    field("rope_attention_factor", self.attention_factor, is_positive.or_zero(), amplified);
    field("rope_low_freq_factor", self.low_freq_factor, is_positive, llama3);
    field("rope_high_freq_factor", self.high_freq_factor, is_positive, llama3);
    field("rope_short_factor", self.short_factor, is_positive, longrope);
    field("rope_long_factor", self.long_factor, is_positive, longrope);
    field("rope_angles", self.angles, at_least(0), table);
    field("rope_closed", self.closed, powers);
    field("rope_resonance", self.resonance);
  }
  void check(double rope_theta, Index rotary_dim) const {
    require(rotary_dim > 0 || kind == RopeScaling::none,
            "rope_scaling needs rotary positions: rotary_dim");
    require(rotary_dim > 0 || !(closed || resonance),
            "rope_closed and rope_resonance need rotary positions: rotary_dim");
    require(!(by_turns() || by_length()) || original_length > 0,
            "rope_scaling yarn and llama3, dynamic and longrope need rope_original_length");
    require(kind != RopeScaling::yarn || rope_theta > 1,
            "rope_scaling yarn needs a rope_theta above 1");
    require(beta_fast > beta_slow, "rope_beta_fast must exceed rope_beta_slow");
    require(high_freq_factor > low_freq_factor,
            "rope_high_freq_factor must exceed rope_low_freq_factor");
    require((mscale > 0) == (mscale_all_dim > 0),
            "rope_mscale and rope_mscale_all_dim make a ratio: both are positive or neither");
    require(kind != RopeScaling::longrope || attention_factor > 0 || original_length > 1,
            "rope_scaling longrope needs a rope_original_length above 1");
    require(!by_call || !resonance,
            "rope_resonance needs angles that are fixed: rope_length in place of rope_by_call");
    if (kind == RopeScaling::longrope) {
      check_table("rope_short_factor", short_factor, rotary_dim);
      check_table("rope_long_factor", long_factor, rotary_dim);
    }
    if (kind == RopeScaling::table) check_table("rope_angles", angles, rotary_dim);
  }
  /// What a layer asks for that continues a sequence.
  void check_fixed() const {
    require(!by_call,
            "rope_by_call turns a token by other angles when more tokens follow: it is for layers "
            "that have forward alone; rope_length fixes the angles");
  }
  bool by_turns() const { return kind == RopeScaling::yarn || kind == RopeScaling::llama3; }
  bool by_length() const { return kind == RopeScaling::dynamic || kind == RopeScaling::longrope; }
  bool amplified() const { return kind == RopeScaling::yarn || kind == RopeScaling::longrope; }
  /// What cos and sin are multiplied by.
  double amplitude() const {
    if (!amplified()) return 1;
    if (attention_factor > 0) return attention_factor;
    const double log_factor = std::log(factor);
    if (kind == RopeScaling::longrope) {
      return std::sqrt(1 + log_factor / std::log(static_cast<double>(original_length)));
    }
    if (mscale == 0) return 0.1 * log_factor + 1;
    return (0.1 * mscale * log_factor + 1) / (0.1 * mscale_all_dim * log_factor + 1);
  }

 private:
  static void check_table(std::string_view name, const std::vector<double>& table,
                          Index rotary_dim) {
    if (std::ssize(table) == rotary_dim / 2) return;
    throw ConfigError(std::string(name) + " has " + std::to_string(table.size()) +
                      " numbers, expected " + std::to_string(rotary_dim / 2) +
                      ", one a pair of rotary_dim");
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
