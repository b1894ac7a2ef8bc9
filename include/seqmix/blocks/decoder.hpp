#pragma once

#include <algorithm>
#include <string_view>
#include <utility>

#include "seqmix/kernels/pointwise/norm.hpp"
#include "seqmix/layers/mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The channel mixer of a block that has none (Mamba's).
template <class S>
struct NoChannelMixer {
  using Scalar = S;
  using State = NoState;
  static constexpr Traits traits{.name = "no_channel_mixer"};
  struct Config {
    static void visit(auto&, auto&&) {}
  };
  struct Weights {
    static void visit(auto&, const Config&, auto&&) {}
  };
};

template <class MixerConfig, class ChannelConfig>
struct DecoderConfig {
  Index d_model = 0;
  double norm_eps = 1e-6;
  MixerConfig mixer;
  ChannelConfig channel;

  static constexpr bool has_channel = requires(ChannelConfig c) { c.d_model; };

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("norm_eps", self.norm_eps, at_least(0));
    field("mixer", self.mixer);
    if constexpr (has_channel) field("channel", self.channel);
  }
  void check() const {
    require(mixer.d_model == d_model, "mixer.d_model must be d_model");
    if constexpr (has_channel) {
      require(channel.d_model == d_model, "channel.d_model must be d_model");
    }
  }
};

/// A block of a language model: a mixer and a channel mixer, each behind a norm and around a
/// residual.
///
///   u_t = x_t + mixer(rms_norm(x_t))
///   y_t = u_t + channel(rms_norm(u_t))          y_t = u_t without a channel mixer
///
/// Cost and state: those of its parts. Source: Touvron et al. 2023, arXiv:2302.13971, section 2.2;
/// HF transformers LlamaDecoderLayer, Mamba2Block.
template <class MixerPart, class ChannelPart = NoChannelMixer<typename MixerPart::Scalar>>
struct DecoderDefinition {
  using Scalar = typename MixerPart::Scalar;
  using Config = DecoderConfig<typename MixerPart::Config, typename ChannelPart::Config>;
  static constexpr Traits traits{.name = "decoder",
                                 .whole_sequence = keeps_segments_whole<MixerPart>,
                                 .composite = true,
                                 .has_position_limit = true,
                                 .has_start_row = true};
  static constexpr bool has_channel = Config::has_channel;

  struct Weights {
    Parameter<Scalar, 1> mixer_norm, channel_norm;
    typename MixerPart::Weights mixer;
    typename ChannelPart::Weights channel;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      parameter("mixer_norm.weight", self.mixer_norm, {c.d_model}, init::ones);
      MixerPart::Weights::visit(self.mixer, c.mixer, Prefixed("mixer", parameter));
      if constexpr (has_channel) {
        parameter("channel_norm.weight", self.channel_norm, {c.d_model}, init::ones);
        ChannelPart::Weights::visit(self.channel, c.channel, Prefixed("channel", parameter));
      }
    }
  };

  struct State {
    typename MixerPart::State mixer;
    typename ChannelPart::State channel;

    static void visit(auto& self, auto&& tensor) {
      MixerPart::State::visit(self.mixer, Prefixed("mixer", tensor));
      ChannelPart::State::visit(self.channel, Prefixed("channel", tensor));
    }
  };

  /// The mixer's.
  struct Side {
    using OfMixer = typename detail::SideOf<MixerPart>::type;
    OfMixer mixer;

    static void visit(auto& self, const Config& c, auto&& side) {
      OfMixer::visit(self.mixer, c.mixer, side);
    }
  };

  Config c;
  Weights w;
  MixerPart mixer;
  ChannelPart channel;

  DecoderDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        mixer{c.mixer, w.mixer},
        channel(make_channel(c, w)) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    State state{.mixer = mixer.make_state(batch, capacity, memory), .channel = {}};
    if constexpr (has_channel) state.channel = channel.make_state(batch, capacity, memory);
    return state;
  }

  void start_row(State& state, Index row) const {
    seqmix::start_row(mixer, state.mixer, row);
    seqmix::start_row(channel, state.channel, row);
  }

  PositionLimit position_limit() const {
    return std::min(seqmix::position_limit(mixer), seqmix::position_limit(channel));
  }

  void run(View<const Scalar, 2> x, State& state, const Side& side, View<Scalar, 2> y,
           const Call& call) const {
    auto scratch = call.scratch<Scalar>();
    auto normed = scratch(x.extent(axis::time), c.d_model);  // [T, D]
    auto mixed = scratch(x.extent(axis::time), c.d_model);   // [T, D]
    const auto add = [](auto a, auto b) { return a + b; };

    rms_norm(x, w.mixer_norm, c.norm_eps, normed, call);
    seqmix::run(mixer, normed, state.mixer, mixed, call, side.mixer);
    elementwise(call, add, y, x, mixed);
    if constexpr (has_channel) {
      rms_norm(y, w.channel_norm, c.norm_eps, normed, call);
      seqmix::run(channel, normed, state.channel, mixed, call);
      elementwise(call, add, y, y, mixed);
    }
  }

 private:
  static ChannelPart make_channel(const Config& c, const Weights& w) {
    if constexpr (has_channel) {
      return ChannelPart{c.channel, w.channel};
    } else {
      return {};
    }
  }
};

template <class MixerPart, class ChannelPart = NoChannelMixer<typename MixerPart::Scalar>>
using Decoder = Mixer<DecoderDefinition<MixerPart, ChannelPart>>;

SEQMIX_END_NAMESPACE
}  // namespace seqmix
