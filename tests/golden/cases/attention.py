"""Softmax attention."""

from common import *


def window_mask(length, window):
    """Of each query the last `window` keys, its own among them."""
    return causal_mask(length) + torch.full((length, length), -math.inf).tril(-window)


def everything(i, j):
    return i == i


def attention_case(name, family, prefix, shape, fields, rope=True, interleaved=False,
                   qkv_bias=False, ours={}, unit_offset=False,
                   config_prefix=None, layer_type=None, by_cache_position=False, by_position=False,
                   sees=None, given=None, **extra):
    """One of the modules that take position embeddings from outside. `ours` are fields that the
    published config does not have; `unit_offset` says that norms multiply by 1 + weight;
    `layer_type` is what rotary embeddings ask for that have several settings; some modules ask for
    positions besides; `sees(i, j)` says which keys a query sees; `given`, [B, T] or [3, B, T], where
    tokens are, a side value of ours. The module runs on all of x
    first: angles that follow the longest call yet are those of x."""
    module_class, config_class, rotary_class = hugging_face(
        family, f"{prefix}Attention", f"{config_prefix or prefix}Config",
        f"{prefix}RotaryEmbedding")
    names = dict(hidden_size="d_model", num_attention_heads="n_heads",
                 num_key_value_heads="n_kv_heads", head_dim="head_dim")
    sizes = {theirs: fields[ours] for theirs, ours in names.items()}
    config = config_class(**{**sizes, "max_position_embeddings": 256, **extra},
                          rope_theta=fields["rope_theta"], num_hidden_layers=1,
                          attn_implementation="eager")
    module = randomise(module_class(config, layer_idx=0))
    rotary = rotary_class(config)
    window = ours.get("window")
    kind = [layer_type] if layer_type else []

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        if given is not None:
            positions = given[..., :x.shape[1]]
        mask = window_mask(x.shape[1], window) if window else causal_mask(x.shape[1])
        if sees:
            i = torch.arange(x.shape[1])
            seen = sees(i[:, None], i)  # [T, T], or [H, T, T] where heads differ
            mask = torch.where(seen, 0.0, -math.inf).view(1, -1, *seen.shape[-2:])
        more = dict(cache_position=positions[0]) if by_cache_position else {}
        more |= dict(position_ids=positions) if by_position else {}
        return (module(x, position_embeddings=rotary(x, positions, *kind), attention_mask=mask,
                       **more)[0], {})

    source = (published(module_class) + f", with {prefix}RotaryEmbedding, eager, explicit " +
              ("mask of what is seen" if sees else "mask of the window" if window else
               "causal mask"))
    if not rope:
        assert not module.use_rope
        source += ", a layer whose config switches rotary embeddings off"
    weights = weights_of(module)
    if "qkv_proj.weight" in weights:
        queries, keys = (fields[n] * fields["head_dim"] for n in ("n_heads", "n_kv_heads"))
        parts = weights.pop("qkv_proj.weight").split((queries, keys, keys))
        weights |= {f"{one}_proj.weight": part.clone() for one, part in zip("qkv", parts)}
        source += "; qkv_proj is split here"
    if unit_offset:
        weights |= {name: weight + 1 for name, weight in weights.items() if "norm" in name}
        source += "; 1 is added to the weights of its norms here"
    inputs = {}
    if given is not None:
        inputs["positions"] = given.movedim(0, -1) if given.ndim == 3 else given[..., None]
        ours = {**ours, "given_positions": inputs["positions"].shape[-1]}
        source += ", positions of our own"
    return Case(name, {**fields, "rope_interleaved": interleaved, "qkv_bias": qkv_bias, **ours},
                source, shape, weights, run, inputs, causal=sees is None)


def scaled_llama_case(name, shape, fields, theirs, ours, **extra):
    """Llama with a rope_scaling."""
    return attention_case(name, "llama", "Llama", shape, fields, rope_scaling=theirs, ours=ours,
                          **extra)


