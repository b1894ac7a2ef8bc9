"""Published attention that softmax attention is with other weights: folded, expanded or stacked."""

from cases.attention import fields
from common import *


def maps_of(**shapes):
    """Matrices [out, in] of the scale of their input."""
    return {one: 1.2 * torch.randn(shape) / math.sqrt(shape[1]) for one, shape in shapes.items()}


def named(weights):
    return {f"{one}_proj.weight": weight for one, weight in weights.items()}


def softmax_of(scores, v):
    """o [B, T, H, V] of scores [B, H, T, T] and values [B, T, H, V]."""
    weights = (scores + causal_mask(scores.shape[-1])).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights.to(v.dtype), v)


def weighted_case(name, shape, d_model, n_heads, n_kv_heads, head_dim):
    """Keys and values of a group are weighted sums of those of its heads."""
    width, per_group = n_heads * head_dim, n_heads // n_kv_heads
    maps = maps_of(q=(width, d_model), k=(width, d_model), v=(width, d_model), o=(d_model, width))
    shares = {one: torch.rand(n_heads, 1, 1) for one in "kv"}

    def run(x):
        heads = {one: (x @ maps[one].T).unflatten(-1, (n_heads, head_dim)) for one in "qkv"}
        for one, share in shares.items():
            groups = (share[:, 0] * heads[one]).unflatten(2, (n_kv_heads, per_group)).sum(3)
            heads[one] = groups.repeat_interleave(per_group, 2)
        scores = torch.einsum("bihd,bjhd->bhij", heads["q"], heads["k"]) / math.sqrt(head_dim)
        return softmax_of(scores, heads["v"]).flatten(2) @ maps["o"].T, {}

    folded = dict(maps)
    for one, share in shares.items():
        by_head = share * maps[one].view(n_heads, head_dim, d_model)
        folded[one] = by_head.unflatten(0, (n_kv_heads, per_group)).sum(1).flatten(0, 1)
    source = ("own numpy form of Chinnakonduru and Mohapatra 2024, arXiv:2407.10855, section 3; "
              "weights of heads are folded into k_proj and v_proj here")
    return Case(name, fields(d_model, n_heads, n_kv_heads, head_dim, 0), source, shape,
                named(folded), run)


def complex_case(name, shape, d_model, n_heads, head_dim):
    """Complex numbers, of which x and y have d_model / 2; real parts stand before imaginary ones."""
    half, width = d_model // 2, n_heads * head_dim
    shapes = dict(q=(width, half), k=(width, half), v=(width, half), o=(half, width))
    maps = {one: torch.complex(*maps_of(re=shape, im=shape).values()) / math.sqrt(2)
            for one, shape in shapes.items()}

    def run(x):
        x = torch.complex(x[..., :half], x[..., half:])
        q, k, v = ((x @ maps[one].T).unflatten(-1, (n_heads, head_dim)) for one in "qkv")
        scores = torch.einsum("bihd,bjhd->bhij", q, k.conj()).real / math.sqrt(head_dim)
        y = softmax_of(scores, v).flatten(2) @ maps["o"].T
        return torch.cat((y.real, y.imag), -1), {}

    def stacked(weight, rows, columns):
        """[[re, -im], [im, re]] within each head of so many rows or columns, or of none."""
        blocks = torch.stack((torch.stack((weight.real, -weight.imag)),
                              torch.stack((weight.imag, weight.real))))  # [2, 2, out, in]
        blocks = blocks.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        return blocks.permute(2, 0, 3, 4, 1, 5).flatten(3).flatten(0, 2)

    weights = {one: stacked(maps[one], head_dim, half) for one in "qkv"}
    weights["o"] = stacked(maps["o"], half, head_dim)
    source = ("own numpy form of Eilers and Jiang 2023, arXiv:2306.09827, softmax of the real part "
              "of products; complex weights are stacked here")
    sizes = fields(d_model, n_heads, n_heads, 2 * head_dim, 0)
    return Case(name, {**sizes, "score_scale": head_dim**-0.5}, source, shape, named(weights), run)


def cosine_case(name, shape, d_model, n_heads, head_dim, scale):
    from flash_cosine_sim_attention.transformer import Attention
    module = randomise(Attention(d_model, head_dim, n_heads, scale=scale))
    source = published(Attention) + ", plain_cosine_sim_attention; to_q ... are named q_proj ... here"
    ours = dict(qk_norm="head", qk_norm_kind="l2", qk_norm_weight="none", qk_norm_eps=1e-12,
                score_scale=float(scale))
    names = {f"to_{one}": f"{one}_proj" for one in "qkv"}
    return Case(name, {**fields(d_model, n_heads, n_heads, head_dim, 0), **ours}, source, shape,
                weights_of(module, **names, to_out="o_proj"), lambda x: (module(x), {}))


def vector_case(name, shape, n_channels, n_heads, head_dim, bias_epsilon):
    """Vectors of three coordinates, which stand beside each other in x."""
    from VN_transformer.VN_transformer import VNAttention
    module = randomise(VNAttention(n_channels, dim_head=head_dim, heads=n_heads,
                                   bias_epsilon=bias_epsilon))
    weights = {}
    for one, theirs in dict(q=module.to_q, k=module.to_k, v=module.to_v, o=module.to_out).items():
        weights[f"{one}_proj.weight"] = torch.kron(theirs.weight.data, torch.eye(3))
        if bias_epsilon > 0:
            bias = bias_epsilon * torch.nn.functional.normalize(theirs.bias.data, dim=-1)
            weights[f"{one}_proj.bias"] = bias.repeat_interleave(3)

    def run(x):
        return module(x.unflatten(-1, (n_channels, 3))).flatten(2), {}

    source = published(VNAttention) + "; its weights are expanded to three coordinates here"
    biased = bias_epsilon > 0
    sizes = fields(3 * n_channels, n_heads, n_heads, 3 * head_dim, 0)
    return Case(name, {**sizes, "qkv_bias": biased, "o_bias": biased}, source, shape, weights, run,
                causal=False)


def attention__folded(arguments):
    yield weighted_case("weighted-gqa", (2, 70), 14, 6, 2, 5)
    yield complex_case("complex", (2, 37), 14, 3, 5)
    yield cosine_case("flash-cosine", (1, 131), 18, 3, 6, 8)


def bidirectional_attention__folded(arguments):
    yield vector_case("vn-transformer", (2, 37), 5, 2, 3, 0.0)
    yield vector_case("vn-transformer-bias", (1, 70), 6, 3, 2, 0.5)
