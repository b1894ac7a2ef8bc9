"""Layers that transformers has since 5: they run in an environment of their own."""

from cases.delta import joined_by_key_head
from common import *

TRANSFORMERS = "5.24.0"


def gated_delta_net(arguments):
    Layer, Config = hugging_face("olmo_hybrid", "OlmoHybridGatedDeltaNet", "OlmoHybridConfig")
    source = published(Layer, f"{LIFTED}; its own torch paths; weights joined as Qwen3-Next has "
                              "them")
    d_model, n_heads = 24, 3
    config = Config(hidden_size=d_model, num_attention_heads=n_heads, num_hidden_layers=4)
    layer = randomise(Layer(config, layer_idx=0))
    fields = dict(d_model=d_model, n_heads=n_heads, n_key_heads=n_heads,
                  head_k=config.linear_key_head_dim, head_v=config.linear_value_head_dim,
                  conv_kernel=config.linear_conv_kernel_dim,
                  negative_eigenvalues=config.linear_allow_neg_eigval,
                  norm_eps=layer.o_norm.variance_epsilon)
    yield Case("olmo-hybrid-defaults", fields, source, (2, 70),
               joined_by_key_head(weights_of(layer), n_heads), lambda x: (layer(x), {}))
