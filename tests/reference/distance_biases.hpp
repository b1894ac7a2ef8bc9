#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

#include "reference/twin.hpp"

namespace reference {

/// The slope of head h of ALiBi: a geometric sequence, of the power of two below H, then odd
/// members of that of the power above. Press et al. 2021, arXiv:2108.12409.
inline double alibi_slope(Index h, Index H, double most) {
  Index power = 1;
  while (2 * power <= H) power *= 2;
  const double exponent =
      h < power ? static_cast<double>(h + 1) / static_cast<double>(power)
                : (2 * static_cast<double>(h - power) + 1) / (2 * static_cast<double>(power));
  return std::pow(2.0, -most * exponent);
}

/// To the nearest number of seven bits behind the point, the even one of two.
inline double to_bfloat16(double number) {
  auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(number));
  bits += 0x7fff + (bits >> 16 & 1);
  return static_cast<double>(std::bit_cast<float>(bits & 0xffff0000u));
}

/// T5's row of a distance. Raffel et al. 2019, arXiv:1910.10683.
inline Index t5_row(Index distance, bool both, Index buckets, Index farthest) {
  Index row = 0;
  if (both) buckets /= 2;
  if (both && distance < 0) row = buckets;
  distance = both ? std::abs(distance) : std::max<Index>(distance, 0);
  const Index exact = buckets / 2;
  if (distance < exact) return row + distance;
  const float log_of = std::log(static_cast<float>(distance) / static_cast<float>(exact));
  const auto log_most =
      static_cast<float>(std::log(static_cast<double>(farthest) / static_cast<double>(exact)));
  const Index more = static_cast<Index>(log_of / log_most * static_cast<float>(buckets - exact));
  return row + std::min(buckets - 1, exact + more);
}

/// What head h adds to the scaled score of a query at t and a key at j, once its config has been
/// read.
template <class S>
class ScoreBias {
 public:
  ScoreBias(const Input<S>& in, double scale)
      : in_(in), scale_(scale), kind_(in.config.value("kind", std::string("none"))) {
    if (kind_ == "none") return;
    heads_ = in.size("n_heads"), most_ = in.number("alibi_bias_max");
    buckets_ = in.size("num_buckets"), farthest_ = in.size("max_distance");
    both_ = in.flag("bidirectional");
  }

  double operator()(Index h, Index t, Index j) const {
    if (kind_ == "none") return 0;
    const auto far = static_cast<double>(std::abs(t - j));
    if (kind_ == "alibi") return -alibi_slope(h, heads_, most_) * far;
    if (kind_ == "falcon_alibi") {
      const double slope = to_bfloat16(alibi_slope(h, heads_, 8));
      return scale_ * to_bfloat16(slope * to_bfloat16(static_cast<double>(j)));
    }
    if (kind_ == "t5") {
      const Index row = t5_row(t - j, both_, buckets_, farthest_);
      return static_cast<double>(in_.weight("bias.relative_attention_bias.weight")(row, h));
    }
    if (kind_ == "relative") {
      const Index row = std::min(std::max(j - t, -farthest_), farthest_) + farthest_;
      return static_cast<double>(in_.weight("bias.relative_position_bias_table")(row, h));
    }
    if (kind_ == "kerple_log") {
      return -of_head("bias.bias_p", h) * std::log(1 + of_head("bias.bias_a", h) * far);
    }
    if (kind_ == "kerple_power") {
      return -of_head("bias.bias_a", h) * std::pow(far, std::min(of_head("bias.bias_p", h), 2.0));
    }
    if (kind_ == "sandwich") return sandwich(h, far);
    if (kind_ == "fire") return fire(h, t, far);
    const double log = std::log(far + 1);
    return kind_ == "inverse_square" ? -2 * log : -log * log;
  }

 private:
  double of_head(const char* name, Index h) const {
    return std::max(static_cast<double>(in_.weight(name)(h, 0, 0)), 0.01);
  }
  double sandwich(Index h, double far) const {
    const Index width = in_.size("sandwich_dim");
    double sum = 0;
    for (Index n = 0; n < width; n += 2) {
      const double power = static_cast<double>(n) / static_cast<double>(width);
      sum += std::cos(far * std::pow(10000.0, -power));
    }
    return (sum - static_cast<double>(width) / 2) * static_cast<double>(heads_) /
           static_cast<double>(8 * (h + 1));
  }
  double fire(Index h, Index t, double far) const {
    const auto c = static_cast<double>(in_.weight("bias.c")(0));
    const double least = std::abs(static_cast<double>(in_.weight("bias.L_multiplier")(0)) *
                                  in_.number("fire_initial_length"));
    const double whole = std::max(static_cast<double>(t), least);
    const double x = std::log(std::abs(c * far) + 1) /
                     (std::log(std::abs(c * whole) + 1) + in_.number("fire_eps"));
    auto sum = static_cast<double>(in_.weight("bias.mlp.2.bias")(h));
    for (Index u = 0; u < in_.size("fire_width"); ++u) {
      const double unit = static_cast<double>(in_.weight("bias.mlp.0.weight")(u, 0)) * x +
                          static_cast<double>(in_.weight("bias.mlp.0.bias")(u));
      sum += static_cast<double>(in_.weight("bias.mlp.2.weight")(h, u)) * std::max(unit, 0.0);
    }
    return sum;
  }

  const Input<S>& in_;
  double scale_;
  std::string kind_;
  Index heads_ = 0, buckets_ = 0, farthest_ = 0;
  double most_ = 0;
  bool both_ = false;
};

}  // namespace reference
