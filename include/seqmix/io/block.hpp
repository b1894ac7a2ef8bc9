#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/blocks/stack.hpp"
#include "seqmix/io/registry.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

namespace detail {

/// Whether a part's config has this width, if it has one.
inline bool has_width(const AnyConfig& config, Index d_model) {
  const Index* const own = config.members().d_model;
  return own == nullptr || *own == d_model;
}

/// The layer that a part of a block is; a `ConfigError` of it begins with the block's name and the
/// part's.
template <class Scalar>
AnyMixer<Scalar> make_part(std::string_view block, const std::string& part,
                           const RegistryEntry<Scalar>& layer, const AnyConfig& config,
                           const WeightSource& from, Options options) {
  try {
    return layer.make(config, from.part(part), options);
  } catch (const ConfigError& error) {
    throw ConfigError(std::string(block) + ": " + part + ": " + error.what());
  }
}

}  // namespace detail

/// The config of a residual block of registry layers, and of such blocks behind each other.
struct ResidualConfig {
  Index d_model = 0;
  double norm_eps = 1e-6;
  std::vector<std::pair<std::string, AnyConfig>> parts;  // by name

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("norm_eps", self.norm_eps, at_least(0));
    for (auto& [name, part] : self.parts) field(name, part);
  }
  void check() const {
    for (const auto& [name, part] : parts) {
      require(detail::has_width(part, d_model), name + ".d_model must be d_model");
    }
  }
};
struct HybridConfig {
  Index d_model = 0;
  std::vector<ResidualConfig> layers;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model);
    for (std::size_t i = 0; i < self.layers.size(); ++i) field(name_of(i), self.layers[i]);
  }
  void check() const {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      require(layers[i].d_model == d_model, name_of(i) + ".d_model must be d_model");
    }
  }
  static std::string name_of(std::size_t layer) { return "layers." + std::to_string(layer); }
};

/// What a hybrid model repeats, as data: residual blocks of registry layers behind each other.
///
///   x = x + part(rms_norm(x)) for each part of layer 0, then of layer 1 ...
///
/// The config and the parameters of layer i are called `layers.i`, those of a part by its name, its
/// norm's weight by that and `_norm.weight`: "layers.0.mixer_norm.weight".
template <class Scalar>
class HybridEntry final : public RegistryEntry<Scalar> {
  using Entry = RegistryEntry<Scalar>;

 public:
  struct PartEntry {
    std::string name;
    std::shared_ptr<const Entry> layer;
  };
  using Layers = std::vector<std::vector<PartEntry>>;

  HybridEntry(const Traits& traits, Layers layers, std::vector<std::string> sizes = {})
      : Entry(traits, std::move(sizes)), layers_(std::move(layers)) {}

  AnyConfig defaults() const override {
    HybridConfig config;
    for (const auto& parts : layers_) {
      ResidualConfig& layer = config.layers.emplace_back();
      for (const PartEntry& part : parts) {
        layer.parts.emplace_back(part.name, part.layer->defaults());
      }
    }
    return AnyConfig(std::move(config));
  }
  void visit(const AnyConfig& config, const typename Entry::VisitShape& body) const override {
    for_each_part(config, [&](const PartEntry& part, const AnyConfig& of_part, std::size_t i,
                              const ResidualConfig& layer) {
      const std::string prefix = HybridConfig::name_of(i) + "." + part.name;
      body(prefix + "_norm.weight", {layer.d_model}, init::ones);
      part.layer->visit(of_part, [&](const std::string& name, const std::vector<Index>& shape,
                                     const Initializer& initializer) {
        body(prefix + "." + name, shape, initializer);
      });
    });
  }
  AnyMixer<Scalar> make(const AnyConfig& config, const WeightSource& from,
                        Options options) const override {
    std::vector<BlockConfig<Scalar>> blocks(layers_.size());
    for_each_part(config, [&](const PartEntry& part, const AnyConfig& of_part, std::size_t i,
                              const ResidualConfig& layer) {
      const std::string prefix = HybridConfig::name_of(i) + "." + part.name;
      const Index shape[] = {layer.d_model};
      Branch<Scalar>& branch = blocks[i].branches.emplace_back();
      branch.before = {.kind = NormKind::rms,
                       .weight = from.numbers<Scalar>(prefix + "_norm.weight", shape),
                       .eps = layer.norm_eps};
      branch.parts.push_back({.name = part.name,
                              .mixer = detail::make_part(this->traits().name, prefix, *part.layer,
                                                         of_part, from, options)});
    });
    std::vector<AnyMixer<Scalar>> layers;
    for (auto& block : blocks) layers.push_back(Block<Scalar>(std::move(block)));
    return stack(layers, this->traits());
  }

