#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "seqmix/layers/mixer.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

template <class... Parts>
struct SequenceConfig {
  Index d_model = 0;
  std::tuple<typename Parts::Config...> parts;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model);
    for_each_part(self, [&](const std::string& name, auto& part) { field(name, part); });
  }
  void check() const {
    for_each_part(*this, [&](const std::string& name, const auto& part) {
      require(part.d_model == d_model, name + ".d_model must be d_model");
    });
  }

 private:
  /// Calls `body(name, part)` for the config of each part.
  static void for_each_part(auto& self, auto&& body) {
    [&]<std::size_t... i>(std::index_sequence<i...>) {
      (body(Name("layers", static_cast<Index>(i)).text(), std::get<i>(self.parts)), ...);
    }
    (std::index_sequence_for<Parts...>());
  }
};

/// Blocks behind each other, y = part_n(... part_1(x)): what a hybrid model repeats.
///
/// Part i's config is called `layers.i`, its weights and state `layers.i.` + their own names. Cost
/// and state: the sum of the parts'.
template <class FirstPart, class... Parts>
struct SequenceDefinition {
  using Scalar = typename FirstPart::Scalar;
  using Config = SequenceConfig<FirstPart, Parts...>;
  static constexpr Traits traits{
      .name = "sequence",
      .whole_sequence = keeps_segments_whole<FirstPart> || (keeps_segments_whole<Parts> || ...),
      .composite = true,
      .has_position_limit = true,
      .has_start_row = true};

  struct Weights {
    std::tuple<typename FirstPart::Weights, typename Parts::Weights...> parts;

    static void visit(auto& self, const Config& c, auto&& parameter) {
      for_each_part([&]<std::size_t i, class Part>() {
        Part::Weights::visit(std::get<i>(self.parts), std::get<i>(c.parts),
                             Prefixed(Name("layers", static_cast<Index>(i)), parameter));
      });
    }
  };

  struct State {
    std::tuple<typename FirstPart::State, typename Parts::State...> parts;

    static void visit(auto& self, auto&& tensor) {
      for_each_part([&]<std::size_t i, class Part>() {
        Part::State::visit(std::get<i>(self.parts),
                           Prefixed(Name("layers", static_cast<Index>(i)), tensor));
      });
    }
  };

  struct Side {
    std::tuple<typename detail::SideOf<FirstPart>::type, typename detail::SideOf<Parts>::type...>
        parts;

    static void visit(auto& self, const Config& c, auto&& side) {
      for_each_part([&]<std::size_t i, class Part>() {
        detail::SideOf<Part>::type::visit(std::get<i>(self.parts), std::get<i>(c.parts), side);
      });
    }
  };

  Config c;
  Weights w;
  std::tuple<FirstPart, Parts...> parts;

  SequenceDefinition(Config config, Weights weights)
      : c(std::move(config)),
        w(std::move(weights)),
        parts(make_parts(c, w, std::make_index_sequence<1 + sizeof...(Parts)>())) {}

  State make_state(Index batch, Index capacity, Memory memory) const {
    return std::apply(
        [&](const auto&... part) { return State{{part.make_state(batch, capacity, memory)...}}; },
        parts);
  }

  void start_row(State& state, Index row) const {
    for_each_part([&]<std::size_t i, class Part>() {
      seqmix::start_row(std::get<i>(parts), std::get<i>(state.parts), row);
    });
  }

  PositionLimit position_limit() const {
    return std::apply(
        [](const auto&... part) { return std::min({seqmix::position_limit(part)...}); }, parts);
  }

  void run(View<const Scalar, 2> x, State& state, const Side& side, View<Scalar, 2> y,
           const Call& call) const {
    for_each_part([&]<std::size_t i, class Part>() {
      seqmix::run(std::get<i>(parts), i == 0 ? x : View<const Scalar, 2>(y),
                  std::get<i>(state.parts), y, call, std::get<i>(side.parts));
    });
  }

 private:
  /// Calls `body<i, Part>()` for each part, in order.
  static void for_each_part(auto&& body) {
    [&]<std::size_t... i>(std::index_sequence<i...>) {
      (body.template operator()<i, std::tuple_element_t<i, std::tuple<FirstPart, Parts...>>>(),
       ...);
    }
    (std::make_index_sequence<1 + sizeof...(Parts)>());
  }
  template <std::size_t... i>
  static std::tuple<FirstPart, Parts...> make_parts(const Config& c, const Weights& w,
                                                    std::index_sequence<i...>) {
    return {std::tuple_element_t<i, std::tuple<FirstPart, Parts...>>{std::get<i>(c.parts),
                                                                     std::get<i>(w.parts)}...};
  }
};

template <class... Parts>
using Sequence = Mixer<SequenceDefinition<Parts...>>;

SEQMIX_END_NAMESPACE
}  // namespace seqmix
