// NaN at one token changes no bit of other rows and documents, in every form, algorithm, precision
// and storage of every layer, and none of earlier tokens of its own, except where a Fourier
// transform or a matrix unit takes several tokens at a time.

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdlib>
#include <span>
#include <string>
#include <type_traits>

#include "support/compare.hpp"
#include "support/layer_case.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using seqmix::Algorithm;
using seqmix::Precision;
using seqmix::Storage;

/// Whether the layer's state has numbers that narrow storage is for.
template <class S>
bool has_caches(const LayerCase<S>& layer) {
  if (!layer.continues()) return false;
  AnyState state = layer.make_state(1, 1);
  return std::ranges::any_of(state.members().list(), &seqmix::NamedStateMember::is_cache);
}

/// How a layer is run. Storage and number type change how numbers are loaded, which the first ways
/// show; the last ones are those of native float numbers.
struct Way {
  Algorithm algorithm;
  Precision precision;
};
constexpr Way all_ways[] = {{Algorithm::automatic, Precision::fp32},
                            {Algorithm::chunked, Precision::fp32},
                            {Algorithm::recurrent, Precision::fp32},
                            {Algorithm::automatic, Precision::bf16x3},
                            {Algorithm::chunked, Precision::bf16}};
template <class S>
std::span<const Way> ways(bool narrow) {
  constexpr bool is_float = std::is_same_v<S, float>;
  return std::span(all_ways).first(narrow ? (is_float ? 3 : 1) : (is_float ? 5 : 3));
}

void for_each_way(std::span<const Way> list, auto&& body) {
  for (const auto& [algorithm, precision] : list) {
    INFO("algorithm " << static_cast<int>(algorithm) << " precision " << to_string(precision));
    Context context = poisoned();
    context.set_algorithm(algorithm), context.set_precision(precision);
    body(context);
  }
}

/// Calls `body(case, narrow)` for every config of every layer, with each storage of its caches, the
/// first config with each storage of its weights, too.
template <class S>
void for_each_stored_layer(auto&& body) {
  const char* const only = std::getenv("SEQMIX_LAYER");
  for (const reference::Twin& twin : reference::twins()) {
    if (only != nullptr && twin.layer != only) continue;
    for (const std::string& config : twin.configs) {
      const auto run = [&](Storage of_weights, Storage of_caches) {
        const LayerCase<S> layer(twin, config, 1, {of_weights, of_caches});
        INFO(layer.text() << " weights " << to_string(of_weights) << " caches "
                          << to_string(of_caches));
        body(layer, of_caches != Storage::native);
      };
      run(Storage::native, Storage::native);
      const bool first = config == twin.configs.front();
      if (!first && !has_caches(LayerCase<S>(twin, config))) continue;
      for (const Storage narrow : {Storage::bf16, Storage::f16, Storage::int8}) {
        run(first ? narrow : Storage::native, narrow);
      }
    }
  }
}

/// Whether what computes a token touches later ones: a transform or a matrix unit.
template <class S>
bool mixes_tokens(const LayerCase<S>& layer, Verb verb, const Context& context) {
  if (verb == Verb::step) return false;
  if (context.precision() != Precision::fp32 || layer.name() == "hyena") return true;
  const bool transforms = layer.name() == "s4" || layer.name() == "s4d";
  return transforms && context.algorithm() == Algorithm::chunked;
}

constexpr Index sick_row = 1, sick_token = 37;

}  // namespace

TEMPLATE_LIST_TEST_CASE("NaN changes no other row and no token before it", "[nan]",
                        support::TestScalars) {
  for_each_stored_layer<TestType>([](const LayerCase<TestType>& layer, bool narrow) {
    const auto x = layer.random_input(3, 66, 13);
    auto sick = x;
    fill(sick.view()[sick_row][sick_token], nan_of<TestType>);
    for_each_way(ways<TestType>(narrow), [&](Context& context) {
      for (const Verb verb : verbs(layer)) {
        INFO("verb " << static_cast<int>(verb));
        const auto healthy = run<TestType>(layer, x, context, verb);
        const auto y = run<TestType>(layer, sick, context, verb);
        CHECK(std::isnan(y(sick_row, sick_token, 0)));
        for (const Index row : {0, 2}) CHECK(same_bits(y.view()[row], healthy.view()[row]));
        if (!layer.continues() || mixes_tokens(layer, verb, context)) continue;
        CHECK(same_bits(y.view()[sick_row].template slice<0>(0, sick_token),
                        healthy.view()[sick_row].template slice<0>(0, sick_token)));
      }
    });
  });
}

TEMPLATE_LIST_TEST_CASE("NaN stays in its document", "[nan]", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    if (layer.reads_source()) return;
    INFO(layer.text());
    const Index first = 30, count = 60, T = 110;  // of the sick document, of all
    Tensor<Index, 1> cu_seqlens({4});
    cu_seqlens[1] = first, cu_seqlens[2] = first + count, cu_seqlens[3] = T;
    const auto x = layer.random_input(1, T, 13);
    auto sick = x;
    fill(sick.view()[0][first + sick_token], nan_of<TestType>);
    for_each_way(ways<TestType>(false), [&](Context& context) {
      const auto documents = [&](const Tensor<TestType, 3>& tokens) {
        const SideValues<TestType> sides(layer.mixer(), tokens);
        auto y = unwritten<TestType>(tokens.shape());
        layer.mixer().forward_documents(tokens.view()[0], cu_seqlens, y.view()[0], context,
                                        sides.views());
        return y;
      };
      const auto healthy = documents(x), y = documents(sick);
      CHECK(std::isnan(y(0, first + sick_token, 0)));
      const auto same = [&](Index from, Index tokens) {
        return same_bits(y.view().template slice<1>(from, tokens),
                         healthy.view().template slice<1>(from, tokens));
      };
      CHECK(same(0, first));
      CHECK(same(first + count, T - first - count));
    });
  });
}
