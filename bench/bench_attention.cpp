#include <algorithm>
#include <cmath>

#include "support/layer_bench.hpp"

int main(int argc, char** argv) {
  // What a pair of a query and a key costs, all 16 heads of 64 together.
  const double pair = 4 * 1024 + 16 * bench::exponential();
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64,
                     "rotary_dim": 64})",
           .longest = 8192,
           .positions = {128, 2048, 8192},
           .flops = [pair](double T) { return 2 * T * 4 * 1024 * 1024 + T * (T + 1) / 2 * pair; },
           .step_numbers = [](double t) { return 4 * 1024 * 1024 + 2 * (t + 1) * 1024; }},
          {.layer = "sliding_window_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64,
                     "rotary_dim": 64, "window": 1024})",
           .positions = {128, 4096, 65536},
           .flops =
               [pair](double T) {
                 return 2 * T * 4 * 1024 * 1024 + bench::window_pairs(T, 1024) * pair;
               },
           .step_numbers =
               [](double t) { return 4 * 1024 * 1024 + 2 * std::min(t + 1, 1024.0) * 1024; }},
          {.layer = "bidirectional_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64})",
           .longest = 4096,
           .flops = [pair](double T) { return 2 * T * 4 * 1024 * 1024 + T * T * pair; },
           .step_numbers = {}},
          {.layer = "cross_attention",
           .config = R"({"d_model": 1024, "d_source": 1024, "n_heads": 16, "n_kv_heads": 16,
                     "head_dim": 64})",
           .longest = 4096,
           .flops = [pair](double T) { return (T + 1500) * 4 * 1024 * 1024 + T * 1500 * pair; },
           .step_numbers = [](double) { return 2 * 1024 * 1024 + 2 * 1500 * 1024; }},
          {.layer = "aaren",
           .config = R"({"d_model": 1024, "n_heads": 16, "head_k": 64, "head_v": 64})",
           .flops = [](double T) { return T * (2 * 1024 * (2 * 1024 + 16) + 4 * 1024); },
           .step_numbers = [](double) { return 1024 * (2 * 1024 + 16) + 1024; }},
          {.layer = "gated_attention_unit",
           .config = R"({"d_model": 1024, "head_k": 128, "head_v": 2048,
                     "normaliser_length": 2048})",
           .longest = 8192,
           .positions = {128, 2048, 8192},
           .flops =
               [](double T) {
                 return 2 * T * 1024 * (3 * 2048 + 128) + T * (T + 1) / 2 * 2 * (2048 + 128);
               },
           .step_numbers =
               [](double t) { return 1024 * (3 * 2048 + 128) + (t + 1) * (2048 + 128); }},
          {.layer = "bidirectional_gated_attention_unit",
           .config = R"({"d_model": 1024, "head_k": 128, "head_v": 2048})",
           .longest = 4096,
           .flops =
               [](double T) { return 2 * T * 1024 * (3 * 2048 + 128) + T * T * 2 * (2048 + 128); },
           .step_numbers = {}},
          {.layer = "mixed_chunk_attention",
           .config = R"({"d_model": 1024, "head_k": 128, "head_v": 2048, "rotary_dim": 32})",
           .positions = {128, 65536},
           .flops =
               [](double T) {
                 return 2 * T * 1024 * (3 * 2048 + 128) + T * 257 * (2048 + 128) +
                        4 * T * 128 * 2048;
               },
           .step_numbers =
               [](double t) {
                 return 1024 * (3 * 2048 + 128) + (std::fmod(t, 256) + 1) * (2048 + 128) +
                        3 * 128 * 2048;
               }},
          {.layer = "bidirectional_mixed_chunk_attention",
           .config = R"({"d_model": 1024, "head_k": 128, "head_v": 2048, "rotary_dim": 32})",
           .flops =
               [](double T) {
                 return 2 * T * 1024 * (3 * 2048 + 128) + T * 512 * (2048 + 128) +
                        4 * T * 128 * 2048;
               },
           .step_numbers = {}},
      });
}
