// `verify_main` for every layer of the library, and two tables about them: verify --law for how far
// the verbs of each layer are apart, verify --errors for what narrow storage and lower precision
// cost each layer.

#include "seqmix/io/verify.hpp"

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support/compare.hpp"
#include "support/layer_case.hpp"

namespace {

std::string scientific(double value) {
  std::ostringstream text;
  text << std::scientific << std::setprecision(1) << value;
  return text.str();
}

/// The largest relative errors between the verbs of a layer, over the configs of its twin and the
/// algorithms of its parallel form.
struct Law {
  double forward = 0, prefill = 0, state = 0;  // each against steps
};

template <class S>
std::map<std::string, Law> laws() {
  using support::Index;
  std::map<std::string, Law> result;
  support::for_each_layer<S>([&](const support::LayerCase<S>& layer) {
    if (!layer.continues()) return;
    const Index T = 270;
    const auto x = layer.random_input(2, T, 61);
    Law& law = result[layer.name()];
    const auto raise = [](double& largest, double value) { largest = std::max(largest, value); };

    support::Context context;
    support::Tensor<S, 3> forward(x.shape()), prefill(x.shape()), step(x.shape());
    auto stepped = layer.make_state(2, T);
    for (Index t = 0; t < T; ++t) {
      layer.step(x.view().template at<1>(t), stepped, step.view().template at<1>(t), context);
    }
    const auto expected = support::valid_numbers(stepped);
    for (const auto algorithm : {seqmix::Algorithm::automatic, seqmix::Algorithm::chunked}) {
      context.set_algorithm(algorithm);
      layer.forward(x, forward, context);
      raise(law.forward, support::relative_error(forward.view(), step.view()));
      auto state = layer.make_state(2, T);
      for (Index first = 0, count = 1; first < T; first += count, count = 2 * count + 3) {
        const Index piece = std::min(count, T - first);
        layer.prefill(x.view().template slice<1>(first, piece), state,
                      prefill.view().template slice<1>(first, piece), context);
      }
      raise(law.prefill, support::relative_error(prefill.view(), step.view()));
      for (const auto& [member, numbers] : support::valid_numbers(state)) {
        const auto& other = expected.at(member);
        if (numbers == other) continue;
        raise(law.state, support::relative_error<double, double>(numbers, other));
      }
    }
  });
  return result;
}

void print_law() {
  const auto in_double = laws<double>(), in_float = laws<float>();
  std::cout << "layer, then the relative error against steps of forward, prefill, final state: "
               "double | float\n";
  Law largest_double, largest_float;
  const auto print = [](const std::string& name, const Law& d, const Law& f) {
    std::cout << name << ": " << scientific(d.forward) << " " << scientific(d.prefill) << " "
              << scientific(d.state) << " | " << scientific(f.forward) << " "
              << scientific(f.prefill) << " " << scientific(f.state) << "\n";
  };
  const auto raise = [](Law& largest, const Law& law) {
    largest = {std::max(largest.forward, law.forward), std::max(largest.prefill, law.prefill),
               std::max(largest.state, law.state)};
  };
  for (const auto& [name, law] : in_double) {
    print(name, law, in_float.at(name));
    raise(largest_double, law), raise(largest_float, in_float.at(name));
  }
  print("largest", largest_double, largest_float);
}

/// The relative error of forward against the same layer in plain float, the largest over the
/// configs of its twin; 0 where nothing is stored or multiplied so.
struct Errors {
  double weights[3] = {}, caches[3] = {};  // bf16, f16, int8
  double precision[2] = {};                // bf16x3, bf16
};

std::map<std::string, Errors> errors_of_layers() {
  using seqmix::Options, seqmix::Precision, seqmix::Storage;
  constexpr Storage storages[] = {Storage::bf16, Storage::f16, Storage::int8};
  constexpr Precision precisions[] = {Precision::bf16x3, Precision::bf16};
  std::map<std::string, Errors> result;
  for (const reference::Twin& twin : reference::twins()) {
    Errors& errors = result[twin.layer];
    for (const std::string& config : twin.configs) {
      const auto forward = [&](Options options, Precision precision) {
        const support::LayerCase<float> layer(twin, config, 1, options);
        const auto x = layer.random_input(2, 150, 61);
        support::Context context;
        context.set_precision(precision);
        support::Tensor<float, 3> y(x.shape());
        layer.forward(x, y, context);
        return y;
      };
      const auto plain = forward({}, Precision::fp32);
      const auto raise = [&](double& largest, const support::Tensor<float, 3>& y) {
        largest = std::max(largest, support::relative_error(y.view(), plain.view()));
      };
      for (std::size_t i = 0; i < std::size(storages); ++i) {
        raise(errors.weights[i], forward({storages[i], Storage::native}, Precision::fp32));
        raise(errors.caches[i], forward({Storage::native, storages[i]}, Precision::fp32));
      }
      for (std::size_t i = 0; i < std::size(precisions); ++i) {
        raise(errors.precision[i], forward({}, precisions[i]));
      }
    }
  }
  return result;
}

void print_errors() {
  std::cout << "| layer | weights bf16 | f16 | int8 | caches bf16 | f16 | int8 | bf16x3 | bf16 |\n"
               "|---|---|---|---|---|---|---|---|---|\n";
  for (const auto& [name, errors] : errors_of_layers()) {
    std::cout << "| `" << name << "` |";
    const auto print = [](const auto& values) {
      for (const double value : values) {
        std::cout << " " << (value == 0 ? "-" : scientific(value)) << " |";
      }
    };
    print(errors.weights), print(errors.caches), print(errors.precision);
    std::cout << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments == std::vector<std::string>{"--law"}) {
    print_law();
    return 0;
  }
  if (arguments == std::vector<std::string>{"--errors"}) {
    print_errors();
    return 0;
  }
  const int status =
      seqmix::verify_main(arguments, support::registry<double>(), std::cout, std::cerr);
  if (arguments.empty())
    std::cerr << "       verify --law or verify --errors: tables of all layers\n";
  return status;
}
