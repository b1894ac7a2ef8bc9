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

/// A field of a config and its default as JSON; null where it is required or inherited.
struct ConfigField : FieldDescription {
  Json otherwise = {};
};

/// Where layers get their weights from: tensors, or zeros.
class WeightSource {
 public:
  WeightSource() = default;
  /// The tensors called `prefix` + parameter name; those that are taken are added to `used`.
  WeightSource(const StoredTensors& tensors, std::string_view prefix, UsedNames& used)
      : tensors_(&tensors), prefix_(prefix), used_(&used) {}

  /// The row-major numbers of a parameter.
  template <class T>
  Parameter<T, 1> numbers(const std::string& name, std::span<const Index> shape) const {
    if (tensors_ == nullptr) {
      Index size = 1;
      for (const Index extent : shape) size = checked_product(size, extent);
      return Tensor<T, 1>({size});
    }
    const std::string theirs = prefix_ + name;
    Parameter<T, 1> result = tensors_->numbers<T>(theirs, shape);
    used_->insert(theirs);
    return result;
  }
  /// That of a part, whose parameters are called `name` + "." + their own names.
  WeightSource part(const std::string& name) const {
    WeightSource result = *this;
    result.prefix_ += name + ".";
    return result;
  }

 private:
  const StoredTensors* tensors_ = nullptr;
  std::string prefix_;
  UsedNames* used_ = nullptr;
};

/// What a registry knows of a layer: a function from config and weights to the layer, and what both
/// may be.
template <class Scalar>
class RegistryEntry {
 public:
  using VisitShape = std::function<void(const std::string& name, const std::vector<Index>& shape,
                                        const Initializer& initializer)>;

  /// `of_layer` outlives all layers; `sizes` ("sees.window"): what must not be zero where it may be
  /// otherwise.
  explicit RegistryEntry(const Traits& of_layer, std::vector<std::string> sizes = {})
      : traits_(of_layer), sizes_(std::move(sizes)) {}
  virtual ~RegistryEntry() = default;

  /// A config at its defaults.
  virtual AnyConfig defaults() const = 0;
  /// Names and shapes of the parameters of a layer with this config, where fresh ones come from.
  virtual void visit(const AnyConfig&, const VisitShape&) const = 0;
  virtual AnyMixer<Scalar> make(const AnyConfig&, const WeightSource&, Options) const = 0;

  /// The config at its defaults that `json` is for, and `json` as `read_config` takes it: for a
  /// layer whose parts are the config's to say.
  virtual AnyConfig prepare(Json&) const { return defaults(); }
  /// Of such a layer some parts, with sizes, as an example; nothing of any other.
  virtual Json example() const { return Json::object(); }
  /// A config as JSON, every field of it.
  virtual Json write(const AnyConfig& config) const { return write_config(config); }

  const Traits& traits() const { return traits_; }
  AnyConfig read(const Json& json) const {
    detail::JsonDocument object(json);
    AnyConfig config = prepare(object.get());
    read_config(object.get(), config, traits_.name);
    visit_fields(config.members(),
                 [&](const FieldPath& path, const FieldValue& value, const FieldTags&) {
                   const auto* const size = std::get_if<Index*>(&value);
                   if (size == nullptr || !is_size(path.text())) return;
                   detail::check_size(traits_.name, path, **size, 1, largest_size);
                 });
    return config;
  }
  std::vector<ConfigField> fields() const {
    detail::JsonDocument of(example());
    const AnyConfig config = prepare(of.get());
    const Json values = detail::write_members(config.members());
    std::vector<ConfigField> result;
    for (FieldDescription& field : describe_members(config.members())) {
      if (is_size(field.name)) field.required = true, field.legal = "at least 1";
      const Json* otherwise = &values;
      for (const std::string& key : field.keys) otherwise = &otherwise->at(key);
      const bool has_default = !field.required && !field.inherited;
      result.push_back({std::move(field), has_default ? *otherwise : Json()});
    }
    return result;
  }

 private:
  bool is_size(const std::string& field) const {
    return std::ranges::find(sizes_, field) != sizes_.end();
  }

  const Traits& traits_;
  std::vector<std::string> sizes_;
};

/// The entry of a definition.
template <class Definition>
class DefinitionEntry final : public RegistryEntry<typename Definition::Scalar> {
  using Scalar = typename Definition::Scalar;
  using Config = typename Definition::Config;
  using Weights = typename Definition::Weights;
  using Entry = RegistryEntry<Scalar>;

