"""Makes the golden files of this folder: what the published implementations compute, in float64.

    pip install torch==2.15.0 transformers==4.57.6 numpy safetensors einops
    pip install --no-deps flash-linear-attention==0.4.1 fla-core==0.4.1
    pip install hydra-core rich opt_einsum               # only what safari imports, for Hyena
    git clone https://github.com/HazyResearch/safari     # 02220c69d247e5473616cd053a443ad99fd2559b
    python generate.py --safari safari                   # all layers
    python generate.py --layer attention                 # one

A file holds a layer's config, its weights under the layer's names, an input x ~ N(0, 1), the output
y, and the final state where the published code exposes it. Every weight is random, norms and biases
included, so that an error in any of them shows. The published forward runs as it is; each rebinding
is named in the file's `source`. Each file is read back after writing and checked: shapes against
the config, finite, not near zero, first half reproduced by running that half alone.
"""

import argparse
import collections
import importlib.metadata
import json
import math
import pathlib
import sys
import types
import zlib

import numpy as np
import safetensors.numpy
import torch

# The published modules cast to float32 inside; these names, rebound before import, lift that.
torch.float32 = torch.float = torch.float64
torch.complex64 = torch.cfloat = torch.complex128
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)
LIFTED = (
    "float64; torch.float32, torch.float, torch.complex64, torch.cfloat and torch.Tensor.float "
    "rebound to their doubles before import")

HERE = pathlib.Path(__file__).resolve().parent

# `run` maps x [B, T, D] to (y, {state name: tensor}).
Case = collections.namedtuple("Case", "name config source shape weights run")


def randomise(module):
    """Matrices keep the scale of their input, norm weights lie around 1, biases around 0."""
    for name, parameter in module.named_parameters():
        noise = torch.randn_like(parameter)
        if "norm" in name:
            parameter.data = 1 + 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.5 * noise
        else:
            parameter.data = 1.2 * noise / math.sqrt(parameter[0].numel())
    return module.eval()


def weights_of(module, **renamed):
    """The module's tensors, `renamed` by module name; a leading part that is not listed stays."""
    result = {}
    for name, tensor in module.state_dict().items():
        head, _, tail = name.partition(".")
        result[".".join(filter(None, (renamed.get(head, head), tail)))] = tensor
    return result


def published(item, rebindings=LIFTED):
    """`source` of a class or function."""
    module = item.__module__.split(".")[0]
    package = {"transformers": "transformers", "fla": "flash-linear-attention"}[module]
    version = importlib.metadata.version(package)
    return (f"{package} {version} {item.__module__}.{item.__qualname__}, "
            f"torch {torch.__version__}, {rebindings}")


def hugging_face(family, *names):
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    configuration = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    return [getattr(module if hasattr(module, name) else configuration, name) for name in names]


# ---- attention


def causal_mask(length):
    return torch.full((length, length), -math.inf).triu(1)[None, None]


def attention_case(name, family, prefix, shape, fields, rope=True, interleaved=False,
                   qkv_bias=False, **extra):
    """One of the modules that take position embeddings from outside."""
    module_class, config_class = hugging_face(family, f"{prefix}Attention", f"{prefix}Config")
    names = dict(hidden_size="d_model", num_attention_heads="n_heads",
                 num_key_value_heads="n_kv_heads", head_dim="head_dim")
    sizes = {theirs: fields[ours] for theirs, ours in names.items()}
    config = config_class(**sizes, rope_theta=fields["rope_theta"], max_position_embeddings=256,
                          num_hidden_layers=1, attn_implementation="eager", **extra)
    module = randomise(module_class(config, layer_idx=0))
    rotary = hugging_face(family, f"{prefix}RotaryEmbedding")[0](config)

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return (module(x, position_embeddings=rotary(x, positions),
                       attention_mask=causal_mask(x.shape[1]))[0], {})

    source = (published(module_class) +
              f", with {prefix}RotaryEmbedding, eager, explicit causal mask")
    if not rope:
        assert not module.use_rope
        source += ", a layer whose config switches rotary embeddings off"
    return Case(name, {**fields, "rope_interleaved": interleaved, "qkv_bias": qkv_bias}, source,
                shape, weights_of(module), run)


