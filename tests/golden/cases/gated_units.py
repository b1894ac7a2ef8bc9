"""The gated attention unit, mixed chunk attention (FLASH) and Aaren."""

import sys

import numpy as np
from cases import biases
from common import *


def flash_pytorch(arguments, name):
    sys.path.insert(0, str(arguments.repository("FLASH-pytorch")))
    from flash_pytorch import flash_pytorch as module
    source = (f"lucidrains/FLASH-pytorch ef3bee782565e2e71815572186efdc2d8377fc6c {name}, "
              f"torch {torch.__version__}, {LIFTED}; buckets by T5Attention's float32")
    return module, source


def randomised(module, scales, reach):
    """Every weight random, and scores about as large as `reach`, by which they are divided."""
    randomise(module)
    scales.gamma.data = math.sqrt(reach) * torch.randn_like(scales.gamma)
    scales.beta.data = 0.5 * math.sqrt(reach) * torch.randn_like(scales.beta)
    table = module.rel_pos_bias
    table.relative_attention_bias.weight.data = (
        reach / table.scale * torch.randn_like(table.relative_attention_bias.weight))
    table._relative_position_bucket = (
        lambda ahead, causal, num_buckets, max_distance: biases.t5_buckets(
            ahead, not causal, num_buckets, max_distance))
    return module


def padded(module, x, length):
    """What the module gives for the first tokens of a sequence of `length`, of which x are those
    that count: later ones are hidden from them."""
    rest = torch.zeros(len(x), length - x.shape[1], x.shape[2])
    return module(torch.cat((x, rest), 1))[:, :x.shape[1]]


def gau_case(arguments, name, shape, causal, sizes, norm="layer", laplace=False, residual=True,
             fixed=True):
    """Its length n is that of x: of a causal one it is said, and prefixes run with it, too."""
    published_code, source = flash_pytorch(arguments, "GAU")
    D, K, V = sizes
    module = published_code.GAU(
        dim=D, query_key_dim=K, expansion_factor=V / D, causal=causal, add_residual=residual,
        laplace_attn_fn=laplace,
        norm_klass=published_code.ScaleNorm if norm == "scale" else torch.nn.LayerNorm)
    module = randomised(module, module.offsetscale, 0.3 * shape[1])
    config = dict(d_model=D, head_k=K, head_v=V, norm=norm, residual=residual,
                  activation="laplace" if laplace else "relu_squared")
    if fixed:
        config["normaliser_length"] = shape[1]
    if causal:
        source += "; prefixes are padded to the length of the file, which the scores are divided by"
    run = lambda x: (padded(module, x, shape[1]) if causal else module(x), {})
    return Case(name, config, source, shape, weights_of(module), run, causal=causal)


def gated_attention_unit(arguments):
    yield gau_case(arguments, "long", (1, 131), True, (16, 8, 32))
    yield gau_case(arguments, "scale-norm-odd", (2, 37), True, (13, 5, 26), norm="scale",
                   residual=False)
    yield gau_case(arguments, "laplace", (2, 70), True, (12, 16, 24), laplace=True)


def bidirectional_gated_attention_unit(arguments):
    yield gau_case(arguments, "long", (1, 131), False, (16, 8, 32), fixed=False)
    yield gau_case(arguments, "scale-norm-odd", (2, 37), False, (13, 5, 26), norm="scale",
                   residual=False)
    yield gau_case(arguments, "laplace", (2, 70), False, (12, 16, 24), laplace=True)


def flash_case(arguments, name, shape, causal, sizes, group, norm="layer", laplace=False,
               shift=False, rotary=0, by_group=False, reach=0.2):
    from rotary_embedding_torch import RotaryEmbedding
    published_code, source = flash_pytorch(arguments, "FLASH")
    D, K, V = sizes
    module = published_code.FLASH(
        dim=D, group_size=group, query_key_dim=K, expansion_factor=V / D, causal=causal,
        shift_tokens=shift, laplace_attn_fn=laplace, reduce_group_non_causal_attn=not by_group,
        norm_klass=published_code.ScaleNorm if norm == "scale" else torch.nn.LayerNorm)
    # Linear scores are as large as what they are divided by, without a square; biases are not
    # divided.
    module = randomised(module, module.qk_offset_scale, reach * group)
    module.rel_pos_bias.relative_attention_bias.weight.data *= 0.5 / (reach * group)
    weights = weights_of(module)
    config = dict(d_model=D, head_k=K, head_v=V, group=group, norm=norm, token_shift=shift,
                  rotary_dim=rotary, activation="laplace" if laplace else "relu_squared")
    if not causal:
        config["linear_by_group"] = by_group
    if rotary:  # its frequencies are a parameter that nothing trains
        module.rotary_pos_emb = RotaryEmbedding(dim=rotary)
        source += "; rotary_pos_emb is rotary_embedding_torch 0.9.1 RotaryEmbedding"
    return Case(name, config, source, shape, weights, lambda x: (module(x), {}), causal=causal)


