"""Trains the byte-level language models of this folder and records PyTorch's own scores of them.

    pip install torch==2.15.0 transformers==4.57.6      # 5.x stores Mixtral's experts fused
    apt-get install bible-kjv                           # the text: prints the King James Bible
    python train.py --arch llama                        # or another; ten minutes each
    python train.py --arch llama --score                # only scores the model that is there

Each model is Hugging Face's own class, saved by its own `save_pretrained`: `<arch>/config.json` and
`<arch>/model.safetensors` in bfloat16, embeddings not tied. The vocabulary is the 256 bytes.
`<arch>/score.json` holds the bits per byte that PyTorch reports for the saved file, loaded and run
as float32 with eager attention, on `heldout.txt`, which training never sees.
"""

import argparse
import collections
import json
import math
import pathlib
import subprocess
import time

import torch
import transformers
from transformers import (LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM,
                          MixtralConfig, MixtralForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM,
                          RecurrentGemmaConfig, RecurrentGemmaForCausalLM)
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

HERE = pathlib.Path(__file__).resolve().parent
HELD_OUT_FROM, HELD_OUT_BYTES = b"\nJer11:1 ", 64 * 1024
WINDOW, EXCERPT_BYTES = 1024, 4096

COMMON = dict(vocab_size=256, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
              pad_token_id=None)
ATTENTION = dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                 head_dim=32, max_position_embeddings=32768, rope_theta=10000.0,
                 initializer_range=0.05, **COMMON)

# `context` and `rows`: the shape of a training batch. Attention must have seen all positions of a
# window; Mamba-2 has none, and its pure PyTorch path is slow, so it trains on shorter rows.
# RecurrentGemma knows no eager attention; its one implementation gets an explicit mask.
Architecture = collections.namedtuple(
    "Architecture", "model config steps context rows learning_rate attention",
    defaults=[{"attn_implementation": "eager"}])
ARCHITECTURES = {
    "llama": Architecture(LlamaForCausalLM, LlamaConfig(intermediate_size=512, **ATTENTION),
                          steps=1400, context=WINDOW, rows=4, learning_rate=4e-3),
    "mamba2": Architecture(
        Mamba2ForCausalLM,
        Mamba2Config(hidden_size=192, num_hidden_layers=4, expand=2, head_dim=64, num_heads=6,
                     state_size=32, n_groups=1, conv_kernel=4, chunk_size=32,
                     initializer_range=0.05, **COMMON),
        steps=300, context=256, rows=8, learning_rate=4e-3),
    "mixtral": Architecture(
        MixtralForCausalLM,
        MixtralConfig(intermediate_size=128, num_local_experts=4, num_experts_per_tok=2,
                      output_router_logits=True, router_aux_loss_coef=0.01, sliding_window=None,
                      **ATTENTION),
        steps=1400, context=WINDOW, rows=4, learning_rate=4e-3),
    # Gated delta rule in every layer, dense feed-forward.
    "qwen3_next": Architecture(
        Qwen3NextForCausalLM,
        Qwen3NextConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                        layer_types=["linear_attention"] * 4, num_experts=0,
                        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32,
                        linear_value_head_dim=32, linear_conv_kernel_dim=4, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=32, initializer_range=0.05, **COMMON),
        steps=1000, context=256, rows=16, learning_rate=4e-3),
    # Two recurrent blocks and one of local attention, whose window is that of the score: beyond it
    # the published prefill sees more than its own decode.
    "recurrent_gemma": Architecture(
        RecurrentGemmaForCausalLM,
        RecurrentGemmaConfig(hidden_size=160, intermediate_size=2 * 480, num_hidden_layers=3,
                             num_attention_heads=5, num_key_value_heads=1, lru_width=160,
                             attention_window_size=WINDOW, **COMMON),
        steps=1000, context=WINDOW, rows=4, learning_rate=4e-3, attention={}),
}


def scan(self, hidden_states, recurrent_gate, reset, recurrent_states, acc_dtype=None):
    """RG-LRU's published loop for training: it writes into slices, whose gradient costs T²."""
    states, gates = [torch.zeros_like(hidden_states[:, 0])], recurrent_gate * ~reset
    for gate, step in zip(gates.unbind(1), hidden_states.unbind(1)):
        states.append(gate * states[-1] + step)
    return torch.stack(states[1:], 1), None


