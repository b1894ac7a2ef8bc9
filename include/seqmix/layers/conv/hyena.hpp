#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/conv/online.hpp"
#include "seqmix/kernels/conv/short.hpp"
#include "seqmix/layers/mixer.hpp"
#include "seqmix/layers/projection.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

struct HyenaConfig {
  Index d_model = 0;
  Index order = 2;                           // gates; order - 1 long convolutions
  Index max_length = 1024;                   // tokens that a stream may have: the filters' length
  Index filter_width = 64;                   // hidden width of the filters' network
  Index filter_embedding = 3;                // numbers that describe a position, odd
  Index filter_inner_layers = 2;             // hidden layers after the first
  Index conv_kernel = 3;                     // taps of the short convolution
  double modulation_shift = 0;               // floor of the filters' exponential window
  StepForm step_form = StepForm::amortized;  // whether long steps may come between short ones

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("order", self.order);
    field("max_length", self.max_length), field("filter_width", self.filter_width);
    field("filter_embedding", self.filter_embedding);
    field("filter_inner_layers", self.filter_inner_layers, zero_is_legal);
    field("conv_kernel", self.conv_kernel),
        field("modulation_shift", self.modulation_shift, is_finite);
    field("step_form", self.step_form);
  }
  void check() const { require(order >= 2, "order must be at least 2"); }
};

/// Hyena: gates and implicitly parametrised long convolutions in turn.
///
///   (x_0, ..., x_{N-1}, v) = short_conv(W_in u_t + b)
///   v <- h_o * (v ⊙ x_{N-1-o}) + d_o ⊙ (v ⊙ x_{N-1-o})        for o = 0 .. N - 2
///   y_t = W_out (v ⊙ x_0) + b
///   h_o(t) = MLP_o(position t) ⊙ (exp(-τ_t |δ|) + shift),       MLP with sin(ω ⊙ .) between layers
///
/// forward: O(T D² + N D T log T). step: O(D² + N D log² t) on average and O(N D t log t) at worst
/// for step_form amortized; spread: O(D² + N D t / 1024), at worst about four times the average.
/// State: after t tokens (N - 1) t D inputs of the long convolutions, as many sums for later tokens
/// (spread: up to 4032 (N - 1) D), and (W - 1) (N + 1) D inputs of the short one.
/// The transforms of parallel segments carry a NaN to earlier tokens of its segment; in recurrent
/// ones it reaches later tokens alone.
/// Source: Poli et al. 2023, arXiv:2302.10866, definition 3.1 and section 3.3; HazyResearch/safari
/// src/models/sequence/hyena.py HyenaOperator. The filters are computed once, at construction.
template <class S>
struct HyenaDefinition {
  using Scalar = S;
  using Config = HyenaConfig;
  static constexpr Traits traits{.name = "hyena",
                                 .title = "Hyena long convolution",
                                 .paper = "Poli 2023, arXiv:2302.10866",
                                 .forward = "O(T D² + T log T D)",
                                 .step = "O(D² + log² t D), amortized or spread",
                                 .state = "2 t (order - 1) D + (W - 1) (order + 1) D",
                                 .tolerance = Tolerance::indirect,
                                 .whole_sequence = true,
                                 .has_position_limit = true};
  // Sequences stay whole, as one FFT over all of a segment costs least.

  /// One layer of the filters' network, h -> sin(ω ⊙ (W h + b)).
  struct FilterLayer {
    Parameter<Scalar, 2> weight;  // [out, in]
    Parameter<Scalar, 1> bias;    // [out]
    Parameter<Scalar, 2> freq;    // [1, out]
  };
  struct Weights {
    Projection<Scalar> in_proj, out_proj;
    Parameter<Scalar, 3> short_filter;       // [(N + 1) D, 1, W]
    Parameter<Scalar, 1> short_filter_bias;  // [(N + 1) D]
    Parameter<Scalar, 1> filter_bias;        // [D (N - 1)], d_o
    Parameter<Scalar, 3> positions;          // [1, max_length, embedding]
    Parameter<Scalar, 3> times;              // [1, max_length, 1], τ
    Parameter<Scalar, 3> deltas;             // [1, 1, D (N - 1)], δ
    std::vector<FilterLayer> filter_layers;
    Parameter<Scalar, 2> filter_out;  // [D (N - 1), filter_width]

