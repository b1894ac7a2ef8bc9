#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "feed_forward",
           .config = R"({"d_model": 1024, "d_ff": 2816})",
           .positions = {0},
           .flops = [](double T) { return 2 * T * 3 * 1024 * 2816; },
           .step_numbers = [](double) { return 3 * 1024 * 2816; }},
          {.layer = "mixture_of_experts",
           .config = R"({"d_model": 1024, "d_ff": 1024, "n_experts": 8, "n_experts_per_token": 2})",
           .positions = {0},
           .flops = [](double T) { return 2 * T * (8 * 1024 + 2 * 3 * 1024 * 1024); },
           .step_numbers = [](double) { return 8 * 1024 + 2 * 3 * 1024 * 1024; }},
          {.layer = "mixture_of_experts",
           .config = R"({"d_model": 512, "d_ff": 256, "n_experts": 64, "n_experts_per_token": 6,
                         "router": "deepseek_v3", "normalize_top_k": true, "n_group": 8,
                         "topk_group": 4, "routed_scaling": 2.5, "d_shared": 512})",
           .d_model = 512,
           .positions = {0},
           .flops = [](double T) { return 2 * T * 512 * (64 + 6 * 3 * 256 + 3 * 512); },
           .step_numbers = [](double) { return 512 * (64 + 6 * 3 * 256 + 3 * 512); }},
          {.layer = "switch_mixture_of_experts",
           .config = R"({"d_model": 1024, "d_ff": 4096, "n_experts": 8, "capacity": 0})",
           .positions = {0},
           .flops = [](double T) { return 2 * T * (8 * 1024 + 2 * 1024 * 4096); },
           .step_numbers = [](double) { return 8 * 1024 + 2 * 1024 * 4096; }},
      });
}
