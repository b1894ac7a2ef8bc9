"""Channel mixers."""

from common import *


def mixture_of_experts(arguments):
    def fields_of(router, **fields):
        return dict(dict(router=router, normalize_top_k=False, n_group=1, topk_group=1,
                         routed_scaling=1.0, d_shared=0, shared_gate=False), **fields)

    def case(name, shape, family, module_name, config_name, config, fields, run):
        Block, Config = hugging_face(family, module_name, config_name)
        module = randomise(Block(Config(**config)))
        source = published(Block)
        weights = module.state_dict()
        if family != "mixtral":
            # The experts are called as Mixtral's; the shared one, a SwiGLU too, keeps its names.
            parts = dict(gate_proj="w1", up_proj="w3", down_proj="w2")
            weights = {}
            for key, tensor in module.state_dict().items():
                if key.startswith("experts."):
                    key = ".".join(parts.get(part, part) for part in key.split("."))
                weights[key.replace("shared_expert.", "shared_experts.")] = tensor
            source += "; gate_proj, up_proj, down_proj of experts are named w1, w3, w2 here"
            if family == "qwen2_moe":
                source += ", shared_expert is named shared_experts"
        if family == "deepseek_v3":
            # A buffer: it draws no noise with the parameters. Positive, because an excluded group
            # scores 0 in this class, which is below every other score only then.
            weights["gate.e_score_correction_bias"].copy_(torch.rand(fields["n_experts"]))
        return Case(name, fields, source, shape, weights, lambda x: (run(module, x), {}))

    def first(module, x):
        return module(x)[0]

    def mixtral(name, shape, d_model, d_ff, n_experts, n_experts_per_token):
        config = dict(hidden_size=d_model, intermediate_size=d_ff, num_local_experts=n_experts,
                      num_experts_per_tok=n_experts_per_token)
        fields = fields_of("mixtral", d_model=d_model, d_ff=d_ff, n_experts=n_experts,
                           n_experts_per_token=n_experts_per_token)
        return case(name, shape, "mixtral", "MixtralSparseMoeBlock", "MixtralConfig", config,
                    fields, first)

    def qwen2(name, shape, d_model, d_ff, n_experts, n_experts_per_token, d_shared, normalize):
        config = dict(hidden_size=d_model, moe_intermediate_size=d_ff, num_experts=n_experts,
                      num_experts_per_tok=n_experts_per_token, norm_topk_prob=normalize,
                      shared_expert_intermediate_size=d_shared)
        fields = fields_of("softmax_then_top_k", d_model=d_model, d_ff=d_ff, n_experts=n_experts,
                           n_experts_per_token=n_experts_per_token, normalize_top_k=normalize,
                           d_shared=d_shared, shared_gate=True)
        return case(name, shape, "qwen2_moe", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig", config,
                    fields, first)

    def olmoe(name, shape, d_model, d_ff, n_experts, n_experts_per_token):
        config = dict(hidden_size=d_model, intermediate_size=d_ff, num_experts=n_experts,
                      num_experts_per_tok=n_experts_per_token, norm_topk_prob=False)
        fields = fields_of("softmax_then_top_k", d_model=d_model, d_ff=d_ff, n_experts=n_experts,
                           n_experts_per_token=n_experts_per_token)
        return case(name, shape, "olmoe", "OlmoeSparseMoeBlock", "OlmoeConfig", config, fields,
                    first)

    def deepseek(name, shape, d_model, d_ff, n_experts, n_experts_per_token, n_group, topk_group,
                 n_shared, normalize, scaling):
        config = dict(hidden_size=d_model, moe_intermediate_size=d_ff, n_routed_experts=n_experts,
                      num_experts_per_tok=n_experts_per_token, n_group=n_group,
                      topk_group=topk_group, n_shared_experts=n_shared, norm_topk_prob=normalize,
                      routed_scaling_factor=scaling)
        fields = fields_of("deepseek_v3", d_model=d_model, d_ff=d_ff, n_experts=n_experts,
                           n_experts_per_token=n_experts_per_token, normalize_top_k=normalize,
                           n_group=n_group, topk_group=topk_group, routed_scaling=scaling,
                           d_shared=n_shared * d_ff)
        return case(name, shape, "deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config", config,
                    fields, lambda module, x: module(x))

    def dbrx(name, shape, d_model, d_ff, n_experts, n_experts_per_token):
        FFN, Config = hugging_face("dbrx", "DbrxFFN", "DbrxConfig")
        module = FFN(Config(d_model=d_model, ffn_config=dict(
            ffn_hidden_size=d_ff, moe_num_experts=n_experts, moe_top_k=n_experts_per_token)))
        for parameter in module.parameters():  # of the experts empty, as they come
            parameter.data.normal_(std=1.2 / math.sqrt(parameter.shape[1]))
        fused = module.experts.mlp
        weights = {"gate.weight": module.router.layer.weight}
        for expert in range(n_experts):
            rows = slice(expert * d_ff, (expert + 1) * d_ff)
            weights |= {f"experts.{expert}.w1.weight": fused.w1[rows],
                        f"experts.{expert}.w3.weight": fused.v1[rows],
                        f"experts.{expert}.w2.weight": fused.w2[rows].T}
        source = published(FFN) + ("; router.layer is named gate here; w1, v1, w2 are cut into "
                                   "the experts' w1, w3 and, transposed, w2")
        fields = fields_of("softmax_then_top_k", d_model=d_model, d_ff=d_ff, n_experts=n_experts,
                           n_experts_per_token=n_experts_per_token, normalize_top_k=True)
        return Case(name, fields, source, shape, weights, lambda x: (module.eval()(x)[0], {}))

    yield mixtral("odd", (2, 37), 15, 11, 5, 2)
    yield mixtral("long-top-3", (1, 150), 20, 24, 8, 3)
    yield mixtral("few-tokens-top-1", (2, 3), 12, 20, 16, 1)
    yield qwen2("qwen2-shared-gate", (2, 37), 13, 9, 7, 3, 17, False)
    yield qwen2("qwen2-normalized", (1, 131), 12, 10, 6, 2, 8, True)
    yield olmoe("olmoe", (1, 140), 14, 9, 8, 4)
    yield deepseek("deepseek-groups", (2, 37), 11, 7, 12, 3, 4, 2, 2, True, 2.5)
    yield deepseek("deepseek-one-group", (1, 131), 14, 8, 8, 3, 1, 1, 1, False, 1.5)
    yield dbrx("dbrx", (2, 37), 13, 9, 16, 4)


