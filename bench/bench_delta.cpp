#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "delta_net",
           .config = R"({"d_model": 1024, "n_heads": 16, "head_k": 64, "head_v": 64})",
           .flops =
               [](double T) {
                 return 2 * T * (1024 * (4 * 1024 + 16) + 4 * 3 * 1024) + 7 * T * 16 * 64 * 64;
               },
           .step_numbers = [](double) { return 1024 * (4 * 1024 + 16) + 16 * 64 * 64; }},
          {.layer = "gated_delta_net",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_key_heads": 8, "head_k": 64,
                         "head_v": 64})",
           .flops =
               [](double T) {
                 return 2 * T * (1024 * (4 * 1024 + 32) + 4 * 2 * 1024) + 8 * T * 16 * 64 * 64;
               },
           .step_numbers = [](double) { return 1024 * (4 * 1024 + 32) + 16 * 64 * 64; }},
          {.layer = "kimi_delta_attention",
           .config = R"({"d_model": 1024, "n_heads": 8, "head_k": 128, "head_v": 128})",
           .flops =
               [](double T) {
                 return 2 * T * (1024 * (4 * 1024 + 8 + 4 * 128) + 4 * 3 * 1024) +
                        8 * T * 8 * 128 * 128;
               },
           .step_numbers = [](double) { return 1024 * (4 * 1024 + 8 + 4 * 128) + 8 * 128 * 128; }},
      });
}
