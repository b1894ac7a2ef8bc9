"""RWKV blocks."""

import ast

from common import *

PAIRS = {"pre_ln": "ln0", "attention": "att", "feed_forward": "ffn", "time_mix_key": "time_mix_k",
         "time_mix_value": "time_mix_v", "time_mix_receptance": "time_mix_r"}


def randomise_block(module):
    """Norm weights lie around 1, biases around 0, mixes in [0, 1]; decays from slow to fast."""
    for name, parameter in module.named_parameters():
        noise, leaf = torch.randn_like(parameter), name.split(".")[-1]
        if leaf in ("time_decay", "w0"):
            parameter.data = torch.empty_like(parameter).uniform_(-6.0, 1.0)
        elif "time_mix" in leaf or leaf.startswith("x_") or (
                leaf.startswith("time_maa") and leaf[-1] not in "12"):
            parameter.data = torch.empty_like(parameter).uniform_(0.0, 1.0)
        elif leaf in ("k_k", "k_a"):
            parameter.data = 0.8 + 0.2 * noise
        elif "ln" in name.split(".")[-2] and leaf == "weight":
            parameter.data = 1 + 0.3 * noise
        elif leaf in ("bias", "time_first", "time_faaaa", "a0", "v0", "r_k"):
            parameter.data = 0.5 * noise
        elif leaf.endswith(("1", "2")):  # factors of low rank, [in, out]
            parameter.data = 1.2 * noise / math.sqrt(parameter.shape[-2])
        else:
            parameter.data = 1.2 * noise / math.sqrt(parameter.shape[-1])
    return module.eval()


def rwkv4(arguments):
    Block, Config = hugging_face("rwkv", "RwkvBlock", "RwkvConfig")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=4,
                        layer_norm_epsilon=c.norm_eps)
        module = randomise_block(Block(config, c.layer_index))
        weights = {".".join(PAIRS.get(part, part) for part in key.split(".")): tensor
                   for key, tensor in module.state_dict().items()}

        def run(x):
            state = [torch.zeros(len(x), c.d_model, 4) for _ in range(5)]
            state[4] -= 1e38
            y, state = module(x, state=state, use_cache=True)[:2]
            ffn, att, *sums = (member[:, :, c.layer_index] for member in state)
            return y, {"att_shift": att[:, None], "ffn_shift": ffn[:, None],
                       **dict(zip(("numerator", "denominator", "maximum"), sums))}

        source = published(Block) + "; weights under the names of BlinkDL's checkpoints"
        return Case(name, fields, source, shape, weights, run)

    yield case("odd", (2, 37), d_model=21, d_ff=43, layer_index=1, norm_eps=1e-5)
    yield case("long", (1, 150), d_model=24, d_ff=96, layer_index=0, norm_eps=1e-5)


REVISION = "524481d5099b38d9bc8ef1e89209161b86c8011b"


