"""Sparse and latent softmax attention."""

import importlib.util
import sys
import unittest.mock

import numpy

from common import *


def multi_head_latent_attention(arguments):
    module_class, config_class, rotary_class = hugging_face(
        "deepseek_v3", "DeepseekV3Attention", "DeepseekV3Config", "DeepseekV3RotaryEmbedding")

    def case(name, shape, fields, scaling=None):
        names = dict(hidden_size="d_model", num_attention_heads="n_heads", kv_lora_rank="kv_rank",
                     qk_nope_head_dim="nope_dim", qk_rope_head_dim="rotary_dim",
                     v_head_dim="head_v", rope_theta="rope_theta",
                     rope_interleave="rope_interleaved")
        config = config_class(**{theirs: fields[ours] for theirs, ours in names.items()},
                              q_lora_rank=fields["q_rank"] or None, rope_scaling=scaling,
                              num_key_value_heads=fields["n_heads"], max_position_embeddings=256,
                              num_hidden_layers=1, attn_implementation="eager")
        module = randomise(module_class(config, layer_idx=0))
        rotary = rotary_class(config)

        def run(x):
            positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
            return (module(x, position_embeddings=rotary(x, positions),
                           attention_mask=causal_mask(x.shape[1]))[0], {})

        scaled = dict(rope_scaling="none", rope_factor=1.0, rope_original_length=0,
                      rope_beta_fast=32.0, rope_beta_slow=1.0, rope_attention_factor=0.0,
                      rope_low_freq_factor=1.0, rope_high_freq_factor=4.0, mscale_all_dim=0.0)
        if scaling is not None:
            scaled |= dict(rope_scaling="yarn", rope_factor=scaling["factor"],
                           rope_original_length=scaling["original_max_position_embeddings"],
                           rope_attention_factor=rotary.attention_scaling,
                           mscale_all_dim=scaling["mscale_all_dim"])
        source = (published(module_class) +
                  ", with DeepseekV3RotaryEmbedding, eager, explicit causal mask")
        return Case(name, {**fields, **scaled, "norm_eps": 1e-6}, source, shape,
                    weights_of(module), run)

    def fields(d_model, n_heads, q_rank, kv_rank, nope_dim, rotary_dim, head_v,
               rope_interleaved=True):
        return dict(d_model=d_model, n_heads=n_heads, q_rank=q_rank, kv_rank=kv_rank,
                    nope_dim=nope_dim, rotary_dim=rotary_dim, head_v=head_v, rope_theta=10000.0,
                    rope_interleaved=rope_interleaved)

    yield case("deepseek-v3-long", (2, 141), fields(18, 3, 12, 16, 8, 4, 8))
    yield case("deepseek-no-query-rank-odd", (2, 37), fields(21, 3, 0, 17, 7, 6, 5))
    yield case("deepseek-half-split", (1, 133), fields(15, 5, 9, 12, 5, 6, 3, False))
    yield case("deepseek-yarn", (1, 150), fields(20, 2, 10, 14, 6, 16, 10),
               dict(rope_type="yarn", factor=4.0, beta_fast=32, beta_slow=1, mscale=1.0,
                    mscale_all_dim=0.8, original_max_position_embeddings=64))


