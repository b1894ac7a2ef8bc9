"""State spaces."""

import contextlib
import importlib.util
import sys

from common import *


# What most published mixers have, and the files of those that have it name too.
MAMBA2_FLAGS = dict(conv_bias=True, bias=False, rms_norm=True, norm_before_gate=False)


def mamba2_case(name, shape, module, source, fields, cache_of, weights=weights_of):
    fields = {**MAMBA2_FLAGS, **fields}
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
    return Case(name, config, source, shape, weights(module), run)


def mamba2_hybrids():
    """The mixers of hybrid models, whose caches are lists for attention layers too; here a plain
    holder of the same lists stands for them."""
    def case(name, shape, family, mixer, source="", weights=weights_of, prepare=None, extra=None,
             **fields):
        c = types.SimpleNamespace(**{**MAMBA2_FLAGS, **fields})
        config_name = mixer.replace("Mixer", "").replace("MambaLayer", "") + "Config"
        Mixer, Config = hugging_face(family, mixer, config_name)
        config = Config(hidden_size=c.d_model, mamba_expand=c.n_heads * c.head_dim // c.d_model,
                        mamba_n_heads=c.n_heads, mamba_d_head=c.head_dim,
                        mamba_d_state=c.state_size, mamba_n_groups=c.n_groups,
                        mamba_d_conv=c.conv_kernel,
                        mamba_conv_bias=c.conv_bias, mamba_proj_bias=c.bias, mamba_chunk_size=32,
                        rms_norm_eps=c.norm_eps, num_hidden_layers=1, num_attention_heads=2,
                        num_key_value_heads=1, **(extra or {}))
        module = Mixer(config, layer_idx=0)
        if prepare:
            prepare(module, config)

        def cache_of(batch):
            channels = c.n_heads * c.head_dim + 2 * c.n_groups * c.state_size
            states = [torch.zeros(batch, c.n_heads, c.head_dim, c.state_size)]
            return types.SimpleNamespace(
                has_previous_state=False, ssm_states=states,
                conv_states=[torch.zeros(batch, channels, c.conv_kernel)]), {}

        return mamba2_case(name, shape, module, published(Mixer.torch_forward) + source, fields,
                           cache_of, weights)

    sizes = dict(dt_min=0.0, dt_max=math.inf, conv_kernel=4, norm_eps=1e-5)
    yield case("bamba-biases", (2, 70), "bamba", "BambaMixer", d_model=10, n_heads=4, head_dim=5,
               state_size=7, n_groups=2, norm_groups=1, bias=True, **sizes)
    yield case("granite-no-conv-bias", (2, 41), "granitemoehybrid", "GraniteMoeHybridMambaLayer",
               d_model=14, n_heads=4, head_dim=7, state_size=9, n_groups=1, norm_groups=1,
               conv_bias=False, **sizes)

    multipliers = dict(ssm_multipliers=[0.4, 1.25, 0.7, 1.5, 0.9], ssm_in_multiplier=1.3)

    def multiply(module, config):
        compute, = hugging_face("falcon_h1", "compute_mup_vector")
        module.register_buffer("mup_vector", compute(config).double(), persistent=False)

    def folded(module):
        weights = weights_of(module)
        weights["in_proj.weight"] = (module.ssm_in_multiplier * module.mup_vector.reshape(-1, 1) *
                                     weights["in_proj.weight"])
        return weights

    source = "; its multipliers folded into in_proj.weight"
    falcon = dict(mamba_d_ssm=20, **multipliers)
    yield case("falcon-norm-before-gate", (2, 70), "falcon_h1", "FalconH1Mixer", source, folded,
               multiply, {**falcon, "mamba_rms_norm": True, "mamba_norm_before_gate": True},
               d_model=10, n_heads=4, head_dim=5, state_size=7, n_groups=2, norm_groups=2,
               norm_before_gate=True, **sizes)
    yield case("falcon-no-norm", (1, 131), "falcon_h1", "FalconH1Mixer", source, folded, multiply,
               {**falcon, "mamba_rms_norm": False}, d_model=10, n_heads=4, head_dim=5,
               state_size=7, n_groups=1, norm_groups=1, rms_norm=False, **sizes)


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
    yield from mamba2_hybrids()


def state_spaces(arguments, name):
    """The module models/s4/`name`.py of a checkout of state-spaces/s4."""
    stubs = {}
    for stub in ("scipy", "scipy.special", "pytorch_lightning", "pytorch_lightning.utilities",
                 "src", "src.models", "src.models.nn"):
        stubs[stub] = types.ModuleType(stub)
    stubs["scipy"].special = stubs["scipy.special"]
    stubs["pytorch_lightning.utilities"].rank_zero_only = lambda function: function
    stubs["src.models.nn"].DropoutNd = torch.nn.Identity
    before = {stub: sys.modules.pop(stub) for stub in stubs if stub in sys.modules}
    sys.modules.update(stubs)
    try:
        path = arguments.repository("s4") / "models" / "s4" / f"{name}.py"
        specification = importlib.util.spec_from_file_location(f"state_spaces_{name}", path)
        module = importlib.util.module_from_spec(specification)
        with open("/dev/null", "w") as nothing, contextlib.redirect_stderr(nothing):
            specification.loader.exec_module(module)
        return module
    finally:
        for stub in stubs:
            del sys.modules[stub]
        sys.modules.update(before)


