#include "support/layer_case.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "seqmix/testing/state.hpp"
#include "support/random_weights.hpp"

namespace support {

using reference::Array;
using reference::Input;
using seqmix::Shape;

namespace {

/// What stands for a source: the same for every row.
template <class T>
T source_value(Index s, Index i) {
  return static_cast<T>(
      static_cast<float>(std::sin(1.7 * static_cast<double>(s * 31 + i * 7 + 1))));
}
constexpr Index source_length = 13;

/// What stands for a side value of width W: a function of its token alone.
template <class T>
T side_value(Index i, Index width, auto&& token) {
  return static_cast<T>(token((7 * i + 3) % width) - token(i % width) / 2);
}

/// The same of a side value of indices below `bound`.
Index side_index(Index i, Index width, Index bound, auto&& token) {
  const auto most = static_cast<double>(std::min<Index>(bound, 90));
  const double number = std::abs(side_value<double>(i, width, token));
  return std::isfinite(number) ? static_cast<Index>(std::fmod(40 * number, most)) : 0;
}

}  // namespace

template <class S>
SideValues<S>::SideValues(const AnyMixer<S>& mixer, View<const S, 3> x) {
  const auto sides = mixer.sides();
  names_.reserve(sides.size()), views_.reserve(sides.size());
  values_.reserve(sides.size()), indices_.reserve(sides.size());
  const auto for_each_number = [&](const auto& side, auto&& body) {
    for (Index b = 0; b < x.extent(0); ++b) {
      for (Index t = 0; t < x.extent(1) && side.role == seqmix::SideRole::input; ++t) {
        const auto token = [&, at = b](Index d) { return x(at, t, d); };
        for (Index i = 0; i < side.width; ++i) body(b * x.extent(1) + t, i, token);
      }
    }
  };
  for (const auto& side : sides) {
    names_.push_back(side.name);
    const Shape<2> shape{x.extent(0) * x.extent(1), side.width};
    if (side.kind == seqmix::SideKind::indices) {
      auto& indices = indices_.emplace_back(shape);
      for_each_number(side, [&](Index t, Index i, auto&& token) {
        indices(t, i) = side_index(i, x.extent(2), side.bound, token);
      });
      views_.push_back({names_.back(), View<const Index, 2>(indices.view())});
      continue;
    }
    auto& values = values_.emplace_back(shape);
    for_each_number(side, [&](Index t, Index i, auto&& token) {
      values(t, i) = side_value<S>(i, x.extent(2), token);
    });
    views_.push_back({names_.back(), values.view()});
  }
}
#define SEQMIX_INSTANTIATE(S) template class SideValues<S>;
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)
#undef SEQMIX_INSTANTIATE

template <class S>
LayerCase<S>::LayerCase(const reference::Twin& twin, const std::string& config, unsigned seed,
                        seqmix::Options options, bool biased)
    : twin_(twin) {
  input_.config = registry<S>().complete_config(twin.layer, seqmix::parse_json(config, twin.layer));
  const auto weights = random_layer_weights(registry<S>(), twin.layer, input_.config, seed, biased);
  mixer_ = registry<S>().make(twin.layer, input_.config, weights, "", options);
  for (const std::string& name : weights.names()) {
    seqmix::StoredTensor flat = weights.entry(name);
    Array<double>& weight = input_.weights[name];
    weight = Array<double>(flat.shape);
    flat.shape = {static_cast<Index>(weight.numbers.size())};
    const auto copy_numbers = [&](const auto& numbers) {
      std::copy_n(numbers.data(), numbers.size(), weight.numbers.begin());
    };
    if (flat.dtype == seqmix::DType::i64) {
      copy_numbers(flat.integers());
    } else {
      copy_numbers(flat.parameter<double, 1>({flat.shape[0]}));
    }
  }
}

template <class S>
Tensor<S, 3> LayerCase<S>::random_input(Index B, Index T, unsigned seed) const {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Tensor<S, 3> x({B, T, d_model()});
  std::generate_n(x.data(), x.size(), [&] { return static_cast<S>(normal(random)); });
  return x;
}

