#include <cmath>

#include "support/layer_bench.hpp"

namespace {

constexpr double square = 1024.0 * 1024.0;  // weights of a projection from D to D

/// Pairs of the fixed pattern with a span of 512 and one block of 64 kept of each segment.
double fixed_pairs(double T) {
  const double segments = std::floor(T / 512), rest = T - 512 * segments;
  const double inside = segments * 512 * 513 / 2 + rest * (rest + 1) / 2;
  return inside + 64 * (512 * segments * (segments - 1) / 2 + rest * segments);
}

}  // namespace

int main(int argc, char** argv) {
  // What a pair of a query and a key costs, all 16 heads of 64 together.
  const double exponential = bench::exponential(), pair = 4 * 1024 + 16 * exponential;
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "multi_head_latent_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "q_rank": 512, "kv_rank": 256,
                     "nope_dim": 64, "rotary_dim": 32, "head_v": 64})",
           .longest = 8192,
           .positions = {128, 2048, 8192},
           .flops =
               [exponential](double T) {
                 const double weights =
                     512 * 1024 + 512 * 16 * 96 + 1024 * 288 + 256 * 16 * 128 + square;
                 return 2 * T * weights + T * (T + 1) * 16 * (96 + 64 + exponential / 2);
               },
           .step_numbers =
               [](double t) {
                 return 512 * 1024 + 512 * 16 * 96 + 1024 * 288 + 256 * 16 * 128 + square +
                        (t + 1) * 288;
               }},
          {.layer = "block_sparse_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64,
                     "rotary_dim": 64, "pattern": "fixed", "block": 64, "span": 512})",
           .positions = {128, 4096, 16384},
           .flops = [pair](double T) { return 2 * T * 4 * square + fixed_pairs(T) * pair; },
           .step_numbers =
               [](double t) {
                 return 4 * square + 2 * 1024 * (fixed_pairs(t + 1) - fixed_pairs(t));
               }},
          {.layer = "bidirectional_block_sparse_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "head_dim": 64,
                     "rotary_dim": 64, "pattern": "row,strided", "span": 64})",
           .flops = [pair](double T) { return 2 * T * 4 * square + T * (64 + T / 64) / 2 * pair; },
           .step_numbers = {}},
          {.layer = "longformer_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "window": 512, "n_global": 1})",
           .flops = [pair](double T) { return 2 * T * 5 * square + T * (513 + 1) * pair; },
           .step_numbers = {}},
          {.layer = "big_bird_attention",
           .config = R"({"d_model": 1024, "n_heads": 16, "block": 64, "n_random": 3,
                     "n_blocks": 1024})",
           .flops = [pair](double T) { return 2 * T * 3 * square + T * (8 * 64 + 2 * 64) * pair; },
           .step_numbers = {}},
      });
}
