"""Long convolutions."""

import sys

from common import *


def hyena(arguments):
    sys.path.insert(0, str(arguments.repository("safari")))
    lightning = types.ModuleType("pytorch_lightning")
    lightning.utilities = types.ModuleType("pytorch_lightning.utilities")
    lightning.utilities.rank_zero_only = lambda function: function
    sys.modules[lightning.__name__] = lightning
    sys.modules[lightning.utilities.__name__] = lightning.utilities
    from src.models.sequence.hyena import HyenaOperator

    source = ("HazyResearch/safari 02220c69d247 src/models/sequence/hyena.py HyenaOperator "
              f"(fftconv_ref), torch {torch.__version__}, {LIFTED}; pytorch_lightning, which its "
              "utilities import, is an empty module")

    def case(name, shape, **fields):
        c = types.SimpleNamespace(**fields)
        module = randomise(
            HyenaOperator(c.d_model, c.max_length, order=c.order, filter_order=c.filter_width,
                          short_filter_order=c.conv_kernel, emb_dim=c.filter_embedding,
                          num_inner_mlps=c.filter_inner_layers, shift=c.modulation_shift))
        # Frequencies around 3, positions near the published ones, taps small enough for long sums.
        filters = module.filter_fn
        filters.implicit_filter[-1].weight.data *= 0.3
        sine = filters.implicit_filter[1]  # one module, reused after every inner layer
        sine.freq.data = 3 + torch.randn_like(sine.freq)
        published_positions = type(filters.pos_emb)(c.filter_embedding, c.max_length).z.data
        filters.pos_emb.z.data = published_positions + 0.1 * torch.randn_like(published_positions)
        filters.modulation.deltas *= 1 + 0.2 * torch.randn_like(filters.modulation.deltas)
        filters.modulation.deltas[..., ::2] *= -1  # the layer takes the absolute value
        return Case(name, fields, source, shape, weights_of(module), lambda x: (module(x), {}))

    yield case("odd", (2, 37), d_model=11, order=2, max_length=50, filter_width=13,
               filter_embedding=5, filter_inner_layers=2, conv_kernel=3, modulation_shift=0.0,
               step_form="amortized")
    yield case("order-3", (2, 70), d_model=8, order=3, max_length=70, filter_width=9,
               filter_embedding=3, filter_inner_layers=1, conv_kernel=3, modulation_shift=0.05,
               step_form="amortized")
    yield case("long", (1, 300), d_model=12, order=2, max_length=512, filter_width=16,
               filter_embedding=9, filter_inner_layers=3, conv_kernel=3, modulation_shift=0.01,
               step_form="spread")
    yield case("order-4-taps-4", (1, 131), d_model=6, order=4, max_length=131, filter_width=8,
               filter_embedding=7, filter_inner_layers=0, conv_kernel=4, modulation_shift=0.0,
               step_form="spread")