def gptj_case(name, shape, fields):
    module_class, config_class = hugging_face("gptj", "GPTJAttention", "GPTJConfig")
    config = config_class(n_embd=fields["d_model"], n_head=fields["n_heads"], n_positions=256,
                          rotary_dim=fields["rotary_dim"])
    module = randomise(module_class(config, layer_idx=0))

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return module(x, attention_mask=causal_mask(x.shape[1]), position_ids=positions)[0], {}

    source = published(module_class) + ", explicit causal mask; out_proj is named o_proj here"
    return Case(name, {**fields, "rope_interleaved": True, "qkv_bias": False}, source, shape,
                weights_of(module, out_proj="o_proj"), run)


def attention(_):
    def fields(d_model, n_heads, n_kv_heads, head_dim, rotary_dim, rope_theta=10000.0):
        return dict(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
                    rotary_dim=rotary_dim, rope_theta=rope_theta)

    yield attention_case("llama-grouped-odd", "llama", "Llama", (2, 37), fields(30, 6, 3, 10, 10))
    yield attention_case("llama-multihead-long", "llama", "Llama", (1, 150),
                         fields(20, 3, 3, 8, 8, 500000.0))
    yield attention_case("qwen2-multiquery-bias", "qwen2", "Qwen2", (2, 131),
                         fields(24, 4, 1, 6, 6, 1000000.0), qkv_bias=True)
    yield attention_case("stablelm-partial", "stablelm", "StableLm", (2, 70),
                         fields(36, 3, 3, 12, 6), partial_rotary_factor=0.5, use_qkv_bias=False)
    yield attention_case("cohere-interleaved", "cohere", "Cohere", (1, 133), fields(24, 4, 2, 6, 6),
                         interleaved=True)
    yield gptj_case("gptj-interleaved-partial", (2, 37), fields(42, 3, 3, 14, 6))
    yield attention_case("smollm3-no-rope", "smollm3", "SmolLM3", (2, 70), fields(15, 3, 1, 5, 0),
                         rope=False, no_rope_layers=[0], pad_token_id=None)


# ---- gated linear attention


def gated_linear_attention(_):
    import fla.layers.gla
    import fla.modules.fused_norm_gate
    from fla.models.utils import Cache
    from fla.modules.layernorm_gated import rms_norm_ref
    from fla.ops.gla.naive import naive_recurrent_gla

    def recurrent(q, k, v, gk=None, g=None, initial_state=None, output_final_state=False,
                  cu_seqlens=None):
        return naive_recurrent_gla(q, k, v, g if gk is None else gk, initial_state,
                                   output_final_state)

    def gated_norm(x, g, weight, bias, activation, residual=None, eps=1e-6, prenorm=False,
                   residual_in_fp32=False):
        assert activation == "swish" and residual is None and not prenorm
        return rms_norm_ref(x, weight, bias, z=g, eps=eps, norm_before_gate=True)

    fla.layers.gla.chunk_gla = fla.layers.gla.fused_recurrent_gla = recurrent
    fla.modules.fused_norm_gate.rms_norm_gated = gated_norm
    source = published(
        fla.layers.gla.GatedLinearAttention,
        f"{LIFTED}; Triton operators rebound: chunk_gla and fused_recurrent_gla to "
        "fla.ops.gla.naive.naive_recurrent_gla, rms_norm_gated to "
        "fla.modules.layernorm_gated.rms_norm_ref with norm_before_gate")

    def case(name, shape, gate_bias=0.0, **fields):
        c = types.SimpleNamespace(**fields)
        module = randomise(fla.layers.gla.GatedLinearAttention(
            hidden_size=c.d_model, num_heads=c.n_heads, expand_k=c.n_heads * c.head_k / c.d_model,
            expand_v=c.n_heads * c.head_v / c.d_model, norm_eps=c.norm_eps, layer_idx=0,
            gate_low_rank_dim=c.gate_rank, gate_logit_normalizer=c.gate_normalizer))
        module.gk_proj[1].bias.data += gate_bias * (torch.rand_like(module.gk_proj[1].bias) < 0.3)

        def run(x):
            cache = Cache()
            y = module(x, past_key_values=cache, use_cache=True)[0]
            return y, {"memory": cache[0]["recurrent_state"]}

        return Case(name, fields, source, shape, weights_of(module), run)

    yield case("odd", (2, 37), d_model=21, n_heads=3, head_k=5, head_v=7, gate_rank=3,
               gate_normalizer=16.0, norm_eps=1e-5)
    yield case("long", (2, 150), d_model=24, n_heads=2, head_k=8, head_v=16, gate_rank=4,
               gate_normalizer=16.0, norm_eps=1e-6)
    yield case("strong-gates", (1, 131), d_model=18, n_heads=2, head_k=9, head_v=9, gate_rank=4,
               gate_normalizer=1.0, norm_eps=1e-5, gate_bias=-40.0)


