"""Heads of softmax attention: norms of queries and keys, clips, gates, sink logits."""

from cases.attention import attention_case, fields, modern_bert_case
from common import *


def flattened(case, *names):
    """The same with norm weights of each head, [H, K], behind each other."""
    case.weights |= {name: case.weights[name].flatten() for name in names}
    return case


def renamed(case, **names):
    """The same with modules under our names."""
    case.weights = {".".join([names.get(head, head), *tail]): tensor
                    for name, tensor in case.weights.items() for head, *tail in [name.split(".")]}
    return case


def stablelm_case(name, shape, sizes):
    case = attention_case(name, "stablelm", "StableLm", shape, sizes, partial_rotary_factor=0.5,
                          use_qkv_bias=True, qkv_bias=True, qk_layernorm=True,
                          ours=dict(qk_norm="head", qk_norm_kind="layer",
                                    qk_norm_weight="by_head", qk_norm_eps=1e-5))
    for ours, theirs, heads in (("q_norm", "q_layernorm", sizes["n_heads"]),
                                ("k_norm", "k_layernorm", sizes["n_kv_heads"])):
        norms = [case.weights.pop(f"{theirs}.norms.{h}.weight") for h in range(heads)]
        case.weights[f"{ours}.weight"] = torch.cat(norms)
    return case


def persimmon_case(name, shape, d_model, n_heads):
    head_dim = d_model // n_heads
    sizes = fields(d_model, n_heads, n_heads, head_dim, head_dim // 2, 25000.0)
    case = attention_case(name, "persimmon", "Persimmon", shape, sizes, qkv_bias=True,
                          partial_rotary_factor=0.5, qk_layernorm=True,
                          ours=dict(o_bias=True, qk_norm="head", qk_norm_kind="layer",
                                    qk_norm_bias=True, qk_norm_eps=1e-5))
    weights = renamed(case, dense="o_proj", q_layernorm="q_norm", k_layernorm="k_norm").weights
    for kind in ("weight", "bias"):
        fused = weights.pop(f"query_key_value.{kind}")
        fused = fused.view(n_heads, 3, head_dim, *fused.shape[1:])
        for i, one in enumerate("qkv"):
            weights[f"{one}_proj.{kind}"] = fused[:, i].flatten(0, 1).clone()
    case.source += "; query_key_value is split here"
    return case


def qwen3_next_case(name, shape, sizes):
    case = attention_case(name, "qwen3_next", "Qwen3Next", shape, sizes, unit_offset=True,
                          partial_rotary_factor=0.25, rms_norm_eps=0.01,
                          ours=dict(qk_norm="head", qk_norm_eps=0.01, output_gate="channel"))
    pairs = case.weights["q_proj.weight"].view(sizes["n_heads"], 2, -1, sizes["d_model"])
    case.weights |= {"q_proj.weight": pairs[:, 0].flatten(0, 1).clone(),
                     "g_proj.weight": pairs[:, 1].flatten(0, 1).clone()}
    case.source += "; q_proj is split into q_proj and g_proj here"
    return case


def attention__heads(arguments):
    yield flattened(attention_case(
        "cohere-layer-norm-by-head", "cohere", "Cohere", (2, 37), fields(24, 4, 2, 6, 6),
        interleaved=True, use_qk_norm=True,
        ours=dict(qk_norm="head", qk_norm_kind="layer", qk_norm_weight="by_head",
                  qk_norm_eps=1e-5)), "q_norm.weight", "k_norm.weight")
    yield stablelm_case("stablelm-layer-norm-by-head", (1, 131), fields(36, 3, 3, 12, 6))
    yield persimmon_case("persimmon-layer-norm", (2, 70), 24, 3)
    yield attention_case(
        "llama4-weightless-norm", "llama4", "Llama4Text", (2, 37), fields(30, 6, 3, 10, 10),
        interleaved=True, use_qk_norm=True, rms_norm_eps=0.01, no_rope_layers=[1],
        ours=dict(qk_norm="head", qk_norm_weight="none", qk_norm_rotated=True, qk_norm_eps=0.01))
    yield renamed(attention_case(
        "hunyuan-norm-of-rotated", "hunyuan_v1_dense", "HunYuanDenseV1", (1, 131),
        fields(18, 4, 2, 8, 8), rms_norm_eps=0.01, rope_scaling=dict(rope_type="default"),
        ours=dict(qk_norm="head", qk_norm_rotated=True, qk_norm_eps=0.01)),
        query_layernorm="q_norm", key_layernorm="k_norm")
    yield attention_case(
        "llama4-temperature", "llama4", "Llama4Text", (1, 131), fields(18, 4, 2, 6, 0),
        rope=False, no_rope_layers=[0], attn_temperature_tuning=True, attn_scale=0.7,
        floor_scale=16, by_cache_position=True,
        ours=dict(temperature="stepped", temperature_rate=0.7, temperature_length=16,
                  temperature_offset=1))
    yield qwen3_next_case("qwen3-next-gate", (2, 70), fields(20, 4, 2, 8, 2, 1e6))
    yield attention_case("olmo-clip", "olmo", "Olmo", (2, 37), fields(24, 4, 2, 6, 6),
                         clip_qkv=0.8, ours=dict(qkv_clip=0.8))
    sinks = dict(rope_scaling=None, attention_bias=True, qkv_bias=True)
    yield attention_case("gpt-oss-sinks", "gpt_oss", "GptOss", (2, 70), fields(16, 4, 2, 6, 6),
                         layer_types=["full_attention"], **sinks,
                         ours=dict(o_bias=True, sink_logits=True))
    yield attention_case("gpt-oss-sinks-window", "gpt_oss", "GptOss", (1, 131),
                         fields(15, 3, 1, 10, 10), layer_types=["sliding_attention"],
                         sliding_window=24, **sinks,
                         ours=dict(o_bias=True, sink_logits=True, window=24))


def bidirectional_attention__window(arguments):
    yield modern_bert_case("modernbert-local", (2, 70), 24, 4, reach=9)


def mllama_cross_case(name, shape, d_model, n_heads, n_kv_heads, source_length):
    module_class, config_class = hugging_face("mllama", "MllamaTextCrossAttention",
                                              "MllamaTextConfig")
    config = config_class(hidden_size=d_model, num_attention_heads=n_heads,
                          num_key_value_heads=n_kv_heads, rms_norm_eps=0.01,
                          attn_implementation="eager")
    module = randomise(module_class(config, layer_idx=0))
    read = torch.randn(shape[0], source_length, d_model)
    fields = dict(d_model=d_model, d_source=d_model,
                  heads=dict(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=d_model // n_heads,
                             qk_norm="head", qk_norm_eps=0.01))
    return Case(name, fields, published(module_class) + ", eager, cross_attention_states given",
                shape, weights_of(module), lambda x: (module(x, read)[0], {}),
                inputs=dict(source=read))


def cross_attention__heads(arguments):
    yield mllama_cross_case("mllama-norm", (2, 37), 30, 6, 3, 21)
    yield mllama_cross_case("mllama-norm-long", (1, 131), 28, 4, 1, 140)
