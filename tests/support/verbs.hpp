#pragma once

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "seqmix/testing/splits.hpp"
#include "seqmix/testing/state.hpp"
#include "support/call.hpp"
#include "support/layer_case.hpp"

// The verbs of a layer as the suites call them.

namespace support {

using seqmix::Shape;

template <class S>
inline constexpr S nan_of = std::numeric_limits<S>::quiet_NaN();

template <class S>
Tensor<S, 3> unwritten(Shape<3> shape) {
  Tensor<S, 3> y(shape);
  fill(y.view(), nan_of<S>);
  return y;
}

template <class S>
Tensor<S, 3> forward(const LayerCase<S>& layer, View<const S, 3> x, Context& context) {
  auto y = unwritten<S>(x.shape());
  layer.forward(x, y, context);
  return y;
}

/// Continues `state` by x, by steps or by one prefill.
template <class S>
void advance(const LayerCase<S>& layer, View<const S, 3> x, AnyState& state, View<S, 3> y,
             Context& context, bool by_steps) {
  if (!by_steps) return layer.prefill(x, state, y, context);
  for (Index t = 0; t < x.extent(1); ++t) {
    layer.step(x.template at<1>(t), state, y.template at<1>(t), context);
  }
}

/// All outputs of x by one verb.
template <class S>
Tensor<S, 3> run(const LayerCase<S>& layer, View<const S, 3> x, Context& context, Verb verb) {
  if (verb == Verb::forward) return forward<S>(layer, x, context);
  auto state = layer.make_state(x.extent(0), x.extent(1));
  auto y = unwritten<S>(x.shape());
  advance<S>(layer, x, state, y, context, verb == Verb::step);
  return y;
}
template <class S>
std::vector<Verb> verbs(const LayerCase<S>& layer) {
  if (!layer.continues()) return {Verb::forward};
  return {Verb::forward, Verb::prefill, Verb::step};
}

/// Calls `body(case)` for every config of every layer that has a state.
template <class S>
void for_each_continuing_layer(auto&& body) {
  for_each_layer<S>([&](const LayerCase<S>& layer) {
    if (layer.continues()) body(layer);
  });
}

/// Continues `state` by x in random pieces, prefills and steps.
template <class S>
void advance_randomly(const LayerCase<S>& layer, View<const S, 3> x, AnyState& state, View<S, 3> y,
                      Context& context, std::mt19937& random) {
  for (const auto& piece : seqmix::testing::random_split(x.extent(1), random)) {
    advance(layer, x.template slice<1>(piece.first, piece.count), state,
            y.template slice<1>(piece.first, piece.count), context, piece.by_steps);
  }
}

/// The largest error of a state's members; an exact match of the position.
template <class T>
double state_error(AnyState& state, const reference::Output<T>& expected) {
  const auto numbers = valid_numbers(state);
  double largest =
      numbers.size() == expected.state.size() ? 0 : std::numeric_limits<double>::infinity();
  for (const auto& [name, values] : numbers) {
    const auto found = expected.state.find(name);
    if (found == expected.state.end()) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, seqmix::testing::member_error(values, found->second.numbers));
  }
  return largest;
}

}  // namespace support
