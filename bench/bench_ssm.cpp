#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "mamba2",
           .config = R"({"d_model": 1024, "n_heads": 32, "head_dim": 64, "state_size": 128})",
           .flops =
               [](double T) {
                 return 2 * T * 1024 * (2 * 2048 + 256 + 32 + 2048) + 5 * T * 32 * 128 * 64;
               },
           .step_numbers =
               [](double) { return 1024 * (2 * 2048 + 256 + 32 + 2048) + 32 * 128 * 64; }},
          {.layer = "s4d",
           .config = R"({"d_model": 1024, "state_size": 64, "discretization": "zoh"})",
           .flops = [](double T) { return 2 * T * 1024 * (2048 + 8 * 32); },
           .step_numbers = [](double) { return 1024 * (2048 + 8 * 32); }},
          {.layer = "s4",
           .config = R"({"d_model": 1024, "state_size": 64, "n_ssm": 1})",
           .flops = [](double T) { return 2 * T * 1024 * (2048 + 12 * 32); },
           .step_numbers = [](double) { return 1024 * (2048 + 12 * 32); }},
      });
}