def phi3_case(name, shape, length, **extra):
    """LongRoPE, trained on 32 tokens and served with 128. The published module takes the table by
    the length of the call: `length` is what fixes it."""
    sizes = fields(24, 3, 1, 8, 6)
    short, long = [1.0, 1.25, 1.5], [1.5, 2.75, 4.0]
    return attention_case(
        name, "phi3", "Phi3", shape, sizes, partial_rotary_factor=0.75, pad_token_id=None,
        rope_scaling=dict(type="longrope", short_factor=short, long_factor=long),
        max_position_embeddings=128, original_max_position_embeddings=32,
        ours=dict(rope_scaling="longrope", rope_factor=4.0, rope_original_length=32,
                  rope_short_factor=short, rope_long_factor=long, **length), **extra)


def resonance_case(arguments, name, shape, sizes):
    """Llama's attention with the tables of Resonance RoPE."""
    import sys
    folder = arguments.repository("resonance_rope") / "llama_finetuning" / "scaled_rope"
    sys.path.insert(0, str(folder))  # the package imports more than is needed
    from LlamaYaRNScaledResonanceRotaryEmbedding import (
        LlamaYaRNScaledResonanceRotaryEmbedding as Tables)
    module_class, config_class = hugging_face("llama", "LlamaAttention", "LlamaConfig")
    config = config_class(hidden_size=sizes["d_model"], num_attention_heads=sizes["n_heads"],
                          num_key_value_heads=sizes["n_kv_heads"], head_dim=sizes["head_dim"],
                          attn_implementation="eager")
    module = randomise(module_class(config, layer_idx=0))
    tables = Tables(sizes["rotary_dim"], 256, sizes["rope_theta"], scale=4,
                    original_max_position_embeddings=64, beta_fast=8)

    def run(x):
        cos, sin = (torch.cat((table[0], table[0]), -1) for table in tables(x, x.shape[1]))
        return module(x, position_embeddings=(cos, sin),
                      attention_mask=causal_mask(x.shape[1]))[0], {}

    source = ("sheryc/resonance_rope 4a7f5a703b2e96756939db51916937ab7c5ab3a9 "
              "LlamaYaRNScaledResonanceRotaryEmbedding, whose tables, of half a head, are repeated "
              "for the other half, in " + published(module_class) +
              ", eager, explicit causal mask")
    ours = dict(rope_scaling="yarn", rope_factor=4.0, rope_original_length=64, rope_beta_fast=8.0,
                rope_resonance=True)
    return Case(name, {**sizes, **ours}, source, shape, weights_of(module), run)


def xpos_case(name, shape, d_model, n_heads, base):
    from torchscale.component.multihead_attention import MultiheadAttention
    options = types.SimpleNamespace(multiway=False, xpos_rel_pos=True, xpos_scale_base=base)
    module = randomise(MultiheadAttention(options, d_model, n_heads, self_attention=True))

    def run(x):
        return module(x, x, x, attn_mask=causal_mask(x.shape[1])[0, 0])[0], {}

    weights = weights_of(module, out_proj="o_proj")
    del weights["xpos.scale"]
    source = published(MultiheadAttention) + ", explicit causal mask; out_proj is named o_proj here"
    head_dim = d_model // n_heads
    ours = dict(rope_interleaved=True, rope_xpos=base, qkv_bias=True, o_bias=True)
    return Case(name, {**fields(d_model, n_heads, n_heads, head_dim, head_dim), **ours}, source,
                shape, weights, run)


def mpt_case(name, shape, d_model, n_heads):
    module_class, config_class, slopes = hugging_face("mpt", "MptAttention", "MptConfig",
                                                      "build_mpt_alibi_tensor")
    module = randomise(module_class(config_class(d_model=d_model, n_heads=n_heads)))

    def run(x):
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)[None, None]
        return module(x, slopes(n_heads, x.shape[1]), attention_mask=hidden)[0], {}

    weights = weights_of(module, out_proj="o_proj")
    fused = weights.pop("Wqkv.weight").chunk(3)
    weights |= {f"{one}_proj.weight": part.clone() for one, part in zip("qkv", fused)}
    source = (published(module_class) + ", with build_mpt_alibi_tensor, explicit causal mask; Wqkv "
              "is split here, out_proj is named o_proj")
    config = dict(d_model=d_model, n_heads=n_heads, n_kv_heads=n_heads, head_dim=d_model // n_heads,
                  rotary_dim=0, alibi=True)
    return Case(name, config, source, shape, weights, run)