def mixed_chunk_attention(arguments):
    yield flash_case(arguments, "long", (1, 131), True, (16, 8, 32), 16, rotary=8)
    yield flash_case(arguments, "scale-norm-shift-odd", (2, 37), True, (13, 5, 26), 7,
                     norm="scale", shift=True, rotary=4)
    yield flash_case(arguments, "laplace", (2, 70), True, (12, 16, 24), 32, laplace=True,
                     reach=0.05)


def bidirectional_mixed_chunk_attention(arguments):
    yield flash_case(arguments, "long", (1, 131), False, (16, 8, 32), 16, rotary=8)
    yield flash_case(arguments, "scale-norm-shift-odd", (2, 37), False, (13, 5, 26), 7,
                     norm="scale", shift=True, rotary=4)
    yield flash_case(arguments, "laplace-linear-by-group", (2, 70), False, (12, 16, 24), 32,
                     laplace=True, by_group=True)


def aaren_case(name, shape, sizes, bias=False, score_scale=None):
    """Feng et al. 2024, arXiv:2405.13956: section 3.2's scan of (m, u, w) by Hillis and Steele."""
    D, H, K, V = sizes
    weights = {"query": 2 * torch.randn(H, K), "k_proj.weight": torch.randn(H * K, D) / math.sqrt(D),
               "v_proj.weight": 1.2 * torch.randn(H * V, D) / math.sqrt(D),
               "o_proj.weight": 1.2 * torch.randn(D, H * V) / math.sqrt(H * V)}
    if bias:
        weights |= {"v_proj.bias": torch.randn(H * V), "o_proj.bias": torch.randn(D)}
    q, w_k, w_v, w_o = (weight.numpy() for weight in list(weights.values())[:4])
    b_v, b_o = (weights[one].numpy() if bias else 0 for one in ("v_proj.bias", "o_proj.bias"))

    def combine(a, b):
        m = np.maximum(a[0], b[0])
        of_a, of_b = np.exp(a[0] - m), np.exp(b[0] - m)
        return (m, a[1] * of_a + b[1] * of_b,
                a[2] * of_a[..., None] + b[2] * of_b[..., None])

    def run(x):
        x = x.numpy()
        B, T, _ = x.shape
        k = (x @ w_k.T).reshape(B, T, H, K)
        v = (x @ w_v.T + b_v).reshape(B, T, H, V)
        s = np.einsum("bthk,hk->bth", k, q) * (score_scale or K**-0.5)
        sums = (s, np.ones_like(s), v)
        step = 1
        while step < T:
            joined = combine([part[:, :-step] for part in sums], [part[:, step:] for part in sums])
            sums = [np.concatenate((part[:, :step], more), 1) for part, more in zip(sums, joined)]
            step *= 2
        m, u, w = sums
        y = (w / u[..., None]).reshape(B, T, H * V) @ w_o.T + b_o
        last = [torch.from_numpy(part[:, -1].copy()) for part in (w, u, m)]
        return torch.from_numpy(y), dict(zip(("numerator", "denominator", "maximum"), last))

    config = dict(d_model=D, n_heads=H, head_k=K, head_v=V, bias=bias)
    if score_scale:
        config["score_scale"] = score_scale
    return Case(name, config,
                "own numpy form of Feng et al. 2024, arXiv:2405.13956, section 3.2; the query of a "
                "head is what a projection makes of the learned token",
                shape, weights, run)


def aaren(arguments):
    yield aaren_case("long", (1, 131), (16, 2, 8, 8))
    yield aaren_case("bias-odd", (2, 37), (13, 3, 5, 7), bias=True, score_scale=1.3)
