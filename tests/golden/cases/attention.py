"""Softmax attention."""

from common import *


def attention_case(name, family, prefix, shape, fields, rope=True, interleaved=False,
                   qkv_bias=False, **extra):
    """One of the modules that take position embeddings from outside."""
    module_class, config_class = hugging_face(family, f"{prefix}Attention", f"{prefix}Config")
    names = dict(hidden_size="d_model", num_attention_heads="n_heads",
                 num_key_value_heads="n_kv_heads", head_dim="head_dim")
    sizes = {theirs: fields[ours] for theirs, ours in names.items()}
    config = config_class(**sizes, rope_theta=fields["rope_theta"], max_position_embeddings=256,
                          num_hidden_layers=1, attn_implementation="eager", **extra)
    module = randomise(module_class(config, layer_idx=0))
    rotary = hugging_face(family, f"{prefix}RotaryEmbedding")[0](config)

    def run(x):
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        return (module(x, position_embeddings=rotary(x, positions),
                       attention_mask=causal_mask(x.shape[1]))[0], {})

    source = (published(module_class) +
              f", with {prefix}RotaryEmbedding, eager, explicit causal mask")
    if not rope:
        assert not module.use_rope
        source += ", a layer whose config switches rotary embeddings off"
    return Case(name, {**fields, "rope_interleaved": interleaved, "qkv_bias": qkv_bias}, source,
                shape, weights_of(module), run)


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


def attention(arguments):
    def fields(d_model, n_heads, n_kv_heads, head_dim, rotary_dim, rope_theta=10000.0):
        return dict(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
                    rotary_dim=rotary_dim, rope_theta=rope_theta)

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