# ---- mamba2


def mamba2_case(name, shape, module, source, fields, cache_of):
    randomise(module)
    module.A_log.data = torch.empty_like(module.A_log).uniform_(0.2, 6.0).log()
    module.dt_bias.data -= 1.5
    module.D.data += 1.0

    def run(x):
        cache, arguments = cache_of(len(x))
        y = module.torch_forward(x, cache, **arguments)
        conv = cache.conv_states[0][..., 1:].transpose(1, 2)
        return y, {"conv": conv, "ssm": cache.ssm_states[0].transpose(-1, -2)}

    # JSON has no infinity.
    config = {**fields, "dt_max": "Infinity" if math.isinf(fields["dt_max"]) else fields["dt_max"]}
    source += ("; conv state from [B, Dc, W], its last W - 1 columns as [B, W - 1, Dc]; ssm state from "
               "[B, H, P, N] as [B, H, N, P]")
    return Case(name, config, source, shape, weights_of(module), run)


def mamba2(_):
    Mixer, Cache, Config = hugging_face("mamba2", "Mamba2Mixer", "Mamba2Cache", "Mamba2Config")

    def case(name, shape, chunk, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, expand=c.n_heads * c.head_dim // c.d_model,
                        num_heads=c.n_heads, head_dim=c.head_dim, state_size=c.state_size,
                        n_groups=c.n_groups, conv_kernel=c.conv_kernel,
                        time_step_limit=(c.dt_min, c.dt_max), layer_norm_epsilon=c.norm_eps,
                        chunk_size=chunk, num_hidden_layers=1)

        def cache_of(batch):
            return Cache(config, batch, torch.float64), {"cache_position": torch.arange(1)}

        return mamba2_case(name, shape, Mixer(config, layer_idx=0), published(Mixer.torch_forward),
                           fields, cache_of)

    yield case("odd", (2, 37), 16, d_model=18, n_heads=4, head_dim=9, state_size=7, n_groups=2,
               conv_kernel=4, dt_min=0.0, dt_max=math.inf, norm_groups=1, norm_eps=1e-5)
    yield case("long", (2, 150), 64, d_model=24, n_heads=6, head_dim=8, state_size=16, n_groups=1,
               conv_kernel=4, dt_min=0.0, dt_max=math.inf, norm_groups=1, norm_eps=1e-6)
    yield case("clamped-steps", (1, 131), 32, d_model=15, n_heads=3, head_dim=5, state_size=11,
               n_groups=1, conv_kernel=3, dt_min=0.1, dt_max=0.7, norm_groups=1, norm_eps=1e-5)

    Mixer, Cache, Config = hugging_face("zamba2", "Zamba2MambaMixer", "Zamba2HybridDynamicCache",
                                        "Zamba2Config")
    fields = dict(d_model=20, n_heads=4, head_dim=10, state_size=6, n_groups=2, conv_kernel=4,
                  dt_min=0.05, dt_max=math.inf, norm_groups=2, norm_eps=1e-5)
    # Its chunk recurrence sums over the later chunk, not the earlier: right for one chunk alone.
    config = Config(hidden_size=20, mamba_expand=2, n_mamba_heads=4, mamba_headdim=10,
                    mamba_d_state=6, mamba_ngroups=2, mamba_d_conv=4, time_step_min=0.05,
                    chunk_size=128, num_hidden_layers=1, num_attention_heads=4,
                    layers_block_type=["mamba"])
    source = (published(Mixer.torch_forward) +
              "; one chunk of 128, as several chunks are summed wrongly there")
    yield mamba2_case("zamba2-grouped-norm", (2, 70), Mixer(config, layer_idx=0), source, fields,
                      lambda batch: (Cache(config, batch, torch.float64), {}))


# ---- hyena


