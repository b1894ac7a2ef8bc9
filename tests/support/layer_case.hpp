#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "reference/twin.hpp"
#include "seqmix/io/registry.hpp"

namespace support {

using seqmix::AnyMixer;
using seqmix::AnyState;
using seqmix::Context;
using seqmix::Index;
using seqmix::Tensor;
using seqmix::View;

/// The registry of every layer.
template <class S>
const seqmix::Registry<S>& registry();

/// One layer with one config and random weights: as the library makes it, and as its twin runs it.
/// Weights and inputs are numbers of float, so that float and double layers have the same ones.
template <class S>
class LayerCase {
 public:
  LayerCase(const reference::Twin& twin, const std::string& config, unsigned seed = 1);

  const std::string& name() const { return twin_.layer; }
  std::string text() const { return twin_.layer + " " + input_.config.dump(); }
  const AnyMixer<S>& mixer() const { return mixer_; }
  Index d_model() const { return mixer_.d_model(); }

  /// N(0, 1) numbers, [B, T, D].
  Tensor<S, 3> random_input(Index B, Index T, unsigned seed) const;

  /// What the twin makes of x in double (the truth) and in S.
  reference::Output<double> truth(const Tensor<S, 3>& x) const;
  reference::Output<S> literal(const Tensor<S, 3>& x) const;

  /// The law's bound on an error against the truth: in double 1e-12 (1e-10 where a long FFT stands
  /// between), in float twice the error of the literal float recurrence plus 4 eps.
  double bound(double literal_error) const;

 private:
  template <class T>
  reference::Input<T> input_of(const Tensor<S, 3>& x) const;

  const reference::Twin& twin_;
  reference::Input<double> input_;  // without x
  AnyMixer<S> mixer_;
};

/// The valid numbers of each member of a state, row after row, as the twins list them.
std::map<std::string, std::vector<double>> valid_numbers(AnyState& state);

/// Calls `body(case)` for every config of every layer.
template <class S>
void for_each_layer(auto&& body) {
  for (const reference::Twin& twin : reference::twins()) {
    for (const std::string& config : twin.configs) {
      const LayerCase<S> layer(twin, config);
      body(layer);
    }
  }
}

}  // namespace support
