"""Where the tokens of softmax attention are: positions that come beside x, or depend on the pair."""

import importlib.util
import sys
import unittest.mock

from cases.attention import attention_case, everything, fields
from common import *


def image_between_texts(before, height, width, after):
    """Time, height and width of each token, [3, T], as Qwen2-VL counts them."""
    grid = torch.stack(torch.meshgrid(torch.zeros(1, dtype=int), torch.arange(height),
                                      torch.arange(width), indexing="ij")).flatten(1)
    text = torch.arange(before).expand(3, -1), torch.arange(after).expand(3, -1)
    return torch.cat((text[0], before + grid, before + max(height, width) + text[1]), -1)


def restarted(*counts):
    """Stretches of so many tokens, all of which begin at the same position, [T]."""
    return torch.cat([torch.arange(count) for count in counts])


def skipped(*stretches):
    """Stretches (first, count) of positions, [T]."""
    return torch.cat([torch.arange(first, first + count) for first, count in stretches])


def attention__positions(arguments):
    images = torch.stack((image_between_texts(9, 5, 6, 31), image_between_texts(20, 3, 8, 26)), 1)
    yield attention_case("qwen2-vl-sections", "qwen2_vl", "Qwen2VL", (2, 70),
                         fields(36, 3, 1, 12, 12), qkv_bias=True, config_prefix="Qwen2VLText",
                         given=images, rope_scaling=dict(type="mrope", mrope_section=[1, 2, 3]),
                         ours=dict(rope_sections=[1, 2, 3]))
    yield attention_case("qwen3-vl-sections-in-turn", "qwen3_vl", "Qwen3VLText", (2, 70),
                         fields(18, 4, 2, 12, 12), given=images, rms_norm_eps=0.01,
                         rope_scaling=dict(rope_type="default", mrope_section=[3, 2, 1]),
                         ours=dict(rope_sections=[3, 2, 1], rope_section_order="interleaved",
                                   qk_norm="head", qk_norm_eps=0.01))
    yield attention_case("llama-restarted-positions", "llama", "Llama", (2, 70),
                         fields(18, 4, 2, 6, 6),
                         given=torch.stack((restarted(20, 20, 30), restarted(33, 37))))
    yield attention_case("llama-skipped-positions", "llama", "Llama", (1, 131),
                         fields(18, 4, 2, 6, 6),
                         given=skipped((0, 40), (97, 60), (1700, 31))[None])


def bidirectional_attention__positions(arguments):
    yield attention_case("llama-given-positions", "llama", "Llama", (2, 70), fields(18, 4, 2, 6, 6),
                         sees=everything,
                         given=torch.stack((restarted(20, 20, 30), skipped((5, 50), (900, 20)))))


