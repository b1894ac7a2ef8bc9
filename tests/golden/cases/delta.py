"""Delta rules."""

import importlib

from common import *


def gated_delta_net(arguments):
    Layer, Cache, Config = hugging_face("qwen3_next", "Qwen3NextGatedDeltaNet",
                                        "Qwen3NextDynamicCache", "Qwen3NextConfig")
    module = importlib.import_module(Layer.__module__)
    # Without these it takes its own torch paths.
    for operator in ("causal_conv1d_fn", "causal_conv1d_update", "chunk_gated_delta_rule",
                     "fused_recurrent_gated_delta_rule", "FusedRMSNormGated"):
        setattr(module, operator, None)
    source = published(
        Layer, f"{LIFTED}; its own torch paths (kernels of other packages are None); conv state "
        "from [B, 2 G K + H V, W], its last W - 1 columns as [B, W - 1, G, 2 K + V H / G]")

    def case(name, shape, strong=False, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, linear_num_value_heads=c.n_heads,
                        linear_num_key_heads=c.n_key_heads, linear_key_head_dim=c.head_k,
                        linear_value_head_dim=c.head_v, linear_conv_kernel_dim=c.conv_kernel,
                        rms_norm_eps=c.norm_eps, hidden_act="silu", num_hidden_layers=1,
                        layer_types=["linear_attention"])
        layer = randomise(Layer(config, layer_idx=0))
        layer.A_log.data += 3.5 if strong else -1.0

        def run(x):
            cache = Cache(config)
            y = layer(x, cache_params=cache)
            G, keys = c.n_key_heads, c.n_key_heads * c.head_k
            last = cache.conv_states[0][..., 1:].transpose(1, 2)
            parts = last.split([keys, keys, c.n_heads * c.head_v], -1)
            conv = torch.cat([part.unflatten(-1, (G, -1)) for part in parts], -1)
            return y, {"conv": conv, "memory": cache.recurrent_states[0]}

        return Case(name, fields, source, shape, weights_of(layer), run)

    yield case("odd", (2, 37), d_model=21, n_heads=6, n_key_heads=2, head_k=5, head_v=7,
               conv_kernel=4, norm_eps=1e-6)
    yield case("long", (1, 150), d_model=24, n_heads=4, n_key_heads=2, head_k=8, head_v=12,
               conv_kernel=4, norm_eps=1e-5)
    yield case("strong-gates", (1, 131), strong=True, d_model=18, n_heads=2, n_key_heads=2,
               head_k=9, head_v=5, conv_kernel=3, norm_eps=1e-6)

    import fla.layers.gated_deltanet
    from fla.models.utils import Cache as States
    fla_source = published(fla.layers.gated_deltanet.GatedDeltaNet,
                           bind_naive(fla.layers.gated_deltanet)) + (
        "; a head's gate on each key channel; weights joined as Qwen3-Next has them")

    def from_fla(name, shape, expand_v, options, **fields):
        c = types.SimpleNamespace(**fields)
        layer = randomise(fla.layers.gated_deltanet.GatedDeltaNet(
            hidden_size=c.d_model, num_heads=c.n_key_heads, head_dim=c.head_k, expand_v=expand_v,
            layer_idx=0, **options))

        def run(x):
            cache = States()
            y = layer(x, past_key_values=cache, use_cache=True)[0]
            last = [part[..., 1:].transpose(1, 2).unflatten(-1, (c.n_key_heads, -1))
                    for part in cache[0]["conv_state"]]
            return y, {"conv": torch.cat(last, -1), "memory": cache[0]["recurrent_state"]}

        own = weights_of(layer)
        own["conv1d.weight"] = torch.cat([own[f"{name}_conv1d.weight"] for name in "qkv"])
        return Case(name, fields, fla_source, shape, joined_by_key_head(own, c.n_key_heads), run)

    yield from_fla("fla-grouped-values", (2, 70), 1.5, dict(num_v_heads=4, norm_eps=1e-5),
                   d_model=20, n_heads=4, n_key_heads=2, head_k=6, head_v=9, conv_kernel=4,
                   norm_eps=1e-5)
    yield from_fla("fla-negative-eigenvalues", (1, 131), 2, dict(allow_neg_eigval=True), d_model=18,
                   n_heads=3, n_key_heads=3, head_k=5, head_v=10, conv_kernel=4,
                   negative_eigenvalues=True, norm_eps=1e-5)


