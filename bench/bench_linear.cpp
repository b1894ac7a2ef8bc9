#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  return bench::run_layers(
      argc, argv,
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
          {.layer = "hgrn2",
           .config = R"({"d_model": 1024, "n_heads": 8, "head_k": 128, "head_v": 128})",
           .flops = [](double T) { return 2 * T * 4 * 1024 * 1024 + 5 * T * 8 * 128 * 128; },
           .step_numbers = [](double) { return 4 * 1024 * 1024 + 8 * 128 * 128; }},
          {.layer = "linear_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "head_k": 64, "head_v": 64})",
           .flops = [](double T) { return 2 * T * 4 * 1024 * 1024 + 4 * T * 16 * 64 * 65; },
           .step_numbers = [](double) { return 4 * 1024 * 1024 + 16 * 64 * 65; }},
          {.layer = "mlstm",
           .config = R"({"d_model": 1024, "n_heads": 4, "head_k": 128, "head_v": 256})",
           .flops =
               [](double T) {
                 return 2 * T * 1024 * (2 * 512 + 3 * 1024 + 8) + 5 * T * 4 * 128 * 257;
               },
           .step_numbers = [](double) { return 1024 * (2 * 512 + 3 * 1024 + 8) + 4 * 128 * 257; }},
          {.layer = "retention",
           .config = R"({"d_model": 1024, "n_heads": 4, "head_k": 256, "head_v": 512,
                         "rotary_dim": 256})",
           .flops =
               [](double T) {
                 return 2 * T * 1024 * (2 * 1024 + 3 * 2048) + 5 * T * 4 * 256 * 512;
               },
           .step_numbers = [](double) { return 1024 * (2 * 1024 + 3 * 2048) + 4 * 256 * 512; }},
      });
}