def state_spaces_source(item):
    return (f"state-spaces/s4 e757cef57d89 models/s4/{item}, torch {torch.__version__}, {LIFTED}; "
            "scipy.special, pytorch_lightning and src.models.nn, whose parts only training or a "
            "log uses, are empty modules")


def perturb(module):
    """Every number random, kernels around their published initial values."""
    for name, parameter in module.named_parameters():
        noise = torch.randn_like(parameter)
        if name.endswith(("A_real", "A_imag")):
            parameter.data *= 1 + 0.2 * noise
        elif "kernel" in name:
            parameter.data += 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif name.endswith("weight"):
            parameter.data = 1.2 * noise / math.sqrt(parameter[0].numel())
    return module.eval()


def planes(state):
    """[B, D, N / 2] of complex numbers as [B, N / 2, {re, im}, D]."""
    return torch.view_as_real(state).permute(0, 2, 3, 1)


def s4d(arguments):
    minimal = state_spaces(arguments, "s4d")

    def case(name, shape, d_model, state_size):
        module = perturb(minimal.S4D(d_model, state_size, transposed=False, dt_min=0.01))
        fields = dict(d_model=d_model, state_size=state_size, discretization="zoh")
        return Case(name, fields, state_spaces_source("s4d.py S4D"), shape, weights_of(module),
                    lambda x: (module(x)[0], {}))

    yield case("odd", (2, 37), 11, 14)
    yield case("long", (2, 150), 16, 32)

    full = state_spaces(arguments, "s4")
    source = state_spaces_source("s4.py S4Block with SSMKernelDiag") + (
        "; its fixed B of ones left out, inv_dt as log_dt, A_real as log_A_real, -A_imag as "
        "A_imag, a matrix as a convolution with one tap; state from [B, D, N / 2] of complex "
        "numbers as [B, N / 2, 2, D]")

    def general(name, shape, d_model, state_size, discretization):
        module = perturb(full.S4Block(
            d_model, transposed=False, mode="diag", init="diag-lin", d_state=state_size,
            disc=discretization, dt_min=0.01, backend="naive"))
        kernel = module.layer.kernel
        kernel.B.data = torch.view_as_real(torch.ones(kernel.B.shape[:-1], dtype=torch.cdouble))
        weights = {"kernel.C": kernel.C[0], "kernel.log_dt": kernel.inv_dt[:, 0],
                   "kernel.log_A_real": kernel.A_real, "kernel.A_imag": -kernel.A_imag,
                   "D": module.layer.D[0],
                   "output_linear.0.weight": module.output_linear[0].weight[..., None],
                   "output_linear.0.bias": module.output_linear[0].bias}
        fields = dict(d_model=d_model, state_size=state_size, discretization=discretization)

        def run(x):
            y, state = module(x, state=module.default_state(len(x)))
            return y, {"ssm": planes(state)}

        weights = {key: tensor.detach().clone() for key, tensor in weights.items()}
        return Case(name, fields, source, shape, weights, run)

    yield general("bilinear-odd", (2, 53), 7, 10, "bilinear")
    yield general("zoh-state", (1, 131), 9, 16, "zoh")


def s4(arguments):
    full = state_spaces(arguments, "s4")
    source = state_spaces_source("s4.py S4Block with SSMKernelDPLR") + (
        "; state from [B, D, N / 2] of complex numbers as [B, N / 2, 2, D]")

    def case(name, shape, d_model, state_size, n_ssm, l_kernel, init="legs"):
        module = perturb(full.S4Block(
            d_model, transposed=False, mode="dplr", init=init, d_state=state_size, n_ssm=n_ssm,
            dt_min=0.01, backend="naive"))
        kernel = module.layer.kernel
        if l_kernel > 0:
            kernel._setup_C(l_kernel)  # as the first call of that length does
        weights = {key: tensor.clone() for key, tensor in weights_of(module, layer="").items()}
        assert weights.pop("kernel.l_kernel").item() == l_kernel
        fields = dict(d_model=d_model, state_size=state_size, n_ssm=n_ssm, l_kernel=l_kernel)

        def run(x):
            state = torch.zeros(len(x), d_model, state_size // 2, dtype=torch.cdouble)
            y, state = module(x, state=state)
            return y, {"ssm": planes(state)}

        return Case(name, fields, source, shape, weights, run)

    yield case("odd", (2, 37), 7, 10, 7, 0)
    yield case("cut-odd", (1, 45), 9, 14, 3, 45, "fout")
    yield case("long", (2, 150), 12, 32, 1, 64)
