"""The gated attention unit."""

import sys

from cases import biases
from common import *


def flash_pytorch(arguments, name):
    sys.path.insert(0, str(arguments.repository("FLASH-pytorch")))
    from flash_pytorch import flash_pytorch as module
    source = (f"lucidrains/FLASH-pytorch ef3bee782565e2e71815572186efdc2d8377fc6c {name}, "
              f"torch {torch.__version__}, {LIFTED}; buckets by T5Attention's float32")
    return module, source


def randomised(module, scales, reach):
    """Every weight random, and scores about as large as `reach`, by which they are divided."""
    randomise(module)
    scales.gamma.data = math.sqrt(reach) * torch.randn_like(scales.gamma)
    scales.beta.data = 0.5 * math.sqrt(reach) * torch.randn_like(scales.beta)
    table = module.rel_pos_bias
    table.relative_attention_bias.weight.data = (
        reach / table.scale * torch.randn_like(table.relative_attention_bias.weight))
    table._relative_position_bucket = (
        lambda ahead, causal, num_buckets, max_distance: biases.t5_buckets(
            ahead, not causal, num_buckets, max_distance))
    return module


def padded(module, x, length):
    """What the module gives for the first tokens of a sequence of `length`, of which x are those
    that count: later ones are hidden from them."""
    rest = torch.zeros(len(x), length - x.shape[1], x.shape[2])
    return module(torch.cat((x, rest), 1))[:, :x.shape[1]]


def gau_case(arguments, name, shape, causal, sizes, norm="layer", laplace=False, residual=True,
             fixed=True):
    """Its length n is that of x: of a causal one it is said, and prefixes run with it, too."""
    published_code, source = flash_pytorch(arguments, "GAU")
    D, K, V = sizes
    module = published_code.GAU(
        dim=D, query_key_dim=K, expansion_factor=V / D, causal=causal, add_residual=residual,
        laplace_attn_fn=laplace,
        norm_klass=published_code.ScaleNorm if norm == "scale" else torch.nn.LayerNorm)
    module = randomised(module, module.offsetscale, 0.3 * shape[1])
    config = dict(d_model=D, head_k=K, head_v=V, norm=norm, residual=residual,
                  activation="laplace" if laplace else "relu_squared")
    if fixed:
        config["normaliser_length"] = shape[1]
    if causal:
        source += "; prefixes are padded to the length of the file, which the scores are divided by"
    run = lambda x: (padded(module, x, shape[1]) if causal else module(x), {})
    return Case(name, config, source, shape, weights_of(module), run, causal=causal)


def gated_attention_unit(arguments):
    yield gau_case(arguments, "long", (1, 131), True, (16, 8, 32))
    yield gau_case(arguments, "scale-norm-odd", (2, 37), True, (13, 5, 26), norm="scale",
                   residual=False)
    yield gau_case(arguments, "laplace", (2, 70), True, (12, 16, 24), laplace=True)


def bidirectional_gated_attention_unit(arguments):
    yield gau_case(arguments, "long", (1, 131), False, (16, 8, 32), fixed=False)
    yield gau_case(arguments, "scale-norm-odd", (2, 37), False, (13, 5, 26), norm="scale",
                   residual=False)
    yield gau_case(arguments, "laplace", (2, 70), False, (12, 16, 24), laplace=True)