def switch_mixture_of_experts(arguments):
    Block, Config = hugging_face("switch_transformers", "SwitchTransformersSparseMLP",
                                 "SwitchTransformersConfig")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        module = randomise(Block(Config(
            d_model=c.d_model, d_ff=c.d_ff, num_experts=c.n_experts, expert_capacity=c.capacity,
            feed_forward_proj=c.activation, router_dtype="float32")))
        weights = {name.replace("expert_", ""): tensor
                   for name, tensor in module.state_dict().items()}
        source = published(Block) + "; experts.expert_N is named experts.N here"
        return Case(name, fields, source, shape, weights, lambda x: (module(x)[0], {}))

    yield case("odd-dropping", (2, 37), d_model=15, d_ff=11, n_experts=5, capacity=6,
               activation="relu")
    yield case("long", (1, 150), d_model=16, d_ff=20, n_experts=4, capacity=64, activation="relu")


def feed_forward(arguments):
    def case(name, shape, family, module_name, config_name, activation, gated=False, bias=False,
             renamed=types.MappingProxyType({}), fused=None, **arguments):
        module_class, config_class = hugging_face(family, module_name, config_name)
        config, source = config_class(**arguments), published(module_class)
        gpt2 = family == "gpt2"
        module = randomise(module_class(config.n_inner, config) if gpt2 else module_class(config))
        weights = weights_of(module, **renamed)
        if gpt2:
            weights = {key: tensor.T if tensor.ndim == 2 else tensor
                       for key, tensor in weights.items()}
            source += "; its weights [in, out] are stored transposed here"
        if fused is not None:  # rows of the gate, which the activation sees, then of the other half
            gate, up = weights.pop(f"{fused}.weight").chunk(2)
            weights |= {"gate_proj.weight": gate, "up_proj.weight": up}
            source += f"; {fused} is cut into gate_proj and up_proj here"
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
    yield case("modernbert-gelu-gated", (2, 37), "modernbert", "ModernBertMLP", "ModernBertConfig",
               "gelu", gated=True, fused="Wi", renamed=dict(Wo="down_proj"), **sizes(18, 25))
    yield case("t5-gelu-tanh-gated", (1, 131), "t5", "T5DenseGatedActDense", "T5Config",
               "gelu_tanh", gated=True, feed_forward_proj="gated-gelu", d_model=17, d_ff=26,
               renamed=dict(wi_0="gate_proj", wi_1="up_proj", wo="down_proj"))
    yield case("t5-relu-gated", (1, 37), "t5", "T5DenseGatedActDense", "T5Config", "relu",
               gated=True, feed_forward_proj="gated-relu", d_model=16, d_ff=21,
               renamed=dict(wi_0="gate_proj", wi_1="up_proj", wo="down_proj"))
