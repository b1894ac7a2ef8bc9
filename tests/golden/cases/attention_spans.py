"""What queries of softmax attention see where heads differ."""

import importlib.util
import itertools
import sys
import unittest.mock

import numpy as np
from cases.attention import attention_case, bert_case, everything, fields
from cases.attention_positions import dense_flash_attention
from common import *


def module_at(path, name):
    """A file of a checkout, without the package that it is in."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moa_case(arguments, name, shape, sizes, windows, n_first):
    """Llama with the masks of MoA: a band a head, and first keys that all see."""
    module = module_at(arguments.repository("MoA") / "MoA/attention/pattern.py", "moa_pattern")
    share = sizes["n_heads"] // len(windows)
    widths = torch.tensor([[2 * width - 1 for width in windows for _ in range(share)]])

    def sees(i, j):
        T = len(j)
        make = dict(dtype=torch.bool, num_layer=1, num_head=sizes["n_heads"])
        band = module.gen_band_pattern(T, T, widths, **make)
        first = module.gen_global_pattern(T, T, list(range(min(T, n_first))), **make)
        return (module.gen_causal_pattern(T, T, **make) & (band | first))[0]

    case = attention_case(name, "llama", "Llama", shape, sizes, sees=sees,
                          ours=dict(windows=windows, n_sinks=n_first, sinks_in_place=True))
    case.source += ("; masks by gen_causal_pattern, gen_band_pattern and gen_global_pattern of "
                    "thu-nics/MoA e224fe3e00cf5e10a2fca36b52b026fc18669931 "
                    "MoA/attention/pattern.py")
    case.causal = True
    return case


def attention__moa(arguments):
    yield moa_case(arguments, "moa", (2, 70), fields(18, 4, 4, 6, 6), [31, 5, 12, 1], 3)
    yield moa_case(arguments, "moa-odd", (1, 131), fields(15, 6, 3, 10, 10), [67, 8, 33], 7)


def flash(q, k, v, dropout=0.0, bias=None, softmax_scale=None, is_causal=False):
    """flash_attn_func as torchscale calls it."""
    return dense_flash_attention(q, k, v, is_causal, True)[:2]


def longnet_case(arguments, name, shape, d_model, n_heads, segments, dilations, causal):
    checkout = str(arguments.repository("torchscale"))
    kept = {one: sys.modules.pop(one) for one in list(sys.modules) if one.startswith("torchscale")}
    sys.path.insert(0, checkout)
    from torchscale.component import dilated_attention, multihead_attention
    sys.path.remove(checkout)
    for one in [one for one in sys.modules if one.startswith("torchscale")]:
        del sys.modules[one]
    sys.modules.update(kept)
    multihead_attention.flash_attn_func = flash
    dilated_attention.all_gather_func = lambda x: x
    settings = types.SimpleNamespace(
        multiway=False, layernorm_eps=1e-5, xpos_rel_pos=False, flash_attention=True,
        segment_length=segments, dilated_ratio=dilations, seq_parallel=False)
    module = randomise(dilated_attention.DilatedAttention(settings, d_model, n_heads,
                                                          self_attention=True))

    def run(x):
        return module(x, x, x, is_causal=causal)[0], {}

    biased = {f"{one}_bias": True for one in "qkvo"}
    config = dict(d_model=d_model, heads=dict(n_heads=n_heads, n_kv_heads=n_heads,
                                              head_dim=d_model // n_heads, **biased),
                  sees=dict(segments=segments, segment_dilations=dilations))
    source = ("microsoft/torchscale 4d1e0e82e5adf86dd424f1463192635b73fc8efc "
              "torchscale.component.dilated_attention.DilatedAttention, "
              f"torch {torch.__version__}, {LIFTED}; flash_attn_func is written out")
    return Case(name, config, source, shape, weights_of(module, out_proj="o_proj"), run,
                causal=causal)


def attention__longnet(arguments):
    yield longnet_case(arguments, "longnet", (2, 70), 16, 4, [8, 16, 32], [1, 2, 4], True)
    yield longnet_case(arguments, "longnet-odd-heads", (1, 131), 15, 5, [12, 60], [1, 3], True)


def bidirectional_attention__longnet(arguments):
    """Of whole segments, where the published code pads none."""
    yield longnet_case(arguments, "longnet", (2, 64), 16, 4, [8, 16, 32], [1, 2, 4], False)
    yield longnet_case(arguments, "longnet-odd-heads", (1, 120), 15, 5, [12, 60], [1, 3], False)


def packed_flash(qkv, bounds, longest, dropout, softmax_scale=None, causal=True):
    """What flash_attn_varlen_qkvpacked_func gives of stretches between bounds, [N, 3, H, K]."""
    parts = [flash(*qkv[None, begin:end].unbind(2), is_causal=causal)[0][0]
             for begin, end in zip(bounds, bounds[1:])]
    return torch.cat(parts)


def longlora_case(arguments, name, shape, sizes):
    """S²-Attn, whose groups are quarters of x, in its form that rolls no end to the beginning: the
    first group of shifted heads is half of one, rounded down."""
    def unpad(x, mask):
        assert mask.all()
        bounds = torch.arange(0, mask.numel() + 1, mask.shape[1])
        return x.flatten(0, 1), torch.arange(mask.numel()), bounds, mask.shape[1]

    padding = types.SimpleNamespace(
        unpad_input=unpad,
        pad_input=lambda x, indices, rows, length: x.unflatten(0, (rows, length)))
    interface = types.SimpleNamespace(flash_attn_func=None, flash_attn_varlen_kvpacked_func=None,
                                      flash_attn_varlen_qkvpacked_func=packed_flash)
    package = types.SimpleNamespace(__version__="2", bert_padding=padding,
                                    flash_attn_interface=interface)
    # Before what it looks for is replaced.
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate
    stubs = {"flash_attn": package, "flash_attn.bert_padding": padding,
             "flash_attn.flash_attn_interface": interface}
    with unittest.mock.patch.dict(sys.modules, stubs):
        module = module_at(arguments.repository("LongLoRA") / "llama_attn_replace.py", "longlora")
    group = shape[1] // 4
    case = attention_case(name, "llama", "Llama", shape, sizes, sees=everything,
                          ours=dict(chunk=group, chunk_shift=group - group // 2))
    maps = {one: case.weights[f"{one}_proj.weight"] for one in "qkvo"}
    rotary_class, config_class = hugging_face("llama", "LlamaRotaryEmbedding", "LlamaConfig")
    rotary = rotary_class(config_class(
        hidden_size=sizes["d_model"], num_attention_heads=sizes["n_heads"],
        head_dim=sizes["head_dim"], rope_theta=sizes["rope_theta"]))

    def run(x):
        positions = torch.arange(x.shape[1])[None]
        H, G = sizes["n_heads"], sizes["n_kv_heads"]
        layer = types.SimpleNamespace(
            training=True, num_heads=H, num_key_value_heads=G, head_dim=sizes["head_dim"],
            num_key_value_groups=H // G,
            rotary_emb=lambda v, seq_len: rotary(v, positions),
            **{f"{one}_proj": lambda x, weight=weight: x @ weight.T
               for one, weight in maps.items()})
        module.apply_rotary_pos_emb = lambda q, k, cos, sin, _: rotate(q, k, cos, sin)
        return module.forward_flashattn(layer, x, torch.ones(x.shape[:2], dtype=torch.bool))[0], {}

    case.run = run
    case.source = ("dvlab-research/LongLoRA d4eb344c5ccc9e91c0812a2b2aeea69070df8c33 "
                   f"llama_attn_replace.forward_flashattn, torch {torch.__version__}, {LIFTED}; "
                   "flash_attn is written out, rotary embeddings by LlamaRotaryEmbedding")
    return case


def attention__longlora(arguments):
    yield longlora_case(arguments, "longlora", (2, 72), fields(18, 4, 2, 6, 6))
    yield longlora_case(arguments, "longlora-odd", (1, 140), fields(15, 6, 3, 10, 10))


def bidirectional_attention__padding(arguments):
    """Lengths of a batch, padded behind; or before, where a stretch in the middle is hidden, too."""
    token = torch.arange(70)
    yield bert_case("bert-padded", (3, 70), 12, 3,
                    (token < torch.tensor([[70], [33], [64]])).long())
    token = torch.arange(131)
    hidden = (token < 66) | ((token > 80) & (token < 97))
    yield bert_case("bert-padded-before", (1, 131), 14, 2, (~hidden)[None].long())


def s2_case(arguments, name, shape, sizes, dense_heads, causal=True, **settings):
    """Llama with the masks of S2-Attention. The last key heads see all."""
    names = dict(n_local="local_blocks", stripe_stride="vert_stride",
                 stripe_step="head_sliding_step", stripe_offset="head_sliding_offset")
    stub = types.SimpleNamespace(cdiv=lambda n, by: -(-n // by))
    with unittest.mock.patch.dict(sys.modules, triton=stub):
        module = module_at(arguments.repository("dkernel") / "dkernel/utils.py", "dkernel_utils")
    block = settings["block"]

    def sees(i, j):
        mask = module.get_sparse_attn_mask(
            sizes["n_heads"], len(j), block_size=block, num_kv_heads=sizes["n_kv_heads"],
            num_dense_heads=dense_heads, dtype=torch.float64, return_dense=True, causal=causal,
            **{names[one]: value for one, value in settings.items() if one != "block"})[2]
        return mask.bool()

    heads = sizes["n_heads"] // sizes["n_kv_heads"]
    dense = dense_heads * heads
    pattern = ["stripes"] * (sizes["n_heads"] - dense) + ["dense"] * dense
    ours = settings | dict(pattern=",".join(pattern))
    case = attention_case(name, "llama", "Llama", shape, sizes, sees=sees, ours=ours)
    case.source += ("; masks by get_sparse_attn_mask of linxihui/dkernel "
                    "0d4e90e4ead038c8a0f318b9260522f0ca51f554 dkernel/utils.py")
    case.causal = causal
    return case


def block_sparse_attention__s2(arguments):
    yield s2_case(arguments, "s2", (2, 70), fields(18, 4, 4, 6, 6), 1, block=8, n_local=2,
                  stripe_stride=4)
    yield s2_case(arguments, "s2-odd", (1, 131), fields(15, 6, 3, 10, 10), 1, block=7, n_local=3,
                  stripe_stride=5, stripe_step=2, stripe_offset=1)


def bidirectional_block_sparse_attention__s2(arguments):
    yield s2_case(arguments, "s2", (2, 70), fields(18, 4, 2, 6, 6), 0, False, block=8, n_local=2,
                  stripe_stride=3)


def axial_case(name, shape, d_model, n_heads, width):
    """Both axes of a picture whose rows are `width` tokens: the heads of the module of columns,
    then those of the module of rows, whose outputs are added."""
    from axial_attention import AxialAttention
    module = randomise(AxialAttention(d_model, num_dimensions=2, heads=n_heads, dim_index=-1))
    columns, rows = (one.fn for one in module.axial_attentions)
    K = d_model // n_heads
    weights = {}
    both = [weights_of(one) for one in (rows, columns)]
    for one, parts in (("q", [w["to_q.weight"] for w in both]),
                       ("k", [w["to_kv.weight"][:d_model] for w in both]),
                       ("v", [w["to_kv.weight"][d_model:] for w in both])):
        # Heads take turns, as patterns do.
        weights[f"{one}_proj.weight"] = torch.stack(
            [part.view(n_heads, K, d_model) for part in parts], 1).flatten(0, 2).contiguous()
    weights["o_proj.weight"] = torch.stack(
        [w["to_out.weight"].view(d_model, n_heads, K) for w in both], 2).flatten(1).contiguous()
    weights["o_proj.bias"] = sum(w["to_out.bias"] for w in both)
    config = dict(d_model=d_model, heads=dict(n_heads=2 * n_heads, n_kv_heads=2 * n_heads,
                                              head_dim=K, o_bias=True),
                  pattern="row,strided", span=width)
    source = published(AxialAttention) + (", whose two modules are one here: heads of rows and of "
                                          "columns in turn")
    return Case(name, config, source, shape, weights,
                lambda x: (module(x.unflatten(1, (-1, width))).flatten(1, 2), {}), causal=False)


def bidirectional_block_sparse_attention__axial(arguments):
    yield axial_case("axial", (2, 70), 12, 2, 10)
    yield axial_case("axial-odd", (1, 117), 15, 3, 9)


def block_bert_case(name, shape, d_model, n_heads, permutations):
    """BlockBERT between projections of our own: query block i of head h sees key block π_h(i)."""
    head_dim, n = d_model // n_heads, len(permutations[0])
    block = -(-shape[1] // n)
    maps = {one: randomise(torch.nn.Linear(d_model, d_model)) for one in "qkvo"}

    def run(x):
        numbers = x.numpy()
        q, k, v = (numbers @ maps[one].weight.numpy().T + maps[one].bias.numpy() for one in "qkv")
        o = np.zeros_like(q)
        for b, head, i in itertools.product(range(len(x)), range(n_heads), range(n)):
            channels = slice(head * head_dim, (head + 1) * head_dim)
            j = permutations[head][i]
            queries, keys = (slice(at * block, (at + 1) * block) for at in (i, j))
            s = q[b, queries, channels] @ k[b, keys, channels].T / np.sqrt(head_dim)
            p = np.exp(s - s.max(-1, keepdims=True))
            o[b, queries, channels] = p / p.sum(-1, keepdims=True) @ v[b, keys, channels]
        return torch.from_numpy(o @ maps["o"].weight.numpy().T + maps["o"].bias.numpy()), {}

    layout = torch.zeros(n_heads, n, n, dtype=torch.int64)
    for head, permutation in enumerate(permutations):
        layout[head, torch.arange(n), torch.tensor(permutation)] = 1
    weights = {f"{one}_proj.{kind}": tensor for one, layer in maps.items()
               for kind, tensor in layer.state_dict().items()} | dict(layout=layout)
    config = dict(d_model=d_model, heads=dict(n_heads=n_heads, n_kv_heads=n_heads,
                                              head_dim=head_dim, q_bias=True, k_bias=True,
                                              v_bias=True, o_bias=True),
                  pattern="layout", block=block, layout_heads=n_heads, layout_blocks=n)
    return Case(name, config, "own numpy form of Qiu et al. 2019, arXiv:1911.02972, eq. 3", shape,
                weights, run, causal=False)


def bidirectional_block_sparse_attention__block_bert(arguments):
    yield block_bert_case("blockbert", (2, 70), 12, 3, [[0, 1], [0, 1], [1, 0]])
    yield block_bert_case("blockbert-odd", (1, 131), 20, 4,
                          [[0, 1, 2], [0, 1, 2], [1, 2, 0], [2, 0, 1]])
