"""The folders that models.py makes: per folder a class of transformers, its config, and how it is
stored. Sizes are small and odd; windows, chunks and original lengths are shorter than the sequence,
so that each of them matters."""

import dataclasses
import typing

import torch


@dataclasses.dataclass
class Folder:
    """One folder. `config` is what the class's config is made of."""
    name: str
    model: str  # class of transformers
    config: dict
    dtype: str  # of the stored numbers
    length: int  # tokens of a sequence, of the longest one where they differ
    prompt: int | None = 1  # tokens before the first step; None: the class has no cache
    transformers: str = "4.57.6"
    save: dict = dataclasses.field(default_factory=dict)  # arguments of save_pretrained
    # (config, tensors) as saved -> what published files of the architecture hold beside that.
    publish: typing.Callable | None = None
    ignored: tuple = ()  # names of tensors that the class ignores
    source_length: int | None = None  # of encoder-decoder models
    batch: int = 2  # rows that step together
    note: str = ""  # part of the metadata `source`


def llama_as_of_2023(config, tensors):
    """config.json with what Llama's first files had, and their tables of angles."""
    kept = ("architectures", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
            "initializer_range", "intermediate_size", "max_position_embeddings", "model_type",
            "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "tie_word_embeddings",
            "use_cache", "vocab_size")
    old = {key: config[key] for key in kept}
    old["rope_scaling"] = {"type": "linear", "factor": config["rope_scaling"]["factor"]}
    old["torch_dtype"] = config["dtype"]
    for layer in range(config["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(6)
    return old, tensors


def without(*keys):
    return lambda config, tensors: (
        {key: item for key, item in config.items() if key not in keys}, tensors)


def gpt2_of_the_hub(config, tensors):
    """Names without the prefix and the causal mask as a tensor, as in the published gpt2."""
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    mask = torch.tril(torch.ones(1, 1, config["n_positions"], config["n_positions"]))
    for layer in range(config["n_layer"]):
        renamed[f"h.{layer}.attn.bias"] = mask.clone()
    return config, renamed


def pythia(config, tensors):
    """The causal mask and the angles as tensors, as in the published Pythia."""
    for layer in range(config["num_hidden_layers"]):
        attention = f"gpt_neox.layers.{layer}.attention."
        tensors[attention + "bias"] = torch.tril(torch.ones(1, 1, 32, 32, dtype=torch.bool))
        tensors[attention + "masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
        tensors[attention + "rotary_emb.inv_freq"] = torch.rand(2).half()
    return config, tensors


def deepseek_with_next_token_layer(config, tensors):
    """The layer that predicts a second token; published as layer 61, which the class ignores."""
    tensors["model.layers.61.eh_proj.weight"] = torch.randn(5, 10).bfloat16()
    config["num_nextn_predict_layers"] = 1
    return config, tensors


def qwen3_next_with_next_token_layer(config, tensors):
    tensors["mtp.fc.weight"] = torch.randn(5, 10).bfloat16()
    return config, tensors


def t5_of_2019(config, tensors):
    """A bias of the cross attention that the published T5 has and no code reads."""
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = (
        torch.randn(12, 3).bfloat16())
    return config, tensors


def packed_experts(config, tensors):
    """Experts in MXFP4, as published: along the input 32 codes of 4 bits share an exponent of 8.
    transformers packs on GPUs alone, so random codes and exponents are drawn here."""
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[name + "_blocks"] = torch.randint(256, (experts, outputs, inputs // 32, 16),
                                                  dtype=torch.uint8)
        tensors[name + "_scales"] = torch.randint(121, 125, (experts, outputs, inputs // 32),
                                                  dtype=torch.uint8)
    config["quantization_config"] = {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                   "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4"}
    return config, tensors


def sizes(vocabulary, d_model, d_ff, layers, heads, kv_heads=None, **others):
    kv = {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    return dict(vocab_size=vocabulary, hidden_size=d_model, intermediate_size=d_ff,
                num_hidden_layers=layers, num_attention_heads=heads, **kv, **others)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

FOLDERS = [
    Folder("llama", "LlamaForCausalLM",
           sizes(67, 36, 52, 2, 6, 2, head_dim=10, rope_theta=1000.0, rope_scaling=LLAMA3,
                 max_position_embeddings=512, rms_norm_eps=1e-5), "bfloat16", 26),
    Folder("llama_biases", "LlamaForCausalLM",
           sizes(64, 30, 37, 2, 3, attention_bias=True, mlp_bias=True, rope_theta=1000.0,
                 max_position_embeddings=1024,
                 rope_scaling=dict(rope_type="yarn", factor=4.0,
                                   original_max_position_embeddings=256)), "float32", 21),
    Folder("llama_tied", "LlamaForCausalLM",
           sizes(65, 36, 40, 2, 3, tie_word_embeddings=True,
                 rope_scaling=dict(rope_type="linear", factor=2.5)), "float16", 23,
           publish=llama_as_of_2023, ignored=("inv_freq",)),
    Folder("llama_v5", "LlamaForCausalLM",
           sizes(64, 32, 44, 2, 4, 1, head_dim=12, tie_word_embeddings=True,
                 max_position_embeddings=512, rope_parameters=dict(LLAMA3, rope_theta=1000.0)),
           "bfloat16", 22, transformers="5.24.0"),
    Folder("mistral", "MistralForCausalLM",
           sizes(65, 40, 52, 2, 5, 1, sliding_window=7, rms_norm_eps=1e-5), "bfloat16", 30,
           publish=without("head_dim")),
    Folder("qwen2", "Qwen2ForCausalLM",
           sizes(64, 30, 32, 3, 5, 1, use_sliding_window=True, sliding_window=6,
                 max_window_layers=1, tie_word_embeddings=True, rope_theta=1e6), "float32", 24,
           publish=without("layer_types")),
    Folder("qwen3", "Qwen3ForCausalLM",
           sizes(67, 32, 50, 2, 4, 2, head_dim=14, rope_theta=1e6), "bfloat16", 25),
    Folder("gemma2", "Gemma2ForCausalLM",
           sizes(67, 40, 56, 2, 4, 2, head_dim=8, query_pre_attn_scalar=20, sliding_window=6,
                 attn_logit_softcapping=3.0, final_logit_softcapping=2.5), "bfloat16", 27),
    Folder("gemma3", "Gemma3ForCausalLM",
           sizes(64, 30, 34, 3, 3, 1, head_dim=8, query_pre_attn_scalar=12, sliding_window=5,
                 sliding_window_pattern=3, rope_theta=1e5, rope_local_base_freq=1000.0,
                 rope_scaling=dict(rope_type="linear", factor=8.0)), "float32", 23,
           publish=without("layer_types", "_sliding_window_pattern")),
    Folder("gemma3_v5", "Gemma3ForCausalLM",
           sizes(64, 32, 36, 2, 2, 1, head_dim=10, query_pre_attn_scalar=10, sliding_window=7,
                 layer_types=["sliding_attention", "full_attention"], rope_parameters=dict(
                     full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e5),
                     sliding_attention=dict(rope_type="default", rope_theta=1000.0))),
           "bfloat16", 23, transformers="5.24.0"),
    # The class takes the long factors for all positions of a call that reaches beyond the original
    # length, so keys that are in a cache by then were turned by the short ones: the prompt is long.
    Folder("phi3_long", "Phi3ForCausalLM",
           sizes(65, 40, 48, 2, 5, 1, partial_rotary_factor=0.75, max_position_embeddings=64,
                 original_max_position_embeddings=16, pad_token_id=0, eos_token_id=1,
                 rope_scaling=dict(type="longrope", short_factor=[1.0, 1.3, 1.9],
                                   long_factor=[1.1, 2.6, 5.3])), "bfloat16", 26, prompt=17),
    Folder("phi3_short", "Phi3ForCausalLM",
           sizes(64, 36, 44, 2, 3, 3, max_position_embeddings=160, sliding_window=9,
                 original_max_position_embeddings=32, pad_token_id=0, eos_token_id=1,
                 rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
                                   long_factor=[1.2, 2.0, 3.0, 4.0, 5.0, 6.0])), "float16", 25),
    Folder("gpt2", "GPT2LMHeadModel",
           dict(vocab_size=67, n_embd=33, n_head=3, n_layer=2, n_positions=40, bos_token_id=0,
                eos_token_id=1), "float16", 24),
    Folder("gpt2_hub", "GPT2LMHeadModel",
           dict(vocab_size=64, n_embd=32, n_head=4, n_layer=2, n_positions=32, n_inner=50,
                bos_token_id=0, eos_token_id=1), "float32", 21, publish=gpt2_of_the_hub,
           ignored=("attn.bias",)),
    Folder("gpt_neox", "GPTNeoXForCausalLM",
           sizes(64, 48, 60, 2, 3, rotary_pct=0.25), "float16", 25, publish=pythia,
           ignored=("attention.bias", "attention.masked_bias", "inv_freq")),
    Folder("gpt_neox_serial", "GPTNeoXForCausalLM",
           sizes(64, 36, 40, 2, 3, rotary_pct=1.0, rotary_emb_base=1000, attention_bias=False,
                 use_parallel_residual=False, tie_word_embeddings=True, hidden_act="gelu_new"),
           "float32", 22),
    Folder("mixtral", "MixtralForCausalLM",
           sizes(65, 36, 20, 2, 6, 2, num_local_experts=5, num_experts_per_tok=2), "bfloat16", 25,
           save=dict(max_shard_size="30KB")),
    Folder("qwen3_moe", "Qwen3MoeForCausalLM",
           sizes(65, 32, 40, 3, 4, 2, head_dim=10, num_experts=6, num_experts_per_tok=3,
                 moe_intermediate_size=14, norm_topk_prob=True, mlp_only_layers=[1]), "bfloat16",
           25),
    Folder("qwen3_moe_v5", "Qwen3MoeForCausalLM",
           sizes(64, 32, 36, 2, 3, 1, head_dim=12, num_experts=5, num_experts_per_tok=2,
                 moe_intermediate_size=18, norm_topk_prob=False, decoder_sparse_step=2,
                 rope_parameters=dict(rope_type="default", rope_theta=1e6)), "bfloat16", 23,
           transformers="5.24.0", save=dict(save_original_format=False)),
    # An expert of a group that was not chosen scores 0 in this class, which is below the others
    # only while the correction bias is positive: it is.
    Folder("deepseek_v3", "DeepseekV3ForCausalLM",
           sizes(64, 36, 40, 3, 3, 3, q_lora_rank=20, kv_lora_rank=14, qk_rope_head_dim=6,
                 qk_nope_head_dim=10, v_head_dim=8, n_routed_experts=8, n_group=4, topk_group=2,
                 num_experts_per_tok=3, n_shared_experts=2, moe_intermediate_size=8,
                 first_k_dense_replace=1, rms_norm_eps=1e-4, max_position_embeddings=256,
                 rope_scaling=dict(type="yarn", factor=8.0, original_max_position_embeddings=32,
                                   beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.5)),
           "bfloat16", 25, publish=deepseek_with_next_token_layer, ignored=("layers.61.",)),
    Folder("deepseek_v3_plain", "DeepseekV3ForCausalLM",
           sizes(64, 32, 40, 2, 2, 2, q_lora_rank=None, kv_lora_rank=12, qk_rope_head_dim=4,
                 qk_nope_head_dim=7, v_head_dim=9, n_routed_experts=4, n_group=1, topk_group=1,
                 num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=10,
                 first_k_dense_replace=1, norm_topk_prob=False, routed_scaling_factor=1.0,
                 rope_interleave=False, attention_bias=True), "float32", 22),
    Folder("gpt_oss", "GptOssForCausalLM",
           sizes(65, 36, 20, 2, 6, 2, head_dim=8, sliding_window=7, num_local_experts=5,
                 num_experts_per_tok=2, rope_theta=1000.0, max_position_embeddings=256,
                 rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0,
                                   truncate=False, original_max_position_embeddings=64)),
           "bfloat16", 27),
    Folder("gpt_oss_mxfp4", "GptOssForCausalLM",
           sizes(64, 32, 64, 2, 4, 2, head_dim=10, sliding_window=6, num_local_experts=4,
                 num_experts_per_tok=2), "bfloat16", 24, publish=packed_experts,
           note=", experts unpacked by transformers.integrations.mxfp4"),
    Folder("mamba", "MambaForCausalLM",
           dict(vocab_size=64, hidden_size=32, state_size=7, num_hidden_layers=2, time_step_rank=3),
           "float32", 23),
    Folder("mamba2", "Mamba2ForCausalLM",
           dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16,
                n_groups=1, state_size=9, chunk_size=8), "float32", 23),
    Folder("mamba2_groups", "Mamba2ForCausalLM",
           dict(vocab_size=67, hidden_size=36, num_hidden_layers=2, num_heads=6, head_dim=12,
                n_groups=2, state_size=5, chunk_size=16, use_bias=True,
                time_step_limit=(0.1, 0.6)), "bfloat16", 25),
    # Since transformers 5 the gated norm is over each group of channels; before, over all of them.
    Folder("mamba2_groups_v5", "Mamba2ForCausalLM",
           dict(vocab_size=64, hidden_size=30, num_hidden_layers=2, num_heads=6, head_dim=10,
                n_groups=3, state_size=5, chunk_size=8), "bfloat16", 23, transformers="5.24.0"),
    Folder("falcon_h1", "FalconH1ForCausalLM",
           sizes(65, 36, 40, 2, 6, 2, mamba_d_ssm=48, mamba_n_heads=4, mamba_d_head=12,
                 mamba_d_state=8, mamba_chunk_size=8, lm_head_multiplier=0.4,
                 embedding_multiplier=5.5, mlp_multipliers=[0.85, 1.3], key_multiplier=0.6,
                 attention_in_multiplier=1.2, attention_out_multiplier=0.9, ssm_in_multiplier=1.25,
                 ssm_out_multiplier=0.7, ssm_multipliers=[0.35, 0.5, 0.7, 0.6, 0.45]), "bfloat16",
           25),
    # One row at a time: the norm of this class drops the axis of time from a single token.
    Folder("falcon_h1_norm", "FalconH1ForCausalLM",
           sizes(64, 30, 28, 2, 3, 1, head_dim=8, mamba_d_ssm=40, mamba_n_heads=4,
                 mamba_d_head=10, mamba_n_groups=2, mamba_d_state=5, mamba_chunk_size=16,
                 mamba_rms_norm=True, mamba_norm_before_gate=True, mamba_conv_bias=False,
                 mamba_proj_bias=True, projectors_bias=True, tie_word_embeddings=True), "float32",
           22, batch=1),
    # Within one window: the cacheless forward of this class knows no window, and its cache drops
    # the first token one step before the window is full.
    Folder("recurrent_gemma", "RecurrentGemmaForCausalLM",
           sizes(65, 40, 60, 3, 5, 1, lru_width=45, attention_window_size=32, logits_soft_cap=4.0),
           "bfloat16", 26, prompt=2),
    Folder("recurrent_gemma_v5", "RecurrentGemmaForCausalLM",
           sizes(64, 32, 44, 3, 4, 2, attention_window_size=7, logits_soft_cap=4.0,
                 block_types=["recurrent", "attention"]), "bfloat16", 24, transformers="5.24.0"),
    Folder("qwen3_next", "Qwen3NextForCausalLM",
           sizes(64, 32, 40, 3, 4, 2, head_dim=12, linear_num_key_heads=2,
                 linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=5,
                 num_experts=5, num_experts_per_tok=2, moe_intermediate_size=10,
                 shared_expert_intermediate_size=14, mlp_only_layers=[0],
                 layer_types=["linear_attention", "linear_attention", "full_attention"]),
           "bfloat16", 25, publish=qwen3_next_with_next_token_layer, ignored=("mtp.",)),
    Folder("bert", "BertModel",
           sizes(65, 30, 44, 2, 3, max_position_embeddings=32), "float32", 24, prompt=None),
    Folder("bert_masked_lm", "BertForMaskedLM",
           sizes(64, 32, 44, 2, 4, max_position_embeddings=24, type_vocab_size=3,
                 hidden_act="gelu_new"), "float16", 21, prompt=None),
    Folder("t5", "T5ForConditionalGeneration",
           dict(vocab_size=64, d_model=26, d_kv=7, d_ff=30, num_layers=1, num_decoder_layers=2,
                num_heads=3, relative_attention_num_buckets=12, relative_attention_max_distance=20,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                decoder_start_token_id=0), "float32", 21, source_length=25),
    Folder("t5_tied", "T5ForConditionalGeneration",
           dict(vocab_size=67, d_model=32, d_kv=9, d_ff=45, num_layers=2, num_heads=3,
                relative_attention_num_buckets=12, relative_attention_max_distance=18,
                decoder_start_token_id=0), "bfloat16", 22, source_length=24, publish=t5_of_2019,
           ignored=("EncDecAttention.relative_attention_bias",)),
]