 public:
  explicit DefinitionEntry(const Traits& of_layer = Definition::traits,
                           std::vector<std::string> sizes = {})
      : Entry(of_layer, std::move(sizes)) {}

  AnyConfig defaults() const override { return AnyConfig(Config{}); }
  void visit(const AnyConfig& config, const typename Entry::VisitShape& body) const override {
    Weights none;
    list_parameters<Scalar>(none, config.get<Config>(),
                            [&](const ListedParameter<Scalar>& parameter) {
                              const std::span<const Index> shape = parameter.expected();
                              body(parameter.name(), std::vector<Index>(shape.begin(), shape.end()),
                                   parameter.initializer());
                            });
  }
  AnyMixer<Scalar> make(const AnyConfig& config, const WeightSource& from,
                        Options options) const override {
    Weights weights;
    list_parameters<Scalar>(
        weights, config.get<Config>(), [&](const ListedParameter<Scalar>& parameter) {
          parameter.set(
              [&]<class T>(T) { return from.numbers<T>(parameter.name(), parameter.expected()); });
        });
    return AnyMixer<Scalar>(Mixer<Definition>(config.get<Config>(), std::move(weights), options),
                            this->traits());
  }
};

/// Makes layers by name. The families register themselves: `register_linear(registry)` and so on.
template <class Scalar>
class Registry {
 public:
  using Entry = RegistryEntry<Scalar>;
  using Field = ConfigField;
  using VisitShape = typename Entry::VisitShape;

  /// Adds a layer under its definition's name.
  template <class Definition>
  void add() {
    add(std::make_shared<const DefinitionEntry<Definition>>());
  }
  /// Adds it under the name of `traits`, which outlive all layers, where it must have the `sizes`
  /// ("sees.window") that may be zero otherwise.
  template <class Definition>
  void add(const Traits& traits, std::vector<std::string> sizes) {
    add(std::make_shared<const DefinitionEntry<Definition>>(traits, std::move(sizes)));
  }
  /// Adds what its entry says.
  void add(std::shared_ptr<const Entry> entry) {
    std::string name(entry->traits().name);
    entries_.insert_or_assign(std::move(name), std::move(entry));
  }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, entry] : entries_) result.push_back(name);
    return result;
  }
  bool has(const std::string& name) const { return entries_.contains(name); }
  const Traits& traits(const std::string& name) const { return entry(name)->traits(); }

  /// The layer `name` with a config from JSON and the weights called `prefix` + parameter name.
  AnyMixer<Scalar> make(const std::string& name, const Json& config, const StoredTensors& tensors,
                        std::string_view prefix = weights_prefix, Options options = {}) const {
    UsedNames used;
    const auto layer = entry(name);
    const WeightSource from(tensors, prefix, used);
    AnyMixer<Scalar> result = layer->make(layer->read(config), from, options);
    tensors.expect_no_others(used, prefix);
    return result;
  }
  /// The layer of a layer file; see `load_layer`.
  AnyMixer<Scalar> load(const Safetensors& file, Options options = {}) const {
    return make(layer_metadata(file, "layer"), layer_config(file), file, weights_prefix, options);
  }

  /// The names and shapes of the parameters that a layer with this config has, and where fresh ones
  /// come from.
  void visit_parameters(const std::string& name, const Json& config,
                        const VisitShape& visit) const {
    const auto layer = entry(name);
    layer->visit(layer->read(config), visit);
  }

  /// The layer with zeros for weights: for what does not depend on them, as the shape of its state.
  AnyMixer<Scalar> make_blank(const std::string& name, const Json& config) const {
    const auto layer = entry(name);
    return layer->make(layer->read(config), WeightSource(), {});
  }

  std::vector<Field> fields(const std::string& name) const { return entry(name)->fields(); }

  /// What a config cannot leave out beside sizes, as an example.
  Json example(const std::string& name) const { return entry(name)->example(); }

  /// `config` with every field that it leaves out at its default, parts nested.
  Json complete_config(const std::string& name, const Json& config) const {
    const auto layer = entry(name);
    return layer->write(layer->read(config));
  }

  /// Throws `ConfigError` with the known names where there is none of this name.
  const std::shared_ptr<const Entry>& entry(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found != entries_.end()) return found->second;
    std::string known;
    for (const auto& [other, entry] : entries_) known += (known.empty() ? "" : ", ") + other;
    throw ConfigError("no layer is called " + detail::in_quotes(name) + "; there are " + known);
  }

 private:
  std::map<std::string, std::shared_ptr<const Entry>> entries_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