def delta_rule(q, k, v, g, beta, chunk=64, **_):
    """The chunkwise gated delta rule for training: the published one inverts row by row."""
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    q, k, v = ((x.transpose(1, 2)).unflatten(2, (-1, chunk)) for x in (q, k, v))
    g, beta = ((x.transpose(1, 2)).unflatten(2, (-1, chunk)) for x in (g, beta))
    total = g.cumsum(-1)
    decay = (total[..., None] - total[..., None, :]).tril().exp().tril()
    written = beta[..., None] * torch.cat([v, k * total.exp()[..., None]], -1)
    system = torch.eye(chunk) + (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    values, keys = torch.linalg.solve_triangular(system, written, upper=False).split(
        [v.shape[-1], k.shape[-1]], -1)
    scores, outputs = (q @ k.mT) * decay * k.shape[-1]**-0.5, []
    memory = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    for n in range(k.shape[2]):
        fresh = values[:, :, n] - keys[:, :, n] @ memory
        read = q[:, :, n] * total[:, :, n].exp()[..., None] * k.shape[-1]**-0.5
        outputs.append(read @ memory + scores[:, :, n] @ fresh)
        last = total[:, :, n, -1:]
        until_end = (last - total[:, :, n]).exp()[..., None]
        memory = memory * last.exp()[..., None] + (k[:, :, n] * until_end).mT @ fresh
    return torch.stack(outputs, 2).flatten(2, 3).transpose(1, 2), None


def forget(model):
    """RecurrentGemma keeps its last state in its modules."""
    for module in model.modules():
        if isinstance(module, RecurrentGemmaRglru):
            module.recurrent_states = None


def split(text):
    """(training text, held-out text)."""
    start = text.index(HELD_OUT_FROM) + 1
    stop = start + HELD_OUT_BYTES
    return text[:start] + text[stop:], text[start:stop]


def order_0_entropy(text):
    """Bits per byte of the best predictor that ignores the past."""
    return -sum(n / len(text) * math.log2(n / len(text))
                for n in collections.Counter(text).values())


def tokens(text):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def bits_per_byte(model, text):
    """Windows of WINDOW bytes, each from the empty state; the first byte of each is not scored."""
    bits, scored = 0.0, 0
    with torch.inference_mode():
        for window in tokens(text).split(WINDOW):
            forget(model)
            log_p = model(window[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
            bits -= log_p.gather(1, window[1:, None]).sum().item() / math.log(2)
            scored += len(window) - 1
    return bits / scored


def train(architecture, text, steps, learning_rate):
    model = architecture.model(architecture.config).train()
    published_scan, RecurrentGemmaRglru._rnn_scan = RecurrentGemmaRglru._rnn_scan, scan
    for module in model.modules():
        if isinstance(module, Qwen3NextGatedDeltaNet):
            module.chunk_gated_delta_rule = delta_rule
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98))
    data, warmup, begin = tokens(text), max(1, steps // 20), time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(
                (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        starts = torch.randint(len(data) - architecture.context, (architecture.rows, ))
        batch = torch.stack([data[s:s + architecture.context] for s in starts])
        loss = model(batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: {loss.item() / math.log(2):.3f} bits a byte, "
                  f"{time.time() - begin:.0f} s", flush=True)
    RecurrentGemmaRglru._rnn_scan = published_scan
    return model


def score(architecture, folder, held_out, seed, steps):
    model = architecture.model.from_pretrained(folder, dtype=torch.float32,
                                               **architecture.attention).eval()
    excerpt = held_out[:EXCERPT_BYTES]
    figures = {
        "text": "heldout.txt", "bytes": len(held_out), "window": WINDOW,
        "bits_per_byte": bits_per_byte(model, held_out),
        "order_0_entropy": order_0_entropy(held_out),
        "excerpt": {"bytes": len(excerpt), "bits_per_byte": bits_per_byte(model, excerpt)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": seed, "steps": steps,
        "torch": torch.__version__, "transformers": transformers.__version__,
    }
    (folder / "score.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", required=True, choices=ARCHITECTURES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--text", type=pathlib.Path,
                        help="file to train on; default: what `bible` prints")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--score", action="store_true", help="score the saved model, do not train")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    architecture, folder = ARCHITECTURES[arguments.arch], arguments.out / arguments.arch
    held_out_file = arguments.out / "heldout.txt"
    if arguments.score:
        past = json.loads((folder / "score.json").read_text())
        return score(architecture, folder, held_out_file.read_bytes(), past["seed"], past["steps"])

    bible = ["bible", "-f", "gen1:1-rev22:21"]
    text = (arguments.text.read_bytes() if arguments.text else
            subprocess.run(bible, check=True, capture_output=True).stdout)
    training, held_out = split(text)
    steps = arguments.steps or architecture.steps
    learning_rate = arguments.learning_rate or architecture.learning_rate
    model = train(architecture, training, steps, learning_rate)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # written unasked, says nothing
    held_out_file.write_bytes(held_out)
    score(architecture, folder, held_out, arguments.seed, steps)


if __name__ == "__main__":
    main()
