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


def linear_attention(arguments):
    import functools
    import sys

    import fla.layers.based
    import fla.layers.linear_attn
    import fla.modules.layernorm
    import performer_pytorch.performer_pytorch as performer
    from fla.modules.layernorm import rms_norm_ref
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn

    sys.path[:0] = [str(arguments.repository(name)) for name in ("fast-transformers", "cosformer")]
    import cosformer
    from fast_transformers.recurrent.attention import RecurrentAttentionLayer
    from fast_transformers.recurrent.attention import RecurrentLinearAttention

    def weights_as(module, **renamed):
        weights = weights_of(module, **renamed)
        return {name: tensor for name, tensor in weights.items() if not name.startswith("feature")}

    def fields_of(d_model, n_heads, head_k, head_v, feature_map, **fields):
        return dict(d_model=d_model, n_heads=n_heads, head_k=head_k, head_v=head_v,
                    feature_map=feature_map) | dict(
                        n_features=0, max_length=0, scale=1.0, normalize=True, eps=1e-6, bias=False,
                        output_norm=False, norm_eps=1e-5) | fields

    def from_fast_transformers(name, shape, d_model, n_heads, head_k, head_v):
        layer = randomise(RecurrentAttentionLayer(RecurrentLinearAttention(head_k), d_model,
                                                  n_heads, head_k, head_v))

        def run(x):
            outputs, state = [], None
            for token in x.unbind(1):
                y, state = layer(token, token, token, state)
                outputs.append(y)
            return torch.stack(outputs, 1), {"memory": state[0], "key_sum": state[1]}

        source = ("idiap/fast-transformers 2ad36b97e64cb93862937bd21fcc9568d989561f "
                  "RecurrentAttentionLayer of RecurrentLinearAttention, token by token, "
                  f"torch {torch.__version__}, {LIFTED}")
        weights = weights_of(layer, query_projection="q_proj", key_projection="k_proj",
                             value_projection="v_proj", out_projection="o_proj")
        return Case(name, fields_of(d_model, n_heads, head_k, head_v, "elu_plus_one", bias=True),
                    source, shape, weights, run)

    yield from_fast_transformers("fast-transformers-odd", (2, 37), 15, 3, 5, 7)
    yield from_fast_transformers("fast-transformers-long", (1, 140), 20, 2, 8, 10)

    def naive(q, k, v, normalize):
        return naive_recurrent_linear_attn(q, k, v, normalize=normalize)

    def rms_norm(x, weight, bias, residual=None, eps=1e-5, prenorm=False, residual_in_fp32=False):
        return rms_norm_ref(x, weight, bias, residual=residual, eps=eps, prenorm=prenorm)

    fla.layers.linear_attn.chunk_linear_attn = naive
    fla.modules.layernorm.rms_norm = rms_norm
    fla_source = published(
        fla.layers.linear_attn.LinearAttention,
        f"{LIFTED}; Triton operators rebound: chunk_linear_attn to "
        "fla.ops.linear_attn.naive.naive_recurrent_linear_attn, rms_norm to "
        "fla.modules.layernorm.rms_norm_ref")

    def from_fla(name, shape, feature_map, published_map, normalize, **sizes):
        c = types.SimpleNamespace(**sizes)
        layer = randomise(fla.layers.linear_attn.LinearAttention(
            hidden_size=c.d_model, expand_k=c.n_heads * c.head_k / c.d_model,
            expand_v=c.n_heads * c.head_v / c.d_model, num_heads=c.n_heads,
            feature_map=published_map, do_feature_map_norm=normalize))
        fields = fields_of(feature_map=feature_map, scale=c.head_k**-0.5, normalize=normalize,
                           eps=1e-10, output_norm=True, **sizes)
        return Case(name, fields, fla_source, shape, weights_of(layer), lambda x: (layer(x), {}))

    yield from_fla("fla-unnormalized", (2, 130), "identity", "identity", False, d_model=18,
                   n_heads=2, head_k=9, head_v=12)
    yield from_fla("fla-relu", (2, 41), "relu", "relu", True, d_model=15, n_heads=3, head_k=15,
                   head_v=5)

    def based(name, shape, d_model, n_heads, head_k):
        layer = randomise(fla.layers.based.BasedLinearAttention(
            d_model, feature_dim=head_k, num_heads=n_heads, num_key_value_heads=n_heads))
        fields = fields_of(d_model, n_heads, head_k, d_model // n_heads, "taylor", eps=1e-12)
        return Case(name, fields, published(fla.layers.based.BasedLinearAttention.forward_reference),
                    shape, weights_as(layer), lambda x: (layer.forward_reference(x), {}))

    yield based("based-odd", (2, 35), 21, 3, 5)
    yield based("based-long", (1, 132), 16, 2, 8)

    def from_cosformer(name, shape, d_model, n_heads, max_length):
        layer = randomise(cosformer.CosformerAttention(d_model, n_heads, causal=True))

        def run(x):
            # The published weights depend on the length, which is the longest one of a stream.
            padded = torch.zeros(max_length, len(x), d_model)
            padded[:x.shape[1]] = x.transpose(0, 1)
            return layer(padded)[:x.shape[1]].transpose(0, 1), {}

        source = ("OpenNLPLab/cosFormer 8e12da111e2a683ea875711e0bf5810c6b4e8f9f "
                  "CosformerAttention, causal, x padded with zeros to max_length, "
                  f"torch {torch.__version__}, {LIFTED}")
        head = d_model // n_heads
        return Case(name, fields_of(d_model, n_heads, head, head, "cosformer", bias=True,
                                    max_length=max_length),
                    source, shape, weights_of(layer, out_proj="o_proj"), run)

    yield from_cosformer("cosformer-odd", (2, 37), 15, 3, 50)
    yield from_cosformer("cosformer-long", (1, 131), 16, 2, 131)

    softmax_kernel = performer.softmax_kernel
    performer.softmax_kernel = functools.partial(softmax_kernel, eps=0)

    def from_performer(name, shape, d_model, n_heads, head_k, n_features):
        layer = randomise(performer.SelfAttention(
            d_model, causal=True, heads=n_heads, dim_head=head_k, nb_features=n_features,
            qkv_bias=True))
        attention = layer.fast_attention
        attention.causal_linear_fn = functools.partial(performer.causal_linear_attention_noncuda,
                                                       eps=0)
        source = published(
            performer.SelfAttention,
            f"{LIFTED}; eps=0 bound to softmax_kernel and causal_linear_attention_noncuda, so that "
            "no feature depends on the maximum over later keys")
        weights = weights_of(layer, to_q="q_proj", to_k="k_proj", to_v="v_proj", to_out="o_proj",
                             fast_attention="")
        return Case(name, fields_of(d_model, n_heads, head_k, head_k, "favor", bias=True,
                                    n_features=n_features, eps=0.0),
                    source, shape, weights, lambda x: (layer(x), {}))

    yield from_performer("performer-odd", (2, 37), 15, 3, 5, 19)
    yield from_performer("performer-long", (1, 140), 18, 2, 9, 24)

    performer.softmax_kernel = softmax_kernel

    def from_performer_defaults(name, shape, d_model, n_heads, head_k):
        layer = randomise(performer.SelfAttention(d_model, causal=True, heads=n_heads,
                                                  dim_head=head_k))

        def run(x):
            # The published features of a token depend on the keys of the whole call.
            tokens = [layer(x[:, :t])[:, -1] for t in range(1, x.shape[1] + 1)]
            return torch.stack(tokens, 1), {}

        source = published(
            performer.SelfAttention,
            f"{LIFTED}; each token as the last of a call, as its keys are scaled by the maximum "
            "over the call")
        weights = weights_of(layer, to_q="q_proj", to_k="k_proj", to_v="v_proj", to_out="o_proj",
                             fast_attention="")
        return Case(name, fields_of(d_model, n_heads, head_k, head_k, "favor", eps=1e-6,
                                    kernel_eps=1e-4, out_bias=True,
                                    n_features=layer.fast_attention.nb_features),
                    source, shape, weights, run)

    yield from_performer_defaults("performer-defaults-odd", (2, 37), 15, 3, 5)
    yield from_performer_defaults("performer-defaults-long", (1, 140), 18, 2, 9)

    def from_fla_defaults(name, shape, d_model, n_heads):
        layer = randomise(fla.layers.linear_attn.LinearAttention(hidden_size=d_model,
                                                                 num_heads=n_heads))
        head = d_model // n_heads
        return Case(name, fields_of(d_model, n_heads, head, head, "elementwise_product",
                                    scale=head**-0.5, normalize=False, output_norm=True),
                    fla_source, shape, weights_of(layer), lambda x: (layer(x), {}))

    yield from_fla_defaults("fla-defaults-odd", (2, 41), 15, 3)
    yield from_fla_defaults("fla-defaults-long", (1, 130), 18, 2)


def retention(arguments):
    import sys

    import fla.layers.multiscale_retention
    import fla.modules.fused_norm_gate
    import fla.modules.rotary
    from fla.modules.layernorm_gated import rms_norm_ref
    from fla.modules.rotary import rotary_embedding_ref
    from fla.ops.retention.naive import naive_retention

    # torchscale's decoder imports these for other parts of it; nothing of them runs here.
    for name, members in (("fairscale", []), ("fairscale.nn", ["checkpoint_wrapper", "wrap"]),
                          ("timm", []), ("timm.models", []), ("timm.models.layers", ["drop_path"])):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(members))
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetRelPos
    from torchscale.component.multiscale_retention import MultiScaleRetention

    def from_torchscale(name, shape, d_model, n_heads, head_v, chunk):
        head_k = d_model // n_heads
        options = types.SimpleNamespace(
            decoder_embed_dim=d_model, decoder_retention_heads=n_heads, multiway=False,
            recurrent_chunk_size=chunk, layernorm_eps=0.0)
        layer = randomise(MultiScaleRetention(options, d_model, n_heads * head_v, n_heads))
        positions = RetNetRelPos(options)

        def run(x):
            chunked = chunk > 0 and x.shape[1] % chunk == 0
            return layer(x, positions(x.shape[1], chunkwise_recurrent=chunked),
                         chunkwise_recurrent=chunked), {}

        source = published(
            MultiScaleRetention,
            f"{LIFTED}; layernorm_eps 0, as the forms divide by different numbers that only an "
            "exact norm takes out again; fairscale and timm, which only other parts use, are empty modules")
        fields = dict(d_model=d_model, n_heads=n_heads, head_k=head_k, head_v=head_v,
                      rotary_dim=head_k, rope_theta=10000.0, rope_interleaved=True,
                      rope_closed=True, norm_weight=False, norm_eps=0.0)
        return Case(name, fields, source, shape, weights_of(layer, out_proj="o_proj"), run)

    yield from_torchscale("torchscale-parallel-odd", (2, 37), 18, 3, 7, 0)
    yield from_torchscale("torchscale-chunkwise", (2, 132), 16, 2, 12, 33)

    def retain(q, k, v, initial_state=None, output_final_state=False, cu_seqlens=None):
        heads_first = [tensor.transpose(1, 2) for tensor in (q, k, v)]
        return naive_retention(*heads_first).transpose(1, 2), None

    def rotate(x, cos, sin, interleaved=False, seqlen_offsets=0, cu_seqlens=None):
        return rotary_embedding_ref(x, cos[:x.shape[1]], sin[:x.shape[1]], interleaved)

    def gated_norm(x, g, weight, bias, activation, residual=None, eps=1e-6, prenorm=False,
                   residual_in_fp32=False):
        assert activation == "swish" and residual is None and not prenorm
        return rms_norm_ref(x, weight, bias, z=g, eps=eps, norm_before_gate=True)

    fla.layers.multiscale_retention.chunk_retention = retain
    fla.layers.multiscale_retention.fused_recurrent_retention = retain
    fla.modules.rotary.rotary_embedding = rotate
    fla.modules.fused_norm_gate.rms_norm_gated = gated_norm

    def from_fla(name, shape, d_model, n_heads, head_k, head_v):
        layer = randomise(fla.layers.multiscale_retention.MultiScaleRetention(
            hidden_size=d_model, num_heads=n_heads, expand_k=n_heads * head_k / d_model,
            expand_v=n_heads * head_v / d_model))
        source = published(
            fla.layers.multiscale_retention.MultiScaleRetention,
            f"{LIFTED}; Triton operators rebound: chunk_retention and fused_recurrent_retention to "
            "fla.ops.retention.naive.naive_retention, rotary_embedding to "
            "fla.modules.rotary.rotary_embedding_ref, rms_norm_gated to "
            "fla.modules.layernorm_gated.rms_norm_ref with norm_before_gate")
        fields = dict(d_model=d_model, n_heads=n_heads, head_k=head_k, head_v=head_v,
                      rotary_dim=head_k, rope_theta=10000.0, rope_interleaved=False,
                      rope_closed=False, norm_weight=True, norm_eps=1e-5)
        return Case(name, fields, source, shape, weights_of(layer), lambda x: (layer(x)[0], {}))

    yield from_fla("fla-odd", (2, 41), 21, 3, 6, 7)
    yield from_fla("fla-long", (1, 150), 24, 2, 8, 16)

    def from_torchscale_defaults(name, shape, d_model, n_heads, head_v, stepwise):
        head_k = d_model // n_heads
        options = RetNetConfig(decoder_embed_dim=d_model, decoder_retention_heads=n_heads)
        layer = randomise(MultiScaleRetention(options, d_model, n_heads * head_v, n_heads))
        positions = RetNetRelPos(options)

        def run(x):
            if not stepwise:
                return layer(x, positions(x.shape[1])), {}
            state = {}
            tokens = [layer(token[:, None], positions(t, activate_recurrent=True),
                            incremental_state=state) for t, token in enumerate(x.unbind(1), 1)]
            return torch.cat(tokens, 1), {"scale": state["scale"].expand(len(x), -1)}

        source = published(
            MultiScaleRetention,
            f"{LIFTED}; at the defaults of RetNetConfig, " + ("token by token" if stepwise else
                                                              "the parallel form") +
            "; fairscale and timm, which only other parts use, are empty modules")
        fields = dict(d_model=d_model, n_heads=n_heads, head_k=head_k, head_v=head_v,
                      rotary_dim=head_k, rope_theta=10000.0, rope_interleaved=True,
                      rope_closed=True, norm_weight=False, norm_eps=options.layernorm_eps,
                      score_norm="decay" if stepwise else "scores")
        return Case(name, fields, source, shape, weights_of(layer, out_proj="o_proj"), run)

    yield from_torchscale_defaults("torchscale-defaults-odd", (2, 37), 18, 3, 7, False)
    yield from_torchscale_defaults("torchscale-defaults-long", (1, 140), 24, 2, 10, False)
    yield from_torchscale_defaults("torchscale-defaults-steps", (2, 41), 18, 3, 5, True)


