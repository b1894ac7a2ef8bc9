"""State spaces."""

from common import *


def mamba2_case(name, shape, module, source, fields, cache_of):
    randomise(module)
    module.A_log.data = torch.empty_like(module.A_log).uniform_(0.2, 6.0).log()
    module.dt_bias.data -= 1.5
    module.D.data += 1.0

    def run(x):
        cache, arguments = cache_of(len(x))
        y = module.torch_forward(x, cache, **arguments)
        conv = cache.conv_states[0][..., 1:].transpose(1, 2)
        return y, {"conv": conv, "ssm": cache.ssm_states[0].transpose(-1, -2)}

    # JSON has no infinity.
    config = {**fields, "dt_max": "Infinity" if math.isinf(fields["dt_max"]) else fields["dt_max"]}
    source += ("; conv state from [B, Dc, W], its last W - 1 columns as [B, W - 1, Dc]; ssm state from "
               "[B, H, P, N] as [B, H, N, P]")
    return Case(name, config, source, shape, weights_of(module), run)


def mamba2(arguments):
    Mixer, Cache, Config = hugging_face("mamba2", "Mamba2Mixer", "Mamba2Cache", "Mamba2Config")

    def case(name, shape, chunk, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, expand=c.n_heads * c.head_dim // c.d_model,
                        num_heads=c.n_heads, head_dim=c.head_dim, state_size=c.state_size,
                        n_groups=c.n_groups, conv_kernel=c.conv_kernel,
                        time_step_limit=(c.dt_min, c.dt_max), layer_norm_epsilon=c.norm_eps,
                        chunk_size=chunk, num_hidden_layers=1)

        def cache_of(batch):
            return Cache(config, batch, torch.float64), {"cache_position": torch.arange(1)}

        return mamba2_case(name, shape, Mixer(config, layer_idx=0), published(Mixer.torch_forward),
                           fields, cache_of)

    yield case("odd", (2, 37), 16, d_model=18, n_heads=4, head_dim=9, state_size=7, n_groups=2,
               conv_kernel=4, dt_min=0.0, dt_max=math.inf, norm_groups=1, norm_eps=1e-5)
    yield case("long", (2, 150), 64, d_model=24, n_heads=6, head_dim=8, state_size=16, n_groups=1,
               conv_kernel=4, dt_min=0.0, dt_max=math.inf, norm_groups=1, norm_eps=1e-6)
    yield case("clamped-steps", (1, 131), 32, d_model=15, n_heads=3, head_dim=5, state_size=11,
               n_groups=1, conv_kernel=3, dt_min=0.1, dt_max=0.7, norm_groups=1, norm_eps=1e-5)

    Mixer, Cache, Config = hugging_face("zamba2", "Zamba2MambaMixer", "Zamba2HybridDynamicCache",
                                        "Zamba2Config")
    fields = dict(d_model=20, n_heads=4, head_dim=10, state_size=6, n_groups=2, conv_kernel=4,
                  dt_min=0.05, dt_max=math.inf, norm_groups=2, norm_eps=1e-5)
    # Its chunk recurrence sums over the later chunk, not the earlier: right for one chunk alone.
    config = Config(hidden_size=20, mamba_expand=2, n_mamba_heads=4, mamba_headdim=10,
                    mamba_d_state=6, mamba_ngroups=2, mamba_d_conv=4, time_step_min=0.05,
                    chunk_size=128, num_hidden_layers=1, num_attention_heads=4,
                    layers_block_type=["mamba"])
    source = (published(Mixer.torch_forward) +
              "; one chunk of 128, as several chunks are summed wrongly there")
    yield mamba2_case("zamba2-grouped-norm", (2, 70), Mixer(config, layer_idx=0), source, fields,
                      lambda batch: (Cache(config, batch, torch.float64), {}))