def gptj_case(name, shape, fields):
    module_class, config_class = hugging_face("gptj", "GPTJAttention", "GPTJConfig")
    config = config_class(n_embd=fields["d_model"], n_head=fields["n_heads"], n_positions=256,
                          rotary_dim=fields["rotary_dim"])
    module = randomise(module_class(config, layer_idx=0))

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return module(x, attention_mask=causal_mask(x.shape[1]), position_ids=positions)[0], {}

    source = published(module_class) + ", explicit causal mask; out_proj is named o_proj here"
    return Case(name, {**fields, "rope_interleaved": True, "qkv_bias": False}, source, shape,
                weights_of(module, out_proj="o_proj"), run)


def fields(d_model, n_heads, n_kv_heads, head_dim, rotary_dim, rope_theta=10000.0):
    return dict(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
                rotary_dim=rotary_dim, rope_theta=rope_theta)


def attention(arguments):
    yield attention_case("llama-grouped-odd", "llama", "Llama", (2, 37), fields(30, 6, 3, 10, 10))
    yield attention_case("llama-multihead-long", "llama", "Llama", (1, 150),
                         fields(20, 3, 3, 8, 8, 500000.0))
    yield attention_case("qwen2-multiquery-bias", "qwen2", "Qwen2", (2, 131),
                         fields(24, 4, 1, 6, 6, 1000000.0), qkv_bias=True)
    yield attention_case("stablelm-partial", "stablelm", "StableLm", (2, 70),
                         fields(36, 3, 3, 12, 6), partial_rotary_factor=0.5, use_qkv_bias=False)
    yield attention_case("cohere-interleaved", "cohere", "Cohere", (1, 133), fields(24, 4, 2, 6, 6),
                         interleaved=True)
    yield gptj_case("gptj-interleaved-partial", (2, 37), fields(42, 3, 3, 14, 6))
    yield attention_case("smollm3-no-rope", "smollm3", "SmolLM3", (2, 70), fields(15, 3, 1, 5, 0),
                         rope=False, no_rope_layers=[0], pad_token_id=None)
    yield attention_case("qwen3-norm-of-heads", "qwen3", "Qwen3", (2, 37), fields(14, 4, 2, 6, 6),
                         ours=dict(qk_norm="head", qk_norm_eps=0.01), rms_norm_eps=0.01)
    yield attention_case("olmo2-norm-of-projections", "olmo2", "Olmo2", (1, 131),
                         fields(18, 6, 3, 4, 4),
                         ours=dict(qk_norm="projection", qk_norm_eps=1e-5), rms_norm_eps=1e-5)
    yield attention_case("gemma2-soft-cap", "gemma2", "Gemma2", (1, 131), fields(15, 4, 2, 6, 6),
                         ours=dict(soft_cap=3.0, score_scale=5**-0.5),
                         query_pre_attn_scalar=5, attn_logit_softcapping=3.0)
    yield mpt_case("mpt-alibi", (2, 70), 20, 4)
    yield mpt_case("mpt-alibi-six-heads-long", (1, 140), 18, 6)
    yield scaled_llama_case("llama-rope-linear", (1, 70), fields(12, 2, 1, 10, 10),
                            dict(rope_type="linear", factor=4.0),
                            dict(rope_scaling="linear", rope_factor=4.0))
    yield scaled_llama_case(
        "llama-rope-yarn", (1, 140), fields(12, 2, 1, 18, 18),
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0,
             beta_slow=1.0),
        dict(rope_scaling="yarn", rope_factor=4.0, rope_original_length=64, rope_beta_fast=8.0,
             rope_beta_slow=1.0))
    yield scaled_llama_case(
        "llama-rope-yarn-given-factor", (1, 40), fields(12, 2, 1, 16, 16, 500.0),
        dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=128,
             attention_factor=1.3),
        dict(rope_scaling="yarn", rope_factor=2.0, rope_original_length=128,
             rope_attention_factor=1.3))
    yield scaled_llama_case(
        "llama-rope-llama3", (1, 140), fields(12, 2, 1, 18, 18),
        dict(rope_type="llama3", factor=8.0, original_max_position_embeddings=64,
             low_freq_factor=1.0, high_freq_factor=4.0),
        dict(rope_scaling="llama3", rope_factor=8.0, rope_original_length=64,
             rope_low_freq_factor=1.0, rope_high_freq_factor=4.0))
    yield scaled_llama_case(
        "llama-rope-yarn-fractional", (1, 140), fields(12, 2, 1, 18, 18),
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0,
             truncate=False),
        dict(rope_scaling="yarn", rope_factor=4.0, rope_original_length=64, rope_beta_fast=8.0,
             rope_truncate=False))
    yield scaled_llama_case(
        "llama-rope-yarn-mscale", (1, 40), fields(12, 2, 1, 16, 16, 500.0),
        dict(rope_type="yarn", factor=40.0, original_max_position_embeddings=128, mscale=1.0,
             mscale_all_dim=0.4),
        dict(rope_scaling="yarn", rope_factor=40.0, rope_original_length=128, rope_mscale=1.0,
             rope_mscale_all_dim=0.4))
    yield scaled_llama_case(
        "llama-rope-dynamic", (1, 130), fields(12, 2, 1, 10, 10),
        dict(rope_type="dynamic", factor=2.0),
        dict(rope_scaling="dynamic", rope_factor=2.0, rope_original_length=32, rope_length=130),
        max_position_embeddings=32)
    yield phi3_case("phi3-longrope-long", (1, 131), dict(rope_length=128))
    yield phi3_case("phi3-longrope-short", (2, 31), dict(rope_length=32))
    yield resonance_case(arguments, "resonance-yarn", (1, 150), fields(12, 2, 1, 18, 18))
    yield xpos_case("torchscale-xpos", (2, 37), 18, 3, 512.0)
    yield xpos_case("torchscale-xpos-long", (1, 270), 20, 2, 32.0)


