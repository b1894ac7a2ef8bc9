#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/call.hpp"
#include "seqmix/core/field.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/kernels/pointwise/rows.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Which numbers of a head form the pair n of `pairs` that turns by one angle: (n, n + pairs) or
/// (2n, 2n + 1).
enum class RotaryLayout { half_split, interleaved };

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

/// The angle by which a token further turns each pair, and all that is derived from it once.
///
/// A position is anchor + offset with the anchor a multiple of `anchor_interval`. The cos and sin
/// of the offsets are kept here, those of an anchor are computed when a call reaches it, and the
/// two are combined in double: precise at any position, without a table that grows with it.
class RotaryFrequencies {
 public:
  static constexpr Index anchor_interval = 16;

  RotaryFrequencies() = default;
  /// θ_n = base^(-2n / rotary_dim).
  RotaryFrequencies(Index rotary_dim, double base)
      : RotaryFrequencies(inverse_powers(rotary_dim, base)) {}
  /// The same for a longer context.
  RotaryFrequencies(Index rotary_dim, double base, const RopeScalingConfig& scaling)
      : RotaryFrequencies(scaled(rotary_dim, base, scaling)) {
    amplitude_ = scaling.amplitude();
  }
  /// Angles of the caller's choice, one a pair.
  explicit RotaryFrequencies(std::vector<double> angles)
      : angles_(std::move(angles)),
        cos_(angles_.size() * static_cast<std::size_t>(anchor_interval)),
        sin_(cos_.size()) {
    for (Index offset = 0; offset < anchor_interval; ++offset) {
      const auto first = static_cast<std::size_t>(offset * pairs());
      write_anchor(offset, cos_.data() + first, sin_.data() + first);
    }
  }

  Index pairs() const { return static_cast<Index>(angles_.size()); }
  Index rotary_dim() const { return 2 * pairs(); }

  /// θ_n, [pairs].
  const std::vector<double>& angles() const { return angles_; }

  /// Writes the cos and sin of position · θ_n times the amplitude, [pairs] each.
  void write_anchor(Index position, double* cos, double* sin) const {
    for (const double angle : angles_) {
      *cos++ = amplitude_ * std::cos(static_cast<double>(position) * angle);
      *sin++ = amplitude_ * std::sin(static_cast<double>(position) * angle);
    }
  }
  /// The same for the position that lies `offset` < anchor_interval tokens after an anchor.
  void write(const double* anchor_cos, const double* anchor_sin, Index offset, double* cos,
             double* sin) const {
    using Batch = simd::Batch<double>;
    const double* const offset_cos = cos_.data() + offset * pairs();
    const double* const offset_sin = sin_.data() + offset * pairs();
    const auto cos_of_sum = [](const Batch& c, const Batch& s, const Batch& dc, const Batch& ds) {
      return simd::fnma<double>(s, ds, c * dc);
    };
    const auto sin_of_sum = [](const Batch& c, const Batch& s, const Batch& dc, const Batch& ds) {
      return simd::fma<double>(c, ds, s * dc);
    };
    simd::map<double>(pairs(), cos, cos_of_sum, anchor_cos, anchor_sin, offset_cos, offset_sin);
    simd::map<double>(pairs(), sin, sin_of_sum, anchor_cos, anchor_sin, offset_cos, offset_sin);
  }

