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


def block_case(name, family, prefix, layer, shape, config, theirs, names, rotary=True, masked=True,
               fused=None, unit_offset=False, settle=lambda layer, config: None, after=""):
    """A published layer. `config` is ours, `theirs` what its class's takes; `names` says how we call
    what its tensors begin with; `fused(weights)` takes apart what is several of ours."""
    Layer, Config = hugging_face(family, layer, f"{prefix}Config")
    settings = Config(**theirs, num_hidden_layers=1, attn_implementation="eager")
    module = Layer(settings, layer_idx=0)
    settle(module, settings)
    randomise(module)
    positions = hugging_face(family, f"{prefix}RotaryEmbedding")[0](settings) if rotary else None
    weights = module.state_dict()
    if fused:
        fused(weights)

    def renamed_here(key):
        head = next(head for head in names if key.startswith(head + "."))
        return names[head] + key[len(head):]

    weights = {renamed_here(key): tensor + (unit_offset and "norm" in key)
               for key, tensor in weights.items()}

    def run(x):
        arguments = dict(attention_mask=causal_mask(x.shape[1])) if masked else {}
        if rotary:
            at = torch.arange(x.shape[1])[None].expand(len(x), -1)
            arguments["position_embeddings"] = positions(x, at)
        y = module(x, **arguments)
        return y[0] if isinstance(y, tuple) else y, {}

    source = published(Layer) + (f", with {prefix}RotaryEmbedding" if rotary else "") + ", eager" + (
        ", explicit causal mask" if masked else "") + after
    return Case(name, config, source, shape, weights, run, causal=masked)


