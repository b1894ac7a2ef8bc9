// The `source` of golden files, from which the README says what each layer is checked against.

#include <catch2/catch_test_macros.hpp>

#include "seqmix/core/error.hpp"
#include "support/published.hpp"

using support::published_code;
using Items = std::vector<std::string>;

TEST_CASE("a source names a package and its classes") {
  const auto items_of = [](const char* source, const char* package) {
    const auto code = published_code(source);
    CHECK(code.package == package);
    return code.items;
  };
  CHECK(items_of("transformers 4.57.6 transformers.models.bert.modeling_bert.BertSelfAttention, "
                 "torch 2.15.0, float64, then the dense layer of BertSelfOutput",
                 "transformers") == Items{"BertSelfAttention"});
  // The class of a method.
  CHECK(items_of("transformers 4.57.6 a.mamba.MambaMixer.slow_forward, torch 2.15.0, float64",
                 "transformers") == Items{"MambaMixer"});
  CHECK(items_of("minimal-LRU bbd71b14, lru.model.LRU.__call__, jax 0.7.2, float64",
                 "minimal-LRU") == Items{"LRU"});
  // A file of a repository, and what the class works with.
  CHECK(items_of("state-spaces/s4 e757cef57d89 models/s4/s4.py S4Block with SSMKernelDPLR, "
                 "torch 2.15.0, float64",
                 "state-spaces/s4") == Items{"S4Block", "SSMKernelDPLR"});
  CHECK(items_of("HazyResearch/safari 02220c69d247 src/hyena.py HyenaOperator (fftconv_ref), "
                 "torch 2.15.0",
                 "HazyResearch/safari") == Items{"HyenaOperator"});
  CHECK(items_of("BlinkDL/RWKV-LM 524481d5 RWKV-v7/demo.py RWKV7_OP (its plain loop) and classes "
                 "RWKV_Tmix_x070, Block, torch 2.15.0, DTYPE rebound",
                 "BlinkDL/RWKV-LM") == Items{"RWKV7_OP", "RWKV_Tmix_x070", "Block"});
  // A function; a remark ends the list.
  CHECK(items_of("mit-han-lab/streaming-llm 2e504260 llama_pos_shift_attention_forward, token by "
                 "token, Cache.evict before each, torch 2.15.0",
                 "mit-han-lab/streaming-llm") == Items{"llama_pos_shift_attention_forward"});
  CHECK(items_of("own numpy form of Smith 2020, eq. 3; float64",
                 "own numpy form of Smith 2020, eq. 3") == Items{});
}

TEST_CASE("a source that names no code is refused") {
  for (const char* source :
       {"", "my training", "transformers LlamaAttention, torch 2.15.0, float64",
        "transformers 4.57.6 LlamaAttention", "transformers 4.57.6, torch 2.15.0, float64",
        "transformers 4.57.6 (see below), torch 2.15.0", "4.57.6 LlamaAttention, torch 2.15.0",
        "transformers newest LlamaAttention, torch 2.15.0", "own numpy form of"}) {
    INFO(source);
    CHECK_THROWS_AS(published_code(source), seqmix::CheckpointError);
  }
}

TEST_CASE("what a layer is checked against is what its golden files name") {
  const auto published = support::published_by_layer(SEQMIX_SOURCE_DIR "/tests/golden");
  CHECK(published.at("big_bird_attention") == "transformers BigBirdBlockSparseAttention");
  CHECK(published.at("gated_delta_net").find("transformers Qwen3NextGatedDeltaNet") !=
        std::string::npos);
  CHECK_THROWS_AS(support::published_by_layer(SEQMIX_SOURCE_DIR "/examples/models/llama"),
                  seqmix::CheckpointError);
}