def joined_by_key_head(own, n_key_heads):
    """Weights of a gated delta net whose projections stand apart, joined as Qwen3-Next has them."""
    def rows(*names):
        return torch.cat([own[f"{name}_proj.weight"].unflatten(0, (n_key_heads, -1))
                          for name in names], 1).flatten(0, 1)

    return {"in_proj_qkvz.weight": rows("q", "k", "v", "g"), "in_proj_ba.weight": rows("b", "a"),
            "conv1d.weight": own["conv1d.weight"], "dt_bias": own["dt_bias"],
            "A_log": own["A_log"], "norm.weight": own["o_norm.weight"],
            "out_proj.weight": own["o_proj.weight"]}


def bind_naive(*modules):
    """Rebinds the Triton operators of layers of flash-linear-attention; what was done, in words."""
    import fla.modules.convolution
    import fla.modules.fused_norm_gate
    import fla.modules.layernorm
    from fla.modules.layernorm_gated import rms_norm_ref
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.kda.gate import naive_kda_gate
    from fla.ops.kda.naive import naive_recurrent_kda
    from transformers.models.qwen3_next.modeling_qwen3_next import l2norm

    def convolution(self, x, cache=None, output_final_state=False, cu_seqlens=None):
        assert cache is None and cu_seqlens is None and self.activation in ("silu", "swish")
        length, taps = x.shape[1], self.kernel_size[0]
        y = torch.nn.Conv1d.forward(self, x.transpose(1, 2))[..., :length].transpose(1, 2)
        last = torch.nn.functional.pad(x.transpose(1, 2), (taps, 0))[..., -taps:]
        return torch.nn.functional.silu(y), last

    def gated_norm(x, g, weight, bias, activation, residual=None, eps=1e-6, prenorm=False,
                   residual_in_fp32=False):
        assert residual is None and not prenorm
        if activation == "sigmoid":
            return rms_norm_ref(x, weight, bias, eps=eps) * g.sigmoid()
        return rms_norm_ref(x, weight, bias, z=g, eps=eps, norm_before_gate=True)

    def norm(x, weight, bias, residual=None, eps=1e-6, prenorm=False, residual_in_fp32=False):
        assert residual is None and not prenorm
        return rms_norm_ref(x, weight, bias, eps=eps)

    def delta_rule(q, k, v, beta, initial_state=None, output_final_state=False, cu_seqlens=None,
                   use_qk_l2norm_in_kernel=False):
        assert use_qk_l2norm_in_kernel and cu_seqlens is None
        q, k, v, beta = (item.transpose(1, 2) for item in (l2norm(q), l2norm(k), v, beta))
        o, state = delta_rule_recurrence(q, k, v, beta, initial_state, output_final_state)
        return o.transpose(1, 2), state

    def kimi(q, k, v, g, beta, A_log=None, dt_bias=None, initial_state=None,
             output_final_state=False, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False,
             cu_seqlens=None):
        assert use_qk_l2norm_in_kernel and cu_seqlens is None
        if use_gate_in_kernel:
            g = gate(g, A_log, dt_bias)
        return naive_recurrent_kda(l2norm(q), l2norm(k), v, g, beta, None, initial_state,
                                   output_final_state)

    def gated(q, k, v, g, beta, **options):
        return kimi(q, k, v, g[..., None].expand_as(k), beta, **options)

    def gate(g, A_log, dt_bias):
        return naive_kda_gate(g, A_log, dt_bias, output_dtype=torch.float64)

    fla.modules.convolution.ShortConvolution.forward = convolution
    fla.modules.fused_norm_gate.rms_norm_gated = gated_norm
    fla.modules.layernorm.rms_norm = norm
    rebindings = {"chunk_gated_delta_rule": gated, "fused_recurrent_gated_delta_rule": gated,
                  "chunk_delta_rule": delta_rule, "fused_recurrent_delta_rule": delta_rule,
                  "chunk_kda": kimi, "fused_recurrent_kda": kimi, "fused_kda_gate": gate}
    for module in modules:
        for name, operator in rebindings.items():
            if hasattr(module, name):
                setattr(module, name, operator)
    return (f"{LIFTED}; Triton operators rebound: delta rules to "
            "fla.ops.delta_rule.naive.delta_rule_recurrence and "
            "fla.ops.kda.naive.naive_recurrent_kda after transformers' qwen3_next l2norm, the gate "
            "to fla.ops.kda.gate.naive_kda_gate, norms to "
            "fla.modules.layernorm_gated.rms_norm_ref, ShortConvolution.forward to its base "
            "torch.nn.Conv1d and silu; conv states [B, D, W], their last W - 1 columns "
            "behind each other as [B, W - 1, D]")


