#include "support/layer_case.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "support/families.hpp"
#include "support/random_weights.hpp"

namespace support {

using reference::Array;
using reference::Input;

template <class S>
const seqmix::Registry<S>& registry() {
  static const seqmix::Registry<S> all = [] {
    seqmix::Registry<S> result;
    add_attention(result), add_channel(result), add_conv(result), add_linear(result);
    add_ssm(result);
    return result;
  }();
  return all;
}
template const seqmix::Registry<float>& registry();
template const seqmix::Registry<double>& registry();

template <class S>
LayerCase<S>::LayerCase(const reference::Twin& twin, const std::string& config, unsigned seed)
    : twin_(twin) {
  input_.config = seqmix::parse_json(config, twin.layer);
  const auto weights = random_layer_weights(registry<S>(), twin.layer, input_.config, seed);
  mixer_ = registry<S>().make(twin.layer, input_.config, weights, "");
  for (const std::string& name : weights.names()) {
    seqmix::StoredTensor flat = weights.entry(name);
    Array<double>& weight = input_.weights[name];
    weight = Array<double>(flat.shape);
    flat.shape = {static_cast<Index>(weight.numbers.size())};
    const auto numbers = flat.parameter<double, 1>({flat.shape[0]});
    std::copy_n(numbers.data(), numbers.size(), weight.numbers.begin());
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
  return input;
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
    return name() == "hyena" ? 1e-10 : 1e-12;
  } else {
    return 2 * literal_error + 4 * static_cast<double>(std::numeric_limits<float>::epsilon());
  }
}

template class LayerCase<float>;
template class LayerCase<double>;

std::map<std::string, std::vector<double>> valid_numbers(AnyState& state) {
  const seqmix::StateMembers members = state.members();
  std::map<std::string, std::vector<double>> result;
  for (const seqmix::StateMember& member : members.list()) {
    std::vector<double>& numbers = result[member.name];
    const auto append = [&]<class T>(T, const std::byte* run, Index bytes) {
      std::vector<T> typed(static_cast<std::size_t>(bytes) / sizeof(T));
      std::memcpy(typed.data(), run, static_cast<std::size_t>(bytes));
      numbers.insert(numbers.end(), typed.begin(), typed.end());
    };
    for (Index row = 0; row < members.batch(); ++row) {
      member.for_each_run(row, members.tokens(row), [&](const std::byte* run, Index bytes) {
        if (member.integral) {
          append(std::int64_t{}, run, bytes);
        } else if (member.number_size == sizeof(float)) {
          append(float{}, run, bytes);
        } else {
          append(double{}, run, bytes);
        }
      });
    }
  }
  return result;
}

}  // namespace support
