"""Makes the golden files of this folder: what the published implementations compute, in float64.

    pip install torch==2.15.0 transformers==4.57.6 numpy safetensors einops
    pip install --no-deps flash-linear-attention==0.4.1 fla-core==0.4.1
    pip install hydra-core rich opt_einsum               # only what safari imports, for Hyena
    git clone https://github.com/HazyResearch/safari     # 02220c69d247e5473616cd053a443ad99fd2559b
    git clone https://github.com/mit-han-lab/streaming-llm  # 2e5042606d69933d88fbf909bd77907456b9b4dd
    git clone https://github.com/sheryc/resonance_rope    # 4a7f5a703b2e96756939db51916937ab7c5ab3a9
    git clone https://github.com/datamllab/LongLM         # cdbbb061dc76438c46d7e1ddc500f8e4bf255574
    git clone https://github.com/HKUNLP/ChunkLlama        # 2add4d7c99d24dcc1ab03414cc602abb2e28cf2c
    git clone https://github.com/Glaciohound/LM-Infinite  # a0ce64c6b7ae54f6059668c899603a6eb0c94c18
    git clone https://github.com/BlinkDL/RWKV-LM          # 524481d5099b38d9bc8ef1e89209161b86c8011b
    pip install --no-deps torchscale==0.3.0 xlstm==2.0.6 mlstm_kernels==2.0.6
    pip install --no-deps performer-pytorch==1.1.4 local-attention==1.11.2 \\
        axial-positional-embedding hyper-connections entmax==1.3 rotary-embedding-torch==0.9.1 \\
        axial-attention==0.6.1
    git clone https://github.com/idiap/fast-transformers # 2ad36b97e64cb93862937bd21fcc9568d989561f
    git clone https://github.com/OpenNLPLab/cosFormer    # 8e12da111e2a683ea875711e0bf5810c6b4e8f9f
    pip install jax==0.7.2 jaxlib==0.7.2 flax==0.12.0     # only what minimal-LRU imports
    git clone https://github.com/NicolasZucchet/minimal-LRU  # bbd71b1104c399ec0d13819527d791949e66f599
    git clone https://github.com/openai/sparse_attention  # c53f3bdbf6225be0582f0357072e82b13c69be7d
    git clone https://github.com/lucidrains/FLASH-pytorch  # ef3bee782565e2e71815572186efdc2d8377fc6c
    git clone https://github.com/apple/ml-sigmoid-attention  # 9273b493f234ccbb184cab1131010dd0e965d8ce
    git clone https://github.com/shawntan/stickbreaking-attention
                                      # 3147a3841b025a31d271fc8f873120ff6fa0461b
    git clone https://github.com/thu-nics/MoA            # e224fe3e00cf5e10a2fca36b52b026fc18669931
    git clone https://github.com/microsoft/torchscale    # 4d1e0e82e5adf86dd424f1463192635b73fc8efc
    git clone https://github.com/dvlab-research/LongLoRA  # d4eb344c5ccc9e91c0812a2b2aeea69070df8c33
    git clone https://github.com/linxihui/dkernel        # 0d4e90e4ead038c8a0f318b9260522f0ca51f554
    git clone https://github.com/kimiyoung/transformer-xl  # 44781ed21dbaec88b280f74d9ae2877f52b492a5
    git clone https://github.com/chuanyang-Zheng/DAPE    # bde344a844f2bd1f498b2bac70240dcda41c50c1
    pip install --no-deps x-transformers==2.31.10 einx==0.4.3 loguru frozendict torch-einops-utils
    pip download --no-deps fla-core==0.6.0               # unpacked: its naive forgetting attention
    git clone https://github.com/state-spaces/s4         # e757cef57d89e448c413de7325ed5601aceaac13
    git clone https://github.com/microsoft/unilm         # 768a3c873f598bb9b4d4dfb9267b099e35f8fe56
    git clone https://github.com/facebookresearch/PhysicsLM4  # 75806965208c55e9f7f2e2363d3793d2da75d2e4
    pip install --no-deps labml==0.5.3 labml-nn==0.5.1 labml-helpers==0.4.89
    git clone https://github.com/AntNLP/nope_head_scale  # 51e0a82aeb8afc6d3dcc92f4e29be16ec2a63804
    pip install --no-deps VN-transformer==0.1.0 flash-cosine-sim-attention==0.2.2
    python generate.py --repository safari=safari        # all layers
    python generate.py --layer attention                 # one

The cases of a file in `cases/` that names another version of transformers run where that one is
installed, in an environment of its own, and there they run alone.

A file holds a layer's config, its weights under the layer's names, an input x ~ N(0, 1), the output
y, and the final state where the published code exposes it. Every weight is random, norms and biases
included, so that an error in any of them shows. The published forward runs as it is; each rebinding
is named in the file's `source`. The cases of a layer are a function of its name in `cases/`. Each
file is read back after writing and checked: double, finite, not near zero, and of a causal layer
the first half reproduced by running that half alone.
"""

