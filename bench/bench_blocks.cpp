#include "support/layer_bench.hpp"

namespace {

// Weights that a token meets, D 1024.
constexpr double D = 1024, gemma_ffn = 3 * D * 3072;
constexpr double gemma_recurrence = D * (3 * D + 2 * 128 + 4);
constexpr double gemma_attention = D * (2 * D + 2 * 128), gemma_window = 1024;
constexpr double gemma_weights = 2 * gemma_recurrence + gemma_attention + 3 * gemma_ffn;

constexpr double jamba_mamba = 2 * D * (3 * D + 64 + 32 + 64 + 4), jamba_scan = 2 * D * 16;
constexpr double jamba_attention = D * (2 * D + 2 * 512);
constexpr double jamba_ffn = 3 * D * 1024, jamba_experts = 8 * D + 2 * 3 * D * 1024;
constexpr double jamba_weights =
    7 * jamba_mamba + jamba_attention + 4 * jamba_ffn + 4 * jamba_experts;

constexpr double llama_weights = jamba_attention + gemma_ffn;

}  // namespace

int main(int argc, char** argv) {
  const double exponential = bench::exponential();
  return bench::run_layers(
      argc, argv,
      {
          {.layer = "block",
           .config = R"({"d_model": 1024, "branches": [
               {"before": {"kind": "rms"}, "parts": [{"name": "mixer", "layer": "attention",
                "config": {"n_heads": 16, "n_kv_heads": 8, "head_dim": 64, "rotary_dim": 64}}]},
               {"before": {"kind": "rms"}, "parts": [{"name": "channel", "layer": "feed_forward",
                "config": {"d_ff": 3072}}]}]})",
           .longest = 8192,
           .positions = {128, 2048, 8192},
           .flops =
               [exponential](double T) {
                 return 2 * T * llama_weights + T * T / 2 * (4 * D + 16 * exponential);
               },
           .step_numbers = [](double position) { return llama_weights + 2 * position * 512; }},
          {.layer = "recurrent_gemma_block",
           .config = R"({"d_model": 1024, "norm_eps": 1e-6, "lru_width": 1024, "n_heads": 8,
                         "n_kv_heads": 1, "head_dim": 128, "rotary_dim": 64, "o_bias": true,
                         "window": 1024, "d_ff": 3072, "activation": "gelu_tanh", "gated": true,
                         "bias": true})",
           .positions = {128, 2048, 8192},
           .flops =
               [exponential](double T) {
                 return 2 * T * gemma_weights +
                        bench::window_pairs(T, gemma_window) * (4 * D + 8 * exponential) +
                        2 * 4 * T * D * exponential;
               },
           .step_numbers =
               [](double t) { return gemma_weights + 2 * std::min(t + 1, gemma_window) * 128; }},
          {.layer = "jamba_block",
           .config = R"({"d_model": 1024, "norm_eps": 1e-6, "d_inner": 2048, "dt_rank": 64,
                         "norm": "weighted", "n_heads": 16, "n_kv_heads": 8, "head_dim": 64,
                         "d_ff": 1024, "gated": true, "n_experts": 8, "n_experts_per_token": 2,
                         "router": "softmax_then_top_k"})",
           .longest = 8192,
           .positions = {128, 2048, 8192},
           .flops =
               [exponential](double T) {
                 return 2 * T * jamba_weights + 7 * T * jamba_scan * (6 + exponential) +
                        T * T / 2 * (4 * D + 16 * exponential);
               },
           .step_numbers =
               [](double position) { return jamba_weights + 7 * jamba_scan + 2 * position * 512; }},
      });
}
