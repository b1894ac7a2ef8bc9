#pragma once

#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "seqmix/io/json.hpp"
#include "seqmix/io/safetensors.hpp"
#include "seqmix/layers/detail/weights.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The tensors of a checkpoint that have become parameters.
using UsedNames = std::set<std::string, std::less<>>;

/// What stands before the parameter names in a layer file.
inline constexpr std::string_view weights_prefix = "weights.";

/// The weights of a layer from the tensors that `rename` calls its parameters, converted to the
/// compute type; their names are added to `used`. A config that no layer can have is a
/// `ConfigError`, a missing or misshapen tensor a `CheckpointError`.
template <class Layer>
typename Layer::Weights load_weights(const typename Layer::Config& config,
                                     const StoredTensors& tensors, auto&& rename, UsedNames& used) {
  using Weights = typename Layer::Weights;
  check_config(Layer::traits.name, config);  // the shapes divide by its sizes
  Weights weights;
  using Scalar = typename Layer::Scalar;
  list_parameters<Scalar>(weights, config, [&](const ListedParameter<Scalar>& parameter) {
    const std::string theirs = rename(parameter.name());
    parameter.set([&]<class T>(T) { return tensors.numbers<T>(theirs, parameter.expected()); });
    used.insert(theirs);
  });
  return weights;
}

/// The metadata entry `key` of a layer file.
inline const std::string& layer_metadata(const Safetensors& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found != file.metadata().end()) return found->second;
  throw CheckpointError(file.source() + ": metadata \"" + key +
                        "\" is missing; a layer file names its layer and config");
}

/// The config of a layer file.
inline detail::JsonDocument layer_config(const Safetensors& file) {
  return parse_json(layer_metadata(file, "config"), file.source() + ": config");
}

/// A layer from a config and the tensors called `prefix` + parameter name. Throws `ConfigError` on
/// a bad config and `CheckpointError` on a tensor that is missing, misshapen or left over.
template <class Layer>
Layer make_layer(typename Layer::Config config, const StoredTensors& tensors,
                 std::string_view prefix = weights_prefix, Options options = {}) {
  UsedNames used;
  auto weights = load_weights<Layer>(
      config, tensors, [&](const std::string& name) { return std::string(prefix) + name; }, used);
  tensors.expect_no_others(used, prefix);
  return Layer(std::move(config), std::move(weights), options);
}
/// The same with a config from JSON.
template <class Layer>
Layer make_layer(const Json& json, const StoredTensors& tensors,
                 std::string_view prefix = weights_prefix, Options options = {}) {
  typename Layer::Config config;
  read_config(json, config, Layer::traits.name);
  return make_layer<Layer>(std::move(config), tensors, prefix, options);
}

/// A layer from a layer file: safetensors with the metadata `layer` (its name) and `config` (JSON)
/// and the tensors `weights.<parameter name>`. Golden files and what `verify` reads are such files.
template <class Layer>
Layer load_layer(const Safetensors& file, Options options = {}) {
  const std::string& name = layer_metadata(file, "layer");
  if (name != Layer::traits.name) {
    throw CheckpointError(file.source() + ": holds the layer " + detail::in_quotes(name) +
                          ", expected \"" + std::string(Layer::traits.name) + "\"");
  }
  return make_layer<Layer>(layer_config(file), file, weights_prefix, options);
}
template <class Layer>
Layer load_layer(const std::filesystem::path& path, Options options = {}) {
  return load_layer<Layer>(Safetensors::open(path), options);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