    static void visit(auto& self, const Config& c, auto&& parameter) {
      const Index width = (c.order + 1) * c.d_model, filters = (c.order - 1) * c.d_model;
      parameter("in_proj.weight", self.in_proj.weight, {width, c.d_model});
      parameter("in_proj.bias", self.in_proj.bias, {width}, init::zeros);
      parameter("out_proj.weight", self.out_proj.weight, {c.d_model, c.d_model});
      parameter("out_proj.bias", self.out_proj.bias, {c.d_model}, init::zeros);
      parameter("short_filter.weight", self.short_filter, {width, 1, c.conv_kernel});
      parameter("short_filter.bias", self.short_filter_bias, {width}, init::zeros);
      parameter("filter_fn.bias", self.filter_bias, {filters}, init::normal(0, 0.3));
      parameter("filter_fn.pos_emb.z", self.positions, {1, c.max_length, c.filter_embedding},
                init::normal(0, 1));
      parameter("filter_fn.pos_emb.t", self.times, {1, c.max_length, 1}, init::ramp);
      parameter("filter_fn.modulation.deltas", self.deltas, {1, 1, filters}, init::uniform(1, 7));
      constexpr std::string_view network = "filter_fn.implicit_filter";
      const Index layers = c.filter_inner_layers + 1;
      for_each_part("filter_layers", self.filter_layers, layers, [&](auto& layer, Index i) {
        const Index in = i == 0 ? c.filter_embedding : c.filter_width;
        parameter({network, 2 * i, "weight"}, layer.weight, {c.filter_width, in});
        parameter({network, 2 * i, "bias"}, layer.bias, {c.filter_width}, init::zeros);
        parameter({network, 2 * i + 1, "freq"}, layer.freq, {1, c.filter_width},
                  init::normal(1, 0.3));
      });
      parameter({network, 2 * layers, "weight"}, self.filter_out, {filters, c.filter_width});
    }
  };

  struct State {
    Position position;               // [B]
    Tensor<Scalar, 3> conv;          // [B, W - 1, (N + 1) D], last inputs, oldest first
    Appended<Scalar, 4, 2> history;  // [B, N - 1, capacity, D], inputs of the long convolutions
    Appended<Scalar, 4, 2> sums;     // [B, N - 1, capacity, D], or no orders if spread
    Tensor<Scalar, 4> spread_sums;   // [B, N - 1, rows, D], or no orders if amortized

    static void visit(auto& self, auto&& tensor) {
      tensor("position", self.position), tensor("conv", self.conv);
      tensor("history", self.history), tensor("sums", self.sums);
      tensor("spread_sums", self.spread_sums);
    }
  };

  Config c;
  Weights w;
  Parameter<Scalar, 2> taps;                         // [W, (N + 1) D]
  std::vector<LongFilter<Scalar>> filters;           // one an order
  std::vector<SpreadFilter<Scalar>> spread_filters;  // if spread

  HyenaDefinition(Config config, Weights weights)
      : c(std::move(config)), w(std::move(weights)), taps(transposed_taps(w.short_filter)) {
    const Tensor<Scalar, 3> h = make_filters();  // [N - 1, D, max_length]
    for (Index o = 0; o + 1 < c.order; ++o) {
      filters.emplace_back(h[o]);
      if (c.step_form == StepForm::spread) spread_filters.emplace_back(filters.back());
    }
  }

  PositionLimit position_limit() const { return {c.max_length, "max_length"}; }

  State make_state(Index batch, Index capacity, Memory memory) const {
    position_limit().check(traits.name, 0, capacity);
    // No token is ever stepped from a state that ends with its call: it needs no sums.
    const bool spread = c.step_form == StepForm::spread;
    const Index orders = memory.ends_with_call() ? 0 : c.order - 1;
    return {.position = {batch, memory},
            .conv = {{batch, c.conv_kernel - 1, (c.order + 1) * c.d_model}, memory},
            .history = {{batch, c.order - 1, capacity, c.d_model}, memory},
            .sums = {{batch, spread ? 0 : orders, capacity, c.d_model}, memory},
            .spread_sums = {
                {batch, spread ? orders : 0, spread ? spread_filters.front().rows() : 0, c.d_model},
                memory}};
  }