def window_of(window, dilation=1, n_sinks=0, max_rollback=0):
    return dict(window=window, dilation=dilation, n_sinks=n_sinks, max_rollback=max_rollback)


def recurrent_gemma_case(name, shape, d_model, n_heads, window):
    module_class, config_class = hugging_face("recurrent_gemma", "RecurrentGemmaSdpaAttention",
                                              "RecurrentGemmaConfig")
    head_dim = d_model // n_heads
    config = config_class(hidden_size=d_model, num_attention_heads=n_heads, num_key_value_heads=1,
                          head_dim=head_dim, attention_window_size=window)
    module = randomise(module_class(config))

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return module(x, positions, window_mask(x.shape[1], window)), {}

    source = published(module_class) + ", explicit mask of the window"
    ours = dict(**fields(d_model, n_heads, 1, head_dim, head_dim // 2), o_bias=True,
                **window_of(window))
    return Case(name, ours, source, shape, weights_of(module), run)


def streaming_case(arguments, name, shape, sizes, window, n_sinks):
    """Llama's projections, through which the published attention runs token by token."""
    import sys
    sys.path.insert(0, str(arguments.repository("streaming-llm")))
    from streaming_llm.kv_cache import StartRecentKVCache
    from streaming_llm.pos_shift.modify_llama import llama_pos_shift_attention_forward
    module_class, config_class, rotary_class = hugging_face(
        "llama", "LlamaAttention", "LlamaConfig", "LlamaRotaryEmbedding")
    config = config_class(hidden_size=sizes["d_model"], num_attention_heads=sizes["n_heads"],
                          num_key_value_heads=sizes["n_kv_heads"], head_dim=sizes["head_dim"],
                          rope_theta=sizes["rope_theta"], max_position_embeddings=256)
    module = randomise(module_class(config, layer_idx=0))
    rotary = rotary_class(config)
    # What the function reads of the LlamaAttention of its time.
    module.num_heads, module.num_key_value_heads = sizes["n_heads"], sizes["n_kv_heads"]
    module.hidden_size = sizes["d_model"]
    module.rotary_emb = lambda values, seq_len: [
        table[:, None] for table in rotary(values, torch.arange(seq_len)[None])]

    def run(x):
        keep, cache, rows = StartRecentKVCache(n_sinks, window), None, []
        for t in range(x.shape[1]):
            cache = keep.evict_for_space([cache], 1) if cache else None
            cache = cache[0] if cache else None
            position = torch.full((len(x), 1), cache[0].shape[2] if cache else 0)
            y, _, cache = llama_pos_shift_attention_forward(
                module, x[:, t:t + 1], None, position, cache, use_cache=True)
            rows.append(y)
        return torch.cat(rows, 1), {}

    source = (f"mit-han-lab/streaming-llm 2e5042606d69933d88fbf909bd77907456b9b4dd "
              f"llama_pos_shift_attention_forward, token by token, StartRecentKVCache."
              f"evict_for_space before each, on the projections and rotary tables of " +
              published(module_class))
    return Case(name, {**sizes, **window_of(window, n_sinks=n_sinks)}, source, shape,
                weights_of(module), run)


def sliding_window_attention(arguments):
    yield attention_case("mistral-odd", "mistral", "Mistral", (2, 37), fields(14, 4, 2, 6, 6),
                         ours=window_of(7), sliding_window=7)
    yield attention_case("mistral-long", "mistral", "Mistral", (1, 150), fields(12, 2, 1, 8, 8),
                         ours=window_of(66, max_rollback=5), sliding_window=66)
    yield attention_case("gemma3-norm-of-heads", "gemma3", "Gemma3", (1, 131),
                         fields(15, 4, 2, 6, 6),
                         ours=dict(**window_of(16), qk_norm="head", qk_norm_eps=1e-6,
                                   score_scale=7**-0.5),
                         unit_offset=True, config_prefix="Gemma3Text",
                         query_pre_attn_scalar=7, sliding_window=16)
    yield recurrent_gemma_case("recurrent-gemma", (1, 131), 24, 3, 32)
    yield recurrent_gemma_case("recurrent-gemma-short", (2, 21), 20, 5, 32)
    yield streaming_case(arguments, "streaming-llm", (1, 131), fields(24, 4, 2, 6, 6), 17, 4)
    yield streaming_case(arguments, "streaming-llm-odd", (2, 37), fields(18, 3, 1, 6, 6),
                         9, 1)


def bert_case(name, shape, d_model, n_heads, key_mask=None):
    """`key_mask` [B, T]: 0 of padding, whose published rows see what the others see."""
    module_class, output_class, config_class = hugging_face("bert", "BertSelfAttention",
                                                            "BertSelfOutput", "BertConfig")
    config = config_class(hidden_size=d_model, num_attention_heads=n_heads,
                          position_embedding_type="absolute")
    module, dense = randomise(module_class(config)), randomise(output_class(config)).dense
    weights = weights_of(module, query="q_proj", key="k_proj", value="v_proj")
    weights |= {f"o_proj.{name}": tensor for name, tensor in dense.state_dict().items()}
    source = published(module_class) + ", then the dense layer of BertSelfOutput"
    config = dict(**fields(d_model, n_heads, n_heads, d_model // n_heads, 0), qkv_bias=True,
                  o_bias=True)
    inputs, mask = {}, lambda length: None
    if key_mask is not None:
        inputs["key_mask"] = key_mask[..., None]
        mask = lambda length: torch.where(key_mask > 0, 0.0, -math.inf)[:, None, None, :length]
        config["key_mask"] = True
    return Case(name, config, source, shape, weights,
                lambda x: (dense(module(x, mask(x.shape[1]))[0]), {}), inputs, causal=False)


def t5_case(name, shape, d_model, n_heads, head_dim, source_length=0):
    """Self attention of an encoder, or with a source cross attention of a decoder."""
    module_class, config_class = hugging_face("t5", "T5Attention", "T5Config")
    module = randomise(module_class(config_class(d_model=d_model, d_kv=head_dim,
                                                 num_heads=n_heads), layer_idx=0))
    read = torch.randn(shape[0], source_length, d_model) if source_length else None

    def run(x):
        return module(x, key_value_states=read, query_length=x.shape[1])[0], {}

    weights = weights_of(module, **{one: f"{one}_proj" for one in "qkvo"})
    config = dict(d_model=d_model, n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim,
                  score_scale=1.0)
    source = published(module_class) + ", without relative positions"
    if source_length:
        return Case(name, config | dict(d_source=d_model), source, shape, weights, run,
                    inputs=dict(source=read))
    return Case(name, config | dict(rotary_dim=0), source, shape, weights, run, causal=False)


def modern_bert_case(name, shape, d_model, n_heads, reach=None):
    """A global layer, or one whose tokens see `reach` others on each side."""
    module_class, config_class = hugging_face("modernbert", "ModernBertAttention",
                                              "ModernBertConfig")
    config = config_class(hidden_size=d_model, num_attention_heads=n_heads,
                          global_rope_theta=1000.0, local_rope_theta=1000.0,
                          max_position_embeddings=256, local_attention=2 * (reach or 64),
                          reference_compile=False)
    config._attn_implementation = "eager"
    module = randomise(module_class(config, layer_id=0 if reach is None else 1))

    def run(x):
        nothing = torch.zeros(1, 1, x.shape[1], x.shape[1])
        positions = torch.arange(x.shape[1])
        far = (positions[:, None] - positions).abs() > (reach or len(positions))
        return module(x, attention_mask=nothing,
                      sliding_window_mask=nothing.masked_fill(far, -math.inf),
                      position_ids=positions[None].expand(len(x), -1))[0], {}

    weights = weights_of(module, Wo="o_proj")
    fused = weights.pop("Wqkv.weight").chunk(3)
    weights = {name: tensor for name, tensor in weights.items() if name.startswith("o_proj")}
    weights |= {f"{one}_proj.weight": part.clone() for one, part in zip("qkv", fused)}
    kind = "a global layer" if reach is None else "a local layer, explicit mask"
    source = (published(module_class) + f", {kind}, eager; Wqkv is split here, Wo is named o_proj")
    head_dim = d_model // n_heads
    config = fields(d_model, n_heads, n_heads, head_dim, head_dim, 1000.0)
    if reach is not None:
        config["window"] = reach + 1
    return Case(name, config, source, shape, weights, run, causal=False)


def bidirectional_attention(arguments):
    yield bert_case("bert-odd", (2, 37), 21, 3)
    yield t5_case("t5-unscaled", (2, 29), 10, 4, 5)
    yield modern_bert_case("modernbert-rope-long", (1, 140), 24, 4)
    yield scaled_llama_case(
        "llama-dynamic-by-call", (1, 70), fields(12, 2, 1, 10, 10),
        dict(rope_type="dynamic", factor=2.0),
        dict(rope_scaling="dynamic", rope_factor=2.0, rope_original_length=32, rope_by_call=True),
        max_position_embeddings=32, sees=everything)
    by_call = dict(rope_by_call=True)
    yield phi3_case("phi3-longrope-by-call-long", (1, 70), by_call, sees=everything)
    yield phi3_case("phi3-longrope-by-call-short", (2, 32), by_call, sees=everything)


def cross_case(name, family, prefix, shape, d_model, n_heads, source_length, k_bias, **extra):
    module_class, config_class = hugging_face(family, f"{prefix}Attention", f"{prefix}Config")
    config = config_class(attn_implementation="eager")
    module = randomise(module_class(d_model, n_heads, is_decoder=True, layer_idx=0, config=config))
    read = torch.randn(shape[0], source_length, d_model)
    fields = dict(d_model=d_model, d_source=d_model, n_heads=n_heads, n_kv_heads=n_heads,
                  head_dim=d_model // n_heads, q_bias=True, k_bias=k_bias, v_bias=True, o_bias=True)
    source = (published(module_class) + ", as cross attention of a decoder, eager; out_proj is "
              "named o_proj here")
    return Case(name, fields, source, shape, weights_of(module, out_proj="o_proj"),
                lambda x: (module(x, key_value_states=read)[0], {}), inputs=dict(source=read))


def cross_attention(arguments):
    yield cross_case("whisper-odd", "whisper", "Whisper", (2, 37), 21, 3, 13, k_bias=False)
    yield cross_case("bart-long", "bart", "Bart", (1, 140), 16, 4, 130, k_bias=True)
    yield t5_case("t5-unscaled", (2, 19), 10, 4, 5, source_length=70)
