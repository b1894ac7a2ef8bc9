#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "seqmix/io/json.hpp"

// Reference twins: each layer once more, slow and literal, token by token from the paper's formula.
// A twin calls no kernel and shares no code with the layer. In double it is the truth, in float the
// literal float recurrence that the law measures float layers against.

namespace reference {

using seqmix::Index;
using seqmix::Json;

/// Row-major numbers.
template <class S>
struct Array {
  std::vector<Index> shape;
  std::vector<S> numbers;

  Array() = default;
  explicit Array(std::vector<Index> extents)
      : shape(std::move(extents)),
        numbers(static_cast<std::size_t>(
            std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>()))) {}

  S& operator()(auto... at) { return numbers[offset(at...)]; }
  const S& operator()(auto... at) const { return numbers[offset(at...)]; }

 private:
  std::size_t offset(auto... at) const {
    Index result = 0;
    std::size_t axis = 0;
    ((result = result * shape[axis++] + static_cast<Index>(at)), ...);
    return static_cast<std::size_t>(result);
  }
};

/// What a twin gets: a config, weights under the layer's names, x [B, T, D], and what the layer
/// takes beside it: side values [B, T, width], or a `source` [B, S, D'].
template <class S>
struct Input {
  Json config;
  std::map<std::string, Array<S>> weights;
  Array<S> x;
  std::map<std::string, Array<S>> inputs = {};

  Index size(const char* field) const { return config.at(field).get<Index>(); }
  double number(const char* field) const { return config.at(field).get<double>(); }
  bool flag(const char* field) const { return config.at(field).get<bool>(); }
  std::string text(const char* field) const { return config.at(field).get<std::string>(); }
  const Array<S>& weight(const std::string& name) const { return weights.at(name); }
  const Array<S>& input(const std::string& name) const { return inputs.at(name); }
  Index B() const { return x.shape[0]; }
  Index T() const { return x.shape[1]; }
};

/// What a twin gives: y [B, T, D], the final state by member name (of a cache the valid entries)
/// and the side values that the layer gives.
template <class S>
struct Output {
  Array<S> y;
  std::map<std::string, Array<S>> state;
  std::map<std::string, Array<S>> outputs = {};
};

/// W x + b for one token; b may be null.
template <class S>
std::vector<S> linear(const Array<S>& w, const Array<S>* b, const std::vector<S>& x) {
  std::vector<S> y(static_cast<std::size_t>(w.shape[0]));
  for (Index i = 0; i < w.shape[0]; ++i) {
    S sum = 0;
    for (Index j = 0; j < w.shape[1]; ++j) sum += w(i, j) * x[static_cast<std::size_t>(j)];
    y[static_cast<std::size_t>(i)] =
        b == nullptr ? sum : sum + b->numbers[static_cast<std::size_t>(i)];
  }
  return y;
}

/// The token x[b, t].
template <class S>
std::vector<S> token(const Array<S>& x, Index b, Index t) {
  const auto first = x.numbers.begin() + (b * x.shape[1] + t) * x.shape[2];
  return {first, first + x.shape[2]};
}
template <class S>
void set_token(Array<S>& y, Index b, Index t, const std::vector<S>& values) {
  for (Index i = 0; i < y.shape[2]; ++i) y(b, t, i) = values[static_cast<std::size_t>(i)];
}

template <class S>
S sigmoid(S x) {
  return 1 / (1 + std::exp(-x));
}
template <class S>
S silu(S x) {
  return x * sigmoid(x);
}

/// One twin: its layer, the configs that the conformance suite runs, and the function.
struct Twin {
  std::string layer;
  std::vector<std::string> configs;
  std::function<Output<double>(const Input<double>&)> in_double;
  std::function<Output<float>(const Input<float>&)> in_float;
};

/// Every twin.
const std::vector<Twin>& twins();

}  // namespace reference
