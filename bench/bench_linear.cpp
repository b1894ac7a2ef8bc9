#include "seqmix/io/registry/linear.hpp"
#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  seqmix::Registry<float> registry;
  register_linear(registry);
  return bench::run_layers(
      argc, argv, registry,
      {
          {.layer = "gated_linear_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "head_k": 32, "head_v": 64})",
           .flops =
               [](double T) {
                 return 2 * T * (1024 * (2 * 512 + 3 * 1024 + 16) + 16 * 512) +
                        5 * T * 16 * 32 * 64;
               },
           .step_numbers =
               [](double) { return 1024 * (2 * 512 + 3 * 1024 + 16) + 16 * 512 + 16 * 32 * 64; }},
      });
}
