#include <cmath>

#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "hyena",
           .config = R"({"d_model": 1024, "order": 2, "max_length": 65536})",
           // Its tile is longer than that of 31 tokens in 32.
           .positions = {2015},
           // The long convolution as three real transforms of length 2 T.
           .flops =
               [](double T) {
                 return 2 * T * 4 * 1024 * 1024 + 3 * 2.5 * 2 * T * std::log2(2 * T) * 1024;
               },
           // Sums, the tokens of a tile and where they go, and one token beside the weights.
           .step_numbers = [](double) { return 4 * 1024 * 1024 + (7 + 2 * 32 + 1) * 1024; }},
          {.layer = "hyena",
           .config = R"({"d_model": 512, "order": 2, "max_length": 65536, "step_form": "spread"})",
           .d_model = 512,
           .positions = {2048},
           .flops =
               [](double T) {
                 return 2 * T * 4 * 512 * 512 + 3 * 2.5 * 2 * T * std::log2(2 * T) * 512;
               },
           // The two newest blocks of 32 with their taps, and a sum of each of 6 levels.
           .step_numbers = [](double) { return 4 * 512 * 512 + (2 * 48 + 6) * 512; }},
      });
}
