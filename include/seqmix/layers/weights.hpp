#pragma once

#include <cctype>
#include <concepts>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "seqmix/core/parameter.hpp"
#include "seqmix/layers/name.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// How a layer keeps its projections' weights, and its states their caches of keys and values.
struct Options {
  Storage weights = Storage::native;
  Storage caches = Storage::native;

  Options() = default;
  /// Both, which is what `load(..., Storage::bf16)` asks for.
  Options(Storage both) : weights(both), caches(both) {}
  Options(Storage of_weights, Storage of_caches) : weights(of_weights), caches(of_caches) {}
};

/// Gives a list of parts its length when weights are being filled; a const list has it already.
template <class Part>
void resize_parts(std::vector<Part>& parts, Index count) {
  parts.resize(static_cast<std::size_t>(count));
}
template <class Part>
void resize_parts(const std::vector<Part>&, Index) {}

namespace detail {

/// Whether `word` stands in `text` on its own, not as a part of a longer name.
inline bool has_word(std::string_view text, std::string_view word) {
  const auto is_letter = [&](std::size_t i) {
    return i < text.size() && (text[i] == '_' || std::isalnum(static_cast<unsigned char>(text[i])));
  };
  for (auto at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    if (!(at > 0 && is_letter(at - 1)) && !is_letter(at + word.size())) return true;
  }
  return false;
}

/// "a is 1, b is 2": the numbers of a config that `sentence` speaks of.
template <class Config>
std::string values_of_fields(const Config& config, std::string_view sentence) {
  std::string values;
  Config::visit(config, [&]<class Field>(std::string_view name, const Field& value, auto...) {
    if constexpr (std::is_arithmetic_v<Field>) {
      if (!has_word(sentence, name) || has_word(values, name)) return;
      std::ostringstream text;
      text << std::boolalpha << value;
      values.append(values.empty() ? "" : ", ").append(name).append(" is ").append(text.str());
    }
  });
  return values;
}

}  // namespace detail

/// Throws `ConfigError` where a size of `config` is not positive or its own `check` objects; the
/// text says the rule and the values that break it.
template <class Config>
void check_config(std::string_view layer, const Config& config) {
  Config::visit(config, [&]<class Field>(std::string_view name, const Field& value, auto... tags) {
    if constexpr (std::same_as<Field, Index>) {
      const Index least = sizeof...(tags) == 0 ? 1 : 0;
      if (value < least) {
        throw ConfigError(std::string(layer) + ": " + std::string(name) + " is " +
                          std::to_string(value) + ", expected at least " + std::to_string(least));
      }
    }
  });
  if constexpr (requires { config.check(); }) {
    try {
      config.check();
    } catch (const ConfigError& error) {
      const std::string values = detail::values_of_fields(config, error.what());
      throw ConfigError(std::string(layer) + ": " + error.what() +
                        (values.empty() ? "" : "; " + values));
    }
  }
}

/// The number of numbers in all parameters. Copies of one handle are one parameter.
template <class Weights, class Config>
Index count_parameters(const Weights& weights, const Config& config) {
  Index count = 0;
  std::set<const void*> counted;
  Weights::visit(weights, config,
                 [&]<class P>(const Name&, const P& parameter, Shape<P::rank> shape) {
                   // An empty tensor may lie where the next one starts.
                   if (shape.size() == 0) return;
                   if (counted.insert(parameter.identity()).second) count += shape.size();
                 });
  return count;
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
                 [&]<class P>(const Name& name, P& parameter, Shape<P::rank> shape) {
                   parameter = Parameter<typename P::value_type, P::rank>(make(name, shape));
                 });
  return weights;
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
