"""What queries of softmax attention see: chunks, blocks with look-back, prefixes."""

from cases.attention import attention_case, fields
from common import *


def local_case(name, shape, d_model, n_heads, chunk, back, causal):
    """Blocks that see the blocks before them, between projections of our own. Without a mask the
    published module sees the zeros that it pads with, so that blocks are whole here."""
    from local_attention import LocalAttention
    head_dim = d_model // n_heads
    module = LocalAttention(chunk, causal=causal, look_backward=back, look_forward=0 if causal else 1,
                            autopad=True, use_rotary_pos_emb=False, exact_windowsize=False)
    maps = [randomise(torch.nn.Linear(d_model, d_model, bias=False)) for _ in "qkvo"]

    def run(x):
        q, k, v = [one(x).view(*x.shape[:2], n_heads, head_dim).transpose(1, 2)
                   for one in maps[:3]]
        return maps[3](module(q, k, v).transpose(1, 2).flatten(2)), {}

    weights = {f"{one}_proj.weight": layer.weight.detach() for one, layer in zip("qkvo", maps)}
    config = dict(d_model=d_model, heads=dict(n_heads=n_heads, n_kv_heads=n_heads,
                                              head_dim=head_dim),
                  sees=dict(chunk=chunk, chunks_back=back, chunks_ahead=0 if causal else 1))
    source = published(LocalAttention) + ", between projections of our own"
    return Case(name, config, source, shape, weights, run, causal=causal)


def attention__sees(arguments):
    case = attention_case("llama4-chunks", "llama4", "Llama4Text", (1, 131),
                         fields(18, 4, 2, 6, 6), interleaved=True, use_qk_norm=False,
                         no_rope_layers=[1], sees=lambda i, j: (j <= i) & (j // 24 == i // 24),
                         ours=dict(chunk=24))
    case.causal = True
    yield case
    yield local_case("local-attention-look-back", (2, 70), 12, 3, 16, 2, causal=True)


def bidirectional_attention__sees(arguments):
    yield local_case("local-attention-both-sides", (2, 80), 12, 3, 16, 1, causal=False)
    for name, sees, ours in (
            ("llama-prefix", lambda i, j: (j <= i) | (j < 21), dict(prefix=21)),
            ("llama-block-causal", lambda i, j: j // 16 <= i // 16,
             dict(chunk=16, all_chunks_back=True))):
        yield attention_case(name, "llama", "Llama", (1, 70), fields(18, 4, 2, 6, 6), sees=sees,
                             ours=ours)