def block_sparse_attention__positions(arguments):
    """Windows of two blocks that do not see each other, and the task that sees all of them."""
    blocks = torch.tensor([[0, 0, 1, 1, 2, 2, 2]])
    layout = ((blocks[:, :, None] == blocks[:, None]) | (blocks[:, :, None] == 2)).long().tril()
    task = skipped((32, 40))
    case = attention_case("parallel-context-windows", "llama", "Llama", (1, 104),
                          fields(18, 4, 2, 6, 6),
                          sees=lambda i, j: (j <= i) & (layout[0, i // 16, j // 16] == 1),
                          given=torch.cat((restarted(32, 32), task))[None],
                          ours=dict(pattern="layout", block=16, layout_heads=1, layout_blocks=7))
    case.weights["layout"] = layout
    case.causal = True
    yield case


def dense_flash_attention(q, k, v, causal, return_attn_probs):
    """What flash_attn_func gives, [B, T, H, K] and the log-sum-exp [B, H, T]."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + causal_mask(q.shape[1])
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v), scores.logsumexp(-1), None


def module_of(path, package=""):
    """A file of a repository, which finds the functions above in place of flash_attn's, and nothing
    in its own package that it imports besides."""
    interface = types.ModuleType("flash_attn.flash_attn_interface")
    interface.flash_attn_func = dense_flash_attention
    interface.flash_attn_qkvpacked_func = interface.flash_attn_varlen_func = None
    stubs = {"flash_attn": interface, "flash_attn.flash_attn_interface": interface}
    if package:
        stubs[package] = types.ModuleType(package)
        stubs[f"{package}.selfextend_flash_attn"] = other = types.ModuleType("other")
        other.self_extend_flash_forward = None
    name = f"{package}.{path.stem}" if package else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(stubs)
    spec.loader.exec_module(module)
    for stub in stubs:
        del sys.modules[stub]
    return module


def llama_of_its_time(sizes):
    """Llama's attention with what published patches read of the LlamaAttention of their time, its
    rotary tables and its weights."""
    module_class, config_class, rotary_class = hugging_face(
        "llama", "LlamaAttention", "LlamaConfig", "LlamaRotaryEmbedding")
    config = config_class(hidden_size=sizes["d_model"], num_attention_heads=sizes["n_heads"],
                          num_key_value_heads=sizes["n_kv_heads"], head_dim=sizes["head_dim"],
                          rope_theta=sizes["rope_theta"], max_position_embeddings=256)
    module = randomise(module_class(config, layer_idx=0))
    weights = weights_of(module)
    module.num_heads, module.num_key_value_heads = sizes["n_heads"], sizes["n_kv_heads"]
    module.hidden_size = sizes["n_heads"] * sizes["head_dim"]
    module.rotary_emb = rotary_class(config)
    return module, weights, "on the projections of " + published(module_class)


def places(x):
    return torch.arange(x.shape[1])[None].expand(len(x), -1)


def self_extend_case(arguments, name, shape, sizes, window, group):
    path = arguments.repository("LongLM") / "self_extend_patch" / "Llama_4_40.py"
    forward = module_of(path, "self_extend_patch").self_extend_forward
    module, weights, source = llama_of_its_time(sizes)

    def run(x):
        return forward(module, x, causal_mask(x.shape[1]), places(x), group_size_1=group,
                       group_size_2=window)[0], {}

    source = ("datamllab/LongLM cdbbb061dc76438c46d7e1ddc500f8e4bf255574 self_extend_patch/"
              "Llama_4_40.py self_extend_forward, explicit causal mask, " + source)
    ours = dict(remap="self_extend", remap_window=window, remap_group=group)
    return Case(name, {**sizes, **ours}, source, shape, weights, run)


def chunk_llama_case(arguments, name, shape, sizes, chunk, local):
    theirs = module_of(arguments.repository("ChunkLlama") / "chunkllama_attn_replace.py")
    theirs.chunk_size, theirs.local_window = chunk, local
    module, weights, source = llama_of_its_time(sizes)
    module.rotary_emb = theirs.ChunkLlamaRotaryEmbedding(sizes["head_dim"], 256,
                                                         sizes["rope_theta"])

    def run(x):
        with unittest.mock.patch.object(torch, "bfloat16", torch.float64):
            return theirs.forward(module, x, position_ids=places(x))[0], {}

    source = ("HKUNLP/ChunkLlama 2add4d7c99d24dcc1ab03414cc602abb2e28cf2c "
              "chunkllama_attn_replace.py ChunkLlamaRotaryEmbedding with its forward of attention, whose "
              "flash_attn_func is a dense softmax here and torch.bfloat16, of the weights that it "
              "merges by, torch.float64, " + source)
    ours = dict(remap="dual_chunk", remap_chunk=chunk, remap_local=local)
    return Case(name, {**sizes, **ours}, source, shape, weights, run)


def lm_infinite_case(arguments, name, shape, sizes, window, n_sinks):
    sys.path.insert(0, str(arguments.repository("LM-Infinite")))
    from models.llama import attn_forward_factory
    module, weights, source = llama_of_its_time(sizes)
    forward = attn_forward_factory(module, True, window, n_sinks, window, 0, *4 * [None], 0)

    def run(x):
        return forward(x, position_ids=places(x))[0], {}

    source = ("Glaciohound/LM-Infinite a0ce64c6b7ae54f6059668c899603a6eb0c94c18 models/llama.py "
              "attn_forward_factory, with its lambda mask, " + source)
    ours = dict(window=window, n_sinks=n_sinks, remap="lm_infinite")
    return Case(name, {**sizes, **ours}, source, shape, weights, run)


def rpe_3d_case(name, shape, d_model, n_heads, head_dim, base, chunk, local):
    """Pairs of numbers of a head as complex ones, turned by the angles of two tokens at once."""
    widths = dict(q=(n_heads * head_dim, d_model), k=(n_heads * head_dim, d_model),
                  v=(n_heads * head_dim, d_model), o=(d_model, n_heads * head_dim))
    maps = {one: 1.2 * torch.randn(width) / math.sqrt(width[1]) for one, width in widths.items()}
    c, half = chunk - local, head_dim // 2

    def run(x):
        i, j = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
        apart = i // c - j // c
        query = torch.where(apart == 1, i % c + c, 2 * c - 1).clamp(max=chunk)
        distance = torch.where(apart == 0, i % c, query) - j % c
        turn = torch.where(apart > 1, base**(1.0 - i // c) - base**(0.0 - j // c), 0.0)
        angles = distance[..., None] * base**(-torch.arange(half) / half) + turn[..., None]
        q, k, v = ((x @ maps[one].T).view(*x.shape[:2], n_heads, head_dim) for one in "qkv")
        q, k = (torch.complex(heads[..., :half], heads[..., half:]) for heads in (q, k))
        scores = torch.einsum("bihn,bjhn,ijn->bhij", q, k.conj(),
                              torch.polar(torch.ones_like(angles), angles)).real
        weights = (scores / math.sqrt(head_dim) + causal_mask(x.shape[1])).softmax(-1)
        return torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2) @ maps["o"].T, {}

    sizes = fields(d_model, n_heads, n_heads, head_dim, head_dim, base)
    source = ("own numpy form of Ma et al. 2024, arXiv:2406.09897; maxindian/3D-RPE-Long-Contex-"
              "Modeling turns keys again with each chunk that follows, so that no stream can be "
              "continued: here each key is turned once")
    ours = dict(remap="rpe_3d", remap_chunk=chunk, remap_local=local)
    return Case(name, {**sizes, **ours}, source, shape,
                {f"{one}_proj.weight": weight for one, weight in maps.items()}, run)


def attention__remaps(arguments):
    yield self_extend_case(arguments, "self-extend", (1, 131), fields(24, 4, 2, 6, 6), 24, 6)
    yield self_extend_case(arguments, "self-extend-odd", (2, 70), fields(18, 3, 1, 6, 6, 100.0), 13,
                           5)
    yield chunk_llama_case(arguments, "dual-chunk", (1, 131), fields(24, 4, 2, 6, 6), 40, 12)
    yield chunk_llama_case(arguments, "dual-chunk-odd", (2, 70), fields(18, 3, 1, 6, 6, 100.0), 19,
                           6)
    yield lm_infinite_case(arguments, "lm-infinite", (1, 131), fields(24, 4, 4, 6, 6), 24, 5)
    yield lm_infinite_case(arguments, "lm-infinite-odd", (2, 70), fields(18, 3, 3, 6, 6, 100.0), 9,
                           3)
    yield rpe_3d_case("rpe-3d", (1, 131), 18, 3, 6, 5.0, 24, 7)
