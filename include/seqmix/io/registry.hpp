#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
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
    add<Definition>(Definition::traits, {});
  }
  /// Adds it under the name of `traits`, which outlive all layers, where it must have the `sizes`
  /// ("sees.window") that may be zero otherwise.
  template <class Definition>
  void add(const Traits& traits, std::vector<std::string> sizes) {
    entries_.insert_or_assign(std::string(traits.name), std::make_shared<const EntryOf<Definition>>(
                                                            traits, std::move(sizes)));
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
    const Traits& traits;

    explicit Entry(const Traits& of_layer) : traits(of_layer) {}
    virtual ~Entry() = default;
    virtual AnyMixer<Scalar> make(const Json&, const StoredTensors&, std::string_view prefix,
                                  Options) const = 0;
    virtual void visit(const Json&, const VisitShape&) const = 0;
    virtual Json complete(const Json&) const = 0;
    virtual AnyMixer<Scalar> blank(const Json&) const = 0;
    virtual std::vector<Field> fields() const = 0;
  };

  template <class Definition>
  struct EntryOf final : Entry {
    using Config = typename Definition::Config;
    using Weights = typename Definition::Weights;
    using Entry::traits;
    std::vector<std::string> sizes;

    EntryOf(const Traits& of_layer, std::vector<std::string> required)
        : Entry(of_layer), sizes(std::move(required)) {}

    AnyMixer<Scalar> make(const Json& json, const StoredTensors& tensors, std::string_view prefix,
                          Options options) const override {
      return AnyMixer<Scalar>(make_layer<Mixer<Definition>>(read(json), tensors, prefix, options),
                              traits);
    }
    void visit(const Json& json, const VisitShape& visit_shape) const override {
      Weights none;
      list_parameters<Scalar>(none, read(json), [&](const ListedParameter<Scalar>& parameter) {
        const std::span<const Index> shape = parameter.expected();
        visit_shape(parameter.name(), std::vector<Index>(shape.begin(), shape.end()),
                    parameter.initializer());
      });
    }
    Json complete(const Json& json) const override { return write_config(read(json)); }
    AnyMixer<Scalar> blank(const Json& json) const override {
      const Config config = read(json);
      Weights weights;
      list_parameters<Scalar>(weights, config, [](const ListedParameter<Scalar>& parameter) {
        parameter.set([&]<class T>(T) { return Tensor<T, 1>({parameter.expected_size()}); });
      });
      return AnyMixer<Scalar>(Mixer<Definition>(config, std::move(weights)), traits);
    }
    std::vector<Field> fields() const override {
      const Json defaults = write_config(Config{});
      std::vector<Field> result;
      for (FieldDescription& field : describe_config<Config>()) {
        if (std::ranges::find(sizes, field.name) != sizes.end()) {
          field.required = true, field.legal = "at least 1";
        }
        const Json* otherwise = &defaults;
        for (const std::string& key : field.keys) otherwise = &otherwise->at(key);
        const bool has_default = !field.required && !field.inherited;
        result.push_back({std::move(field), has_default ? *otherwise : Json()});
      }
      return result;
    }

   private:
    Config read(const Json& json) const {
      Config config;
      const std::string_view name = traits.name;
      read_config(json, config, name);
      visit_fields(members_of(config),
                   [&](const FieldPath& path, const FieldValue& value, const FieldTags&) {
                     const auto* const size = std::get_if<Index*>(&value);
                     if (size == nullptr || std::ranges::find(sizes, path.text()) == sizes.end())
                       return;
                     detail::check_size(name, path, **size, 1, largest_size);
                   });
      return config;
    }
  };

  const Entry& find(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found != entries_.end()) return *found->second;
    std::string known;
    for (const auto& [other, entry] : entries_) known += (known.empty() ? "" : ", ") + other;
    throw ConfigError("no layer is called " + detail::in_quotes(name) + "; there are " + known);
  }

  std::map<std::string, std::shared_ptr<const Entry>> entries_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
