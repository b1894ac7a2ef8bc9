"""Biases by distance: matrices [H, T, T] in float64, of each head, query and key. They are added to
scaled products, or before the scale where a function says so."""

import numpy as np
from common import *


def causal_distances(length):
    """i - j of queries i and keys j; 0 where the key lies ahead, as in KERPLE's own code."""
    return np.tril(np.subtract.outer(np.arange(length), np.arange(length))).astype(np.float64)


def mpt_alibi(heads, length, bias_max=8):
    """transformers' build_mpt_alibi_tensor: its row is that of the last query, shifted here to
    those of the others, which softmax does not see."""
    (build,) = hugging_face("mpt", "build_mpt_alibi_tensor")
    row = build(heads, length, bias_max).double()  # [H, 1, T]
    return row.expand(-1, length, -1).clone()


def falcon_alibi(heads, length):
    """transformers' falcon build_alibi_tensor, bfloat16 inside; FalconAttention adds it before it
    scales."""
    (build,) = hugging_face("falcon", "build_alibi_tensor")
    row = build(torch.ones(1, length, dtype=torch.long), heads, torch.float64)
    return row.expand(-1, length, -1).clone()


def bloom_alibi(heads, length):
    """transformers' bloom build_alibi_tensor; BloomAttention adds it to scaled products."""
    (build,) = hugging_face("bloom", "build_alibi_tensor")
    row = build(torch.ones(1, length, dtype=torch.long), heads, torch.float64)
    return row.expand(-1, length, -1).clone()


def t5(table, length, both_directions, max_distance):
    """transformers' T5Attention._relative_position_bucket on a table [buckets, H]."""
    positions = torch.arange(length)
    ahead = positions[None, :] - positions[:, None]
    return table[t5_buckets(ahead, both_directions, len(table), max_distance)].permute(2, 0, 1)


def t5_buckets(ahead, both_directions, buckets, max_distance):
    """Logarithms stay in float32 here: their rounding decides on which side of a border a distance
    falls."""
    (attention,) = hugging_face("t5", "T5Attention")
    lifted, torch.Tensor.float = torch.Tensor.float, torch._C.TensorBase.float
    try:
        return attention._relative_position_bucket(ahead, both_directions, buckets, max_distance)
    finally:
        torch.Tensor.float = lifted


def relative(table, length):
    """Own numpy form of Shaw et al. 2018, arXiv:1803.02155, with a number a head in place of
    a vector; table [2 m + 1, H]."""
    most = len(table) // 2
    ahead = np.subtract.outer(np.arange(length), np.arange(length)).T
    return np.moveaxis(np.asarray(table)[np.clip(ahead, -most, most) + most], 2, 0)


def kerple_log(p, a, length):
    """Own numpy form of chijames/KERPLE, megatron/mpu/layers.py, ParallelKerpleLog (which asks for
    a GPU)."""
    p, a = (np.maximum(np.asarray(v).reshape(-1, 1, 1), 1e-2) for v in (p, a))
    return -p * np.log(1 + a * causal_distances(length))


def kerple_power(p, a, length):
    """The same of ParallelKerplePower with bias_a and bias_p."""
    p = np.clip(np.asarray(p).reshape(-1, 1, 1), 1e-2, 2)
    a = np.maximum(np.asarray(a).reshape(-1, 1, 1), 1e-2)
    return -a * causal_distances(length) ** p


def sandwich(heads, length, width):
    """Own numpy form of Chi et al. 2022, arXiv:2212.10356: products of sinusoidal
    positions over 8 h / H, less that of a position with itself, which softmax does not see."""
    angles = np.arange(length)[:, None] / 10000.0 ** (2 * np.arange(width // 2) / width)
    positions = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    ratio = np.arange(1, heads + 1) * 8 / heads
    return (positions @ positions.T - width / 2) / ratio[:, None, None]


def fire(w1, b1, w2, b2, c, multiplier, initial_length, length, eps=1e-6):
    """Own numpy form of Li et al. 2023, arXiv:2310.04418, the listing of its appendix. w1 [W, 1],
    b1 [W], w2 [H, W], b2 [H]."""
    positions = np.arange(length, dtype=np.float64)
    far = np.maximum(positions, abs(multiplier * initial_length))[:, None]
    distances = np.log(np.abs(c * (positions[:, None] - positions[None, :])) + 1)
    x = distances / (np.log(np.abs(c * far) + 1) + eps)
    hidden = np.maximum(x[..., None] * np.asarray(w1)[:, 0] + b1, 0)
    return np.moveaxis(hidden @ np.asarray(w2).T + b2, 2, 0)


def inverse_square(heads, length):
    """Own numpy form of Qin et al. 2023, arXiv:2307.10156: ln b_n, n = distance + 1, b_n = n^-2."""
    return np.tile(-2 * np.log(causal_distances(length) + 1), (heads, 1, 1))


def log_square(heads, length):
    """The same with b_n = exp(-ln^2 n)."""
    return np.tile(-np.log(causal_distances(length) + 1) ** 2, (heads, 1, 1))