 private:
  void for_each_part(const AnyConfig& config, auto&& body) const {
    const auto& of_layers = config.get<HybridConfig>().layers;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      for (std::size_t p = 0; p < layers_[i].size(); ++p) {
        body(layers_[i][p], of_layers[i].parts[p].second, i, of_layers[i]);
      }
    }
  }

  Layers layers_;
};

/// The config of a norm of a block.
struct NormConfig {
  NormKind kind = NormKind::none;
  double eps = 1e-6;
  bool weight = true;  // false: what multiplies is 1
  bool bias = false;

  static void visit(auto& self, auto&& field) {
    field("kind", self.kind);
    const OnlyWhere is_norm = only_where(self.kind != NormKind::none, "kind is not none");
    field("eps", self.eps, at_least(0), is_norm), field("weight", self.weight, is_norm);
    field("bias", self.bias, only_where(self.kind == NormKind::layer, "kind is layer"));
  }
  bool has_weight() const { return kind != NormKind::none && weight; }
};

/// A list of configs as a part of one, whose keys are numbers.
template <class Item>
struct ConfigList {
  Index d_model = 0;  // handed down
  std::vector<Item> items;

  static void visit(auto& self, auto&& field) {
    for (std::size_t i = 0; i < self.items.size(); ++i) field(std::to_string(i), self.items[i]);
  }
};

struct PartConfigs {
  AnyConfig config;
  Index d_model = 0;  // handed down
  std::string name = {}, layer = {};
  NormConfig before = {}, after = {};
  double input_multiplier = 1, output_multiplier = 1;

  static void visit(auto& self, auto&& field) {
    field("name", self.name), field("layer", self.layer), field("config", self.config);
    field("before", self.before), field("after", self.after);
    field("input_multiplier", self.input_multiplier, is_finite);
    field("output_multiplier", self.output_multiplier, is_finite);
  }
};
struct BranchConfig {
  Index d_model = 0;  // handed down
  NormConfig before = {};
  ConfigList<PartConfigs> parts = {};
  NormConfig after = {};
  double multiplier = 1, residual = 1;
  NormConfig last = {};

  static void visit(auto& self, auto&& field) {
    field("before", self.before), field("parts", self.parts), field("after", self.after);
    field("multiplier", self.multiplier, is_finite), field("residual", self.residual, is_finite);
    field("last", self.last);
  }
};
struct BranchesConfig {
  Index d_model = 0;
  ConfigList<BranchConfig> branches = {};

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("branches", self.branches);
  }
  void check() const {
    std::vector<std::string_view> names;
    for (const BranchConfig& branch : branches.items) {
      require(!branch.parts.items.empty(), "a branch must have parts");
      for (const PartConfigs& part : branch.parts.items) {
        require(detail::has_width(part.config, d_model),
                "the d_model of " + part.name + " must be d_model");
        require(!part.name.empty() && std::ranges::find(names, part.name) == names.end(),
                "parts must have names, and different ones");
        names.push_back(part.name);
      }
    }
    require(!names.empty(), "branches must have parts");
  }
};

/// A block as a layer file has it: its branches and their parts, which are layers of a registry, or
/// blocks.
///
///   {"d_model": 64,
///    "branches": [{"before": {"kind": "rms", "eps": 1e-6},
///                  "parts": [{"name": "mixer", "layer": "attention", "config": {...}}]}, ...]}
///
/// The keys are the fields of `Branch` and `Part`. A part has the block's d_model where its config
/// names none. Its parameters are called by its name, `mixer.q_proj.weight`; its own norms'
/// `mixer_before.weight` and so on, those of a branch `branches.0.before.weight`.
template <class Scalar>
class BlockEntry final : public RegistryEntry<Scalar> {
  using Entry = RegistryEntry<Scalar>;

 public:
  /// `layers`: what parts may be, at least one.
  BlockEntry(const Traits& traits, Registry<Scalar> layers)
      : Entry(traits), layers_(std::move(layers)) {}

