"""Makes the model folders of `models/`: small random models of the published classes, saved by
their own `save_pretrained`, and what the classes compute from them.

    pip install torch==2.15.0 transformers==4.57.6 numpy safetensors accelerate==1.15.0
    python models.py                                     # all folders
    python models.py --model llama --model t5            # some

Folders of another version of transformers (model_folders.py says which) are made where that one is
installed, in an environment of its own, and there they are made alone.

Every parameter is random, norms and biases included. `logits` is what the class computes in float64
from exactly the stored numbers, its casts to float32 lifted as for the layers' golden files;
`logits_f32` what it computes as it is, loaded from the folder as float32. Both run with eager
attention: with the other ones of this package Gemma 2 has no caps and gpt-oss does not run. Each
folder is checked: all stored numbers are the model's, the class's own steps with its cache agree
with its forward, and numbers that differ by 1e-6 choose the same experts.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import zlib

HERE = pathlib.Path(__file__).resolve().parent
LIFTING = "--lifted-from"
if LIFTING in sys.argv:
    import common  # rebinds names of torch, so before transformers reads them

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model_folders import FOLDERS


def randomise(model):
    """Matrices keep the scale of their input; what a class sets to a constant varies around it."""
    for name, parameter in model.named_parameters():
        noise, last = torch.randn_like(parameter), name.rpartition(".")[2]
        input_first = (model.config.model_type == "gpt2" and ".h." in name) or (
            model.config.model_type == "gpt_oss" and parameter.ndim == 3)
        if "norm" in name.lower() or ".ln_" in name:
            parameter.data += 0.3 * noise
        elif last in ("A_log", "D", "recurrent_param"):
            parameter.data += 0.5 * noise
        elif name.endswith(("dt_bias", "dt_proj.bias")):
            parameter.data = -1.5 + 0.7 * noise
        elif last == "gate_up_proj_bias":
            parameter.data = 4.0 * noise  # some reach the limits of gpt-oss's activation
        elif parameter.ndim == 1 or last.endswith("bias"):
            parameter.data = 0.5 * noise
        else:
            scale = 3.0 if name.endswith(("gate.weight", "router.weight")) else 1.2
            parameter.data = scale * noise / math.sqrt(parameter.shape[-2 if input_first else -1])
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.rand_like(buffer))


def inputs_of(folder, config):
    """Token ids and what else the class reads, by the names of expected.safetensors."""
    def ids(length, count=config.vocab_size):
        return torch.randint(count, (2, length))

    if folder.model.startswith("Bert"):
        return {"tokens": ids(folder.length),
                "token_types": ids(folder.length, config.type_vocab_size),
                "lengths": torch.tensor([folder.length, folder.length - 7])}
    if folder.source_length is not None:
        return {"tokens": ids(folder.length), "source_tokens": ids(folder.source_length),
                "source_lengths": torch.tensor([folder.source_length, folder.source_length - 8])}
    return {"tokens": ids(folder.length)}


def mask_of(lengths):
    return (torch.arange(lengths.max()) < lengths[:, None]).long()


def outputs_of(folder, model, inputs):
    """What the class computes of whole sequences, by the names of expected.safetensors."""
    if folder.model.startswith("Bert"):
        out = model(input_ids=inputs["tokens"], token_type_ids=inputs["token_types"],
                    attention_mask=mask_of(inputs["lengths"]), output_hidden_states=True)
        other = {"logits": out.logits} if folder.model == "BertForMaskedLM" else {
            "pooled": out.pooler_output}
        return {"hidden": out.hidden_states[-1], **other}
    if folder.source_length is not None:
        return {"logits": model(input_ids=inputs["source_tokens"],
                                attention_mask=mask_of(inputs["source_lengths"]),
                                decoder_input_ids=inputs["tokens"], use_cache=False).logits}
    return {"logits": model(inputs["tokens"], use_cache=False).logits}


def stepped(folder, model, inputs):
    """The logits [B, T, V] of a prompt and then one token at a time, through the class's cache."""
    def rows(first):
        part = {name: tensor[first:first + folder.batch] for name, tensor in inputs.items()}
        tokens, fixed, cache = part.pop("tokens"), {}, {}
        kind = model.config.model_type
        if folder.source_length is not None:
            mask = mask_of(part["source_lengths"])
            fixed = {"attention_mask": mask, "encoder_outputs": model.get_encoder()(
                input_ids=part["source_tokens"], attention_mask=mask)}
        elif kind == "falcon_h1":
            module = sys.modules[type(model).__module__]
            cache["past_key_values"] = module.FalconHybridMambaAttentionDynamicCache(
                model.config, len(tokens), torch.get_default_dtype(),
                [torch.device("cpu")] * model.config.num_hidden_layers)
        elif kind == "recurrent_gemma" and folder.transformers.startswith("5."):
            cache["cache"] = transformers.DynamicCache(config=model.config)
        logits, past = [], 0
        for count in [folder.prompt] + [1] * (tokens.shape[1] - folder.prompt):
            call = {"cache_position": torch.arange(past, past + count), "use_cache": True}
            if kind in ("mamba", "mamba2"):  # generation gives no position of the prompt either
                taps = torch.tensor([model.config.conv_kernel])
                call["cache_position"] = None if past == 0 else taps
            elif kind == "recurrent_gemma":
                call["position_ids"] = call["cache_position"][None]
            name = "decoder_input_ids" if folder.source_length is not None else "input_ids"
            out = model(**{name: tokens[:, past:past + count]}, **call, **cache, **fixed)
            cache = {name: out[name] for name in ("past_key_values", "cache_params")
                     if out.get(name) is not None} or cache
            logits.append(out.logits)
            past += count
        return torch.cat(logits, 1)

    return torch.cat([rows(first) for first in range(0, 2, folder.batch)])


