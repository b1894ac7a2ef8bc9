#include <algorithm>

#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64,
                     "rotary_dim": 64})",
           .longest = 8192,
           .position = 2048,
           .flops = [](double T) { return 2 * T * 4 * 1024 * 1024 + 2 * T * (T + 1) * 1024; },
           .step_numbers = [](double t) { return 4 * 1024 * 1024 + 2 * (t + 1) * 1024; }},
          {.layer = "sliding_window_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64,
                     "rotary_dim": 64, "window": 1024})",
           .position = 4096,
           .flops =
               [](double T) {
                 const double full = std::min(T, 1024.0);
                 const double pairs = full * (full + 1) / 2 + (T - full) * 1024;
                 return 2 * T * 4 * 1024 * 1024 + 4 * pairs * 1024;
               },
           .step_numbers = [](double) { return 4 * 1024 * 1024 + 2 * 1024 * 1024; }},
          {.layer = "bidirectional_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64})",
           .longest = 4096,
           .flops = [](double T) { return 2 * T * 4 * 1024 * 1024 + 4 * T * T * 1024; },
           .step_numbers = {}},
          {.layer = "cross_attention",
           .config = R"({"d_model": 1024, "d_source": 1024, "n_heads": 16, "n_kv_heads": 16,
                     "head_dim": 64})",
           .longest = 4096,
           .flops = [](double T) { return (T + 1500) * 4 * 1024 * 1024 + 4 * T * 1500 * 1024; },
           .step_numbers = [](double) { return 2 * 1024 * 1024 + 2 * 1500 * 1024; }},
      });
}