def hyena(safari):
    if safari is None:
        raise SystemExit("hyena needs --safari PATH, a checkout of HazyResearch/safari")
    sys.path.insert(0, str(safari))
    lightning = types.ModuleType("pytorch_lightning")
    lightning.utilities = types.ModuleType("pytorch_lightning.utilities")
    lightning.utilities.rank_zero_only = lambda function: function
    sys.modules[lightning.__name__] = lightning
    sys.modules[lightning.utilities.__name__] = lightning.utilities
    from src.models.sequence.hyena import HyenaOperator

    source = ("HazyResearch/safari 02220c69d247 src/models/sequence/hyena.py HyenaOperator "
              f"(fftconv_ref), torch {torch.__version__}, {LIFTED}; pytorch_lightning, which its "
              "utilities import, is an empty module")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        module = randomise(
            HyenaOperator(c.d_model, c.max_length, order=c.order, filter_order=c.filter_width,
                          short_filter_order=c.conv_kernel, emb_dim=c.filter_embedding,
                          num_inner_mlps=c.filter_inner_layers, shift=c.modulation_shift))
        # Frequencies around 3, positions near the published ones, taps small enough for long sums.
        filters = module.filter_fn
        filters.implicit_filter[-1].weight.data *= 0.3
        sine = filters.implicit_filter[1]  # one module, reused after every inner layer
        sine.freq.data = 3 + torch.randn_like(sine.freq)
        published_positions = type(filters.pos_emb)(c.filter_embedding, c.max_length).z.data
        filters.pos_emb.z.data = published_positions + 0.1 * torch.randn_like(published_positions)
        filters.modulation.deltas *= 1 + 0.2 * torch.randn_like(filters.modulation.deltas)
        filters.modulation.deltas[..., ::2] *= -1  # the layer takes the absolute value
        return Case(name, fields, source, shape, weights_of(module), lambda x: (module(x), {}))

    yield case("odd", (2, 37), d_model=11, order=2, max_length=50, filter_width=13,
               filter_embedding=5, filter_inner_layers=2, conv_kernel=3, modulation_shift=0.0)
    yield case("order-3", (2, 70), d_model=8, order=3, max_length=70, filter_width=9,
               filter_embedding=3, filter_inner_layers=1, conv_kernel=3, modulation_shift=0.05)
    yield case("long", (1, 300), d_model=12, order=2, max_length=512, filter_width=16,
               filter_embedding=9, filter_inner_layers=3, conv_kernel=3, modulation_shift=0.01)
    yield case("order-4-taps-4", (1, 131), d_model=6, order=4, max_length=131, filter_width=8,
               filter_embedding=7, filter_inner_layers=0, conv_kernel=4, modulation_shift=0.0)


# ---- channel mixers


def mixture_of_experts(_):
    Block, Config = hugging_face("mixtral", "MixtralSparseMoeBlock", "MixtralConfig")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, intermediate_size=c.d_ff,
                        num_local_experts=c.n_experts, num_experts_per_tok=c.n_experts_per_token)
        module = randomise(Block(config))
        return Case(name, fields, published(Block), shape, weights_of(module),
                    lambda x: (module(x)[0], {}))

    yield case("odd", (2, 37), d_model=15, d_ff=11, n_experts=5, n_experts_per_token=2)
    yield case("long-top-3", (1, 150), d_model=20, d_ff=24, n_experts=8, n_experts_per_token=3)
    yield case("few-tokens-top-1", (2, 3), d_model=12, d_ff=20, n_experts=16, n_experts_per_token=1)


