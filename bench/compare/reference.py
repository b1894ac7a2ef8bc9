"""What each operation is, in float64: the slow and literal definition that every contestant must agree with.

`reference(case, inputs)` gives the rows of the output that are compared, and their values.
"""

import numpy as np

SAMPLED_QUERIES = 64


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def attend(q, k, v, positions, visible, score="plain"):
    """Queries [n, H, K] at `positions` over all keys [L, G, K]; visible(i, keys) says which."""
    n, H, K = q.shape
    slopes = 2.0 ** (-8 * (np.arange(H) + 1) / H)
    G = k.shape[1]
    out = np.empty_like(q)
    for row, position in enumerate(positions):
        mask = visible(position, np.arange(len(k)))
        for h in range(H):
            g = h // (H // G)
            scores = k[mask, g] @ q[row, h] / np.sqrt(K)
            if score == "alibi":
                scores -= slopes[h] * (position - np.arange(len(k))[mask])
            if score == "soft_cap":
                scores = 30 * np.tanh(scores / 30)
            if score == "sink_logits":  # of h / 2, with a value of zero
                scores = np.append(scores, h / 2)
            out[row, h] = softmax(scores)[: mask.sum()] @ v[mask, g]
    return out


def matmul(case, x, w):
    return slice(None), x @ w.T


def attention(case, q, k, v):
    window = case.get("window", len(q))
    rows = np.linspace(0, len(q) - 1, min(len(q), SAMPLED_QUERIES)).astype(int)
    seen = lambda i, j: (j <= i) & (i - j < window)
    return rows, attend(q[rows], k, v, rows, seen, case.get("score", "plain"))