  void run(View<const Scalar, 2> x, State& state, View<Scalar, 2> y, const Call& call) const {
    const Index T = x.extent(axis::time), D = c.d_model;
    auto scratch = call.scratch<Scalar>();
    auto gates = scratch(T, (c.order + 1) * D);  // [T, (N + 1) D]
    auto v = scratch(T, D);                      // [T, D]
    const auto gate = [&](Index i) { return gates.slice(axis::channel, i * D, D); };
    const auto multiply = [](auto a, auto b) { return a * b; };

    project(x, {{w.in_proj, gates}}, call);
    short_conv(gates, taps, w.short_filter_bias, ShortConvActivation::none, state.conv, gates,
               call);
    View<Scalar, 2> source = gate(c.order);
    for (Index o = 0; o + 1 < c.order; ++o) {
      elementwise(call, multiply, v, source, gate(c.order - 1 - o));
      append<Scalar>(v.split(axis::channel, 1, D), state.position.tokens,
                     state.history.view().slice(axis::head, o, 1), call);
      long_convolution(v, state, o, call);
      source = v;
    }
    elementwise(call, multiply, v, v, gate(0));
    project(v, {{w.out_proj, y}}, call);
  }

 private:
  /// v <- h_o * v [T, D], which has been appended to the history of order o.
  void long_convolution(View<Scalar, 2> v, State& state, Index o, const Call& call) const {
    const View<const Index, 1> past = state.position.tokens;
    const auto of_order = [o](View<Scalar, 4> numbers) { return numbers.at(axis::head, o); };
    const View<const Scalar, 3> history = of_order(state.history.view().native());
    const auto order = static_cast<std::size_t>(o);
    if (state.sums.entries.extent(1) > 0) {
      online_conv<Scalar>(v, history, past, filters[order], of_order(state.sums.view().native()), v,
                          call);
    } else if (state.spread_sums.extent(1) > 0) {
      spread_conv<Scalar>(v, history, past, spread_filters[order], of_order(state.spread_sums), v,
                          call);
    } else {  // no token will be stepped from this state
      long_conv_continue<Scalar>(v, history, past, filters[order], v, call);
    }
  }

  /// The filters [N - 1, D, max_length], d_o folded into tap 0. Channel (d, o) of the network is
  /// its output d (N - 1) + o. In double: an error of a tap would be one of every token.
  Tensor<Scalar, 3> make_filters() const {
    const Index orders = c.order - 1;
    Tensor<Scalar, 3> result({orders, c.d_model, c.max_length});
    const auto affine = [](const auto& weight, const std::vector<double>& in) {
      std::vector<double> out(static_cast<std::size_t>(weight.extent(0)));
      for (std::size_t i = 0; i < out.size(); ++i) {
        for (std::size_t j = 0; j < in.size(); ++j) {
          out[i] +=
              static_cast<double>(weight(static_cast<Index>(i), static_cast<Index>(j))) * in[j];
        }
      }
      return out;
    };
    for (Index t = 0; t < c.max_length; ++t) {
      std::vector<double> h(static_cast<std::size_t>(c.filter_embedding));
      for (std::size_t i = 0; i < h.size(); ++i) {
        h[i] = static_cast<double>(w.positions(0, t, static_cast<Index>(i)));
      }
      for (const FilterLayer& layer : w.filter_layers) {
        h = affine(layer.weight, h);
        for (std::size_t i = 0; i < h.size(); ++i) {
          const auto at = static_cast<Index>(i);
          h[i] = std::sin(static_cast<double>(layer.freq(0, at)) *
                          (h[i] + static_cast<double>(layer.bias[at])));
        }
      }
      h = affine(w.filter_out, h);
      for (Index channel = 0; channel < c.d_model * orders; ++channel) {
        const double window = std::exp(-static_cast<double>(w.times(0, t, 0)) *
                                       std::abs(static_cast<double>(w.deltas(0, 0, channel))));
        const double tap = h[static_cast<std::size_t>(channel)] * (window + c.modulation_shift);
        const double direct = t == 0 ? static_cast<double>(w.filter_bias[channel]) : 0;
        result(channel % orders, channel / orders, t) = static_cast<Scalar>(tap + direct);
      }
    }
    return result;
  }
};

template <class Scalar = float>
using Hyena = Mixer<HyenaDefinition<Scalar>>;
SEQMIX_COMPILE_MIXER(HyenaDefinition);

SEQMIX_END_NAMESPACE
}  // namespace seqmix