def excerpt(path, names, **globals_):
    """The definitions `names` of a file that cannot be imported, as they stand there: it loads a
    checkpoint or compiles CUDA at its top. They see `globals_` besides."""
    tree = ast.parse(path.read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in names:
            found[node.name] = node  # the last of a name, as where a kernel is chosen
    module = types.ModuleType(path.stem)
    module.__dict__.update(torch=torch, nn=torch.nn, F=torch.nn.functional,
                           MyModule=torch.nn.Module, MyFunction=lambda function: function,
                           **globals_)
    body = [found[name] for name in names]
    exec(compile(ast.Module(body, []), str(path), "exec"), module.__dict__)
    return module


def rwkv6(arguments):
    import fla.ops.rwkv6.recurrent_naive as naive
    path = arguments.repository("RWKV-LM") / "RWKV-v5/src/model.py"
    classes = ("RWKV_Tmix_x060", "RWKV_CMix_x060", "Block")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        final = {}

        def wkv(r, k, v, w, u):
            heads = [item.unflatten(-1, u.shape).transpose(1, 2) for item in (r, k, v, -w.exp())]
            o, final["memory"] = naive.naive_recurrent_rwkv6(*heads, u, scale=1.0,
                                                             output_final_state=True)
            return o.transpose(1, 2).flatten(2)

        environment = types.SimpleNamespace(environ={"RWKV_MY_TESTING": "x060",
                                                     "RWKV_TRAIN_TYPE": ""})
        module = excerpt(path, classes, RUN_CUDA_RWKV6=wkv, os=environment)
        args = types.SimpleNamespace(
            n_embd=c.d_model, dim_att=c.d_model, dim_ffn=c.d_ff, head_size_a=c.head_dim, n_layer=4,
            head_size_divisor=math.sqrt(c.head_norm_eps / 1e-5), my_pos_emb=0, pre_ffn=0, dropout=0,
            tiny_att_dim=0)
        block = module.Block(args, c.layer_index)
        # The ranks are constants of the file, 32 and 64.
        att = block.att
        att.time_maa_w1 = torch.nn.Parameter(torch.empty(c.d_model, 5 * c.mix_rank))
        att.time_maa_w2 = torch.nn.Parameter(torch.empty(5, c.mix_rank, c.d_model))
        att.time_decay_w1 = torch.nn.Parameter(torch.empty(c.d_model, c.decay_rank))
        att.time_decay_w2 = torch.nn.Parameter(torch.empty(c.decay_rank, c.d_model))
        randomise_block(block)

        def run(x):
            return block(x), {"memory": final["memory"]}

        source = (f"BlinkDL/RWKV-LM {REVISION} RWKV-v5/src/model.py classes {', '.join(classes)}, "
                  f"torch {torch.__version__}, float64; factors of low rank made smaller; "
                  "RUN_CUDA_RWKV6 rebound to flash-linear-attention "
                  "fla.ops.rwkv6.recurrent_naive.naive_recurrent_rwkv6 with scale 1 and log decay "
                  f"-exp(w), {LIFTED}")
        return Case(name, fields, source, shape, dict(block.state_dict()), run)

    yield case("odd", (2, 37), d_model=21, head_dim=7, d_ff=43, mix_rank=3, decay_rank=5,
               layer_index=2, norm_eps=1e-5, head_norm_eps=64e-5)
    yield case("long", (1, 150), d_model=24, head_dim=8, d_ff=84, mix_rank=4, decay_rank=6,
               layer_index=0, norm_eps=1e-5, head_norm_eps=64e-5)


def rwkv7(arguments):
    path = arguments.repository("RWKV-LM") / "RWKV-v7/rwkv_v7_demo.py"
    names = ("RWKV7_OP", "RWKV_Tmix_x070", "RWKV_CMix_x070", "Block")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        module = excerpt(path, names, HEAD_SIZE=c.head_dim, DTYPE=torch.float64,
                         D_DECAY_LORA=c.decay_rank, D_AAA_LORA=c.rate_rank,
                         D_MV_LORA=c.value_rank, D_GATE_LORA=c.gate_rank)
        args = types.SimpleNamespace(n_embd=c.d_model, dim_att=c.d_model, dim_ffn=c.d_ff,
                                     head_size_a=c.head_dim)
        block = randomise_block(module.Block(args, c.layer_index))
        unused = ("att.v0", "att.v1", "att.v2") if c.layer_index == 0 else ("ln0.",)
        weights = {key: tensor for key, tensor in block.state_dict().items()
                   if not key.startswith(unused)}
        value_first = torch.randn(*shape, c.d_model)

        def run(x):
            y, first = block(x, value_first[:, :x.shape[1]])
            return y, {}, {"value_first": first} if c.layer_index == 0 else {}

        source = (f"BlinkDL/RWKV-LM {REVISION} RWKV-v7/rwkv_v7_demo.py RWKV7_OP (its plain loop) "
                  f"and classes {', '.join(names[1:])}, torch {torch.__version__}, DTYPE rebound to "
                  f"float64, MyModule to nn.Module and MyFunction to the identity, {LIFTED}")
        return Case(name, fields, source, shape, weights, run,
                    {} if c.layer_index == 0 else {"value_first": value_first})

    yield case("odd", (2, 37), d_model=21, head_dim=7, d_ff=43, decay_rank=5, rate_rank=3,
               value_rank=4, gate_rank=7, layer_index=1, norm_eps=1e-5, head_norm_eps=64e-5)
    yield case("long", (1, 150), d_model=24, head_dim=8, d_ff=80, decay_rank=4, rate_rank=5,
               value_rank=3, gate_rank=6, layer_index=0, norm_eps=1e-5, head_norm_eps=64e-5)
