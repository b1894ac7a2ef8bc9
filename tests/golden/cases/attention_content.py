"""Biases of softmax attention that depend on the content of its tokens."""

import importlib.util
import sys

import numpy as np
from cases.attention import window_mask
from common import *


def module_at(name, path):
    """A file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget_case(arguments, name, shape, sizes, window=None, **options):
    """flash-linear-attention's layer, with the naive operator that its core has since 0.6.0."""
    import fla.layers.forgetting_attn as layers
    import fla.modules.layernorm as norms
    naive = module_at("naive", arguments.repository("fla-core") / "fla" / "ops" /
                      "forgetting_attn" / "naive.py").naive_forgetting_attn
    layers.parallel_forgetting_attn = (
        lambda q, k, v, g, cu_seqlens: naive(q, k, v, g, window_size=window))
    norms.group_norm = lambda *x, residual_in_fp32, **more: norms.group_norm_ref(*x, **more)
    d_model, H, G = sizes
    module = randomise(layers.ForgettingAttention(d_model, H, G, layer_idx=0, **options))
    source = (published(layers.ForgettingAttention) +
              ", parallel_forgetting_attn rebound to fla-core 0.6.0's "
              "fla.ops.forgetting_attn.naive.naive_forgetting_attn" +
              (" with a window_size" if window else "") +
              ", group_norm to fla.modules.layernorm.group_norm_ref")
    heads = dict(n_heads=H, n_kv_heads=G, head_dim=d_model // H)
    if options.get("qk_norm"):
        heads |= dict(qk_norm="head", qk_norm_weight="by_head", qk_norm_eps=1e-5)
    if options.get("use_output_gate"):
        heads["output_gate"] = "channel"
    if options.get("qkv_bias"):
        heads |= dict(q_bias=True, k_bias=True, v_bias=True)
    config = dict(d_model=d_model, heads=heads, content=dict(kind="forget_gate"))
    if window:
        config["sees"] = dict(window=window)
    return Case(name, config, source, shape, weights_of(module, f_proj="content.f_proj"),
                lambda x: (module(x)[0], {}))


def transformer_xl_case(arguments, name, shape, sizes, clamp=None, same_length=None):
    """`same_length`: keys that every query sees."""
    folder = arguments.repository("transformer-xl") / "pytorch"
    for unused in ("proj_adaptive_softmax", "log_uniform_sampler"):
        sys.modules[unused] = types.SimpleNamespace(
            ProjectedAdaptiveLogSoftmax=None, LogUniformSampler=None, sample_logits=None)
    published_file = module_at("mem_transformer", folder / "mem_transformer.py")
    d_model, H, K = sizes
    module = randomise(published_file.RelPartialLearnableMultiHeadAttn(
        H, d_model, K, dropout=0.0, pre_lnorm=True))
    module.layer_norm = torch.nn.Identity()
    positions = published_file.PositionalEmbedding(d_model)
    biases = {one: torch.randn(H, K) for one in ("r_w_bias", "r_r_bias")}

    def run(x):
        T = x.shape[1]
        distances = torch.arange(T - 1, -1, -1.0)
        if clamp:
            distances.clamp_(max=clamp)
        seen = window_mask(T, same_length) if same_length else causal_mask(T)
        y = module(x.transpose(0, 1), positions(distances), *biases.values(),
                   attn_mask=(seen[0, 0] < 0)[:, :, None])
        return y.transpose(0, 1) - x, {}

    weights = weights_of(module, o_net="o_proj", r_net="content.r_net")
    parts = weights.pop("qkv_net.weight").chunk(3)
    weights |= {f"{one}_proj.weight": part.clone() for one, part in zip("qkv", parts)}
    weights |= {f"content.{one}": bias for one, bias in biases.items()}
    config = dict(d_model=d_model, heads=dict(n_heads=H, n_kv_heads=H, head_dim=K),
                  content=dict(kind="transformer_xl", max_distance=clamp or shape[1]))
    if same_length:
        config["sees"] = dict(window=same_length)
    source = ("kimiyoung/transformer-xl 44781ed21dbaec88b280f74d9ae2877f52b492a5 "
              "pytorch.mem_transformer.RelPartialLearnableMultiHeadAttn, "
              f"torch {torch.__version__}, {LIFTED}, with PositionalEmbedding" +
              (" of clamped distances" if clamp else "") + ", explicit mask of what is seen" +
              ", its layer_norm rebound to the identity and its residual taken off; qkv_net is "
              "split, o_net is named o_proj here")
    return Case(name, config, source, shape, weights, run)


def xlnet_case(name, shape, sizes, clamp=-1):
    module_class, model_class, config_class = hugging_face(
        "xlnet", "XLNetRelativeAttention", "XLNetModel", "XLNetConfig")
    d_model, H = sizes
    model = model_class(config_class(d_model=d_model, n_head=H, n_layer=1, d_inner=4, vocab_size=4,
                                     attn_type="bi", clamp_len=clamp, dropout=0.0))
    module = randomise(model.layer[0].rel_attn.double())
    module.layer_norm = torch.nn.Identity()

    def run(x):
        positions = model.relative_positional_encoding(x.shape[1], x.shape[1], len(x))
        h = x.transpose(0, 1)
        return module(h, None, None, None, positions, None)[0].transpose(0, 1) - x, {}

    own = weights_of(module)
    weights = {f"{one}_proj.weight": own[one].flatten(1).T.contiguous() for one in "qkv"}
    weights["o_proj.weight"] = own["o"].flatten(1)
    weights["content.r_net.weight"] = own["r"].flatten(1).T.contiguous()
    weights |= {f"content.{one}": own[one] for one in ("r_w_bias", "r_r_bias")}
    heads = dict(n_heads=H, n_kv_heads=H, head_dim=d_model // H)
    source = (published(module_class) + ", with XLNetModel.relative_positional_encoding, its "
              "layer_norm rebound to the identity and its residual taken off; q, k, v, o and r are "
              "named as Transformer-XL's here")
    content = dict(kind="transformer_xl", max_distance=clamp if clamp > 0 else shape[1])
    return Case(name, dict(d_model=d_model, heads=heads, content=content), source, shape, weights,
                run, causal=False)


def deberta_case(name, shape, sizes, distance, buckets=None, terms=("c2p", "p2c"), shared=False):
    """The first one's, or where there are `buckets` the second one's."""
    family = "deberta_v2" if buckets else "deberta"
    prefix = "DebertaV2" if buckets else "Deberta"
    module_class, config_class = hugging_face(family, "DisentangledSelfAttention",
                                              f"{prefix}Config")
    published_file = sys.modules[module_class.__module__]
    d_model, H = sizes
    config = config_class(hidden_size=d_model, num_attention_heads=H, relative_attention=True,
                          max_relative_positions=distance, pos_att_type=list(terms),
                          position_buckets=buckets or -1, share_att_key=shared,
                          hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    module = randomise(module_class(config))
    # The logarithms of buckets stay in float32: their rounding says which side of a border counts.
    width = 2 * (buckets or distance)
    table = torch.randn(width, d_model)

    def relative(T):
        i = torch.arange(T)
        ahead = i[:, None] - i
        if not buckets:
            return ahead[None]
        mid = buckets // 2
        far = np.abs(ahead.numpy())
        ratio = np.maximum(far, mid).astype(np.float32) / np.float32(mid)
        whole = np.log(np.float32(distance - 1) / np.float32(mid))
        wide = np.ceil(np.log(ratio) / whole * np.float32(mid - 1)).astype(int) + mid
        return torch.from_numpy(np.where(far <= mid, ahead.numpy(),
                                         np.sign(ahead.numpy()) * wide))[None]

    output = 1.2 * torch.randn(d_model, d_model) / math.sqrt(d_model)

    def run(x):
        T = x.shape[1]
        attended = module(x, torch.ones(len(x), 1, T, T), relative_pos=relative(T),
                          rel_embeddings=table)[0]
        return attended @ output.T, {}

    own = weights_of(module, query_proj="q_proj", key_proj="k_proj", value_proj="v_proj",
                     pos_proj="content.pos_key_proj", pos_q_proj="content.pos_query_proj",
                     pos_key_proj="content.pos_key_proj", pos_query_proj="content.pos_query_proj")
    heads = dict(n_heads=H, n_kv_heads=H, head_dim=d_model // H, q_bias=True, v_bias=True,
                 k_bias=bool(buckets))
    content = dict(kind="deberta", max_distance=distance, query_term="c2p" in terms,
                   key_term="p2c" in terms)
    source = published(module_class)
    if buckets:
        content |= dict(position_buckets=buckets, shared_projections=shared)
        source += ", positions by make_log_bucket_position in float32 as unlifted"
    else:
        content["query_bias"] = False
        in_proj = own.pop("in_proj.weight").unflatten(0, (H, 3, -1))
        own |= {f"{one}_proj.weight": in_proj[:, i].flatten(0, 1).clone()
                for i, one in enumerate("qkv")}
        own |= {f"{one}_proj.bias": own.pop(f"{one}_bias") for one in "qv"}
        source += "; in_proj is split here"
    source += ", a projection of outputs of our own"
    weights = own | {"content.rel_embeddings": table, "o_proj.weight": output}
    return Case(name, dict(d_model=d_model, heads=heads, content=content), source, shape, weights,
                run, causal=False)


def cope_case(name, shape, sizes, positions):
    """x-transformers' CoPE between projections of our own."""
    from x_transformers.x_transformers import CoPE
    d_model, H, G, K = sizes
    module = randomise(CoPE(K, H, positions))
    widths = dict(q=(H * K, d_model), k=(G * K, d_model), v=(G * K, d_model), o=(d_model, H * K))
    maps = {one: 1.2 * torch.randn(width) / math.sqrt(width[1]) for one, width in widths.items()}

    def run(x):
        split = lambda one, heads: (x @ maps[one].T).view(*x.shape[:2], heads, K).transpose(1, 2)
        q, k, v = split("q", H), *(split(one, G).repeat_interleave(H // G, 1) for one in "kv")
        scores = q @ k.transpose(2, 3) / math.sqrt(K) + causal_mask(x.shape[1])
        p = (scores + module(q, scores)).softmax(-1)
        return (p @ v).transpose(1, 2).flatten(2) @ maps["o"].T, {}

    source = (published(CoPE).replace("x_transformers", "x-transformers", 1) +
              ", between projections of our own")
    weights = {f"{one}_proj.weight": weight for one, weight in maps.items()}
    weights["content.pos_emb"] = 2 * module.pos_emb.data
    module.pos_emb.data = weights["content.pos_emb"]
    config = dict(d_model=d_model, heads=dict(n_heads=H, n_kv_heads=G, head_dim=K),
                  content=dict(kind="cope", n_positions=positions))
    return Case(name, config, source, shape, weights, run)


def cape_case(arguments, name, shape, sizes, sort, width):
    """CAPE over ALiBi or KERPLE, between projections of our own."""
    published_file = module_at("DAPE", arguments.repository("DAPE") / "DAPE.py")
    d_model, H, G, K = sizes
    if sort == "alibi":
        module_class, bias = published_file.AliBi_DAPE, dict(kind="alibi")
        module = randomise(module_class(H, mp_rank=0, mlp_width=width))
    else:
        module_class, bias = published_file.ParallelKerpleLog_DAPE, dict(kind="kerple_log")
        torch.cuda.current_device = lambda: "cpu"
        module = randomise(module_class(types.SimpleNamespace(
            num_attention_heads=H, params_dtype=torch.float64, mlp_width=width, pos_emb=None), 0))
        for number in (module.bias_p, module.bias_a):
            number.data = 0.1 + torch.rand_like(number)
    widths = dict(q=(H * K, d_model), k=(G * K, d_model), v=(G * K, d_model), o=(d_model, H * K))
    maps = {one: 1.2 * torch.randn(width) / math.sqrt(width[1]) for one, width in widths.items()}

    def run(x):
        split = lambda one, heads: (x @ maps[one].T).view(*x.shape[:2], heads, K).transpose(1, 2)
        q, k, v = split("q", H), *(split(one, G).repeat_interleave(H // G, 1) for one in "kv")
        scores = module(q @ k.transpose(2, 3) / math.sqrt(K)) + causal_mask(x.shape[1])
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ maps["o"].T, {}

    source = ("chuanyang-Zheng/DAPE bde344a844f2bd1f498b2bac70240dcda41c50c1 "
              f"DAPE.{module_class.__name__}, torch {torch.__version__}, {LIFTED}" +
              (", torch.cuda.current_device rebound to the CPU" if sort != "alibi" else "") +
              ", between projections of our own")
    weights = {f"{one}_proj.weight": weight for one, weight in maps.items()}
    weights |= {f"content.{one}": weight for one, weight in module.state_dict().items()
                if one.startswith("mlp2")}
    if sort != "alibi":
        weights |= {f"bias.{one}": getattr(module, one).data for one in ("bias_p", "bias_a")}
    config = dict(d_model=d_model, heads=dict(n_heads=H, n_kv_heads=G, head_dim=K), bias=bias,
                  content=dict(kind="cape", mlp_width=width))
    return Case(name, config, source, shape, weights, run)


def attention__content(arguments):
    yield forget_case(arguments, "forget-gate", (2, 70), (20, 4, 2))
    yield forget_case(arguments, "forget-gate-long", (1, 200), (21, 3, 3), qk_norm=True,
                      use_output_gate=True, qkv_bias=True)
    yield forget_case(arguments, "forget-gate-window", (1, 131), (12, 2, 1), window=30)
    yield cope_case("cope", (2, 70), (14, 4, 2, 6), 12)
    yield cope_case("cope-long", (1, 200), (12, 3, 1, 7), 64)
    yield cape_case(arguments, "cape-alibi", (2, 70), (14, 4, 2, 6), "alibi", 9)
    yield cape_case(arguments, "cape-kerple", (1, 131), (12, 3, 1, 7), "kerple", 32)
    yield transformer_xl_case(arguments, "transformer-xl", (2, 70), (14, 3, 5))
    yield transformer_xl_case(arguments, "transformer-xl-same-length", (1, 131), (12, 2, 6),
                              same_length=40)
    yield transformer_xl_case(arguments, "transformer-xl-clamped", (1, 131), (12, 2, 7), clamp=50)


def bidirectional_attention__content(arguments):
    yield xlnet_case("xlnet", (2, 70), (15 + 1, 4))
    yield xlnet_case("xlnet-clamped", (1, 131), (12, 2), clamp=30)
    yield deberta_case("deberta", (2, 70), (15, 3), 40)
    yield deberta_case("deberta-v2", (1, 131), (12, 2), 64, buckets=16)
    yield deberta_case("deberta-v2-shared", (2, 70), (14, 2), 40, buckets=12, shared=True)
    yield deberta_case("deberta-content-to-position", (1, 70), (12, 2), 64, terms=("c2p",))
