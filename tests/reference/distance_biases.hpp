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

/// What head h adds to the scaled score of a query at t and a key at j.
template <class S>
double distance_bias(const Input<S>& in, Index h, Index t, Index j, double scale) {
  const std::string kind = in.config.value("kind", std::string("none"));
  if (kind == "none") return 0;
  const Index H = in.size("n_heads");
  const auto head = static_cast<double>(h + 1), far = static_cast<double>(std::abs(t - j));
  const auto of_head = [&](const char* name) {
    return std::max(static_cast<double>(in.weight(name)(h, 0, 0)), 0.01);
  };
  if (kind == "alibi") return -alibi_slope(h, H, in.number("alibi_bias_max")) * far;
  if (kind == "falcon_alibi") {
    const double slope = to_bfloat16(alibi_slope(h, H, 8));
    return scale * to_bfloat16(slope * to_bfloat16(static_cast<double>(j)));
  }
  if (kind == "t5") {
    const Index row =
        t5_row(t - j, in.flag("bidirectional"), in.size("num_buckets"), in.size("max_distance"));
    return static_cast<double>(in.weight("bias.relative_attention_bias.weight")(row, h));
  }
  if (kind == "relative") {
    const Index most = in.size("max_distance");
    const Index row = std::min(std::max(j - t, -most), most) + most;
    return static_cast<double>(in.weight("bias.relative_position_bias_table")(row, h));
  }
  if (kind == "kerple_log") {
    return -of_head("bias.bias_p") * std::log(1 + of_head("bias.bias_a") * far);
  }
  if (kind == "kerple_power") {
    return -of_head("bias.bias_a") * std::pow(far, std::min(of_head("bias.bias_p"), 2.0));
  }
  if (kind == "sandwich") {
    const Index width = in.size("sandwich_dim");
    double sum = 0;
    for (Index n = 0; n < width; n += 2) {
      sum +=
          std::cos(far * std::pow(10000.0, -static_cast<double>(n) / static_cast<double>(width)));
    }
    return (sum - static_cast<double>(width) / 2) * static_cast<double>(H) / (8 * head);
  }
  if (kind == "fire") {
    const double c = static_cast<double>(in.weight("bias.c")(0));
    const double least = std::abs(static_cast<double>(in.weight("bias.L_multiplier")(0)) *
                                  in.number("fire_initial_length"));
    const double whole = std::max(static_cast<double>(t), least);
    const double x = std::log(std::abs(c * far) + 1) /
                     (std::log(std::abs(c * whole) + 1) + in.number("fire_eps"));
    double sum = static_cast<double>(in.weight("bias.mlp.2.bias")(h));
    for (Index u = 0; u < in.size("fire_width"); ++u) {
      const double unit = static_cast<double>(in.weight("bias.mlp.0.weight")(u, 0)) * x +
                          static_cast<double>(in.weight("bias.mlp.0.bias")(u));
      sum += static_cast<double>(in.weight("bias.mlp.2.weight")(h, u)) * std::max(unit, 0.0);
    }
    return sum;
  }
  const double log = std::log(far + 1);
  return kind == "inverse_square" ? -2 * log : -log * log;
}

}  // namespace reference
