#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/io/load.hpp"
#include "seqmix/layers/any_mixer.hpp"
#include "seqmix/layers/detail/describe_config.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// Makes layers by name. The families register themselves: `register_linear(registry)` and so on.
template <class Scalar>
class Registry {
 public:
  /// Adds a layer under its definition's name.
  template <class Definition>
  void add() {
    entries_.insert_or_assign(
        std::string(Definition::traits.name),
        Entry{Definition::traits,
              [](const Json& config, const StoredTensors& tensors, std::string_view prefix,
                 Options options) {
                return AnyMixer<Scalar>(
                    make_layer<Mixer<Definition>>(config, tensors, prefix, options));
              },
              &visit_parameters_of<Definition>, &complete_config_of<Definition>,
              &blank_of<Definition>, &fields_of<Definition>});
  }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, entry] : entries_) result.push_back(name);
    return result;
  }
  bool has(const std::string& name) const { return entries_.contains(name); }
  const Traits& traits(const std::string& name) const { return find(name).traits; }

  /// The layer `name` with a config from JSON and the weights called `prefix` + parameter name.
  AnyMixer<Scalar> make(const std::string& name, const Json& config, const StoredTensors& tensors,
                        std::string_view prefix = weights_prefix, Options options = {}) const {
    return find(name).make(config, tensors, prefix, options);
  }
  /// The layer of a layer file; see `load_layer`.
  AnyMixer<Scalar> load(const Safetensors& file, Options options = {}) const {
    return make(layer_metadata(file, "layer"), layer_config(file), file, weights_prefix, options);
  }

  using VisitShape = std::function<void(const std::string& name, const std::vector<Index>& shape,
                                        const Initializer& initializer)>;
  /// The names and shapes of the parameters that a layer with this config has, and where fresh ones
  /// come from.
  void visit_parameters(const std::string& name, const Json& config,
                        const VisitShape& visit) const {
    find(name).visit(config, visit);
  }

  /// The layer with zeros for weights: for what does not depend on them, as the shape of its state.
  AnyMixer<Scalar> make_blank(const std::string& name, const Json& config) const {
    return find(name).blank(config);
  }

  /// A field of a config and its default as JSON; null where it is required or inherited.
  struct Field : FieldDescription {
    Json otherwise = {};
  };
  std::vector<Field> fields(const std::string& name) const { return find(name).fields(); }

  /// `config` with every field that it leaves out at its default, parts nested.
  Json complete_config(const std::string& name, const Json& config) const {
    return find(name).complete(config);
  }

 private:
  struct Entry {
    Traits traits;
    AnyMixer<Scalar> (*make)(const Json&, const StoredTensors&, std::string_view prefix, Options);
    void (*visit)(const Json&, const VisitShape&);
    Json (*complete)(const Json&);
    AnyMixer<Scalar> (*blank)(const Json&);
    std::vector<Field> (*fields)();
  };

  template <class Definition>
  static AnyMixer<Scalar> blank_of(const Json& json) {
    typename Definition::Config config;
    read_config(json, config, Definition::traits.name);
    typename Definition::Weights weights;
    Definition::Weights::visit(
        weights, std::as_const(config),
        []<class P>(const Name&, P& parameter, Shape<P::rank> shape, auto...) {
          using T = typename P::value_type;
          parameter = Parameter<T, P::rank>(Tensor<T, P::rank>(shape));
        });
    return Mixer<Definition>(std::move(config), std::move(weights));
  }

  template <class Definition>
  static std::vector<Field> fields_of() {
    using Config = typename Definition::Config;
    const Json defaults = write_config(Config{});
    std::vector<Field> result;
    describe_config<Config>([&](FieldDescription field) {
      const Json* otherwise = &defaults;
      for (const std::string& key : field.keys) otherwise = &otherwise->at(key);
      const bool has_default = !field.required && !field.inherited;
      result.push_back({std::move(field), has_default ? *otherwise : Json()});
    });
    return result;
  }

  template <class Definition>
  static Json complete_config_of(const Json& json) {
    typename Definition::Config config;
    read_config(json, config, Definition::traits.name);
    return write_config(config);
  }

  template <class Definition>
  static void visit_parameters_of(const Json& json, const VisitShape& visit) {
    typename Definition::Config config;
    read_config(json, config, Definition::traits.name);
    const typename Definition::Weights none{};
    Definition::Weights::visit(
        none, std::as_const(config),
        [&]<class P>(const Name& name, P&, Shape<P::rank> shape, auto... tags) {
          visit(name.text(), std::vector<Index>(shape.extents.begin(), shape.extents.end()),
                initializer_of(tags...));
        });
  }

  const Entry& find(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found != entries_.end()) return found->second;
    std::string known;
    for (const auto& [other, entry] : entries_) known += (known.empty() ? "" : ", ") + other;
    throw ConfigError("no layer is called " + detail::in_quotes(name) + "; there are " + known);
  }

  std::map<std::string, Entry> entries_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
