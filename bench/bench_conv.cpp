#include <cmath>

#include "seqmix/io/registry/conv.hpp"
#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  seqmix::Registry<float> registry;
  register_conv(registry);
  return bench::run_layers(
      argc, argv, registry,
      {
          {.layer = "hyena",
           .config = R"({"d_model": 1024, "order": 2, "max_length": 32768})",
           .position = 2048,
           // The long convolution as three real transforms of length 2 T.
           .flops =
               [](double T) {
                 return 2 * T * 4 * 1024 * 1024 + 3 * 2.5 * 2 * T * std::log2(2 * T) * 1024;
               },
           // Filter taps and history beside the weights.
           .step_numbers = [](double t) { return 4 * 1024 * 1024 + 2 * (t + 1) * 1024; }},
      });
}