  AnyConfig defaults() const override { return AnyConfig(BranchesConfig{}); }
  AnyConfig prepare(Json& json) const override {
    BranchesConfig config;
    config.branches.items = read_list<BranchConfig>(json, "branches", [&](Json& branch) {
      BranchConfig result;
      result.parts.items = read_list<PartConfigs>(branch, "parts", [&](Json& part) {
        const auto layer = json_field<std::string>(part, "layer", this->traits().name);
        if (!part.contains("config")) part["config"] = Json::object();
        return PartConfigs{.config = entry(layer).prepare(part["config"])};
      });
      return result;
    });
    return AnyConfig(std::move(config));
  }
  Json example() const override {
    const std::string layer = layers_.names().front();
    Json config = Json::object();
    for (const ConfigField& field : layers_.fields(layer)) {
      if (field.required && field.keys.back() != "d_model") config[field.keys.back()] = 16;
    }
    const Json part{{"name", layer}, {"layer", layer}, {"config", config}};
    const Json branch{{"parts", Json::array({part})}};
    return Json{{"branches", Json::array({branch})}};
  }
  Json write(const AnyConfig& config) const override {
    Json json = write_config(config);
    write_list(json, "branches");
    const auto& branches = config.get<BranchesConfig>().branches.items;
    for (std::size_t b = 0; b < branches.size(); ++b) {
      Json& branch = json["branches"][b];
      write_list(branch, "parts");
      for (std::size_t p = 0; p < branches[b].parts.items.size(); ++p) {
        const PartConfigs& part = branches[b].parts.items[p];
        branch["parts"][p]["config"] = entry(part.layer).write(part.config);
      }
    }
    return json;
  }
  void visit(const AnyConfig& config, const typename Entry::VisitShape& body) const override {
    const Index d_model = config.get<BranchesConfig>().d_model;
    walk(
        config,
        [&](const NormConfig& norm, const std::string& name) {
          const double one = norm.kind == NormKind::rms_around_one ? 0 : 1;
          if (norm.has_weight()) body(name + ".weight", {d_model}, init::constant(one));
          if (norm.bias) body(name + ".bias", {d_model}, init::zeros);
          return Norm<Scalar>();
        },
        [&](const PartConfigs& part) {
          entry(part.layer)
              .visit(part.config, [&](const std::string& name, const std::vector<Index>& shape,
                                      const Initializer& initializer) {
                body(part.name + "." + name, shape, initializer);
              });
          return AnyMixer<Scalar>();
        });
  }
  AnyMixer<Scalar> make(const AnyConfig& config, const WeightSource& from,
                        Options options) const override {
    const Index shape[] = {config.get<BranchesConfig>().d_model};
    return Block<Scalar>({.branches = walk(
                              config,
                              [&](const NormConfig& norm, const std::string& name) {
                                Norm<Scalar> result{.kind = norm.kind, .eps = norm.eps};
                                if (norm.has_weight())
                                  result.weight = from.numbers<Scalar>(name + ".weight", shape);
                                if (norm.bias)
                                  result.bias = from.numbers<Scalar>(name + ".bias", shape);
                                return result;
                              },
                              [&](const PartConfigs& part) {
                                return detail::make_part(this->traits().name, part.name,
                                                         entry(part.layer), part.config, from,
                                                         options);
                              })});
  }

 private:
  const Entry& entry(const std::string& layer) const {
    return layer == this->traits().name ? *this : *layers_.entry(layer);
  }
  /// Makes the list at `key` of an object, of items that `make(item)` gives, an object whose keys
  /// are numbers, and the other way round.
  template <class Item>
  std::vector<Item> read_list(Json& object, const char* key, auto&& make) const {
    std::vector<Item> items;
    if (!object.is_object()) return items;
    if (!object.contains(key)) object[key] = Json::array();
    Json& list = object[key];
    if (!list.is_array()) {
      throw ConfigError(std::string(this->traits().name) + ": " + key + ": got " +
                        detail::excerpt(list) + ", expected a list");
    }
    Json numbered = Json::object();
    for (Json& item : list) {
      const std::string number = std::to_string(items.size());
      items.push_back(make(item));
      numbered[number] = std::move(item);
    }
    list = std::move(numbered);
    return items;
  }
  static void write_list(Json& object, const char* key) {
    Json list = Json::array();
    for (std::size_t i = 0; i < object[key].size(); ++i) {
      list.push_back(std::move(object[key][std::to_string(i)]));
    }
    object[key] = std::move(list);
  }
  /// The branches whose norms `norm(config, name)` makes and whose layers `layer(part)`.
  static std::vector<Branch<Scalar>> walk(const AnyConfig& config, auto&& norm, auto&& layer) {
    std::vector<Branch<Scalar>> result;
    for (const BranchConfig& branch : config.get<BranchesConfig>().branches.items) {
      const std::string name = "branches." + std::to_string(result.size());
      Branch<Scalar>& made = result.emplace_back();
      made.before = norm(branch.before, name + ".before");
      for (const PartConfigs& part : branch.parts.items) {
        made.parts.push_back({.name = part.name,
                              .mixer = layer(part),
                              .before = norm(part.before, part.name + "_before"),
                              .after = norm(part.after, part.name + "_after"),
                              .input_multiplier = part.input_multiplier,
                              .output_multiplier = part.output_multiplier});
      }
      made.after = norm(branch.after, name + ".after");
      made.multiplier = branch.multiplier, made.residual = branch.residual;
      made.last = norm(branch.last, name + ".last");
    }
    return result;
  }

  Registry<Scalar> layers_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