 private:
  static std::vector<double> inverse_powers(Index rotary_dim, double base) {
    require(rotary_dim >= 0 && rotary_dim % 2 == 0, "rotary_dim must be even and not negative");
    require(base > 0, "the base of the rotary frequencies must be positive");
    std::vector<double> angles;
    for (Index n = 0; n < rotary_dim; n += 2) {
      angles.push_back(1 /
                       std::pow(base, static_cast<double>(n) / static_cast<double>(rotary_dim)));
    }
    return angles;
  }
  static std::vector<double> scaled(Index rotary_dim, double base,
                                    const RopeScalingConfig& scaling) {
    const auto width = static_cast<double>(rotary_dim);
    if (scaling.kind == RopeScaling::ntk && rotary_dim > 2) {
      return inverse_powers(rotary_dim, base * std::pow(scaling.factor, width / (width - 2)));
    }
    std::vector<double> angles = inverse_powers(rotary_dim, base);
    const auto length = static_cast<double>(scaling.original_length);
    // The pair, a fraction of one, that turns `turns` times within the original length.
    const auto pair_of = [&](double turns) {
      return width * std::log(length / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
    };
    for (std::size_t n = 0; n < angles.size(); ++n) {
      double kept = 1;  // the part of the angle that is not divided
      if (scaling.kind == RopeScaling::linear) kept = 0;
      if (scaling.kind == RopeScaling::yarn) {
        const double low = std::max(std::floor(pair_of(scaling.beta_fast)), 0.0);
        double high = std::min(std::ceil(pair_of(scaling.beta_slow)), width - 1);
        if (high == low) high += 0.001;  // the published code's way around a ramp of no width
        kept = 1 - std::clamp((static_cast<double>(n) - low) / (high - low), 0.0, 1.0);
      }
      if (scaling.kind == RopeScaling::llama3) {
        const double turns = length * angles[n] / (2 * std::numbers::pi);
        kept = std::clamp((turns - scaling.low_freq_factor) /
                              (scaling.high_freq_factor - scaling.low_freq_factor),
                          0.0, 1.0);
      }
      angles[n] = angles[n] / scaling.factor * (1 - kept) + angles[n] * kept;
    }
    return angles;
  }

  std::vector<double> angles_;     // [pairs]
  double amplitude_ = 1;           // of cos and sin; the tables below have 1
  std::vector<double> cos_, sin_;  // [anchor_interval, pairs]
};

namespace detail {

/// What an angle of an anchor costs in turned numbers.
inline constexpr Index numbers_per_angle = 64;

}  // namespace detail

/// Turns pair n of the first `rotary_dim` numbers of each head of x [T, H, K] by position · θ_n, in
/// place; token t of a segment is at position min(past[row] + t, last), where `past` [B] may be
/// none: zeros. Su et al. 2021, arXiv:2104.09864, eq. 34.
template <class S>
void rope(View<S, 3> x, const RotaryFrequencies& frequencies, In<Index, 1> past,
          RotaryLayout layout, const Call& call, Index last = std::numeric_limits<Index>::max()) {
  const Index T = call.tokens(), H = x.extent(axis::head), pairs = frequencies.pairs();
  if (x.extent(axis::time) != T || x.extent(axis::channel) < 2 * pairs ||
      (x.extent(axis::channel) > 1 && x.stride(axis::channel) != 1)) {
    throw ShapeError("rope: got x " + x.shape().text() + ", expected " + std::to_string(T) +
                     " tokens of contiguous heads of at least " + std::to_string(2 * pairs) +
                     " numbers");
  }
  for (const Segment& segment : call.segments()) {
    if (past.data() == nullptr || segment.row < past.extent(0)) continue;
    throw ShapeError("rope: got past " + past.shape().text() + ", expected one for row " +
                     std::to_string(segment.row));
  }
  if (x.empty() || pairs == 0) return;
  using Batch = simd::Batch<S>;
  const Index interval = RotaryFrequencies::anchor_interval;
  const auto work_of = [&](const Segment& segment) {
    const Index turned = 2 * pairs * H * std::min(segment.count, interval);
    return SegmentWork{ceil_div(segment.count, interval),
                       std::min(turned + pairs * detail::numbers_per_angle, numbers_per_task)};
  };
  for_each_unit(call, numbers_per_task, work_of, [&](const Unit& unit, const Call& worker) {
    const Index first = unit.segment.first, begin = unit.item * interval;
    const Index before = past.data() == nullptr ? 0 : past[unit.row()];
    auto wide = worker.scratch<double>();
    auto anchor = wide(2, pairs), angle = wide(2, pairs);  // cos, then sin
    auto scratch = worker.scratch<S>();
    auto turn = scratch(2, pairs), halves = scratch(2, pairs);
    const S *const cos = &turn(0, 0), *const sin = &turn(1, 0);
    for (Index t = begin; t < std::min(unit.tokens(), begin + interval); ++t) {
      const Index position = std::min(before + t, last), offset = position % interval;
      if (t == begin || offset == 0) {
        frequencies.write_anchor(position - offset, &anchor(0, 0), &anchor(1, 0));
      }
      frequencies.write(&anchor(0, 0), &anchor(1, 0), offset, &angle(0, 0), &angle(1, 0));
      copy(angle, turn);
      for (Index h = 0; h < H; ++h) {
        S* const head = &x(first + t, h, 0);
        S *low = head, *high = head + pairs;
        if (layout == RotaryLayout::interleaved) {
          low = &halves(0, 0), high = &halves(1, 0);
          for (Index n = 0; n < pairs; ++n) low[n] = head[2 * n], high[n] = head[2 * n + 1];
        }
        simd::for_each_block<S>(pairs, [&](Index n, auto lane_count) {
          const Batch a = simd::load<S>(low + n, lane_count);
          const Batch c = simd::load<S>(high + n, lane_count);
          const Batch cosine = simd::load<S>(cos + n, lane_count);
          const Batch sine = simd::load<S>(sin + n, lane_count);
          simd::store<S>(low + n, simd::fnma<S>(c, sine, a * cosine), lane_count);
          simd::store<S>(high + n, simd::fma<S>(c, cosine, a * sine), lane_count);
        });
        if (layout == RotaryLayout::interleaved) {
          for (Index n = 0; n < pairs; ++n) head[2 * n] = low[n], head[2 * n + 1] = high[n];
        }
      }
    }
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