import argparse
import importlib
import importlib.metadata
import json
import pathlib
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from common import torch

HERE = pathlib.Path(__file__).resolve().parent


class Arguments:
    """Where the published code that is no package lies."""

    def __init__(self, repositories):
        self.repositories = dict(item.split("=", 1) for item in repositories)

    def repository(self, name):
        if name not in self.repositories:
            raise SystemExit(f"this layer needs --repository {name}=PATH, a checkout of it")
        return pathlib.Path(self.repositories[name]).resolve()


def layers():
    """Every function of the modules in `cases` that makes files of a layer, `layer` or
    `layer__part`, by name; of the modules that are meant for the installed transformers."""
    found = {}
    installed = importlib.metadata.version("transformers")
    for path in sorted((HERE / "cases").glob("*.py")):
        module = importlib.import_module(f"cases.{path.stem}")
        if getattr(module, "TRANSFORMERS", "4.57.6") != installed:
            continue
        for name, item in vars(module).items():
            if getattr(item, "__module__", None) == module.__name__ and callable(item) and (
                    item.__code__.co_varnames[:1] == ("arguments",)):
                found[name] = item
    return found


def check(path, case):
    """Throws unless the file says what it must; `case.run` is the published forward."""
    with safetensors.safe_open(path, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    assert set(metadata) == {"layer", "config", "source", "precision"}
    for name, tensor in tensors.items():
        if tensor.dtype != np.int64:
            assert (tensor.dtype == np.float64 and np.isfinite(tensor).all()
                    and np.abs(tensor).max() > 0), (path.name, name)
    # A result that passed through float32 on its way would be representable there.
    y, half = tensors["y"], case.shape[1] // 2
    assert 0.05 < np.sqrt(np.mean(y**2)) < 50, path.name
    assert case.precision == "float32" or (y.astype(np.float32) != y).any(), path.name
    error = 0.0
    if case.causal:
        again = case.run(torch.from_numpy(tensors["x"][:, :half].copy()))[0].numpy()
        error = np.linalg.norm(again - y[:, :half]) / np.linalg.norm(again)
        assert error < (1e-10 if case.precision == "float64" else 1e-5), (path.name, error)
    print(f"{path.name}: rms {np.sqrt(np.mean(y ** 2)):.2f}, first half alone {error:.0e}, "
          f"{path.stat().st_size / 1024:.0f} KiB")


def write(maker, make, arguments):
    # Each maker draws from its own seed, so that its files do not depend on the others'.
    torch.manual_seed(zlib.crc32(maker.encode()))
    layer = maker.partition("__")[0]
    for case in make(arguments):
        x = torch.randn(*case.shape, case.config["d_model"])
        y, states, *outputs = case.run(x)
        tensors = {"x": x, "y": y}
        for kind, values in (("weights", case.weights), ("in", case.inputs), ("state", states),
                             ("out", outputs[0] if outputs else {})):
            tensors |= {f"{kind}.{name}": tensor for name, tensor in values.items()}
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        metadata = {"layer": layer, "config": json.dumps(case.config), "source": case.source,
                    "precision": case.precision}
        path = HERE / f"{layer}--{case.name}.safetensors"
        safetensors.numpy.save_file(arrays, path, metadata)
        check(path, case)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", action="append", help="only this one; may be given repeatedly")
    parser.add_argument("--repository", action="append", default=[], metavar="NAME=PATH",
                        help="a checkout of published code that is no package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers = layers()
    for unknown in set(options.layer or ()) - set(makers):
        raise SystemExit(f"no layer is called {unknown}; there are {', '.join(makers)}")
    with torch.inference_mode():
        for layer, make in makers.items():
            if options.layer is None or layer in options.layer:
                write(layer, make, Arguments(options.repository))


if __name__ == "__main__":
    main()
