#include "support/layer_bench.hpp"

namespace {

// D 1024, heads of 64.
constexpr double D = 1024, memory = D * 64;
constexpr double rwkv4_weights = 5 * D * D + 2 * D * 4096;
constexpr double rwkv6_weights = 6 * D * D + 2 * D * 3584 + 2 * D * (160 + 64);
constexpr double rwkv7_weights = 4 * D * D + 2 * D * 4096 + 2 * D * (64 + 64 + 32 + 128);

}  // namespace

int main(int argc, char** argv) {
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "rwkv4",
           .config = R"({"d_model": 1024, "d_ff": 4096, "layer_index": 1})",
           .flops = [](double T) { return 2 * T * rwkv4_weights; },
           .step_numbers = [](double) { return rwkv4_weights + 5 * D; }},
          {.layer = "rwkv6",
           .config = R"({"d_model": 1024, "d_ff": 3584, "layer_index": 1})",
           .flops = [](double T) { return T * (2 * rwkv6_weights + 5 * memory); },
           .step_numbers = [](double) { return rwkv6_weights + memory; }},
          {.layer = "rwkv7",
           .config = R"({"d_model": 1024, "d_ff": 4096, "layer_index": 1})",
           .flops = [](double T) { return T * (2 * rwkv7_weights + 9 * memory); },
           .step_numbers = [](double) { return rwkv7_weights + memory; }},
      });
}
