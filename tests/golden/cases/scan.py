"""Diagonal recurrences: scans."""

import importlib.metadata
import sys

import numpy

from common import *


def rg_lru(arguments):
    Block, Config = hugging_face("recurrent_gemma", "RecurrentGemmaRecurrentBlock",
                                 "RecurrentGemmaConfig")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, lru_width=c.lru_width, conv1d_width=c.conv_kernel,
                        num_attention_heads=c.n_heads, num_hidden_layers=3)
        block = randomise(Block(config))
        unit = block.rg_lru
        unit.recurrent_param.data = torch.empty(c.lru_width).uniform_(-7.0, 0.5)
        for weight in (unit.input_gate_weight, unit.recurrent_gate_weight):
            weight.data *= weight.shape[1] ** 0.5

        def run(x):
            unit.recurrent_states = None
            positions = torch.arange(x.shape[1])
            y = block(x, positions[None], None, positions)
            return y, {"hidden": unit.recurrent_states, "conv": block.conv1d_state.transpose(1, 2)}

        return Case(name, fields, published(Block.forward), shape, weights_of(block), run)

    yield case("odd", (2, 37), d_model=15, lru_width=21, n_heads=3, conv_kernel=4)
    yield case("long", (2, 150), d_model=16, lru_width=24, n_heads=2, conv_kernel=4)
    yield case("one-block", (1, 131), d_model=9, lru_width=19, n_heads=1, conv_kernel=3)


def lru(arguments):
    sys.path.insert(0, str(arguments.repository("minimal-LRU")))
    import jax
    jax.config.update("jax_enable_x64", True)
    from lru.model import LRU

    source = ("minimal-LRU bbd71b14, lru.model.LRU.__call__, "
              f"jax {importlib.metadata.version('jax')}, float64 by jax_enable_x64")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        D, N = c.d_model, c.state_size
        radius = torch.empty(N).uniform_(0.3, 0.999)
        weights = {
            "theta_log": torch.empty(N).uniform_(0.01, 6.28).log(),
            "nu_log": (-radius.log()).log(),
            "gamma_log": (1 - radius**2).sqrt().log() + 0.2 * torch.randn(N),
            "B_re": torch.randn(N, D) / math.sqrt(2 * D),
            "B_im": torch.randn(N, D) / math.sqrt(2 * D),
            "C_re": torch.randn(D, N) / math.sqrt(N),
            "C_im": torch.randn(D, N) / math.sqrt(N),
            "D": torch.randn(D),
        }
        module = LRU(d_hidden=N, d_model=D)
        params = {"params": {key: value.numpy() for key, value in weights.items()}}

        def run(x):
            rows = [numpy.array(module.apply(params, row.numpy())) for row in x]
            return torch.from_numpy(numpy.stack(rows)), {}

        return Case(name, fields, source, shape, weights, run)

    yield case("odd", (2, 37), d_model=13, state_size=9)
    yield case("long", (2, 150), d_model=16, state_size=32)


def mamba(arguments):
    def case(name, shape, module, forward, fields, cache_of):
        randomise(module)
        module.A_log.data = torch.empty_like(module.A_log).uniform_(0.2, 6.0).log()
        module.dt_proj.bias.data -= 1.5
        module.D.data += 1.0

        def run(x):
            cache, rest = cache_of(len(x))
            y = forward(module, x, cache, **rest)
            conv = cache.conv_states[0][..., 1:].transpose(1, 2)
            return y, {"conv": conv, "ssm": cache.ssm_states[0].transpose(1, 2)}

        source = (published(forward) + "; conv state from [B, D, W], its last W - 1 columns as "
                  "[B, W - 1, D]; ssm state from [B, D, N] as [B, N, D]")
        return Case(name, fields, source, shape, weights_of(module), run)

    def plain(name, shape, family, prefix, norm, extra=None, **fields):
        c = types.SimpleNamespace(**fields)
        Mixer, Cache, Config = hugging_face(family, prefix + "Mixer", prefix + "Cache",
                                            prefix + "Config")
        config = Config(hidden_size=c.d_model, expand=c.d_inner / c.d_model,
                        state_size=c.state_size, time_step_rank=c.dt_rank,
                        conv_kernel=c.conv_kernel, use_conv_bias=c.conv_bias, use_bias=c.bias,
                        num_hidden_layers=1, **(extra or {}))

        def cache_of(batch):
            positions = torch.arange(c.conv_kernel)  # as many as taps: the call is a prefill
            return Cache(config, batch, torch.float64), {"cache_position": positions}

        return case(name, shape, Mixer(config, layer_idx=0), Mixer.slow_forward,
                    {"norm_eps": 1e-6, **fields, "norm": norm}, cache_of)

    yield plain("odd", (2, 37), "mamba", "Mamba", "none", d_model=11, d_inner=22, state_size=5,
                dt_rank=3, conv_kernel=4, conv_bias=True, bias=True)
    yield plain("long", (2, 150), "mamba", "Mamba", "none", d_model=16, d_inner=32, state_size=16,
                dt_rank=1, conv_kernel=4, conv_bias=True, bias=False)
    yield plain("no-conv-bias", (1, 131), "mamba", "Mamba", "none", d_model=8, d_inner=24,
                state_size=19, dt_rank=2, conv_kernel=3, conv_bias=False, bias=False)
    yield plain("falcon-weightless-norm", (2, 70), "falcon_mamba", "FalconMamba", "weightless",
                {"mixer_rms_eps": 1e-5}, d_model=10, d_inner=20, state_size=7, dt_rank=3,
                conv_kernel=4, conv_bias=True, bias=False, norm_eps=1e-5)

    Mixer, Cache, Config = hugging_face("jamba", "JambaMambaMixer",
                                        "HybridMambaAttentionDynamicCache", "JambaConfig")
    config = Config(hidden_size=12, mamba_expand=2, mamba_d_state=9, mamba_dt_rank=5,
                    mamba_d_conv=4, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, attn_layer_offset=1, attn_layer_period=2,
                    rms_norm_eps=1e-6, use_mamba_kernels=False)
    fields = dict(d_model=12, d_inner=24, state_size=9, dt_rank=5, conv_kernel=4, conv_bias=True,
                  bias=False, norm="weighted", norm_eps=1e-6)
    yield case("jamba-weighted-norm", (2, 70), Mixer(config, layer_idx=0), Mixer.slow_forward,
               fields, lambda batch: (Cache(config, batch, torch.float64), {}))
