"""Softmax attention whose scores have a scale of each head, or of the length that is served."""

import sys
import unittest.mock

from cases.attention import fields
from cases.attention_biases import t5_case
from common import *


def head_scale_case(arguments, name, shape, d_model, n_heads, n_kv_heads):
    """The published head width is 64 alone."""
    folder = str(arguments.repository("nope_head_scale"))
    from transformers.models.llama import modeling_llama
    utils = types.ModuleType("utils")
    utils.log_once = lambda logger, text: None
    flash = type("LlamaFlashAttention2", (modeling_llama.LlamaAttention,), {})  # of its time
    sys.path.insert(0, folder)
    with unittest.mock.patch.dict(sys.modules, {
            "utils": utils, "models": types.ModuleType("models"),
            "args": types.ModuleType("args")}), unittest.mock.patch.object(
                modeling_llama, "LlamaFlashAttention2", flash, create=True):
        sys.modules["models"].__path__ = [f"{folder}/models"]
        sys.modules["args"].__path__ = [f"{folder}/args"]
        from models.llama_nope import ScaleMixin, SoftMaxScaleType
    sys.path.remove(folder)
    module_class, config_class = hugging_face("llama", "LlamaAttention", "LlamaConfig")
    config = config_class(hidden_size=d_model, num_attention_heads=n_heads,
                          num_key_value_heads=n_kv_heads, head_dim=64)
    module = randomise(module_class(config, layer_idx=0))
    module.num_heads, module.softmax_scale = n_heads, None
    module.softmax_scale_type = SoftMaxScaleType.HS
    module.scale_param = torch.nn.Parameter(0.5 + 1.5 * torch.rand(n_heads))

    def run(x):
        q, k, v = (projection(x).unflatten(-1, (-1, 64)).transpose(1, 2)
                   for projection in (module.q_proj, module.k_proj, module.v_proj))
        positions = torch.arange(x.shape[1])[None]
        q = ScaleMixin.query_scale(module, q, positions)
        k, v = (modeling_llama.repeat_kv(heads, n_heads // n_kv_heads) for heads in (k, v))
        weights = (q @ k.transpose(2, 3) + causal_mask(x.shape[1])).softmax(-1)
        return module.o_proj((weights @ v).transpose(1, 2).flatten(2)), {}

    source = ("AntNLP/nope_head_scale 51e0a82aeb8afc6d3dcc92f4e29be16ec2a63804 models/"
              "llama_nope.py ScaleMixin, its query_scale within softmax attention without positions, "
              "explicit causal mask, on the projections of " + published(module_class))
    return Case(name, {**fields(d_model, n_heads, n_kv_heads, 64, 0), "head_scale": True}, source,
                shape, weights_of(module), run)


def alignment_case(name, shape, temperature):
    """T5's decoder, whose scores are all linear in W_q and in its table: both are divided."""
    case = t5_case(name, shape, 18, 3, 6, 16, 40, decoder=True)
    run = case.run
    tensors = [case.weights[one] for one in ("q_proj.weight", "bias.relative_attention_bias.weight")]

    def divided(x):
        for tensor in tensors:
            tensor /= temperature
        try:
            return run(x)
        finally:
            for tensor in tensors:
                tensor *= temperature

    case.run, case.config["scores"]["score_divisor"] = divided, temperature
    case.source += "; its q and its table are divided by the temperature of Chi et al. 2023"
    return case


def attention__scales(arguments):
    yield head_scale_case(arguments, "nope-head-scale", (1, 70), 12, 4, 2)
    yield alignment_case("t5-attention-alignment", (2, 37), 0.75)
