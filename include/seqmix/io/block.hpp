#pragma once

#include <memory>
#include <span>
#include <string>
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
      const WeightSource of_layer = from.part(HybridConfig::name_of(i));
      const Index shape[] = {layer.d_model};
      Branch<Scalar>& branch = blocks[i].branches.emplace_back();
      branch.before = {.kind = NormKind::rms,
                       .weight = of_layer.numbers<Scalar>(part.name + "_norm.weight", shape),
                       .eps = layer.norm_eps};
      branch.parts.push_back(
          {.name = part.name,
           .mixer = part.layer->make(of_part, of_layer.part(part.name), options)});
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

SEQMIX_END_NAMESPACE
}  // namespace seqmix