def block(arguments):
    """Blocks of every form; the published names are those of the parts of a block here."""
    def norm(kind, eps, **more):
        return dict(kind=kind, eps=eps, **more)

    def part(name, layer, config, **more):
        return dict(name=name, layer=layer, config=config, **more)

    def attention(n_heads, n_kv_heads, head_dim, rotary_dim, **more):
        return dict(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
                    rotary_dim=rotary_dim, **more)

    def feed_forward(d_ff, activation="silu", gated=True, bias=False):
        return dict(d_ff=d_ff, activation=activation, gated=gated, bias=bias)

    def sizes(d_model, d_ff, n_heads, **more):
        return dict(hidden_size=d_model, intermediate_size=d_ff, num_attention_heads=n_heads,
                    **more)

    around_one = norm("rms_around_one", 1e-5)
    yield block_case(
        "gemma2", "gemma2", "Gemma2", "Gemma2DecoderLayer", (2, 37),
        dict(d_model=15, branches=[
            dict(before=around_one, after=around_one, parts=[part(
                "mixer", "attention", attention(4, 2, 6, 6, soft_cap=3.0, score_scale=5**-0.5))]),
            dict(before=around_one, after=around_one,
                 parts=[part("channel", "feed_forward", feed_forward(22, "gelu_tanh"))])]),
        sizes(15, 22, 4, num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-5,
              query_pre_attn_scalar=5, attn_logit_softcapping=3.0),
        dict(input_layernorm="branches.0.before", post_attention_layernorm="branches.0.after",
             pre_feedforward_layernorm="branches.1.before",
             post_feedforward_layernorm="branches.1.after", self_attn="mixer", mlp="channel"))

    def heads_apart(weights):
        for kind in ("weight", "bias"):
            fused = weights.pop(f"attention.query_key_value.{kind}")
            for one, rows in zip("qkv", fused.view(4, 3, 5, *fused.shape[1:]).unbind(1)):
                weights[f"attention.{one}_proj.{kind}"] = rows.reshape(20, *fused.shape[1:])

    own = norm("layer", 1e-5, bias=True)
    yield block_case(
        "gpt-neox-parallel", "gpt_neox", "GPTNeoX", "GPTNeoXLayer", (1, 131),
        dict(d_model=20, branches=[dict(parts=[
            part("mixer", "attention", attention(4, 4, 5, 2, qkv_bias=True, o_bias=True),
                 before=own),
            part("channel", "feed_forward", feed_forward(33, "gelu", gated=False, bias=True),
                 before=own)])]),
        sizes(20, 33, 4, rotary_pct=0.5, hidden_act="gelu", layer_norm_eps=1e-5,
              use_parallel_residual=True),
        {"input_layernorm": "mixer_before", "post_attention_layernorm": "channel_before",
         "attention.dense": "mixer.o_proj", "attention": "mixer",
         "mlp.dense_h_to_4h": "channel.up_proj", "mlp.dense_4h_to_h": "channel.down_proj"},
        fused=heads_apart, after="; query_key_value is split here")

    last = norm("layer", 1e-12, bias=True)
    yield block_case(
        "bert", "bert", "Bert", "BertLayer", (2, 37),
        dict(d_model=18, branches=[
            dict(last=last, parts=[part("mixer", "bidirectional_attention", attention(
                3, 3, 6, 0, qkv_bias=True, o_bias=True))]),
            dict(last=last, parts=[part("channel", "feed_forward",
                                        feed_forward(25, "gelu", gated=False, bias=True))])]),
        sizes(18, 25, 3),
        {"attention.self.query": "mixer.q_proj", "attention.self.key": "mixer.k_proj",
         "attention.self.value": "mixer.v_proj", "attention.output.dense": "mixer.o_proj",
         "attention.output.LayerNorm": "branches.0.last", "intermediate.dense": "channel.up_proj",
         "output.dense": "channel.down_proj", "output.LayerNorm": "branches.1.last"},
        rotary=False, masked=False)

    def no_mup(module, config):
        compute, = hugging_face("falcon_h1", "compute_mup_vector")
        module.mamba.register_buffer("mup_vector", compute(config).double(), persistent=False)

    rms = norm("rms", 1e-5)
    yield block_case(
        "falcon-h1-side-by-side", "falcon_h1", "FalconH1", "FalconH1DecoderLayer", (1, 131),
        dict(d_model=12, branches=[
            dict(before=rms, parts=[
                part("mamba", "mamba2",
                     dict(n_heads=4, head_dim=5, state_size=7, n_groups=1, conv_kernel=4,
                          rms_norm=False), input_multiplier=1.3, output_multiplier=0.7),
                part("attention", "attention", attention(3, 1, 4, 4), input_multiplier=0.6,
                     output_multiplier=1.4)]),
            dict(before=rms, parts=[part("channel", "feed_forward", feed_forward(22))])]),
        sizes(12, 22, 3, num_key_value_heads=1, head_dim=4, rms_norm_eps=1e-5, mamba_d_ssm=20,
              mamba_n_heads=4, mamba_d_head=5, mamba_d_state=7, mamba_n_groups=1, mamba_d_conv=4,
              mamba_chunk_size=32, mamba_rms_norm=False, ssm_in_multiplier=1.3,
              ssm_out_multiplier=0.7, attention_in_multiplier=0.6, attention_out_multiplier=1.4,
              key_multiplier=1.0, rope_theta=10000.0),
        dict(input_layernorm="branches.0.before", pre_ff_layernorm="branches.1.before",
             mamba="mamba", self_attn="attention", feed_forward="channel"), settle=no_mup)

    yield block_case(
        "granite-multiplier", "granite", "Granite", "GraniteDecoderLayer", (2, 37),
        dict(d_model=12, branches=[
            dict(before=rms, multiplier=0.22, parts=[part(
                "mixer", "attention", attention(3, 1, 4, 4, score_scale=0.3))]),
            dict(before=rms, multiplier=0.22,
                 parts=[part("channel", "feed_forward", feed_forward(22))])]),
        sizes(12, 22, 3, num_key_value_heads=1, rms_norm_eps=1e-5, residual_multiplier=0.22,
              attention_multiplier=0.3),
        dict(input_layernorm="branches.0.before", post_attention_layernorm="branches.1.before",
             self_attn="mixer", mlp="channel"))
