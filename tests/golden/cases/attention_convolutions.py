"""Softmax attention whose queries, keys and values pass short convolutions."""

import sys
import unittest.mock

from cases.attention import fields
from common import *


def primer_case(name, shape, d_model, n_heads):
    """Its heads share their taps."""
    import labml.tracker
    from labml_nn.transformers.primer_ez import MultiDConvHeadAttention
    labml.tracker.debug = lambda name, numbers: None
    module = randomise(MultiDConvHeadAttention(n_heads, d_model))

    def run(x):
        mask = torch.ones(x.shape[1], x.shape[1]).tril()[..., None]
        by_time = x.transpose(0, 1)
        return module(query=by_time, key=by_time, value=by_time, mask=mask).transpose(0, 1), {}

    theirs, weights = module.state_dict(), {}
    for one, long in zip("qkv", ("query", "key", "value")):
        for kind in ("weight", "bias"):
            weights[f"{one}_proj.{kind}"] = theirs[f"{long}.0.linear.{kind}"]
            taps = theirs[f"{long}.1.conv.{kind}"]
            weights[f"{one}_conv1d.{kind}"] = taps.repeat(n_heads, *[1] * (taps.ndim - 1))
    weights |= {f"o_proj.{kind}": theirs[f"output.{kind}"] for kind in ("weight", "bias")}
    head_dim = d_model // n_heads
    ours = dict(head_conv_kernel=3, head_conv_bias=True, qkv_bias=True, o_bias=True)
    source = (published(MultiDConvHeadAttention) + ", explicit causal mask, without the log of "
              "its weights; its taps are repeated for each head here")
    return Case(name, {**fields(d_model, n_heads, n_heads, head_dim, 0), **ours}, source, shape,
                weights, run)


def canon_case(arguments, name, shape, sizes, residual, silu):
    import transformers.utils
    folder = str(arguments.repository("PhysicsLM4") / "huggingface")
    sys.path.insert(0, folder)
    # What its whole model alone needs, by its name of another version.
    options = transformers.utils.TransformersKwargs
    with unittest.mock.patch.object(transformers.utils, "LossKwargs", options, create=True):
        from configuration_llama_canon import LlamaCanonConfig
        from modeling_llama_canon import LlamaCanonAttention
    sys.path.remove(folder)
    rotary_class, = hugging_face("llama", "LlamaRotaryEmbedding")
    config = LlamaCanonConfig(
        hidden_size=sizes["d_model"], num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_kv_heads"], head_dim=sizes["head_dim"],
        rope_theta=sizes["rope_theta"], canon_set="B", canon_residual=residual,
        canon_activation=silu)
    module, rotary = randomise(LlamaCanonAttention(config, layer_idx=0)), rotary_class(config)

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return module(x, attention_mask=causal_mask(x.shape[1]),
                      position_embeddings=rotary(x, positions))[0], {}

    weights = weights_of(module)
    taps = weights.pop("canonB.weight")
    if residual:
        taps = taps + torch.tensor([0.0, 0, 0, 1])
    queries, keys = (sizes[n] * sizes["head_dim"] for n in ("n_heads", "n_kv_heads"))
    for one, part in zip("qkv", taps.split((queries, keys, keys))):
        weights[f"{one}_conv1d.weight"] = part.clone()
    source = ("facebookresearch/PhysicsLM4 75806965208c55e9f7f2e2363d3793d2da75d2e4 huggingface/"
              "modeling_llama_canon.py LlamaCanonAttention, with its own torch convolution and "
              f"LlamaRotaryEmbedding of transformers, explicit causal mask, torch "
              f"{torch.__version__}, {LIFTED}; canonB is split here" +
              (", and 1 is added to its last taps" if residual else ""))
    ours = dict(head_conv_kernel=4, head_conv_silu=silu)
    return Case(name, {**sizes, **ours}, source, shape, weights, run)


def attention__convolutions(arguments):
    yield primer_case("primer-convolutions", (2, 37), 24, 4)
    yield canon_case(arguments, "canon-b-residual", (1, 131), fields(18, 4, 2, 6, 6), residual=True,
                     silu=False)
    yield canon_case(arguments, "canon-b-silu-odd", (2, 70), fields(15, 3, 1, 6, 6), residual=False,
                     silu=True)