def states_of(cache):
    conv = torch.cat(cache[0]["conv_state"], 1)[..., 1:].transpose(1, 2)
    return {"conv": conv, "memory": cache[0]["recurrent_state"]}


def delta_net(arguments):
    import fla.layers.delta_net
    from fla.models.utils import Cache
    source = published(fla.layers.delta_net.DeltaNet, bind_naive(fla.layers.delta_net))

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        layer = randomise(fla.layers.delta_net.DeltaNet(
            hidden_size=c.d_model, num_heads=c.n_heads, expand_k=c.n_heads * c.head_k / c.d_model,
            expand_v=c.n_heads * c.head_v / c.d_model, conv_size=c.conv_kernel,
            use_gate=c.output_gate, allow_neg_eigval=c.negative_eigenvalues, norm_eps=c.norm_eps,
            layer_idx=0))

        def run(x):
            cache = Cache()
            return layer(x, past_key_values=cache, use_cache=True)[0], states_of(cache)

        return Case(name, fields, source, shape, weights_of(layer), run)

    yield case("odd", (2, 37), d_model=21, n_heads=3, head_k=5, head_v=7, conv_kernel=4,
               output_gate=False, negative_eigenvalues=False, norm_eps=1e-5)
    yield case("long", (1, 150), d_model=24, n_heads=2, head_k=8, head_v=12, conv_kernel=4,
               output_gate=True, negative_eigenvalues=False, norm_eps=1e-6)
    yield case("negative-eigenvalues", (1, 131), d_model=18, n_heads=2, head_k=9, head_v=9,
               conv_kernel=3, output_gate=False, negative_eigenvalues=True, norm_eps=1e-5)


def kimi_delta_attention(arguments):
    import fla.layers.kda
    from fla.models.utils import Cache
    source = published(fla.layers.kda.KimiDeltaAttention, bind_naive(fla.layers.kda)) + (
        "; weights under the names and in the shapes of the published checkpoint")
    names = {"f_proj.0": "f_a_proj", "f_proj.1": "f_b_proj", "g_proj.0": "g_a_proj",
             "g_proj.1": "g_b_proj"}

    def case(name, shape, strong=False, gate_bias=True, **fields):
        fields["gate_bias"] = gate_bias
        c = types.SimpleNamespace(**fields)
        layer = randomise(fla.layers.kda.KimiDeltaAttention(
            hidden_size=c.d_model, num_heads=c.n_heads, head_dim=c.head_k,
            expand_v=c.head_v / c.head_k, conv_size=c.conv_kernel, norm_eps=c.norm_eps,
            allow_neg_eigval=c.negative_eigenvalues, layer_idx=0))
        layer.A_log.data += 3.5 if strong else -1.0
        if not gate_bias:
            layer.g_proj[1].bias = None
        weights = {}
        for published_name, tensor in weights_of(layer).items():
            head, _, tail = published_name.rpartition(".")
            weights[f"{names[head]}.{tail}" if head in names else published_name] = tensor
        weights["A_log"] = weights["A_log"].reshape(1, 1, -1, 1)

        def run(x):
            cache = Cache()
            return layer(x, past_key_values=cache, use_cache=True)[0], states_of(cache)

        return Case(name, fields, source, shape, weights, run)

    yield case("odd", (2, 37), d_model=21, n_heads=3, head_k=5, head_v=5, conv_kernel=4,
               negative_eigenvalues=False, norm_eps=1e-5, gate_bias=False)
    yield case("long", (1, 150), d_model=24, n_heads=2, head_k=8, head_v=16, conv_kernel=4,
               negative_eigenvalues=False, norm_eps=1e-6)
    yield case("strong-gates", (1, 131), strong=True, d_model=18, n_heads=2, head_k=9, head_v=9,
               conv_kernel=3, negative_eigenvalues=True, norm_eps=1e-5)
    yield case("defaults", (2, 70), d_model=18, n_heads=3, head_k=5, head_v=5, conv_kernel=4,
               negative_eigenvalues=False, norm_eps=1e-5)
