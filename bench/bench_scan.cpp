#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  const double exponential = bench::exponential();
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "rg_lru",
           .config = R"({"d_model": 1024, "lru_width": 1024, "n_heads": 8})",
           .flops =
               [exponential](double T) {
                 return 2 * T * 1024 * (3 * 1024 + 2 * 128 + 4) + 4 * T * 1024 * exponential;
               },
           .step_numbers = [](double) { return 1024 * (3 * 1024 + 2 * 128 + 4 + 4); }},
          {.layer = "lru",
           .config = R"({"d_model": 1024, "state_size": 1024})",
           .flops = [](double T) { return 2 * T * 1024 * (4 * 1024 + 4); },
           .step_numbers = [](double) { return 1024 * (4 * 1024 + 4); }},
          {.layer = "mamba",
           .config = R"({"d_model": 1024, "d_inner": 2048, "state_size": 16, "dt_rank": 64})",
           .flops =
               [exponential](double T) {
                 return 2 * T * 2048 * (3 * 1024 + 64 + 32 + 64 + 4) +
                        T * 2048 * 16 * (6 + exponential);
               },
           .step_numbers =
               [](double) { return 2048 * (3 * 1024 + 64 + 32 + 64 + 4 + 2 * 16 + 4); }},
      });
}