def feed_forward(_):
    def case(name, shape, family, module_name, config_name, activation, gated=False, bias=False,
             renamed=types.MappingProxyType({}), **arguments):
        module_class, config_class = hugging_face(family, module_name, config_name)
        config, source = config_class(**arguments), published(module_class)
        gpt2 = family == "gpt2"
        module = randomise(module_class(config.n_inner, config) if gpt2 else module_class(config))
        weights = weights_of(module, **renamed)
        if gpt2:
            weights = {key: tensor.T if tensor.ndim == 2 else tensor
                       for key, tensor in weights.items()}
            source += "; its weights [in, out] are stored transposed here"
        source += "".join(f"; {theirs} is named {ours} here" for theirs, ours in renamed.items())
        d_ff, d_model = weights["up_proj.weight"].shape
        fields = dict(d_model=d_model, d_ff=d_ff, activation=activation, gated=gated, bias=bias)
        return Case(name, fields, source, shape, weights, lambda x: (module(x), {}))

    def sizes(d_model, d_ff):
        return dict(hidden_size=d_model, intermediate_size=d_ff)

    fc = dict(fc1="up_proj", fc2="down_proj")
    yield case("llama-odd", (2, 37), "llama", "LlamaMLP", "LlamaConfig", "silu", gated=True,
               **sizes(15, 37))
    yield case("llama-bias", (1, 150), "llama", "LlamaMLP", "LlamaConfig", "silu", gated=True,
               bias=True, mlp_bias=True, **sizes(24, 40))
    yield case("gemma-gelu-tanh-gated", (2, 70), "gemma", "GemmaMLP", "GemmaConfig", "gelu_tanh",
               gated=True, hidden_act="gelu_pytorch_tanh", **sizes(19, 33))
    yield case("neox-gelu", (2, 37), "gpt_neox", "GPTNeoXMLP", "GPTNeoXConfig", "gelu", bias=True,
               renamed=dict(dense_h_to_4h="up_proj", dense_4h_to_h="down_proj"), hidden_act="gelu",
               num_attention_heads=1, **sizes(17, 45))
    yield case("gpt2-gelu-tanh", (1, 131), "gpt2", "GPT2MLP", "GPT2Config", "gelu_tanh", bias=True,
               renamed=dict(c_fc="up_proj", c_proj="down_proj"), n_embd=16, n_inner=50)
    yield case("nemotron-relu-squared", (2, 37), "nemotron", "NemotronMLP", "NemotronConfig",
               "relu_squared", hidden_act="relu2", **sizes(21, 31))
    yield case("clip-quick-gelu", (2, 37), "clip", "CLIPMLP", "CLIPTextConfig", "quick_gelu",
               bias=True, renamed=fc, hidden_act="quick_gelu", **sizes(14, 29))
    yield case("phi-relu", (1, 70), "phi", "PhiMLP", "PhiConfig", "relu", bias=True, renamed=fc,
               hidden_act="relu", **sizes(20, 27))


LAYERS = {make.__name__: make for make in (attention, gated_linear_attention, mamba2, hyena,
                                           mixture_of_experts, feed_forward)}

# ---- checks: the shapes of weights and states, from the config alone


def attention_shapes(c):
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield f"weights.{name}.weight", (rows, c.d_model)
        if c.qkv_bias:
            yield f"weights.{name}.bias", (rows,)
    yield "weights.o_proj.weight", (c.d_model, queries)


def gated_linear_attention_shapes(c):
    keys, values = c.n_heads * c.head_k, c.n_heads * c.head_v
    yield "weights.q_proj.weight", (keys, c.d_model)
    yield "weights.k_proj.weight", (keys, c.d_model)
    yield "weights.v_proj.weight", (values, c.d_model)
    yield "weights.g_proj.weight", (values, c.d_model)
    yield "weights.gk_proj.0.weight", (c.gate_rank, c.d_model)
    yield "weights.gk_proj.1.weight", (keys, c.gate_rank)
    yield "weights.gk_proj.1.bias", (keys,)
    yield "weights.g_norm_swish_gate.weight", (c.head_v,)
    yield "weights.o_proj.weight", (c.d_model, values)
    yield "state.memory", (c.batch, c.n_heads, c.head_k, c.head_v)


def mamba2_shapes(c):
    inner = c.n_heads * c.head_dim
    convolved = inner + 2 * c.n_groups * c.state_size
    yield "weights.in_proj.weight", (inner + convolved + c.n_heads, c.d_model)
    yield "weights.conv1d.weight", (convolved, 1, c.conv_kernel)
    yield "weights.conv1d.bias", (convolved,)
    yield "weights.dt_bias", (c.n_heads,)
    yield "weights.A_log", (c.n_heads,)
    yield "weights.D", (c.n_heads,)
    yield "weights.norm.weight", (inner,)
    yield "weights.out_proj.weight", (c.d_model, inner)
    yield "state.conv", (c.batch, c.conv_kernel - 1, convolved)
    yield "state.ssm", (c.batch, c.n_heads, c.state_size, c.head_dim)


