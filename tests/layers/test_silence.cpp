// After a sound all that a state forgets ends in zeros: numbers that stay below the smallest normal
// one would make every later token a hundred times slower. The processor notes in MXCSR that an
// operation met such a number.

#if defined(__SSE2__)

#include <immintrin.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "support/layer_case.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using seqmix::Algorithm;

/// Whether an operation of `body` met a subnormal number, as an operand or as its result.
bool meets_subnormals(auto&& body) {
  constexpr unsigned denormal = 0x2, underflow = 0x10;
  _mm_setcsr(_mm_getcsr() & ~(denormal | underflow));
  body();
  return (_mm_getcsr() & (denormal | underflow)) != 0;
}

/// What a state remembers beside caches and positions.
std::vector<std::byte> memory_of(AnyState& state) {
  std::vector<std::byte> bytes;
  for (const seqmix::StateMember& member : state.members().list()) {
    if (member.kind != seqmix::StateMember::Kind::fixed) continue;
    bytes.insert(bytes.end(), member.data, member.data + member.size() * member.number_size);
  }
  return bytes;
}

/// Scales what is remembered beside caches until its largest number is just a normal one.
void make_faint(AnyState& state) {
  std::vector<std::span<float>> memories;
  float largest = 0;
  for (const seqmix::StateMember& member : state.members().list()) {
    if (member.kind != seqmix::StateMember::Kind::fixed) continue;
    // The members of a state that is not constant can be written.
    auto* const numbers = const_cast<float*>(reinterpret_cast<const float*>(member.data));
    memories.emplace_back(numbers, static_cast<std::size_t>(member.size()));
    for (const float number : memories.back()) largest = std::max(largest, std::abs(number));
  }
  if (largest == 0) return;
  const double scale = 2.0 * std::numeric_limits<float>::min() / largest;
  for (const std::span<float> memory : memories) {
    for (float& number : memory) number = static_cast<float>(scale * number);
  }
}

bool has_cache(const LayerCase<float>& layer) {
  AnyState state = layer.make_state(1, 1);
  const auto members = state.members();
  return std::ranges::any_of(members.list(), [](const seqmix::StateMember& member) {
    return member.kind == seqmix::StateMember::Kind::appended;
  });
}

/// Calls `body(case)` for every config of every layer that has a state, with its random weights and
/// without biases: then silence stays silent inside the layer.
void for_each_silent_layer(auto&& body) {
  const char* const only = std::getenv("SEQMIX_LAYER");
  for (const reference::Twin& twin : reference::twins()) {
    if (only != nullptr && twin.layer != only) continue;
    for (const std::string& config : twin.configs) {
      for (const bool biased : {true, false}) {
        const LayerCase<float> layer(twin, config, 1, {}, biased);
        INFO(layer.text() << (biased ? "" : " without biases"));
        if (layer.continues()) body(layer);
      }
    }
  }
}

}  // namespace

TEST_CASE("subnormal operands and results are noticed") {
  volatile float least = std::numeric_limits<float>::min(), result = 0.5F;
  CHECK_FALSE(meets_subnormals([&] { result = result * result; }));
  CHECK(meets_subnormals([&] { result = least * 0.3F; }));
  CHECK(meets_subnormals([&] { result = result + 1; }));
}

TEST_CASE("after silence no layer meets a subnormal number") {
  for_each_silent_layer([](const LayerCase<float>& layer) {
    // Long enough for most memories, and short enough for caches: a token beside one costs all
    // tokens before it.
    const bool cached = has_cache(layer);
    const Index sound = 100, later = 130, longest = layer.longest(cached ? 6144 : 65536);
    AnyState state = layer.make_state(1, longest);
    Context context;
    const Tensor<float, 3> zeros({1, 2048, layer.d_model()});
    Tensor<float, 3> y(zeros.shape());
    const auto prefill = [&](const Tensor<float, 3>& from, Index tokens) {
      layer.prefill(from.view().slice<1>(0, tokens), state, y.view().slice<1>(0, tokens), context);
    };
    prefill(layer.random_input(1, sound, 3), sound);
    // Until all that is forgotten is forgotten.
    std::vector<std::byte> before;
    const Index spare = cached && longest > zeros.extent(1) + later ? zeros.extent(1) : 0;
    const Index end = longest - later - spare;
    for (Index token = sound; token < end && memory_of(state) != before;) {
      before = memory_of(state);
      const Index tokens = std::min(zeros.extent(1), end - token);
      prefill(zeros, tokens);
      token += tokens;
    }
    // A slow memory outlasts the silence that caches have room for.
    if (spare > 0 && memory_of(state) != before) {
      make_faint(state);
      prefill(zeros, spare);
    }

    for (const Algorithm algorithm :
         {Algorithm::automatic, Algorithm::chunked, Algorithm::recurrent}) {
      context.set_algorithm(algorithm);
      for (const bool by_steps : {true, false}) {
        INFO("algorithm " << static_cast<int>(algorithm) << " by steps " << by_steps);
        const Index tokens = by_steps ? 20 : later;
        const auto in = zeros.view().slice<1>(0, tokens);
        const auto out = y.view().slice<1>(0, tokens);
        AnyState next = state;
        CHECK_FALSE(
            meets_subnormals([&] { advance<float>(layer, in, next, out, context, by_steps); }));
      }
    }
  });
}

#endif