template <class S>
template <class T>
Input<T> LayerCase<S>::input_of(const Tensor<S, 3>& x) const {
  Input<T> input{input_.config, {}, Array<T>({x.extent(0), x.extent(1), x.extent(2)})};
  for (const auto& [name, weight] : input_.weights) {
    Array<T> converted(weight.shape);
    std::transform(weight.numbers.begin(), weight.numbers.end(), converted.numbers.begin(),
                   [](double value) { return static_cast<T>(value); });
    input.weights[name] = converted;
  }
  std::copy_n(x.data(), x.size(), input.x.numbers.begin());
  for (const auto& side : mixer_.sides()) {
    if (side.role != seqmix::SideRole::input) continue;
    Array<T> values({x.extent(0), x.extent(1), side.width});
    for (Index b = 0; b < x.extent(0); ++b) {
      for (Index t = 0; t < x.extent(1); ++t) {
        for (Index i = 0; i < side.width; ++i) {
          const auto numbers = [&](Index d) { return x(b, t, d); };
          // The numbers that the layer gets, hence rounded to S first.
          values(b, t, i) = side.kind == seqmix::SideKind::indices
                                ? static_cast<T>(side_index(i, x.extent(2), side.bound, numbers))
                                : static_cast<T>(side_value<S>(i, x.extent(2), numbers));
        }
      }
    }
    input.inputs[side.name] = values;
  }
  if (reads_source()) {
    Array<T> values({x.extent(0), source_length, mixer_.d_source()});
    for (Index b = 0; b < x.extent(0); ++b) {
      for (Index s = 0; s < source_length; ++s) {
        for (Index i = 0; i < mixer_.d_source(); ++i) values(b, s, i) = source_value<T>(s, i);
      }
    }
    input.inputs["source"] = values;
  }
  return input;
}

template <class S>
Tensor<S, 3> LayerCase<S>::source(Index B) const {
  Tensor<S, 3> values({B, source_length, mixer_.d_source()});
  for (Index b = 0; b < B; ++b) {
    for (Index s = 0; s < source_length; ++s) {
      for (Index i = 0; i < mixer_.d_source(); ++i) values(b, s, i) = source_value<S>(s, i);
    }
  }
  return values;
}
template <class S>
AnyState LayerCase<S>::make_state(Index B, Index capacity) const {
  AnyState state = mixer_.make_state(B, reads_source() ? source_length : capacity);
  for (Index row = 0; row < B && reads_source(); ++row) reset(state, row);
  return state;
}
template <class S>
void LayerCase<S>::reset(AnyState& state, Index row) const {
  mixer_.reset(state, row);
  if (!reads_source()) return;
  Context context;
  const seqmix::Segment segment{row, 0, source_length};
  mixer_.read(source(1).view()[0], {&segment, 1}, state, context);
}
template <class S>
void LayerCase<S>::forward(View<const S, 3> x, View<S, 3> y, Context& context) const {
  const SideValues<S> sides(mixer_, x);
  if (reads_source()) {
    mixer_.forward(x, source(x.extent(0)), y, context, sides.views());
  } else {
    mixer_.forward(x, y, context, sides.views());
  }
}
template <class S>
void LayerCase<S>::prefill(View<const S, 3> x, AnyState& state, View<S, 3> y,
                           Context& context) const {
  mixer_.prefill(x, state, y, context, SideValues<S>(mixer_, x).views());
}
template <class S>
void LayerCase<S>::step(View<const S, 2> x, AnyState& state, View<S, 2> y, Context& context) const {
  mixer_.step(x, state, y, context, SideValues<S>(mixer_, x.insert(seqmix::axis::channel)).views());
}
template <class S>
void LayerCase<S>::advance(View<const S, 2> x, seqmix::Segments segments, AnyState& state,
                           View<S, 2> y, Context& context) const {
  mixer_.advance(x, segments, state, y, context,
                 SideValues<S>(mixer_, x.insert(seqmix::axis::row)).views());
}
template <class S>
bool LayerCase<S>::is_indirect() const {
  return registry<S>().traits(name()).tolerance == seqmix::Tolerance::indirect;
}

template <class S>
Index LayerCase<S>::longest(Index most) const {
  const auto size = [&](const char* field) { return input_.config.value(field, Index{0}); };
  for (const Index limit : {size("max_length"), size("block") * size("n_blocks"),
                            size("block") * size("layout_blocks")}) {
    if (limit > 0) most = std::min(most, limit);
  }
  return most;
}

template <class S>
reference::Output<double> LayerCase<S>::truth(const Tensor<S, 3>& x) const {
  return twin_.in_double(input_of<double>(x));
}
template <class S>
reference::Output<S> LayerCase<S>::literal(const Tensor<S, 3>& x) const {
  if constexpr (std::same_as<S, double>) {
    return truth(x);
  } else {
    return twin_.in_float(input_of<float>(x));
  }
}

template <class S>
double LayerCase<S>::bound(double literal_error) const {
  if constexpr (std::same_as<S, double>) {
    return is_indirect() ? 1e-10 : 1e-12;
  } else {
    return 2 * literal_error + 4 * static_cast<double>(std::numeric_limits<float>::epsilon());
  }
}

#define SEQMIX_INSTANTIATE(S) template class LayerCase<S>;
SEQMIX_FOR_EACH_TEST_SCALAR(SEQMIX_INSTANTIATE)

std::map<std::string, std::vector<double>> valid_numbers(AnyState& state) {
  return seqmix::testing::valid_numbers(state.members());
}

}  // namespace support
