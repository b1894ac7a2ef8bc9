#include "support/layer_case.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "seqmix/io/registry/all.hpp"

namespace support {
namespace {

using reference::Array;
using reference::Input;

/// A random weight in the range that its name asks for.
Array<double> random_weight(const std::string& name, const std::vector<Index>& shape,
                            std::mt19937& random) {
  Array<double> weight(shape);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const double fan_in = static_cast<double>(weight.numbers.size()) / static_cast<double>(shape[0]);
  const bool vector = shape.size() == 1;
  const auto is = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  const auto draw = [&](std::size_t i) -> double {
    if (is("A_log")) return std::log(0.2 + 5 * uniform(random));
    if (is("dt_bias")) return -1.5 + 0.5 * normal(random);
    if (is("deltas")) return 1 + 6 * uniform(random);
    if (is("pos_emb.t")) return static_cast<double>(i) / static_cast<double>(shape[1]);
    if (is("freq")) return 1 + 0.3 * normal(random);
    if (is("bias")) return 0.3 * normal(random);
    if (vector) return 1 + 0.2 * normal(random);
    return normal(random) / std::sqrt(is("pos_emb.z") ? 1 : fan_in);
  };
  for (std::size_t i = 0; i < weight.numbers.size(); ++i) {
    weight.numbers[i] = static_cast<double>(static_cast<float>(draw(i)));
  }
  return weight;
}

seqmix::StoredTensor stored(const std::string& name, const Array<double>& weight) {
  return {.name = name,
          .dtype = seqmix::DType::f64,
          .shape = weight.shape,
          .bytes = std::as_bytes(std::span(weight.numbers)),
          .owner = nullptr,
          .file = "random weights"};
}

/// Tensors that exist in memory alone.
class MemoryTensors : public seqmix::StoredTensors {
 public:
  explicit MemoryTensors(const std::map<std::string, Array<double>>& weights)
      : StoredTensors("random weights") {
    for (const auto& [name, weight] : weights) tensors_.emplace(name, stored(name, weight));
  }
};

}  // namespace

template <class S>
const seqmix::Registry<S>& registry() {
  static const seqmix::Registry<S> all = seqmix::registry_of_all_layers<S>();
  return all;
}
template const seqmix::Registry<float>& registry();
template const seqmix::Registry<double>& registry();

template <class S>
LayerCase<S>::LayerCase(const reference::Twin& twin, const std::string& config, unsigned seed)
    : twin_(twin) {
  std::mt19937 random(seed);
  input_.config = seqmix::parse_json(config, twin.layer);
  registry<S>().visit_parameters(twin.layer, input_.config,
                                 [&](const std::string& name, const std::vector<Index>& shape) {
                                   input_.weights[name] = random_weight(name, shape, random);
                                 });
  mixer_ = registry<S>().make(twin.layer, input_.config, MemoryTensors(input_.weights), "");
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
