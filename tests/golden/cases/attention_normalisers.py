"""What makes weights of scores in place of softmax."""

import importlib.util
import sys

import numpy as np
from cases import biases
from common import *

D_MODEL, SIZES = 14, dict(n_heads=4, n_kv_heads=2, head_dim=6)


def own_case(name, shape, source, scores, weigh, causal=True, after=lambda o: o, heads={},
             weights={}, bias={}, bias_of=lambda length: 0.0, score_scale=None, attend=None):
    """Attention between projections of our own. `weigh` maps scaled products plus `bias_of(length)`
    [B, H, T, T] and what is seen [T, T] to weights, `after` the outputs of heads [B, T, H K];
    `attend(q, k, v)` does all of it but `after`."""
    H, G, K = SIZES.values()
    widths = dict(q=(H * K, D_MODEL), k=(G * K, D_MODEL), v=(G * K, D_MODEL), o=(D_MODEL, H * K))
    maps = {one: 1.2 * torch.randn(width) / math.sqrt(width[1]) for one, width in widths.items()}

    def run(x):
        T = x.shape[1]
        split = lambda one, heads: (x @ maps[one].T).view(len(x), T, heads, K).transpose(1, 2)
        q, k, v = split("q", H), *(split(one, G).repeat_interleave(H // G, 1) for one in "kv")
        products = q @ k.transpose(2, 3) * (score_scale or 1 / math.sqrt(K))
        seen = torch.ones(T, T, dtype=torch.bool)
        seen = seen.tril() if causal else seen
        o = attend(q, k, v) if attend else weigh(products + torch.as_tensor(bias_of(T)), seen) @ v
        return after(o.transpose(1, 2).flatten(2)) @ maps["o"].T, {}

    tensors = {f"{one}_proj.weight": weight for one, weight in maps.items()} | weights
    config = dict(d_model=D_MODEL, heads=SIZES | heads, scores=dict(scores))
    if score_scale:
        config["scores"]["score_scale"] = score_scale
    if bias:
        config["bias"] = bias
    return Case(name, config, source, shape, tensors, run, causal=causal)


def rela_case(name, shape, causal):
    """ReLA, whose scale and gate lie over the whole width of the heads."""
    width = SIZES["n_heads"] * SIZES["head_dim"]
    scale, gate = 1 + 0.3 * torch.randn(width), torch.randn(width)

    def norm(o):
        ms = np.mean(o.numpy() ** 2, -1, keepdims=True)
        gated = 1 / (1 + np.exp(-gate.numpy() * o.numpy()))
        return torch.as_tensor(scale.numpy() * o.numpy() / np.sqrt(ms + 1e-8) * gated)

    return own_case(name, shape,
                    "own numpy form of Zhang et al. 2021, arXiv:2104.07012; bzhangGo/zero, "
                    "modules/rela.py, dot_attention and gated_rms_norm",
                    dict(normaliser="relu"), lambda s, seen: torch.relu(s * seen), causal, norm,
                    dict(output_norm="gated_rms"),
                    {"o_norm.weight": scale, "o_norm.gate": gate})


def gau_case(arguments, name, shape, causal):
    """The activation and the bias of positions of GAU, for several heads. Its length is that of x,
    whatever the call's."""
    sys.path.insert(0, str(arguments.repository("FLASH-pytorch")))
    from flash_pytorch.flash_pytorch import ReLUSquared, T5RelativePositionBias
    buckets = 32 if causal else 16
    module = T5RelativePositionBias(scale=3.0, causal=causal, num_buckets=buckets,
                                    max_distance=64)
    module.relative_attention_bias.weight.data = torch.randn(buckets, 1)
    module._relative_position_bucket = (
        lambda ahead, causal, num_buckets, max_distance: biases.t5_buckets(
            ahead, not causal, num_buckets, max_distance))
    table = 3.0 * module.relative_attention_bias.weight.expand(-1, SIZES["n_heads"])
    activation, length = ReLUSquared(), shape[1]
    return own_case(name, shape,
                    "lucidrains/FLASH-pytorch ef3bee782565e2e71815572186efdc2d8377fc6c "
                    f"ReLUSquared, T5RelativePositionBias, torch {torch.__version__}, {LIFTED}, as "
                    "GAU.forward uses them, between projections of our own; the number of tokens "
                    "is that of the file for its prefixes, too; buckets by T5Attention's float32",
                    dict(normaliser="relu_squared", normaliser_length=length),
                    lambda s, seen: activation(s / length) * seen, causal, score_scale=8.0,
                    weights={"bias.relative_attention_bias.weight": table.clone()},
                    bias=dict(kind="t5", num_buckets=buckets, max_distance=64,
                              bidirectional=not causal),
                    bias_of=lambda T: module(torch.empty(T, T)))


def sigmoid_case(arguments, name, shape, causal, bias):
    """Apple's module; its bias as it takes it, the logarithm of a length."""
    folder = arguments.repository("ml-sigmoid-attention") / "attention_simulator" / "src"
    sys.path.insert(0, str(folder))
    sys.modules.setdefault("tree", types.ModuleType("tree"))  # its alibi alone asks for it
    from attention_simulator.layers.activations import ACTIVATION_MAPPING
    from attention_simulator.layers.attention import Attention
    module = randomise(Attention(12, ACTIVATION_MAPPING["sigmoid"], num_heads=3, attn_bias=bias,
                                 qk_norm=True,
                                 masking_fn=lambda attn, mask: attn.masked_fill(~mask, -math.inf)))

    def run(x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if causal else None
        return module(x, mask=mask)["attn_proj"], {}

    weights = weights_of(module, proj="o_proj")
    del weights["attn_bias"], weights["attn_temp"]
    parts = weights.pop("qkv.weight").chunk(3)
    weights |= {f"{one}_proj.weight": part.clone() for one, part in zip("qkv", parts)}
    heads = dict(n_heads=3, n_kv_heads=3, head_dim=4, qk_norm="head",
                 qk_norm_kind="layer", qk_norm_bias=True, qk_norm_eps=1e-5)
    source = ("apple/ml-sigmoid-attention 9273b493f234ccbb184cab1131010dd0e965d8ce "
              "attention_simulator.layers.attention.Attention, "
              f"torch {torch.__version__}, {LIFTED}, with unnormalized_sigmoid_attention" +
              (", explicit causal mask" if causal else "") +
              "; qkv is split, proj is named o_proj here")
    return Case(name, dict(d_model=12, heads=heads, scores=dict(normaliser="sigmoid",
                                                                normaliser_bias=bias)),
                source, shape, weights, run, causal=causal)


def layer_norm_case(name, shape, causal):
    gain, offset = 1 + 0.3 * torch.randn(4), 0.2 * torch.randn(4)

    def weigh(s, seen):
        logits, mask = s.numpy(), seen.numpy().astype(np.float64)
        counts = mask.sum(-1, keepdims=True)
        means = (logits * mask).sum(-1, keepdims=True) / counts
        centred = (logits - means) * mask
        deviations = np.sqrt((centred**2).sum(-1, keepdims=True) / counts) + 0.001
        by_head = lambda weight: weight.numpy().reshape(1, -1, 1, 1)
        return torch.as_tensor((by_head(gain) * centred / deviations + by_head(offset)) * mask)

    return own_case(name, shape,
                    "own numpy form of Richter & Wattenhofer 2020, arXiv:2005.09561; "
                    "OliverRichter/normalized-attention, models.py, NormalizeAttention",
                    dict(normaliser="layer_norm"), weigh, causal, score_scale=1.0,
                    weights={"score_norm.gain": gain, "score_norm.bias": offset})


def sparse_case(name, shape, normaliser, causal=True):
    import entmax
    function = getattr(entmax, normaliser)
    return own_case(name, shape,
                    f"entmax 1.3 entmax.{normaliser}, torch {torch.__version__}, {LIFTED}, "
                    "between projections of our own",
                    dict(normaliser=normaliser),
                    lambda s, seen: function(s.masked_fill(~seen, -math.inf), dim=-1), causal,
                    score_scale=1.0)


def stick_breaking_case(arguments, name, shape, own_key):
    path = arguments.repository("stickbreaking-attention") / "stickbreaking_attention" / "sb_ref.py"
    # By its file: the package's header asks for Triton.
    spec = importlib.util.spec_from_file_location("sb_ref", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def attend(q, k, v):
        T = q.shape[2]
        mask = torch.ones(T, T).triu(1 if own_key == "seen" else 0).bool()
        o, rest = module.stickbreaking(q, k, v, mask, torch.ones(T, T).tril(-1))
        return o + rest[..., None] * v if own_key == "remainder" else o

    return own_case(name, shape,
                    "shawntan/stickbreaking-attention 3147a3841b025a31d271fc8f873120ff6fa0461b "
                    f"stickbreaking_attention.sb_ref.stickbreaking, torch {torch.__version__}, "
                    f"{LIFTED}, masks and remainder as in tests/test_attn.py, between projections "
                    "of our own",
                    dict(normaliser="stick_breaking", own_key=own_key), None, attend=attend)


def geometric_case(name, shape, causal):
    def weigh(s, seen):
        T = len(seen)
        seen = seen.numpy() & ~np.eye(T, dtype=bool)
        p = np.where(seen, 1 / (1 + np.exp(-s.numpy())), 0)
        losses = np.concatenate([np.zeros_like(p[..., :1]), np.log(1 - p).cumsum(-1)], -1)
        i, j = np.meshgrid(np.arange(T), np.arange(T), indexing="ij")
        far = np.abs(i - j)
        # Of the keys from far - 1 before the query on, to so far behind it that j is not there yet.
        first, last = np.maximum(i - far + 1, 0), np.minimum(i + far - (j > i), T - 1) + 1
        between = (np.take_along_axis(losses, np.broadcast_to(last, p.shape), -1) -
                   np.take_along_axis(losses, np.broadcast_to(first, p.shape), -1))
        weights = p * np.exp(between)
        return torch.as_tensor(weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12))

    # One table of a number before, at and behind the query is what prefers a direction there.
    table = torch.randn(3, 4)
    return own_case(name, shape,
                    "own numpy form of Csordas et al. 2021, arXiv:2110.07732, eq. 7, with the "
                    "order of RobertCsordas/ndr, layers/transformer/geometric_attention, and with "
                    "scores by direction that do not depend on the query",
                    dict(normaliser="geometric", own_key="hidden"), weigh, causal,
                    weights={"bias.relative_position_bias_table": table},
                    bias=dict(kind="relative", max_distance=1),
                    bias_of=lambda T: biases.relative(table, T))


def attention__normalisers(arguments):
    yield rela_case("rela", (2, 70), True)
    yield gau_case(arguments, "gau-relu-squared", (2, 70), True)
    yield sigmoid_case(arguments, "sigmoid", (1, 131), True, -math.log(131))
    yield layer_norm_case("normalized-attention", (2, 70), True)
    yield sparse_case("sparsemax", (2, 70), "sparsemax")
    yield sparse_case("entmax15", (1, 131), "entmax15")
    for own_key in ("seen", "hidden", "remainder"):
        yield stick_breaking_case(arguments, f"stick-breaking-own-key-{own_key}", (1, 70), own_key)
    yield geometric_case("geometric", (1, 131), True)


def bidirectional_attention__normalisers(arguments):
    yield rela_case("rela-long", (1, 131), False)
    yield gau_case(arguments, "gau-relu-squared", (2, 70), False)
    yield sigmoid_case(arguments, "sigmoid", (2, 70), False, -math.log(70))
    yield layer_norm_case("normalized-attention", (1, 131), False)
    yield sparse_case("sparsemax", (1, 131), "sparsemax", causal=False)
    yield sparse_case("entmax15", (2, 70), "entmax15", causal=False)
    yield geometric_case("geometric", (2, 70), False)
