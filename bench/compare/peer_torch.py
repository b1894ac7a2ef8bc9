"""PyTorch as a contestant: eager, or with --compile. Each operation in the fastest way that is known to us."""

import os
import sys

import torch
import torch.nn.functional as F

from worker import serve

CHUNK = 64
COMPILE = "--compile" in sys.argv


def tensor(case, name, *shape):
    return torch.from_numpy(case.input(name, *shape))


def heads(case, name, tokens, count, width):
    """[1, count, tokens, width]"""
    return tensor(case, name, tokens, count, width).transpose(0, 1).contiguous()[None]


def tokens_first(x):
    """The output of heads [1, H, T, V] as [T, H, V]."""
    return x[0].transpose(0, 1).float().numpy()


def compiled(function):
    return torch.compile(function, dynamic=False) if COMPILE else function


def matmul(case):
    dtype = torch.bfloat16 if case.text("precision") == "bf16" else torch.float32
    x = tensor(case, "x", case["M"], case["K"]).to(dtype)
    w = tensor(case, "w", case["N"], case["K"]).to(dtype)
    return lambda: F.linear(x, w), lambda y: y.float().numpy()


def qkv(case):
    dtype = torch.bfloat16 if case.text("precision") == "bf16" else torch.float32
    sizes = [("q", case["H"]), ("k", case["G"]), ("v", case["G"])]
    return [heads(case, name, case["T"], count, case["K"]).to(dtype) for name, count in sizes]


def flex(q, k, v, visible, block=128, score=None):
    """Attention under a mask: compiled by blocks, or eager with the mask as numbers. `score` maps
    scores as flex_attention asks for it."""
    T = q.shape[2]
    if COMPILE:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = create_block_mask(
            lambda b, h, i, j: visible(i, j), 1, 1, T, T, device="cpu", BLOCK_SIZE=block
        )
        function = torch.compile(flex_attention, dynamic=False)
        return lambda: function(q, k, v, block_mask=mask, score_mod=score)
    if score is not None:
        raise NotImplementedError("eager scores are T x T numbers")
    i = torch.arange(T)
    mask = visible(i[:, None], i[None])
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attention(case):
    q, k, v = qkv(case)
    window = int(case.text("window", "0"))
    if window:
        return flex(q, k, v, lambda i, j: (i >= j) & (i - j < window)), tokens_first
    score = case.text("score")
    if score == "sink_logits":
        raise NotImplementedError("no logits of sinks")
    if score == "alibi":
        slopes = 2.0 ** (-8 * torch.arange(1, case["H"] + 1) / case["H"])
        bias = lambda s, b, h, i, j: s - slopes[h] * (i - j)
        return flex(q, k, v, lambda i, j: i >= j, score=bias), tokens_first
    if score == "soft_cap":
        cap = lambda s, b, h, i, j: 30 * torch.tanh(s / 30)
        return flex(q, k, v, lambda i, j: i >= j, score=cap), tokens_first
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), tokens_first