def hyena_shapes(c):
    inner, filters, m = (c.order + 1) * c.d_model, (c.order - 1) * c.d_model, c.filter_width
    yield "weights.in_proj.weight", (inner, c.d_model)
    yield "weights.in_proj.bias", (inner,)
    yield "weights.short_filter.weight", (inner, 1, c.conv_kernel)
    yield "weights.short_filter.bias", (inner,)
    yield "weights.out_proj.weight", (c.d_model, c.d_model)
    yield "weights.out_proj.bias", (c.d_model,)
    yield "weights.filter_fn.bias", (filters,)
    yield "weights.filter_fn.pos_emb.z", (1, c.max_length, c.filter_embedding)
    yield "weights.filter_fn.pos_emb.t", (1, c.max_length, 1)
    yield "weights.filter_fn.modulation.deltas", (1, 1, filters)
    last = 2 * (c.filter_inner_layers + 1)
    for i in range(0, last, 2):
        yield f"weights.filter_fn.implicit_filter.{i}.weight", (m, m if i else c.filter_embedding)
        yield f"weights.filter_fn.implicit_filter.{i}.bias", (m,)
        yield f"weights.filter_fn.implicit_filter.{i + 1}.freq", (1, m)
    yield f"weights.filter_fn.implicit_filter.{last}.weight", (filters, m)


def mixture_of_experts_shapes(c):
    yield "weights.gate.weight", (c.n_experts, c.d_model)
    for expert in range(c.n_experts):
        yield f"weights.experts.{expert}.w1.weight", (c.d_ff, c.d_model)
        yield f"weights.experts.{expert}.w2.weight", (c.d_model, c.d_ff)
        yield f"weights.experts.{expert}.w3.weight", (c.d_ff, c.d_model)


def feed_forward_shapes(c):
    ups = ("gate_proj", "up_proj") if c.gated else ("up_proj",)
    for name, rows, columns in [(up, c.d_ff, c.d_model) for up in ups] + [
            ("down_proj", c.d_model, c.d_ff)]:
        yield f"weights.{name}.weight", (rows, columns)
        if c.bias:
            yield f"weights.{name}.bias", (rows,)


def check(path, layer, shape, run):
    """Throws unless the file says what it must; `run` is the published forward that made it."""
    with safetensors.safe_open(path, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    c = types.SimpleNamespace(**json.loads(metadata["config"]), batch=shape[0])
    expected = dict(globals()[f"{layer}_shapes"](c))
    expected |= {"x": (*shape, c.d_model), "y": (*shape, c.d_model)}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    assert found == expected, (path.name, sorted(set(found.items()) ^ set(expected.items())))
    assert (set(metadata) == {"layer", "config", "source", "precision"}
            and metadata["layer"] == layer)
    for name, tensor in tensors.items():
        assert (tensor.dtype == np.float64 and np.isfinite(tensor).all()
                and np.abs(tensor).max() > 0), (path.name, name)
    # A result that passed through float32 on its way would be representable there.
    y, half = tensors["y"], shape[1] // 2
    assert (y.astype(np.float32) != y).any() and 0.05 < np.sqrt(np.mean(y**2)) < 50, path.name
    again = run(torch.from_numpy(tensors["x"][:, :half].copy()))[0].numpy()
    error = np.linalg.norm(again - y[:, :half]) / np.linalg.norm(again)
    assert error < (1e-10 if layer == "hyena" else 1e-12), (path.name, error)
    print(f"{path.name}: rms {np.sqrt(np.mean(y ** 2)):.2f}, first half alone {error:.0e}, "
          f"{path.stat().st_size / 1024:.0f} KiB")


def write(layer, make, safari):
    # Each layer draws from its own seed, so that one layer's files do not depend on the others'.
    torch.manual_seed(zlib.crc32(layer.encode()))
    for case in make(safari):
        x = torch.randn(*case.shape, case.config["d_model"])
        y, states = case.run(x)
        tensors = {"x": x, "y": y}
        tensors |= {f"weights.{name}": tensor for name, tensor in case.weights.items()}
        tensors |= {f"state.{name}": tensor for name, tensor in states.items()}
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        metadata = {"layer": layer, "config": json.dumps(case.config), "source": case.source,
                    "precision": "float64"}
        path = HERE / f"{layer}--{case.name}.safetensors"
        safetensors.numpy.save_file(arrays, path, metadata)
        check(path, layer, case.shape, case.run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", choices=LAYERS)
    parser.add_argument("--safari", type=pathlib.Path, help="checkout of HazyResearch/safari")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for layer, make in LAYERS.items():
            if arguments.layer in (None, layer):
                write(layer, make, arguments.safari)


if __name__ == "__main__":
    main()
