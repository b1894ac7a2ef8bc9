"""What the cases of all layers share: the lifted precision, random weights, names of sources."""

import dataclasses
import importlib
import importlib.metadata
import math
import types
import typing

import torch

__all__ = ["Case", "LIFTED", "causal_mask", "hugging_face", "math", "published", "randomise",
           "torch", "types", "weights_of"]

# The published modules cast to float32 inside; these names, rebound before import, lift that.
torch.float32 = torch.float = torch.float64
torch.complex64 = torch.cfloat = torch.complex128
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)
LIFTED = (
    "float64; torch.float32, torch.float, torch.complex64, torch.cfloat and torch.Tensor.float "
    "rebound to their doubles before import")


@dataclasses.dataclass
class Case:
    """One golden file. `run` maps x [B, T, D] to (y, {state name: tensor}), or to these two and
    {output name: tensor}; it runs on any prefix of x where the layer is causal."""
    name: str
    config: dict
    source: str
    shape: tuple  # (B, T)
    weights: dict
    run: typing.Callable
    inputs: dict = dataclasses.field(default_factory=dict)  # side values and fixed memories
    causal: bool = True
    precision: str = "float64"


def randomise(module):
    """Matrices keep the scale of their input, norm weights lie around 1, biases around 0."""
    for name, parameter in module.named_parameters():
        noise = torch.randn_like(parameter)
        if "norm" in name:
            parameter.data = 1 + 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.5 * noise
        else:
            parameter.data = 1.2 * noise / math.sqrt(parameter[0].numel())
    return module.eval()


def weights_of(module, **renamed):
    """The module's tensors, `renamed` by module name; a leading part that is not listed stays."""
    result = {}
    for name, tensor in module.state_dict().items():
        head, _, tail = name.partition(".")
        result[".".join(filter(None, (renamed.get(head, head), tail)))] = tensor
    return result


def published(item, rebindings=LIFTED):
    """`source` of a class or function of a package. The README's table of layers is made from what
    stands before torch's version; tests/support/published.hpp says how it is read."""
    module = item.__module__.split(".")[0]
    package = {"fla": "flash-linear-attention"}.get(module, module)
    version = importlib.metadata.version(package)
    return (f"{package} {version} {item.__module__}.{item.__qualname__}, "
            f"torch {torch.__version__}, {rebindings}")


def hugging_face(family, *names):
    """Classes of one model family of transformers."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    configuration = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    return [getattr(module if hasattr(module, name) else configuration, name) for name in names]


def causal_mask(length):
    return torch.full((length, length), -math.inf).triu(1)[None, None]