def block_attention(case):
    q, k, v = qkv(case)
    block = case["block"]
    layout = tensor(case, "layout", case["T"] // block, case["T"] // block).bool()
    return (
        flex(q, k, v, lambda i, j: (i >= j) & layout[i // block, j // block], block),
        tokens_first,
    )


def decode(case):
    if case.text("cache") == "int8":
        raise NotImplementedError("no int8 cache")
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}.get(case.text("cache"), torch.float32)
    H, G, K = case["H"], case["G"], case["K"]
    k, v = [heads(case, name, case["L"], G, K).to(dtype) for name in "kv"]
    q = tensor(case, "q", G, H // G, K)[None].to(dtype)  # heads of a group are rows of one query
    return (
        lambda: F.scaled_dot_product_attention(q, k, v),
        lambda y: y.reshape(1, H, K).float().numpy(),
    )


def by_chunks(x):
    """[1, H, T, ...] as [1, H, n, CHUNK, ...]"""
    return x.reshape(*x.shape[:2], -1, CHUNK, *x.shape[3:])


def states(kv, factor):
    """The states before each chunk: kv [1, H, n, K, V] is what chunks add, factor [1, H, n, ...] what is kept."""
    state, before = torch.zeros_like(kv[:, :, 0]), []
    for i in range(kv.shape[2]):
        before.append(state)
        state = state * factor[:, :, i] + kv[:, :, i]
    return torch.stack(before, 2)


def memory_inputs(case, names):
    T, H = case["T"], case["H"]
    return [heads(case, name, T, H, case["V" if name == "v" else "K"]) for name in names]


def linear_attention(case):
    q, k, v = memory_inputs(case, "qkv")

    def run():
        qc, kc, vc = map(by_chunks, (q, k, v))
        kv = kc.transpose(-1, -2) @ vc
        return ((qc @ kc.transpose(-1, -2)).tril() @ vc + qc @ (kv.cumsum(2) - kv)).reshape(v.shape)

    return compiled(run), tokens_first


def retention(case):
    q, k, v = memory_inputs(case, "qkv")
    log = tensor(case, "factor", case["H"]).log().view(1, -1, 1, 1, 1)

    def run():
        qc, kc, vc = map(by_chunks, (q, k, v))
        i = torch.arange(CHUNK, dtype=torch.float32)
        weights = torch.exp((i[:, None] - i).clamp(min=0) * log).tril()
        kv = (kc * torch.exp((CHUNK - 1 - i)[:, None] * log)).transpose(-1, -2) @ vc
        before = states(kv, torch.exp(CHUNK * log).expand(-1, -1, kv.shape[2], -1, -1))
        inside = (qc @ kc.transpose(-1, -2) * weights) @ vc
        return (inside + (qc * torch.exp((i + 1)[:, None] * log)) @ before).reshape(v.shape)

    return compiled(run), tokens_first


def gla(case):
    q, k, v, g = memory_inputs(case, "qkvg")

    def run():
        qc, kc, vc, gc = map(by_chunks, (q, k, v, g))
        sums = gc.cumsum(3)
        last = sums[:, :, :, -1:]
        queries = qc * sums.exp()
        kv = (kc * (last - sums).exp()).transpose(-1, -2) @ vc
        inside = (queries @ (kc * (-sums).exp()).transpose(-1, -2)).tril() @ vc
        return (inside + queries @ states(kv, last.transpose(-1, -2).exp())).reshape(v.shape)

    return compiled(run), tokens_first


def gated_delta_rule(case):
    q, k, v = memory_inputs(case, "qkv")
    g, beta = [
        tensor(case, name, case["T"], case["H"]).t().contiguous()[None] for name in ("g", "beta")
    ]

    def run():
        qc, kc, kb, vb = map(by_chunks, (q, k, k * beta[..., None], v * beta[..., None]))
        sums = by_chunks(g).cumsum(-1)
        decay = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
        system = torch.eye(CHUNK) + ((kb @ kc.transpose(-1, -2)) * decay).tril(-1)
        solve = lambda x: torch.linalg.solve_triangular(system, x, upper=False, unitriangular=True)
        values, keys = solve(vb), solve(kb * sums.exp()[..., None])
        inside = (qc @ kc.transpose(-1, -2) * decay).tril()
        queries, last = qc * sums.exp()[..., None], sums[..., -1, None]
        kept = (kc * (last - sums).exp()[..., None]).transpose(-1, -2)
        state, out = torch.zeros(1, q.shape[1], q.shape[3], v.shape[3]), torch.empty_like(vb)
        for i in range(vb.shape[2]):
            new = values[:, :, i] - keys[:, :, i] @ state
            out[:, :, i] = queries[:, :, i] @ state + inside[:, :, i] @ new
            state = state * last[:, :, i, :, None].exp() + kept[:, :, i] @ new
        return out.reshape(v.shape)

    return compiled(run), tokens_first


def rwkv_inputs(case, names):
    T, H = case["T"], case["H"]
    return [tensor(case, name, T, H, case["V" if name == "v" else "K"]) for name in names]


def rwkv6(case):
    r, k, v, g = rwkv_inputs(case, "rkvg")
    u = tensor(case, "u", case["H"], case["K"])

    def run():
        w, out, state = (
            g.exp(),
            torch.empty_like(v),
            torch.zeros(v.shape[1], k.shape[2], v.shape[2]),
        )
        for t in range(len(r)):
            new = k[t][:, :, None] * v[t][:, None]
            out[t] = (r[t][:, None] @ (state + u[:, :, None] * new))[:, 0]
            state = state * w[t][:, :, None] + new
        return out

    return run, lambda y: y.numpy()


def rwkv7(case):
    r, k, v, g, a, b = rwkv_inputs(case, "rkvgab")

    def run():
        w, out, state = (
            g.exp(),
            torch.empty_like(v),
            torch.zeros(v.shape[1], k.shape[2], v.shape[2]),
        )
        for t in range(len(r)):
            found = a[t][:, None] @ state
            state = (
                state * w[t][:, :, None]
                + b[t][:, :, None] * found
                + k[t][:, :, None] * v[t][:, None]
            )
            out[t] = (r[t][:, None] @ state)[:, 0]
        return out

    return run, lambda y: y.numpy()


def mamba(case):
    T, D, N = case["T"], case["D"], case["N"]
    x, dt, z = [tensor(case, name, T, D) for name in ("x", "dt", "z")]
    B, C = [tensor(case, name, T, N) for name in "BC"]
    A, skip = tensor(case, "A", N, D).t().contiguous(), tensor(case, "skip", D)

    def run():
        step = F.softplus(dt)
        decay = torch.exp(step[:, :, None] * A)
        new = (step * x)[:, :, None] * B[:, None]
        state, out = torch.zeros(D, N), torch.empty(T, D)
        for t in range(T):
            state = decay[t] * state + new[t]
            out[t] = state @ C[t]
        return (out + skip * x) * F.silu(z)

    return run, lambda y: y.numpy()


def mamba2(case):
    v = heads(case, "v", case["T"], case["H"], case["V"])
    g = tensor(case, "g", case["T"], case["H"]).t().contiguous()[None]
    B, C = [tensor(case, name, 1, 1, case["T"], case["K"]) for name in "BC"]

    def run():
        k, q, x = map(by_chunks, (B, C, v))
        sums = by_chunks(g).cumsum(-1)
        decay = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
        kv = k.transpose(-1, -2) @ (x * (sums[..., -1:] - sums).exp()[..., None])
        before = states(kv, sums[..., -1, None, None].exp())
        return (
            (q @ k.transpose(-1, -2) * decay) @ x + (q @ before) * sums.exp()[..., None]
        ).reshape(v.shape)

    return compiled(run), tokens_first


def s4d_kernel(case):
    T, D, N = case["T"], case["D"], case["N"]
    rate = torch.complex(tensor(case, "decay", D, N), tensor(case, "angle", D, N))
    C = torch.view_as_complex(tensor(case, "C", D, N, 2))
    return (
        lambda: torch.einsum("dn,dnt->dt", C, torch.exp(rate[:, :, None] * torch.arange(T))).real,
        lambda y: y.t(),
    )


def long_conv(case):
    T, D = case["T"], case["D"]
    u, spectrum = tensor(case, "u", T, D).t().contiguous(), torch.fft.rfft(
        tensor(case, "h", D, T), 2 * T
    )
    return (
        lambda: torch.fft.irfft(torch.fft.rfft(u, 2 * T) * spectrum, 2 * T)[:, :T],
        lambda y: y.t(),
    )


def short_conv(case):
    T, D, W = case["T"], case["D"], case["W"]
    x, taps = tensor(case, "x", T, D), tensor(case, "taps", W, D)
    turned, filters = x.t().contiguous()[None], taps.t().contiguous()[:, None]
    if not COMPILE:
        return lambda: F.conv1d(F.pad(turned, (W - 1, 0)), filters, groups=D), lambda y: y[0].t()

    def run():
        padded = F.pad(x, (0, 0, W - 1, 0))
        return sum(taps[w] * padded[w : w + T] for w in range(W))

    return compiled(run), lambda y: y.numpy()


def moe(case):
    T, D, F_, E, top = (case[name] for name in ("T", "D", "F", "E", "top"))
    x, gate = tensor(case, "x", T, D), tensor(case, "gate", E, D)
    w1, w3 = tensor(case, "w1", E, F_, D), tensor(case, "w3", E, F_, D)
    w2 = tensor(case, "w2", E, D, F_)

    def run():
        weights, chosen = torch.topk(x @ gate.t(), top)
        weights, y = torch.softmax(weights, -1), torch.zeros_like(x)
        for e in chosen.unique().tolist():
            token, place = torch.where(chosen == e)
            rows = x[token]
            hidden = F.silu(rows @ w1[e].t()) * (rows @ w3[e].t())
            y.index_add_(0, token, (hidden @ w2[e].t()) * weights[token, place, None])
        return y

    return run, lambda y: y.numpy()


# What torch.compile is worth: the others are library calls, or loops over time that it would unroll.
COMPILED = {
    "block_attention",
    "linear_attention",
    "retention",
    "gla",
    "gated_delta_rule",
    "mamba2",
    "short_conv",
}


def prepare(case):
    op = case.text("op")
    flexible = case.text("window") or case.text("score")
    if COMPILE and op not in COMPILED and not flexible:
        raise NotImplementedError("nothing to compile")
    if op not in globals():
        raise NotImplementedError(op)
    return globals()[op](case)


torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.set_grad_enabled(False)
serve(prepare, f"PyTorch {torch.__version__}")
