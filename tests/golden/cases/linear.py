"""Outer-product states."""

from common import *


def gated_linear_attention(arguments):
    import fla.layers.gla
    import fla.modules.fused_norm_gate
    from fla.models.utils import Cache
    from fla.modules.layernorm_gated import rms_norm_ref
    from fla.ops.gla.naive import naive_recurrent_gla

    def recurrent(q, k, v, gk=None, g=None, initial_state=None, output_final_state=False,
                  cu_seqlens=None):
        return naive_recurrent_gla(q, k, v, g if gk is None else gk, initial_state,
                                   output_final_state)

    def gated_norm(x, g, weight, bias, activation, residual=None, eps=1e-6, prenorm=False,
                   residual_in_fp32=False):
        assert activation == "swish" and residual is None and not prenorm
        return rms_norm_ref(x, weight, bias, z=g, eps=eps, norm_before_gate=True)

    fla.layers.gla.chunk_gla = fla.layers.gla.fused_recurrent_gla = recurrent
    fla.modules.fused_norm_gate.rms_norm_gated = gated_norm
    source = published(
        fla.layers.gla.GatedLinearAttention,
        f"{LIFTED}; Triton operators rebound: chunk_gla and fused_recurrent_gla to "
        "fla.ops.gla.naive.naive_recurrent_gla, rms_norm_gated to "
        "fla.modules.layernorm_gated.rms_norm_ref with norm_before_gate")

    def case(name, shape, gate_bias=0.0, **fields):
        c = types.SimpleNamespace(**fields)
        module = randomise(fla.layers.gla.GatedLinearAttention(
            hidden_size=c.d_model, num_heads=c.n_heads, expand_k=c.n_heads * c.head_k / c.d_model,
            expand_v=c.n_heads * c.head_v / c.d_model, norm_eps=c.norm_eps, layer_idx=0,
            gate_low_rank_dim=c.gate_rank, gate_logit_normalizer=c.gate_normalizer))
        module.gk_proj[1].bias.data += gate_bias * (torch.rand_like(module.gk_proj[1].bias) < 0.3)

        def run(x):
            cache = Cache()
            y = module(x, past_key_values=cache, use_cache=True)[0]
            return y, {"memory": cache[0]["recurrent_state"]}

        return Case(name, fields, source, shape, weights_of(module), run)

    yield case("odd", (2, 37), d_model=21, n_heads=3, head_k=5, head_v=7, gate_rank=3,
               gate_normalizer=16.0, norm_eps=1e-5)
    yield case("long", (2, 150), d_model=24, n_heads=2, head_k=8, head_v=16, gate_rank=4,
               gate_normalizer=16.0, norm_eps=1e-6)
    yield case("strong-gates", (1, 131), d_model=18, n_heads=2, head_k=9, head_v=9, gate_rank=4,
               gate_normalizer=1.0, norm_eps=1e-5, gate_bias=-40.0)
