"""Heads of attention that transformers has since 5: they run in an environment of their own."""

from cases.attention import attention_case, fields
from cases.attention_heads import renamed
from common import *

TRANSFORMERS = "5.24.0"


def rotary(theta, layer_type=None):
    one = dict(rope_type="default", rope_theta=theta)
    if layer_type is None:
        return dict(rope_parameters=one)
    return dict(rope_parameters={layer_type: one}, layer_types=[layer_type], layer_type=layer_type)


def nanochat_case(name, shape, sizes):
    """It turns the other way round, which is the usual one where a head's halves are exchanged."""
    case = attention_case(name, "nanochat", "NanoChat", shape, sizes, rms_norm_eps=0.01,
                          **rotary(10000.0),
                          ours=dict(qk_norm="head", qk_norm_weight="none", qk_norm_rotated=True,
                                    qk_norm_eps=0.01))
    for projection in ("q_proj.weight", "k_proj.weight"):
        heads = case.weights[projection].view(-1, 2, sizes["head_dim"] // 2, sizes["d_model"])
        case.weights[projection] = heads.flip(1).reshape(-1, sizes["d_model"])
    case.source += "; the halves of the heads of q_proj and k_proj are exchanged here"
    return case


def attention__newer_heads(arguments):
    yield nanochat_case("nanochat-norm-of-rotated", (2, 37), fields(18, 4, 2, 6, 6))
    yield attention_case("step3.7-gate-by-head", "step3p7", "Step3p7", (1, 131),
                         fields(18, 4, 2, 8, 8), rms_norm_eps=0.01, gating="per-head",
                         config_prefix="Step3p7Text", query_pre_attn_scalar=8,
                         unit_offset=True, **rotary(10000.0, "full_attention"),
                         ours=dict(qk_norm="head", qk_norm_eps=0.01, output_gate="head"))
    yield renamed(attention_case("afmoe-gate-window", "afmoe", "Afmoe", (2, 70),
                                 fields(18, 4, 2, 6, 6), rms_norm_eps=0.01, sliding_window=16,
                                 layer_types=["sliding_attention"], **rotary(10000.0),
                                 ours=dict(qk_norm="head", qk_norm_eps=0.01, window=16,
                                           output_gate="channel")), gate_proj="g_proj")
    yield attention_case("mimo-v2-values-of-another-width", "mimo_v2_flash", "MiMoV2Flash", (2, 70),
                         fields(18, 4, 4, 6, 2), v_head_dim=4,
                         attention_value_scale=None, sliding_window=20, num_key_value_heads=2,
                         **rotary(10000.0, "sliding_attention"),
                         ours=dict(value_dim=4, sink_logits=True, window=20))
    yield attention_case("ministral3-temperature", "ministral3", "Ministral3", (1, 131),
                         fields(18, 4, 2, 6, 6), by_position=True,
                         rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                              llama_4_scaling_beta=0.6,
                                              original_max_position_embeddings=24),
                         ours=dict(temperature="stepped", temperature_rate=0.6,
                                   temperature_length=24))