def block_attention(case, q, k, v, layout):
    rows = np.linspace(0, len(q) - 1, SAMPLED_QUERIES).astype(int)
    block = case["block"]
    seen = lambda i, j: (j <= i) & (layout[i // block, j // block] != 0)
    return rows, attend(q[rows], k, v, rows, seen)


def decode(case, q, k, v):
    return slice(None), attend(q, k, v, [len(k) - 1], lambda i, j: j <= i)


def memory(T, H, K, V, advance):
    """The outputs of a memory [H, K, V]: advance(state, t) gives the next state and the output."""
    state, out = np.zeros((H, K, V)), np.empty((T, H, V))
    for t in range(T):
        state, out[t] = advance(state, t)
    return slice(None), out


def read(q, state):
    return np.einsum("hk,hkv->hv", q, state)


def write(k, v):
    return k[:, :, None] * v[:, None, :]


def decayed_memory(q, k, v, factors):
    """factors [T, H or 1, K or 1]."""

    def advance(state, t):
        state = state * factors[t][:, :, None] + write(k[t], v[t])
        return state, read(q[t], state)

    return memory(len(q), v.shape[1], k.shape[2], v.shape[2], advance)


def linear_attention(case, q, k, v):
    return decayed_memory(q, k, v, np.ones((len(q), 1, 1)))


def retention(case, q, k, v, factor):
    return decayed_memory(q, k, v, np.broadcast_to(factor[None, :, None], (len(q), len(factor), 1)))


def gla(case, q, k, v, g):
    return decayed_memory(q, k, v, np.exp(g))


def gated_delta_rule(case, q, k, v, g, beta):
    def advance(state, t):
        state = state * np.exp(g[t])[:, None, None]
        delta = beta[t][:, None] * (v[t] - read(k[t], state))
        state = state + write(k[t], delta)
        return state, read(q[t], state)

    return memory(len(q), v.shape[1], k.shape[2], v.shape[2], advance)


def rwkv6(case, r, k, v, g, u):
    def advance(state, t):
        new = write(k[t], v[t])
        return state * np.exp(g[t])[:, :, None] + new, read(r[t], state + u[:, :, None] * new)

    return memory(len(r), v.shape[1], k.shape[2], v.shape[2], advance)


def rwkv7(case, r, k, v, g, a, b):
    def advance(state, t):
        found = read(a[t], state)
        state = state * np.exp(g[t])[:, :, None] + write(b[t], found) + write(k[t], v[t])
        return state, read(r[t], state)

    return memory(len(r), v.shape[1], k.shape[2], v.shape[2], advance)


def mamba(case, x, dt, A, B, C, skip, z):
    dt = np.logaddexp(0, dt)
    state, y = np.zeros_like(A), np.empty_like(x)
    for t in range(len(x)):
        state = np.exp(dt[t] * A) * state + B[t][:, None] * (dt[t] * x[t])
        y[t] = (C[t] @ state + skip * x[t]) * silu(z[t])
    return slice(None), y


def mamba2(case, v, g, B, C):
    H = v.shape[1]
    heads = lambda x: np.broadcast_to(x[:, None], (len(x), H, x.shape[1]))
    return decayed_memory(heads(C), heads(B), v, np.exp(g)[:, :, None])


def s4d_kernel(case, decay, angle, C):
    powers = np.exp((decay + 1j * angle)[:, :, None] * np.arange(case["T"]))
    return slice(None), np.einsum("dn,dnt->td", C[..., 0] + 1j * C[..., 1], powers).real


def long_conv(case, u, h):
    n = 2 * len(u)
    return (
        slice(None),
        np.fft.irfft(np.fft.rfft(u, n, axis=0) * np.fft.rfft(h.T, n, axis=0), n, axis=0)[: len(u)],
    )


long_conv_step = long_conv


def short_conv(case, x, taps):
    padded = np.concatenate([np.zeros((len(taps) - 1, x.shape[1])), x])
    return slice(None), sum(tap * padded[w : w + len(x)] for w, tap in enumerate(taps))


def moe(case, x, gate, w1, w2, w3):
    logits = x @ gate.T
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, : case["top"]]
    weights = softmax(np.take_along_axis(logits, chosen, 1))
    y = np.zeros_like(x)
    for e in range(len(gate)):
        token, place = np.nonzero(chosen == e)
        hidden = silu(x[token] @ w1[e].T) * (x[token] @ w3[e].T)
        y[token] += weights[token, place][:, None] * (hidden @ w2[e].T)
    return slice(None), y


def reference(case, inputs):
    return globals()[case["op"]](case, **{name: x.astype(np.float64) for name, x in inputs.items()})


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def unit_rows(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# How inputs are drawn: (random, shape, case) -> numbers.
DRAWS = {
    "normal": lambda random, shape, case: random.standard_normal(shape),
    "small": lambda random, shape, case: 0.05 * random.standard_normal(shape),
    "unit": lambda random, shape, case: unit_rows(random.standard_normal(shape)),
    "share": lambda random, shape, case: random.random(shape),
    "log_decay": lambda random, shape, case: log_sigmoid(random.standard_normal(shape)) / 16,
    "retention": lambda random, shape, case: 1 - 2.0 ** (-5 - np.arange(shape[0])),
    "rates": lambda random, shape, case: -np.exp(0.5 * random.standard_normal(shape)),
    "slow_rates": lambda random, shape, case: -0.01 * np.exp(0.5 * random.standard_normal(shape)),
    "decaying": lambda random, shape, case: random.standard_normal(shape)
    * np.exp(-5 * np.arange(shape[-1]) / shape[-1]),
    "layout": lambda random, shape, case: np.tril(random.random(shape) < case["density"])
    | np.eye(shape[0], dtype=bool),
}


def inputs_of(case, op):
    """The inputs of a case by name, in float32, the same in each run."""
    random, inputs = np.random.default_rng(0), {}
    for name, text in op["inputs"].items():
        words = text.split()
        kind = words.pop() if words[-1] in DRAWS else "normal"
        shape = tuple(int(eval(size, {}, case)) for size in words)
        inputs[name] = np.ascontiguousarray(DRAWS[kind](random, shape, case), dtype=np.float32)
    return inputs
