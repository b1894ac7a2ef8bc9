"""Blocks of hybrid models: published decoder layers behind each other."""

from common import *


def renamed(name, prefixes, parts=()):
    """`name` with its first part, and any of `parts` in it, called as ours."""
    head, _, tail = name.partition(".")
    name = f"{prefixes[head]}.{tail}"
    for theirs, ours in parts:
        name = name.replace(theirs, ours)
    return name


def recurrent_gemma_block(arguments):
    Layer, Config = hugging_face("recurrent_gemma", "RecurrentGemmaDecoderLayer",
                                 "RecurrentGemmaConfig")
    names = dict(temporal_pre_norm="mixer_norm", temporal_block="mixer",
                 channel_pre_norm="channel_norm", mlp_block="channel")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, lru_width=c.lru_width, conv1d_width=c.conv_kernel,
                        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads,
                        attention_window_size=c.window, intermediate_size=2 * c.d_ff,
                        rms_norm_eps=c.norm_eps, num_hidden_layers=3)
        assert config.head_dim == c.head_dim and c.rotary_dim == c.head_dim // 2
        layers = [randomise(Layer(config, layer_idx=i)) for i in range(3)]
        for layer in layers[:2]:
            unit = layer.temporal_block.rg_lru
            unit.recurrent_param.data = torch.empty(c.lru_width).uniform_(-7.0, 0.5)
        # The published norms multiply by 1 + weight.
        weights = {f"layers.{i}.{renamed(key, names)}": tensor + ("norm" in key)
                   for i, layer in enumerate(layers) for key, tensor in layer.state_dict().items()}

        def run(x):
            positions = torch.arange(x.shape[1])
            for layer in layers:
                if hasattr(layer.temporal_block, "rg_lru"):
                    layer.temporal_block.rg_lru.recurrent_states = None
                x = layer(x, positions[None], causal_mask(x.shape[1]), positions, use_cache=False)
            return x, {}

        source = published(Layer) + (", three behind each other, explicit causal mask, within one "
                                     "window; 1 is added to the weights of its norms here")
        return Case(name, {**fields, "o_bias": True, "activation": "gelu_tanh", "gated": True,
                           "bias": True}, source, shape, weights, run)

    yield case("odd", (2, 37), d_model=12, norm_eps=1e-6, lru_width=9, n_heads=3, conv_kernel=4,
               n_kv_heads=1, head_dim=4, rotary_dim=2, window=40, d_ff=13)
    yield case("long", (1, 150), d_model=16, norm_eps=1e-5, lru_width=16, n_heads=2,
               conv_kernel=4, n_kv_heads=2, head_dim=8, rotary_dim=4, window=150, d_ff=12)


def jamba_block(arguments):
    Mamba, Attention, Config = hugging_face("jamba", "JambaMambaDecoderLayer",
                                            "JambaAttentionDecoderLayer", "JambaConfig")
    names = dict(input_layernorm="mixer_norm", mamba="mixer", self_attn="mixer",
                 pre_ff_layernorm="channel_norm", feed_forward="channel")
    experts = (("channel.router", "channel.gate"),)

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=8,
                        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads,
                        num_experts=c.n_experts, num_experts_per_tok=c.n_experts_per_token,
                        mamba_expand=c.d_inner // c.d_model, mamba_d_state=c.state_size,
                        mamba_dt_rank=c.dt_rank, mamba_d_conv=c.conv_kernel,
                        rms_norm_eps=c.norm_eps, use_mamba_kernels=False,
                        attn_implementation="eager")
        kinds = {"mamba": Mamba, "attention": Attention}
        layers = [randomise(kinds[kind](config, layer_idx=i))
                  for i, kind in enumerate(config.layers_block_type)]
        assert [type(layer) for layer in layers] == [Mamba] * 4 + [Attention] + [Mamba] * 3
        weights = {}
        for i, layer in enumerate(layers):
            if i != 4:
                mixer = layer.mamba
                mixer.A_log.data = torch.empty_like(mixer.A_log).uniform_(0.2, 6.0).log()
                mixer.dt_proj.bias.data -= 1.5
            for key, tensor in layer.state_dict().items():
                key = renamed(key, names, experts)
                if ".experts." in key:
                    for theirs, ours in dict(gate_proj="w1", up_proj="w3", down_proj="w2").items():
                        key = key.replace(theirs, ours)
                weights[f"layers.{i}.{key}"] = tensor

        def run(x):
            for layer in layers:
                mask = causal_mask(x.shape[1]) if isinstance(layer, Attention) else None
                x = layer(x, attention_mask=mask)[0]
            return x, {}

        source = (published(Mamba) + ", with JambaAttentionDecoderLayer as the fifth of eight "
                  "behind each other, eager, explicit causal mask; experts' gate_proj, up_proj and "
                  "down_proj are named w1, w3 and w2 here, the router gate")
        return Case(name, {**fields, "conv_bias": True, "bias": False, "norm": "weighted",
                           "activation": "silu", "gated": True, "router": "softmax_then_top_k",
                           "normalize_top_k": False}, source, shape, weights, run)

    yield case("odd", (2, 21), d_model=9, norm_eps=1e-6, d_inner=9, state_size=5, dt_rank=3,
               conv_kernel=4, n_heads=3, n_kv_heads=1, head_dim=3, d_ff=7, n_experts=3,
               n_experts_per_token=2)
    yield case("long", (1, 131), d_model=8, norm_eps=1e-5, d_inner=16, state_size=4, dt_rank=2,
               conv_kernel=4, n_heads=2, n_kv_heads=2, head_dim=4, d_ff=8, n_experts=4,
               n_experts_per_token=2)