def sparse_transformer_mask(arguments, length, mode, span, block, n_heads=1, verticals=1, size=1):
    """What get_blocksparse_obj of openai/sparse_attention makes of a pattern, element by element,
    [heads, length, length]. Its import of TensorFlow and of a GPU package is satisfied by empty
    modules: the layout and its callback are plain numpy."""
    stubs = {}
    for name in ("tensorflow", "blocksparse", "utils"):
        stubs[name] = stub = types.ModuleType(name)
        stub.BlocksparseTransformer = lambda layout, **rest: types.SimpleNamespace(
            layout=layout, **rest)
        stub.shape_list = None
        stub.recomputable = lambda name: lambda function: function
    path = str(arguments.repository("sparse_attention") / "attention.py")
    spec = importlib.util.spec_from_file_location("sparse_transformer", path)
    module = importlib.util.module_from_spec(spec)
    with unittest.mock.patch.dict(sys.modules, stubs):
        spec.loader.exec_module(module)
    made = module.get_blocksparse_obj(length, n_heads, mode, block, span, verticals, size)
    blocks = numpy.broadcast_to(made.layout, (n_heads, length // block, length // block))
    mask = torch.zeros(n_heads, length, length, dtype=torch.bool)
    for h, i, j in numpy.argwhere(blocks):
        inside = made.mask_callback((block, block), h, i, j, 0)
        mask[h, i * block:(i + 1) * block, j * block:(j + 1) * block] = torch.from_numpy(inside)
    if mode == "strided":  # of the sequence that strided_transpose has reordered
        order = torch.arange(length)
        order = order % span * (length // span) + order // span
        mask = mask[:, order][:, :, order]
    return mask


def block_sparse_attention(arguments):
    from local_attention.transformer import LocalMHA

    module_class, config_class, rotary_class = hugging_face(
        "llama", "LlamaAttention", "LlamaConfig", "LlamaRotaryEmbedding")

    def case(name, shape, fields, pattern, mask, **weights):
        """`mask` [H, padded T, padded T]: True where a query sees a key."""
        config = config_class(hidden_size=fields["d_model"], num_hidden_layers=1,
                              num_attention_heads=fields["n_heads"], head_dim=fields["head_dim"],
                              num_key_value_heads=fields["n_kv_heads"],
                              rope_theta=fields["rope_theta"], max_position_embeddings=256,
                              attn_implementation="eager")
        module = randomise(module_class(config, layer_idx=0))
        rotary = rotary_class(config)
        hidden = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)[None]

        def run(x):
            length = x.shape[1]
            positions = torch.arange(length)[None].expand(len(x), -1)
            return (module(x, position_embeddings=rotary(x, positions),
                           attention_mask=hidden[:, :, :length, :length])[0], {})

        source = (published(module_class) + ", eager, with LlamaRotaryEmbedding; the explicit mask "
                  "is the layout and mask callback of get_blocksparse_obj in attention.py of "
                  "openai/sparse_attention c53f3bdbf6225be0582f0357072e82b13c69be7d, whose "
                  "BlocksparseTransformer is rebound to a record of its arguments")
        return Case(name, {**fields, **pattern}, source, shape,
                    {**weights_of(module), **weights}, run)

    def fields(d_model, n_heads, n_kv_heads, head_dim):
        return dict(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
                    rotary_dim=head_dim, rope_theta=10000.0, rope_interleaved=False,
                    qkv_bias=False)

    def mask(*rest, **more):
        return sparse_transformer_mask(arguments, *rest, **more)

    local, strided = mask(160, "local", 8, 4), mask(160, "strided", 8, 4)
    yield case("sparse-transformer-strided-long", (2, 141), fields(18, 4, 2, 6),
               dict(pattern="local,strided", span=8),
               torch.cat((local, strided, local, strided)))
    yield case("sparse-transformer-fixed-odd", (2, 67), fields(21, 3, 3, 4),
               dict(pattern="fixed", block=3, span=18, n_verticals=1, vertical_blocks=2),
               mask(72, "fixed", 18, 3, n_heads=3, verticals=1, size=2))
    fixed = mask(144, "fixed", 32, 8, n_heads=4, verticals=2, size=1)
    yield case("sparse-transformer-fixed-heads", (1, 139), fields(16, 4, 1, 8),
               dict(pattern="fixed", block=8, span=32, n_verticals=2, vertical_blocks=1), fixed)
    # The same blocks as a table: block i sees block j where its last token sees the first there.
    yield case("layout", (1, 139), fields(16, 4, 1, 8),
               dict(pattern="layout", block=8, layout_heads=4, layout_blocks=18), fixed,
               layout=fixed[:, 7::8, ::8].long())
    # Buckets of tokens that see themselves and the bucket before.
    d_model, n_heads, head_dim, bucket = 18, 3, 6, 8
    module = randomise(LocalMHA(dim=d_model, window_size=bucket, dim_head=head_dim, heads=n_heads,
                                causal=True, exact_windowsize=False))
    q, k, v = module.to_qkv.weight.chunk(3)
    yield Case("local-attention-buckets",
               {**fields(d_model, n_heads, n_heads, head_dim), "pattern": "big_bird",
                "block": bucket, "n_global": 0, "n_local": 2},
               published(LocalMHA) + ", causal, inexact windows; to_qkv is cut into q_proj, k_proj "
               "and v_proj, to_out is named o_proj here", (2, 139),
               {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v,
                "o_proj.weight": module.to_out.weight}, lambda x: (module(x), {}))


def longformer_attention(arguments):
    module_class, config_class = hugging_face("longformer", "LongformerSelfAttention",
                                              "LongformerConfig")

    def case(name, shape, d_model, n_heads, window, n_global, marks=()):
        config = config_class(hidden_size=d_model, num_attention_heads=n_heads,
                              attention_window=[window], num_hidden_layers=1)
        module = randomise(module_class(config, layer_id=0))

        def run(x):
            length = x.shape[1]
            padded = torch.nn.functional.pad(x, (0, 0, 0, -length % window))
            mask = torch.zeros(padded.shape[:2])
            mask[:, :n_global], mask[:, length:] = 10000.0, -10000.0
            for row, token in marks:
                mask[row, token] = 10000.0
            return (module(padded, attention_mask=mask, is_index_masked=mask < 0,
                           is_index_global_attn=mask > 0,
                           is_global_attn=bool((mask > 0).any()))[0][:, :length], {})

        source = published(module_class) + ("; padded to a multiple of the window with masked "
                                            "tokens, as LongformerModel does")
        config = dict(d_model=d_model, n_heads=n_heads, window=window, n_global=n_global)
        inputs = {}
        if marks:
            config["global_mask"] = True
            inputs["global_attention_mask"] = torch.zeros(*shape, 1, dtype=torch.int64)
            for row, token in marks:
                inputs["global_attention_mask"][row, token] = 1
        return Case(name, config, source, shape, weights_of(module), run, causal=False,
                    inputs=inputs)

    yield case("global-long", (2, 143), 18, 3, 16, 3)
    yield case("local-odd", (2, 47), 21, 3, 6, 0)
    yield case("wide-window", (1, 131), 20, 2, 60, 1)
    yield case("global-anywhere", (2, 139), 18, 3, 16, 1,
               [(0, 30), (0, 31), (0, 77), (1, 5), (1, 64), (1, 138)])


def big_bird_attention(arguments):
    module_class, config_class, model_class = hugging_face(
        "big_bird", "BigBirdBlockSparseAttention", "BigBirdConfig", "BigBirdModel")

    def case(name, shape, d_model, n_heads, block, n_random, bias, training):
        config = config_class(hidden_size=d_model, num_attention_heads=n_heads, block_size=block,
                              num_random_blocks=n_random, use_bias=bias, num_hidden_layers=1)
        module = randomise(module_class(config, seed=7)).train(training)
        length, n_blocks = shape[1], shape[1] // block
        numpy.random.seed(7)  # as the forward does before it draws
        table = module._bigbird_block_rand_mask_with_head(
            length, length, block, block, n_heads,
            *module._get_rand_attn_plan(length, block, n_random))

        def run(x):
            blocked, band, queries, keys = model_class.create_masks_for_block_sparse_attn(
                torch.ones(x.shape[:2]), block)
            return module(x, band, queries, keys, blocked, blocked)[0], {}

        source = published(module_class) + (
            f"; {'training' if training else 'evaluation'} mode; random_blocks are what its "
            "_bigbird_block_rand_mask_with_head draws from the same seed")
        return Case(name, dict(d_model=d_model, n_heads=n_heads, block=block, n_random=n_random,
                               n_blocks=n_blocks, bias=bias), source, shape,
                    weights_of(module) | {"random_blocks": torch.tensor(numpy.stack(table)).long()},
                    run, causal=False)

    yield case("random-long", (1, 144), 18, 3, 8, 3, True, True)
    yield case("random-odd", (2, 135), 21, 3, 9, 2, False, True)
    yield case("block-zero", (1, 132), 20, 2, 12, 2, True, False)