def stored(path):
    """Every tensor of a folder, and its shards."""
    tensors = {}
    for file in sorted(path.glob("model*.safetensors")):
        tensors |= safetensors.torch.load_file(file)
    return tensors


def eager():
    """Literal code in place of fused kernels."""
    kinds = ("attn",) if transformers.__version__.startswith("4.") else ("attn", "experts")
    return {f"{kind}_implementation": "eager" for kind in kinds}


def make(folder, work):
    """Writes config.json and the numbers; leaves the float32 results and the numbers in `work`."""
    torch.manual_seed(zlib.crc32(folder.name.encode()))
    model_class, path = getattr(transformers, folder.model), HERE / "models" / folder.name
    model = model_class(model_class.config_class(**folder.config)).eval()
    randomise(model)
    model.to(getattr(torch, folder.dtype))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = buffer.float()  # as published
    path.mkdir(parents=True, exist_ok=True)
    for old in path.iterdir():
        old.unlink()
    model.save_pretrained(path, **folder.save)
    (path / "generation_config.json").unlink(missing_ok=True)  # nothing of it is about the model
    if folder.publish is not None:
        config = json.loads((path / "config.json").read_text())
        config, tensors = folder.publish(config, stored(path))
        (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        safetensors.torch.save_file(tensors, path / "model.safetensors", {"format": "pt"})

    model, info = model_class.from_pretrained(path, dtype=torch.float32, output_loading_info=True,
                                              **eager())
    model = model.eval().float()
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    numbers, tensors = model.state_dict(), stored(path)
    planted = [name for name in tensors if any(part in name for part in folder.ignored)]
    assert set(info["unexpected_keys"]) <= set(planted), info
    assert bool(planted) == bool(folder.ignored)
    prefix = model_class.base_model_prefix + "."
    for name, tensor in tensors.items():
        if name not in planted and tensor.dtype != torch.uint8:
            assert torch.equal(numbers.get(name, numbers.get(prefix + name)), tensor.float()), name
    inputs = inputs_of(folder, model.config)
    outputs = outputs_of(folder, model, inputs)
    single = {f"{name}_f32": tensor for name, tensor in outputs.items()}
    for kind, made in (("inputs", inputs), ("numbers", numbers), ("single", single)):
        np.savez(work / f"{folder.name}.{kind}.npz",
                 **{name: tensor.numpy() for name, tensor in made.items()})


class Lifted(TorchDispatchMode):
    """Refuses operators that give float32, which a cast that was not lifted would."""
    SINGLE = torch.from_numpy(np.zeros(1, np.float32)).dtype

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        result = operator(*arguments, **(named or {}))
        assert all(getattr(leaf, "dtype", None) != self.SINGLE for leaf in tree_leaves(result))
        return result


def relative(difference, expected):
    return (difference.abs().max() / expected.abs().max()).item()


def expect(folder, work):
    """Writes expected.safetensors, in a process in which casts to float32 are lifted."""
    torch.manual_seed(zlib.crc32(folder.name.encode()))
    model_class, path = getattr(transformers, folder.model), HERE / "models" / folder.name
    inputs, numbers, single = (
        {name: torch.from_numpy(array)
         for name, array in np.load(work / f"{folder.name}.{kind}.npz").items()}
        for kind in ("inputs", "numbers", "single"))
    config = model_class.config_class.from_pretrained(path, **eager())
    with Lifted():
        model = model_class(config).eval()
        model.load_state_dict({name: tensor.double() for name, tensor in numbers.items()})
        outputs = outputs_of(folder, model, inputs)
    main = "hidden" if "hidden" in outputs else "logits"
    for name, tensor in outputs.items():
        assert tensor.dtype == torch.float64 and torch.isfinite(tensor).all(), name
    lost = relative(single[main + "_f32"] - outputs[main], outputs[main])
    steps = "none"
    if folder.prompt is not None:
        steps = f"{relative(stepped(folder, model, inputs) - outputs[main], outputs[main]):.0e}"
        assert float(steps) < 1e-11, (folder.name, steps)

    source = common.published(
        model_class, f"{common.LIFTED}; eager attention; the folder's {folder.dtype} numbers"
        f"{folder.note}; *_f32 in float32 without any rebinding")
    arrays = {name: np.ascontiguousarray(tensor.numpy())
              for name, tensor in {**inputs, **outputs, **single}.items()}
    safetensors.numpy.save_file(arrays, path / "expected.safetensors", {"source": source})
    moved = 0.0
    for _ in range(3):
        for parameter in model.parameters():
            parameter.data *= 1 + 1e-6 * torch.randn_like(parameter)
        again = outputs_of(folder, model, inputs)[main]
        moved = max(moved, relative(again - outputs[main], outputs[main]))
    assert moved < 1e-3, (folder.name, moved)
    size = sum(file.stat().st_size for file in path.iterdir()) / 1024
    print(f"{folder.name}: {size:.0f} KiB, float32 {lost:.0e}, steps {steps}, "
          f"rms {outputs[main].pow(2).mean().sqrt().item():.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="only this one; may be given repeatedly")
    parser.add_argument(LIFTING, type=pathlib.Path, help=argparse.SUPPRESS)  # the second process
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    installed = importlib.metadata.version("transformers")
    for unknown in set(options.model or ()) - {folder.name for folder in FOLDERS}:
        raise SystemExit(f"no folder is called {unknown}")
    folders = [folder for folder in FOLDERS if folder.transformers == installed and (
        options.model is None or folder.name in options.model)]
    with torch.inference_mode():
        if options.lifted_from is not None:
            for folder in folders:
                expect(folder, options.lifted_from)
            return
        with tempfile.TemporaryDirectory() as work:
            for folder in folders:
                make(folder, pathlib.Path(work))
            names = [item for folder in folders for item in ("--model", folder.name)]
            if names:
                subprocess.run([sys.executable, __file__, *names, LIFTING, work], check=True)


if __name__ == "__main__":
    main()
