"""Biases by distance of softmax attention."""

from cases import biases
from cases.attention import everything, fields
from common import *


def t5_case(name, shape, d_model, n_heads, head_dim, buckets, most, decoder):
    """With the table that the first block of T5 has."""
    module_class, config_class = hugging_face("t5", "T5Attention", "T5Config")
    config = config_class(d_model=d_model, d_kv=head_dim, num_heads=n_heads, is_decoder=decoder,
                          relative_attention_num_buckets=buckets,
                          relative_attention_max_distance=most)
    module = randomise(module_class(config, has_relative_attention_bias=True, layer_idx=0))
    # The logarithms of buckets stay in float32: their rounding says which side of a border counts.
    module._relative_position_bucket = (
        lambda ahead, bidirectional, num_buckets, max_distance: biases.t5_buckets(
            ahead, bidirectional, num_buckets, max_distance))

    def run(x):
        mask = causal_mask(x.shape[1]) if decoder else None
        return module(x, mask=mask, query_length=x.shape[1])[0], {}

    weights = weights_of(module, **{one: f"{one}_proj" for one in "qkvo"},
                         relative_attention_bias="bias.relative_attention_bias")
    heads = dict(n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim)
    bias = dict(kind="t5", num_buckets=buckets, max_distance=most, bidirectional=not decoder)
    source = (published(module_class) + ", of a " + ("decoder, explicit causal mask" if decoder
              else "encoder") + "; its buckets by float32 as unlifted")
    return Case(name, dict(d_model=d_model, heads=heads, bias=bias, scores=dict(score_scale=1.0)),
                source, shape, weights, run, causal=decoder)


def falcon_case(name, shape, d_model, n_heads):
    module_class, config_class = hugging_face("falcon", "FalconAttention", "FalconConfig")
    config = config_class(hidden_size=d_model, num_attention_heads=n_heads, alibi=True, bias=False,
                          new_decoder_architecture=False, multi_query=False)
    module = randomise(module_class(config, layer_idx=0))

    def run(x):
        alibi = biases.falcon_alibi(n_heads, x.shape[1])[:, :1].repeat(len(x), 1, 1)
        return module(x, alibi=alibi, attention_mask=causal_mask(x.shape[1]))[0], {}

    head_dim = d_model // n_heads
    weights = weights_of(module, dense="o_proj")
    fused = weights.pop("query_key_value.weight").view(n_heads, 3, head_dim, d_model)
    weights |= {f"{one}_proj.weight": fused[:, i].flatten(0, 1).clone()
                for i, one in enumerate("qkv")}
    heads = dict(n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim)
    source = (published(module_class) + ", with build_alibi_tensor, explicit causal mask; "
              "query_key_value is split, dense is named o_proj here")
    return Case(name, dict(d_model=d_model, heads=heads, bias=dict(kind="falcon_alibi")), source,
                shape, weights, run)


def own_case(name, shape, kind, bias_of, weights, paper, sees=None, **extra):
    """Softmax attention by numpy's formulas with `bias_of(length)`, [H, T, T]. `weights` are the
    bias's own."""
    sizes = dict(n_heads=4, n_kv_heads=2, head_dim=6)
    d_model, H, G, K = 14, *sizes.values()
    widths = dict(q=(H * K, d_model), k=(G * K, d_model), v=(G * K, d_model), o=(d_model, H * K))
    maps = {one: 1.2 * torch.randn(width) / math.sqrt(width[1]) for one, width in widths.items()}

    def run(x):
        split = lambda one, heads: (x @ maps[one].T).view(*x.shape[:2], heads, K).transpose(1, 2)
        q, k, v = split("q", H), *(split(one, G).repeat_interleave(H // G, 1) for one in "kv")
        scores = q @ k.transpose(2, 3) / math.sqrt(K) + torch.as_tensor(bias_of(x.shape[1]))
        if sees is None:
            scores = scores + causal_mask(x.shape[1])
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ maps["o"].T, {}

    weights = {f"bias.{name}": torch.as_tensor(weight) for name, weight in weights.items()}
    weights |= {f"{one}_proj.weight": weight for one, weight in maps.items()}
    return Case(name, dict(d_model=d_model, heads=sizes, bias=dict(kind=kind, **extra)),
                f"own numpy form of {paper}", shape, weights, run, causal=sees is None)


def kerple_weights():
    return dict(bias_p=2 * torch.rand(4, 1, 1), bias_a=torch.rand(4, 1, 1))


def attention__biases(arguments):
    yield t5_case("t5-decoder", (2, 70), 12, 3, 5, 10, 40, decoder=True)
    yield t5_case("t5-decoder-long", (1, 200), 10, 2, 6, 32, 128, decoder=True)
    yield falcon_case("falcon-alibi", (1, 300), 24, 4)
    kerple = "Chi et al. 2022, arXiv:2205.09921; chijames/KERPLE, megatron/mpu/layers.py, "
    weights = kerple_weights()
    yield own_case("kerple-log", (2, 70), "kerple_log",
                   lambda length, w=weights: biases.kerple_log(*w.values(), length), weights,
                   kerple + "ParallelKerpleLog")
    weights = kerple_weights()
    yield own_case("kerple-power", (1, 131), "kerple_power",
                   lambda length, w=weights: biases.kerple_power(*w.values(), length), weights,
                   kerple + "ParallelKerplePower with bias_a and bias_p")
    table = dict(relative_position_bias_table=torch.randn(25, 4))
    yield own_case("relative", (2, 70), "relative",
                   lambda length: biases.relative(*table.values(), length), table,
                   "Shaw et al. 2018, arXiv:1803.02155, with a number a head", max_distance=12)
    width = 9
    net = {"mlp.0.weight": torch.randn(width, 1), "mlp.0.bias": torch.randn(width),
           "mlp.2.weight": torch.randn(4, width), "mlp.2.bias": torch.randn(4),
           "c": torch.tensor([0.13]), "L_multiplier": torch.tensor([0.9])}
    yield own_case("fire", (1, 131), "fire",
                   lambda length: biases.fire(*(w.numpy() for w in net.values()), 40, length), net,
                   "Li et al. 2023, arXiv:2310.04418, appendix", fire_width=width,
                   fire_initial_length=40.0)


def bidirectional_attention__biases(arguments):
    yield t5_case("t5-encoder", (2, 70), 12, 3, 5, 12, 40, decoder=False)
    yield t5_case("t5-encoder-long", (1, 200), 10, 2, 6, 32, 128, decoder=False)
    table = dict(relative_position_bias_table=torch.randn(25, 4))
    yield own_case("relative", (2, 70), "relative",
                   lambda length: biases.relative(*table.values(), length), table,
                   "Shaw et al. 2018, arXiv:1803.02155, with a number a head", sees=everything,
                   max_distance=12)
