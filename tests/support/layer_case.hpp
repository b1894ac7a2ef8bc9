#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "reference/twin.hpp"
#include "support/layers/registry.hpp"
#include "support/scalars.hpp"

namespace support {

using seqmix::AnyMixer;
using seqmix::AnyState;
using seqmix::Context;
using seqmix::Index;
using seqmix::Tensor;
using seqmix::View;

/// The verbs of a layer, each a way to get all outputs of a sequence.
enum class Verb { forward, prefill, step };

/// The side values of one call: inputs are a function of each token of x, outputs are room.
template <class S>
class SideValues {
 public:
  SideValues(const AnyMixer<S>& mixer, View<const S, 3> x);
  std::span<const seqmix::NamedView<S>> views() const { return views_; }

 private:
  std::vector<std::string> names_;
  std::vector<Tensor<S, 2>> values_;       // [B T, W]
  std::vector<Tensor<Index, 2>> indices_;  // [B T, W]
  std::vector<seqmix::NamedView<S>> views_;
};

/// The name of the definition behind a layer's, which its run-time errors have.
inline std::string definition_name(const std::string& layer) {
  return layer == "sliding_window_attention" ? "attention" : layer;
}

/// One layer with one config and random weights: as the library makes it, and as its twin runs it.
/// Weights and inputs are numbers of float, so that float and double layers have the same ones. Its
/// verbs supply what the layer takes beside x: side values, and one source for all rows.
template <class S>
class LayerCase {
 public:
  LayerCase(const reference::Twin& twin, const std::string& config, unsigned seed = 1,
            seqmix::Options options = {}, bool biased = true);

  const std::string& name() const { return twin_.layer; }
  std::string text() const { return twin_.layer + " " + input_.config.dump(); }
  const AnyMixer<S>& mixer() const { return mixer_; }
  Index d_model() const { return mixer_.d_model(); }
  bool continues() const { return mixer_.continues(); }
  bool reads_source() const { return mixer_.d_source() > 0; }
  /// Whether a long Fourier transform or a triangular inverse stands between x and y: outputs then
  /// agree to 1e-10, and not in every bit of what a later token cannot change.
  bool is_indirect() const;
  /// The tokens of the longest sequence that the config allows, or `most`.
  Index longest(Index most) const;

  AnyState make_state(Index B, Index capacity) const;
  /// As `make_state` makes it.
  void reset(AnyState& state, Index row) const;
  void forward(View<const S, 3> x, View<S, 3> y, Context& context) const;
  void prefill(View<const S, 3> x, AnyState& state, View<S, 3> y, Context& context) const;
  void step(View<const S, 2> x, AnyState& state, View<S, 2> y, Context& context) const;
  void advance(View<const S, 2> x, seqmix::Segments segments, AnyState& state, View<S, 2> y,
               Context& context) const;

  /// N(0, 1) numbers, [B, T, D].
  Tensor<S, 3> random_input(Index B, Index T, unsigned seed) const;

  /// What the twin makes of x in double (the truth) and in S.
  reference::Output<double> truth(const Tensor<S, 3>& x) const;
  reference::Output<S> literal(const Tensor<S, 3>& x) const;

  /// The law's bound on an error against the truth: in double 1e-12 (1e-10 where the layer is
  /// indirect), in float twice the error of the literal float recurrence plus 4 eps.
  double bound(double literal_error) const;

 private:
  template <class T>
  reference::Input<T> input_of(const Tensor<S, 3>& x) const;
  Tensor<S, 3> source(Index B) const;

  const reference::Twin& twin_;
  reference::Input<double> input_;  // without x
  AnyMixer<S> mixer_;
};

/// The valid numbers of each member of a state, row after row, as the twins list them.
std::map<std::string, std::vector<double>> valid_numbers(AnyState& state);

/// Calls `body(case)` for every config of every layer of the registry. The variable SEQMIX_LAYER of
/// the environment leaves one.
template <class S>
void for_each_layer(auto&& body) {
  const char* const only = std::getenv("SEQMIX_LAYER");
  for (const reference::Twin& twin : reference::twins()) {
    if (!registry<S>().has(twin.layer)) continue;
    if (only != nullptr && twin.layer != only) continue;
    for (const std::string& config : twin.configs) {
      const LayerCase<S> layer(twin, config);
      body(layer);
    }
  }
}

}  // namespace support
