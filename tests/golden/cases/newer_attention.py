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


def gemma4_case(name, shape, sizes):
    """A layer that sees all of the past, whose values are its keys, normalised."""
    kind = "full_attention"
    module_class, config_class, rotary_class = hugging_face(
        "gemma4", "Gemma4TextAttention", "Gemma4TextConfig", "Gemma4TextRotaryEmbedding")
    config = config_class(
        hidden_size=sizes["d_model"], num_attention_heads=sizes["n_heads"], num_hidden_layers=1,
        num_global_key_value_heads=sizes["n_kv_heads"], global_head_dim=sizes["head_dim"],
        rope_parameters={kind: dict(rope_type="default", rope_theta=sizes["rope_theta"])},
        layer_types=[kind], attention_k_eq_v=True, rms_norm_eps=0.01, attn_implementation="eager")
    module, rotary = randomise(module_class(config, layer_idx=0)), rotary_class(config)

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return module(x, rotary(x, positions, kind), causal_mask(x.shape[1]), {})[0], {}

    source = (published(module_class) + ", with Gemma4TextRotaryEmbedding of the default kind, "
              "eager, explicit causal mask")
    ours = dict(values_are_keys=True, value_norm=True, value_norm_eps=0.01, score_scale=1.0,
                qk_norm="head", qk_norm_eps=0.01)
    return Case(name, {**sizes, **ours}, source, shape, weights_of(module), run)


def attention__newer_values(arguments):
    yield gemma4_case("gemma4-values-are-keys", (2, 70), fields(18, 4, 2, 6, 6, 1e6))


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


def latent_case(name, family, prefix, shape, sizes, ours, rotated=True, by_position=False,
                **settings):
    """`sizes`: d_model, n_heads, q_rank, kv_rank, nope_dim, numbers of the shared key, head_v."""
    d_model, n_heads, q_rank, kv_rank, nope_dim, shared, head_v = sizes
    module_class, config_class = hugging_face(family, f"{prefix}Attention", f"{prefix}Config")
    config = config_class(hidden_size=d_model, num_attention_heads=n_heads,
                          num_key_value_heads=n_heads, q_lora_rank=q_rank or None,
                          kv_lora_rank=kv_rank, qk_nope_head_dim=nope_dim,
                          qk_rope_head_dim=shared, v_head_dim=head_v, max_position_embeddings=256,
                          attn_implementation="eager", **settings)
    module = randomise(module_class(config, layer_idx=0))
    rope = hugging_face(family, f"{prefix}RotaryEmbedding")[0](config) if rotated else None

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        given = dict(position_embeddings=rope(x, positions)) if rotated else {}
        if by_position:
            given["position_ids"] = positions
        return module(x, attention_mask=causal_mask(x.shape[1]), **given)[0], {}

    ours = dict(d_model=d_model, n_heads=n_heads, q_rank=q_rank, kv_rank=kv_rank,
                nope_dim=nope_dim, head_v=head_v) | ours
    return Case(name, ours, published(module_class) + ", eager, explicit causal mask", shape,
                weights_of(module), run)


def multi_head_latent_attention__newer(arguments):
    yield latent_case("kimi-linear-unturned", "kimi_linear", "KimiLinear", (2, 70),
                      (18, 3, 0, 16, 8, 4, 6), dict(shared_dim=4, positions={}), rotated=False)
    yield latent_case("ling3-gate-by-head", "bailing_hybrid", "BailingHybrid", (1, 131),
                      (20, 4, 12, 15, 7, 6, 5),
                      dict(positions=dict(rotary_dim=6), output_gate="head"), **rotary(10000.0))
    yield latent_case("mistral4-temperature", "mistral4", "Mistral4", (2, 70),
                      (18, 3, 11, 14, 6, 4, 8),
                      dict(positions=dict(rotary_dim=4),
                           scores=dict(temperature="stepped", temperature_rate=0.6,
                                       temperature_length=24)),
                      by_position=True, head_dim=4,
                      rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                           llama_4_scaling_beta=0.6,
                                           original_max_position_embeddings=24))
