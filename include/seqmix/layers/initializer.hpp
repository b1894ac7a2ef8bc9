#pragma once

#include <concepts>

#include "seqmix/core/numeric.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Where the numbers of a fresh parameter come from; a tag beside its name, shape and other tags:
///
///   parameter("A_log", self.A_log, {c.n_heads}, init::log_uniform(1, 16));
///
/// A parameter without one is uniform in ±1 / sqrt(fan in), the numbers behind its first axis.
struct Initializer {
  enum class Kind {
    fan_in,         // uniform in ±1 / sqrt(fan in)
    constant,       // a
    uniform,        // in [a, b)
    normal,         // mean a, standard deviation b
    log_uniform,    // log x, x uniform in [a, b)
    time_steps,     // softplus⁻¹(x), log x uniform in [log a, log b)
    ramp,           // 0 to 1 along the second axis
    choices,        // integers in [0, b)
    causal_blocks,  // [H, n, n] of 0 and 1: block i sees itself and some of the earlier ones
  };

  Kind kind = Kind::fan_in;
  double a = 0, b = 0;

  constexpr bool is_integral() const {
    return kind == Kind::choices || kind == Kind::causal_blocks;
  }
};

namespace init {

constexpr Initializer constant(double value) { return {Initializer::Kind::constant, value, 0}; }
inline constexpr Initializer ones = constant(1), zeros = constant(0);
constexpr Initializer uniform(double least, double most) {
  return {Initializer::Kind::uniform, least, most};
}
constexpr Initializer normal(double mean, double deviation) {
  return {Initializer::Kind::normal, mean, deviation};
}
constexpr Initializer log_uniform(double least, double most) {
  return {Initializer::Kind::log_uniform, least, most};
}
constexpr Initializer time_steps(double least, double most) {
  return {Initializer::Kind::time_steps, least, most};
}
constexpr Initializer choices(Index count) {
  return {Initializer::Kind::choices, 0, static_cast<double>(count)};
}
inline constexpr Initializer ramp{Initializer::Kind::ramp, 0, 0};
inline constexpr Initializer causal_blocks{Initializer::Kind::causal_blocks, 0, 0};

}  // namespace init

/// The initialiser among the tags of a parameter, or the usual one.
constexpr Initializer initializer_of(const auto&... tags) {
  Initializer result;
  [[maybe_unused]] const auto take = [&]<class Tag>(const Tag& tag) {
    if constexpr (std::same_as<Tag, Initializer>) result = tag;
  };
  (take(tags), ...);
  return result;
}
template <class... Tags>
inline constexpr bool has_initializer = (std::same_as<Tags, Initializer> || ...);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