def hgrn2(arguments):
    import fla.layers.hgrn2
    from fla.models.utils import Cache
    from fla.modules.layernorm import rms_norm_ref
    from fla.ops.gla.naive import naive_recurrent_gla

    def recurrent(q, k, v, gk=None, g=None, initial_state=None, output_final_state=False,
                  cu_seqlens=None):
        return naive_recurrent_gla(q, k, v, g if gk is None else gk, initial_state,
                                   output_final_state)

    def norm_linear(x, norm_weight, norm_bias, linear_weight, linear_bias):
        return torch.nn.functional.linear(rms_norm_ref(x, norm_weight, norm_bias), linear_weight,
                                          linear_bias)

    fla.layers.hgrn2.chunk_gla = fla.layers.hgrn2.fused_recurrent_gla = recurrent
    fla.layers.hgrn2.rms_norm_linear = norm_linear
    fla.layers.hgrn2.swish = torch.nn.functional.silu
    source = published(
        fla.layers.hgrn2.HGRN2Attention,
        f"{LIFTED}; Triton operators rebound: chunk_gla and fused_recurrent_gla to "
        "fla.ops.gla.naive.naive_recurrent_gla, rms_norm_linear to "
        "fla.modules.layernorm.rms_norm_ref and torch.nn.functional.linear, swish to "
        "torch.nn.functional.silu")

    def case(name, shape, d_model, head_k, bounded):
        n_heads = d_model // head_k
        layer = randomise(fla.layers.hgrn2.HGRN2Attention(hidden_size=d_model, expand_ratio=head_k,
                                                          layer_idx=0))
        layer.f_proj.weight.data *= 2
        weights = weights_of(layer)
        bound = None
        if bounded:
            # The bound of a deeper layer; the cache keeps this one's state alone.
            bound = weights["lower_bound"] = 0.9 * torch.rand(n_heads * head_k)

        def run(x):
            cache = Cache()
            layer.layer_idx = 0
            if bounded:
                layer.layer_idx = 1
                cache.update(recurrent_state=torch.zeros(1), layer_idx=0, offset=0)
            y = layer(x, past_key_values=cache, use_cache=True, lower_bound=bound)[0]
            return y, {"memory": cache[layer.layer_idx]["recurrent_state"]}

        fields = dict(d_model=d_model, n_heads=n_heads, head_k=head_k,
                      head_v=d_model // n_heads, lower_bound=bounded, norm_eps=1e-5)
        return Case(name, fields, source, shape, weights, run)

    yield case("odd", (2, 37), 21, 7, False)
    yield case("long", (2, 150), 24, 8, True)
    yield case("bounded-odd", (1, 41), 15, 5, True)


def mlstm(arguments):
    from mlstm_kernels.torch.backend_module import mLSTMBackendConfig
    from xlstm.xlstm_large.model import mLSTMLayer, mLSTMLayerConfig

    kernel = "chunkwise--native_autograd"

    def case(name, shape, d_model, n_heads, chunk, gate_bias=0.0):
        # The float32 that a kernel asks for by name is the lifted one. Chunks divide the length,
        # as a token of padding decays the state by sigmoid(25), which is not 1.
        backend = mLSTMBackendConfig(
            chunkwise_kernel=kernel, sequence_kernel="native_sequence__native",
            step_kernel="native", mode="inference", chunk_size=chunk,
            autocast_kernel_dtype="float32", inference_state_dtype="float32")
        layer = randomise(mLSTMLayer(mLSTMLayerConfig(embedding_dim=d_model, num_heads=n_heads,
                                                      mlstm_backend=backend)))
        layer.igate_preact.bias.data += gate_bias
        layer.igate_preact.weight.data *= 3
        layer.fgate_preact.bias.data += 2

        def run(x):
            y, (c, n, m) = layer(x)
            return y, {"memory": c, "key_sum": n, "maximum": m.reshape(len(x), n_heads)}

        fields = dict(d_model=d_model, n_heads=n_heads, head_k=d_model // 2 // n_heads,
                      head_v=d_model // n_heads, gate_cap=15.0, eps=1e-6, norm_eps=1e-6)
        source = (f"{published(mLSTMLayer, LIFTED)}; mlstm_kernels 2.0.6 {kernel}, "
                  "native_sequence__native, native, in mode inference")
        return Case(name, fields, source, shape, weights_of(layer), run)

    yield case("odd", (2, 37), 18, 3, 37)
    yield case("long", (2, 150), 24, 2, 50)
    yield case("strong-input-gates", (1, 131), 20, 2, 131, gate_bias=4.0)
