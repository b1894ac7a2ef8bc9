#include "seqmix/io/registry/attention.hpp"
#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  seqmix::Registry<float> registry;
  register_attention(registry);
  return bench::run_layers(
      argc, argv, registry,
      {
          {.layer = "attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64,
                     "rotary_dim": 64})",
           .longest = 8192,
           .position = 2048,
           .flops = [](double T) { return 2 * T * 4 * 1024 * 1024 + 2 * T * (T + 1) * 1024; },
           .step_numbers = [](double t) { return 4 * 1024 * 1024 + 2 * (t + 1) * 1024; }},
      });
}
