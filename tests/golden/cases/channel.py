"""Channel mixers."""

from common import *


def mixture_of_experts(arguments):
    Block, Config = hugging_face("mixtral", "MixtralSparseMoeBlock", "MixtralConfig")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        config = Config(hidden_size=c.d_model, intermediate_size=c.d_ff,
                        num_local_experts=c.n_experts, num_experts_per_tok=c.n_experts_per_token)
        module = randomise(Block(config))
        return Case(name, fields, published(Block), shape, weights_of(module),
                    lambda x: (module(x)[0], {}))

    yield case("odd", (2, 37), d_model=15, d_ff=11, n_experts=5, n_experts_per_token=2)
    yield case("long-top-3", (1, 150), d_model=20, d_ff=24, n_experts=8, n_experts_per_token=3)
    yield case("few-tokens-top-1", (2, 3), d_model=12, d_ff=20, n_experts=16, n_experts_per_token=1)


def feed_forward(arguments):
    def case(name, shape, family, module_name, config_name, activation, gated=False, bias=False,
             renamed=types.MappingProxyType({}), **arguments):
        module_class, config_class = hugging_face(family, module_name, config_name)
        config, source = config_class(**arguments), published(module_class)
        gpt2 = family == "gpt2"
        module = randomise(module_class(config.n_inner, config) if gpt2 else module_class(config))
        weights = weights_of(module, **renamed)
        if gpt2:
            weights = {key: tensor.T if tensor.ndim == 2 else tensor
                       for key, tensor in weights.items()}
            source += "; its weights [in, out] are stored transposed here"
        source += "".join(f"; {theirs} is named {ours} here" for theirs, ours in renamed.items())
        d_ff, d_model = weights["up_proj.weight"].shape
        fields = dict(d_model=d_model, d_ff=d_ff, activation=activation, gated=gated, bias=bias)
        return Case(name, fields, source, shape, weights, lambda x: (module(x), {}))

    def sizes(d_model, d_ff):
        return dict(hidden_size=d_model, intermediate_size=d_ff)

    fc = dict(fc1="up_proj", fc2="down_proj")
    yield case("llama-odd", (2, 37), "llama", "LlamaMLP", "LlamaConfig", "silu", gated=True,
               **sizes(15, 37))
    yield case("llama-bias", (1, 150), "llama", "LlamaMLP", "LlamaConfig", "silu", gated=True,
               bias=True, mlp_bias=True, **sizes(24, 40))
    yield case("gemma-gelu-tanh-gated", (2, 70), "gemma", "GemmaMLP", "GemmaConfig", "gelu_tanh",
               gated=True, hidden_act="gelu_pytorch_tanh", **sizes(19, 33))
    yield case("neox-gelu", (2, 37), "gpt_neox", "GPTNeoXMLP", "GPTNeoXConfig", "gelu", bias=True,
               renamed=dict(dense_h_to_4h="up_proj", dense_4h_to_h="down_proj"), hidden_act="gelu",
               num_attention_heads=1, **sizes(17, 45))
    yield case("gpt2-gelu-tanh", (1, 131), "gpt2", "GPT2MLP", "GPT2Config", "gelu_tanh", bias=True,
               renamed=dict(c_fc="up_proj", c_proj="down_proj"), n_embd=16, n_inner=50)
    yield case("nemotron-relu-squared", (2, 37), "nemotron", "NemotronMLP", "NemotronConfig",
               "relu_squared", hidden_act="relu2", **sizes(21, 31))
    yield case("clip-quick-gelu", (2, 37), "clip", "CLIPMLP", "CLIPTextConfig", "quick_gelu",
               bias=True, renamed=fc, hidden_act="quick_gelu", **sizes(14, 29))
    yield case("phi-relu", (1, 70), "phi", "PhiMLP", "PhiConfig", "relu", bias=True, renamed=fc,
               hidden_act="relu", **sizes(20, 27))
