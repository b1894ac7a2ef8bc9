#pragma once

#include <iterator>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/parameter.hpp"
#include "seqmix/layers/detail/check_config.hpp"
#include "seqmix/layers/detail/name.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a layer keeps its projections' weights, all but those that say `keep_float`, and its states
/// their caches of keys and values.
struct Options {
  Storage weights = Storage::native;
  Storage caches = Storage::native;

  Options() = default;
  /// Both, which is what `load(..., Storage::bf16)` asks for.
  Options(Storage both) : weights(both), caches(both) {}
  Options(Storage of_weights, Storage of_caches) : weights(of_weights), caches(of_caches) {}
};

/// Says where a projection's weight is declared that it stays in the compute type under any
/// storage: what picks a branch (a router), and what sets how long a state lasts (a decay, a time
/// step, the gates of a recurrence). An error there takes another branch, or adds up over time.
///
///   parameter("gate.weight", self.gate.weight, {c.n_experts, c.d_model}, keep_float);
struct KeepFloat {
  Index rows = std::numeric_limits<Index>::max();  // the last so many, or all

  /// The last rows alone, where one matrix gives other things, too.
  constexpr KeepFloat last(Index count) const { return {count}; }
};
inline constexpr KeepFloat keep_float;

namespace detail {

/// The last rows of a weight that a tag of its declaration keeps.
constexpr Index kept_rows(KeepFloat tag) { return tag.rows; }
constexpr Index kept_rows(const auto&) { return 0; }

}  // namespace detail

/// Calls `body(part, number)` for the `count` parts of a list that weights call `name`.
///
/// A list that is being filled grows by the part that is asked for, so that a config's word makes
/// no memory before the tensors are there that it implies. What a const list lacks is an empty
/// part.
template <class Parts>
void for_each_part(std::string_view name, Parts& parts, Index count, auto&& body) {
  const typename Parts::value_type none{};
  for (Index i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if constexpr (std::is_const_v<Parts>) {
      body(at < parts.size() ? parts[at] : none, i);
    } else {
      body(at < parts.size() ? parts[at] : parts.emplace_back(), i);
    }
  }
  if (std::ssize(parts) > count) {
    throw ShapeError(std::string(name) + ": the weights have " + std::to_string(parts.size()) +
                     " parts, expected " + std::to_string(count));
  }
}

/// The number of numbers in all parameters. Copies of one handle are one parameter.
template <class Weights, class Config>
Index count_parameters(const Weights& weights, const Config& config) {
  Index count = 0;
  std::set<const void*> counted;
  Weights::visit(weights, config,
                 [&]<class P>(const Name&, const P& parameter, Shape<P::rank> shape, auto...) {
                   // An empty tensor may lie where the next one starts.
                   if (shape.size() == 0) return;
                   if (counted.insert(parameter.identity()).second) count += shape.size();
                 });
  return count;
}

/// Packs a projection's weight as `storage`, but for its last `kept` rows. Throws `ConfigError`
/// with its name where a number of it does not fit.
template <class Weight>
__attribute__((noinline)) void pack_weight(std::string_view owner, const Name& name, Weight& weight,
                                           Storage storage, Index kept = 0) {
  try {
    weight.pack(storage, kept);
  } catch (const ConfigError& error) {
    throw ConfigError(std::string(owner) + ": weight " + name.text() + ": " + error.what());
  }
}

/// The taps [W, D] of a depthwise convolution from a checkpoint's [D, 1, W].
template <class Scalar>
Parameter<Scalar, 2> transposed_taps(const Parameter<Scalar, 3>& weight) {
  Tensor<Scalar, 2> taps({weight.extent(2), weight.extent(0)});
  for (Index d = 0; d < weight.extent(0); ++d) {
    for (Index tap = 0; tap < weight.extent(2); ++tap) taps(tap, d) = weight(d, 0, tap);
  }
  return taps;
}

/// Weights whose every parameter is what `make(name, shape)` returns, a `Tensor` of that shape.
template <class Weights, class Config>
Weights make_weights(const Config& config, auto&& make) {
  Weights weights;
  Weights::visit(weights, config,
                 [&]<class P>(const Name& name, P& parameter, Shape<P::rank> shape, auto...) {
                   parameter = Parameter<typename P::value_type, P::rank>(make(name, shape));
                 });
  return weights;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
