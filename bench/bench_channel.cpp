#include "seqmix/io/registry/channel.hpp"
#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  seqmix::Registry<float> registry;
  register_channel(registry);
  return bench::run_layers(
      argc, argv, registry,
      {
          {.layer = "feed_forward",
           .config = R"({"d_model": 1024, "d_ff": 2816})",
           .flops = [](double T) { return 2 * T * 3 * 1024 * 2816; },
           .step_numbers = [](double) { return 3 * 1024 * 2816; }},
          {.layer = "mixture_of_experts",
           .config = R"({"d_model": 1024, "d_ff": 1024, "n_experts": 8, "n_experts_per_token": 2})",
           .flops = [](double T) { return 2 * T * (8 * 1024 + 2 * 3 * 1024 * 1024); },
           .step_numbers = [](double) { return 8 * 1024 + 2 * 3 * 1024 * 1024; }},
      });
}
