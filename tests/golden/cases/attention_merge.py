"""Heads of softmax attention whose maps are merged, or that share keys."""

import sys
import unittest.mock

from cases.attention import attention_case, fields, window_mask
from common import *


def difference(depth, head_dim, n_value_heads, **more):
    """Fields of a layer at this depth, counted from 0."""
    return dict(difference=True, lambda_init=0.8 - 0.6 * math.exp(-0.3 * depth),
                n_value_heads=n_value_heads, value_dim=2 * head_dim, **more)


def diff_llama_case(name, shape, sizes):
    n_values, width = sizes["n_kv_heads"] // 2, sizes["head_dim"]
    case = attention_case(name, "diffllama", "DiffLlama", shape, sizes, rms_norm_eps=0.01,
                          ours=difference(0, width, n_values, sub_norm_eps=0.01))
    values = case.weights["v_proj.weight"].view(2, n_values, width, sizes["d_model"])
    case.weights["v_proj.weight"] = values.transpose(0, 1).reshape(-1, sizes["d_model"])
    case.source += "; value heads that it joins lie beside each other in v_proj here"
    return case


def rotate_pairs(x, cos, sin, interleaved):
    """What apply_rotary_emb gives, x [B, T, H, K] by tables [T, K / 2]."""
    assert interleaved
    cos, sin = (table[:x.shape[1], None] for table in (cos, sin))
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def unilm_case(arguments, name, shape, d_model, n_pairs, depth):
    folder = arguments.repository("unilm") / "Diff-Transformer"
    stubs = {one: types.ModuleType(one) for one in ("kernel", "kernel.rotary", "flash_attn")}
    stubs["kernel.rotary"].apply_rotary_emb = rotate_pairs
    stubs["flash_attn"].flash_attn_func = None
    sys.path.insert(0, str(folder))
    with unittest.mock.patch.dict(sys.modules, stubs):
        from multihead_diffattn import MultiheadDiffAttn
    sys.path.remove(str(folder))
    module = randomise(MultiheadDiffAttn(d_model, depth, n_pairs))
    width = d_model // n_pairs // 2
    angles = torch.arange(shape[1])[:, None] * 10000.0**(-torch.arange(0, width, 2) / width)
    weights = weights_of(module, out_proj="o_proj")
    for one in ("q_proj.weight", "k_proj.weight"):
        maps = weights[one].view(n_pairs, 2, width, d_model).transpose(0, 1)
        weights[one] = maps.reshape(-1, d_model)
    source = ("microsoft/unilm 768a3c873f598bb9b4d4dfb9267b099e35f8fe56 Diff-Transformer/"
              "multihead_diffattn.py MultiheadDiffAttn, apply_rotary_emb, which needs a GPU, in "
              f"torch, torch {torch.__version__}, {LIFTED}; first and second maps of its pairs lie "
              "behind each other in q_proj and k_proj here, out_proj is named o_proj")
    sizes = fields(d_model, 2 * n_pairs, 2 * n_pairs, width, width)
    ours = difference(depth, width, n_pairs, sub_norm_weight=True, rope_interleaved=True)
    return Case(name, {**sizes, **ours}, source, shape, weights,
                lambda x: (module(x, (angles.cos(), angles.sin())), {}))


def attention__merge(arguments):
    yield diff_llama_case("diffllama-grouped", (2, 70), fields(36, 8, 4, 6, 6))
    yield diff_llama_case("diffllama-long", (1, 131), fields(30, 6, 6, 4, 4, 500000.0))
    yield unilm_case(arguments, "unilm-difference-odd", (2, 37), 36, 3, depth=3)


def rodimus_case(name, shape, d_model, n_heads, window, **options):
    import fla.layers.rodimus
    import fla.modules.layernorm
    import fla.modules.rotary
    from fla.modules.layernorm import rms_norm_ref
    from fla.modules.rotary import rotary_embedding_ref

    def rms_norm(x, weight, bias, residual=None, eps=1e-5, prenorm=False, residual_in_fp32=False):
        return rms_norm_ref(x, weight, bias, residual=residual, eps=eps, prenorm=prenorm)

    def rotate(x, cos, sin, interleaved=False, seqlen_offsets=0, cu_seqlens=None):
        return rotary_embedding_ref(x, cos[:x.shape[1]], sin[:x.shape[1]], interleaved)

    def dense(q, k, v, causal, window_size):
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
        weights = (scores + window_mask(q.shape[1], window_size[0] + 1)).softmax(-1)
        return torch.einsum("bhij,bjhd->bihd", weights, v)

    fla.modules.layernorm.rms_norm, fla.modules.rotary.rotary_embedding = rms_norm, rotate
    fla.layers.rodimus.flash_attn_func = dense
    fla.layers.rodimus.autocast_to_fp16 = lambda x: x
    Layer = fla.layers.rodimus.SlidingWindowSharedKeyAttention
    module = randomise(Layer(d_model, n_heads, window_size=window, **options))
    source = published(
        Layer, f"{LIFTED}; Triton operators rebound: rms_norm to "
        "fla.modules.layernorm.rms_norm_ref, rotary_embedding to "
        "fla.modules.rotary.rotary_embedding_ref; flash_attn_func is a dense softmax here, and its "
        "autocast_to_fp16 leaves float64")
    sizes = fields(d_model, n_heads, n_heads, d_model // n_heads, d_model // n_heads)
    ours = dict(n_key_heads=1, window=window, qkv_bias=options["qkv_bias"])
    if options["qk_norm"]:
        ours |= dict(qk_norm="head", qk_norm_eps=1e-5)
    return Case(name, {**sizes, **ours}, source, shape, weights_of(module),
                lambda x: (module(x)[0], {}))


def attention__shared_keys(arguments):
    yield rodimus_case("rodimus-shared-key", (2, 70), 24, 4, 16, qk_norm=False, qkv_bias=True)
    yield rodimus_case("rodimus-shared-key-norm", (1, 131), 30, 3, 24, qk_norm=True,
                       qkv_bias=False)
