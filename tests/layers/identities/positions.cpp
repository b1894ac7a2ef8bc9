// Positions of attention that are given or remapped, against those that are counted.

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>
#include <vector>

#include "seqmix/blocks/block.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/testing/check_law.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/forward.hpp"
#include "support/random.hpp"

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using seqmix::test::error_of;
using support::forward;
using support::random_tensor;
using support::random_weights;

namespace {

const AttentionConfig plain{.d_model = 12,
                            .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6},
                            .positions = {.rotary_dim = 6, .rope_theta = 50}};

AttentionConfig given(Index axes) {
  AttentionConfig config = plain;
  config.positions.given = axes;
  if (axes == 3) config.positions.rope_sections = {1, 1, 1};
  return config;
}

/// The stream's own positions, those of row 0 first, each on so many axes.
Tensor<Index, 2> counted(Index B, Index T, Index axes) {
  Tensor<Index, 2> positions({B * T, axes});
  for (Index i = 0; i < B * T * axes; ++i) positions.data()[i] = i / axes % T;
  return positions;
}

template <class Layer>
Tensor<double, 3> forward_at(const Layer& layer, const Tensor<double, 3>& x,
                             const Tensor<Index, 2>& positions) {
  Context context;
  Tensor<double, 3> y(x.shape());
  typename Layer::Side side;
  side.positions = positions.view();
  layer.forward(x, y, context, side);
  return y;
}

double difference(const Tensor<double, 3>& a, const Tensor<double, 3>& b) {
  return support::relative_error(a.view(), b.view());
}

using Failures = std::vector<std::string>;

}  // namespace

TEST_CASE("positions that are given may be those of the stream") {
  const auto weights = random_weights<AttentionWeights<double>>(plain, 1);
  const auto x = random_tensor<double, 3>({2, 90, 12}, 2);
  const auto at = [&](const auto& layer, Index axes) {
    return forward_at(layer, x, counted(2, 90, axes));
  };
  const auto causal = forward(Attention<double>(plain, weights), x);
  const auto both_ways = forward(BidirectionalAttention<double>({plain}, weights), x);
  for (const Index axes : {1, 3}) {
    CHECK(difference(at(Attention<double>(given(axes), weights), axes), causal) == 0);
    CHECK(difference(at(BidirectionalAttention<double>({given(axes)}, weights), axes), both_ways) ==
          0);
  }
  AttentionConfig window = given(1), counting = plain;
  window.sees.window = counting.sees.window = 20;
  CHECK(difference(at(Attention<double>(window, weights), 1),
                   forward(Attention<double>(counting, weights), x)) == 0);

  // Where none is asked for, a layer takes nothing.
  CHECK(AnyMixer<double>(Attention<double>(plain, weights)).sides().empty());
  CHECK(AnyMixer<double>(BidirectionalAttention<double>({plain}, weights)).sides().empty());
}

TEST_CASE("distances of given positions count, whatever lies between") {
  const auto weights = random_weights<AttentionWeights<double>>(given(1), 3);
  const auto x = random_tensor<double, 3>({1, 40, 12}, 4);
  const Attention<double> layer(given(1), weights);
  auto near = counted(1, 40, 1), far = near, moved = near;
  for (Index t = 0; t < 40; ++t) far(t, 0) += 1000, moved(t, 0) += t < 20 ? 0 : 3;
  const auto y = forward_at(layer, x, near);
  CHECK(difference(forward_at(layer, x, far), y) < 1e-12);
  CHECK(difference(forward_at(layer, x, moved), y) > 1e-3);
}

TEST_CASE("remapped positions are counted ones where nothing is far") {
  const auto weights = random_weights<AttentionWeights<double>>(plain, 5);
  const auto x = random_tensor<double, 3>({2, 90, 12}, 6);
  const auto expected = forward(Attention<double>(plain, weights), x);
  const auto error = [&](const RemapConfig& remap, const SeesConfig& sees = {}) {
    AttentionConfig config = plain;
    config.positions.remap = remap, config.sees = sees;
    return difference(forward(Attention<double>(config, weights), x), expected);
  };
  const auto groups = [](Index window, Index group) {
    return RemapConfig{.kind = Remap::self_extend, .window = window, .group = group};
  };
  const auto chunks = [](Index chunk, Index local) {
    return RemapConfig{.kind = Remap::dual_chunk, .chunk = chunk, .local = local};
  };
  const auto spheres = [&](Index chunk, Index local) {
    RemapConfig remap = chunks(chunk, local);
    remap.kind = Remap::rpe_3d;
    return remap;
  };
  const RemapConfig clamped{.kind = Remap::lm_infinite};
  CHECK(error(groups(90, 7)) < 1e-14);
  CHECK(error(groups(9, 1)) < 1e-13);
  CHECK(error(groups(60, 7)) > 1e-6);
  CHECK(error(chunks(100, 10)) < 1e-14);
  CHECK(error(chunks(60, 0)) > 1e-6);
  CHECK(error(spheres(100, 10)) < 1e-14);
  CHECK(error(spheres(60, 0)) > 1e-6);
  CHECK(error(clamped, {.window = 90, .n_sinks = 4}) < 1e-14);
  CHECK(error(clamped, {.window = 60, .n_sinks = 4}) > 1e-6);
}

TEST_CASE("chunks have angles where two lie between at least") {
  const auto weights = random_weights<AttentionWeights<double>>(plain, 5);
  const auto x = random_tensor<double, 3>({2, 90, 12}, 6);
  const auto y = [&](Remap kind) {
    AttentionConfig config = plain;
    config.positions.remap = {.kind = kind, .chunk = 24, .local = 4};
    return forward(Attention<double>(config, weights), x);
  };
  const auto first = [](const Tensor<double, 3>& all) {
    Tensor<double, 3> part({2, 40, 12});
    copy(all.view().slice<1>(0, 40), part.view());
    return part;
  };
  const auto angles = y(Remap::rpe_3d), none = y(Remap::dual_chunk);
  CHECK(difference(first(angles), first(none)) < 1e-14);
  CHECK(difference(angles, none) > 1e-3);
}

TEST_CASE("given and remapped positions obey the law") {
  const auto check = [](const AttentionConfig& config) {
    const Attention<double> layer(config, random_weights<AttentionWeights<double>>(config, 7));
    CHECK(testing::check_law(layer, {.rows = 3, .tokens = 150, .trials = 2}) == Failures{});
  };
  check(given(1));
  AttentionConfig config = given(3);
  config.sees.window = 17;
  check(config);
  config = plain;
  config.positions.remap = {.kind = Remap::self_extend, .window = 70, .group = 3};
  check(config);
  config.positions.remap = {.kind = Remap::dual_chunk, .chunk = 40, .local = 9};
  check(config);
  config.positions.remap.kind = Remap::rpe_3d;
  check(config);
  config.positions.remap = {.kind = Remap::lm_infinite};
  config.sees = {.window = 33, .n_sinks = 5};
  check(config);
  const BidirectionalAttention<double> both_ways(
      {given(3)}, random_weights<AttentionWeights<double>>(given(3), 8));
  CHECK(testing::check_law(both_ways, {.rows = 3, .tokens = 150}) == Failures{});
}

TEST_CASE("a block passes positions to its mixer") {
  const FeedForwardConfig channel{.d_model = 12, .d_ff = 20};
  const AnyMixer<double> block(Block<double>(
      {.branches = {
           {.parts = {{.name = "mixer",
                       .mixer = Attention<double>(
                           given(1), random_weights<AttentionWeights<double>>(given(1), 9))}}},
           {.parts = {
                {.name = "channel",
                 .mixer = FeedForward<double>(
                     channel, random_weights<FeedForward<double>::Weights>(channel, 10))}}}}}));
  REQUIRE(block.sides().size() == 1);
  CHECK(block.sides()[0].name == "positions");
  CHECK(testing::check_law(block, {.rows = 3, .tokens = 150, .trials = 2}) == Failures{});
}

TEST_CASE("positions say what is wrong with them") {
  const auto text = [](auto&& change) {
    AttentionConfig config = plain;
    change(config.positions);
    return error_of<ConfigError>([&] { check_config("attention", config); });
  };
  CHECK_THAT(text([](auto& p) { p.given = 2; }), ContainsSubstring("given must be 0, 1 or 3"));
  CHECK_THAT(text([](auto& p) { p.given = 3; }),
             ContainsSubstring("given 3 needs rope_sections of 3 axes"));
  CHECK_THAT(text([](auto& p) {
               p.given = 3, p.rope_sections = {1, 1, 2};
             }),
             ContainsSubstring("rope_sections has 4 pairs, expected 3, half of rotary_dim"));
  CHECK_THAT(text([](auto& p) {
               p.given = 3, p.rope_sections = {1, 1, -1};
             }),
             ContainsSubstring("positions.rope_sections.2 is -1, expected at least 0"));
  CHECK_THAT(text([](auto& p) {
               p.given = 1, p.rope_sections = {1, 1, 1};
             }),
             ContainsSubstring("rope_sections is [1, 1, 1], which counts only where given is 3"));
  CHECK_THAT(text([](auto& p) { p.remap.kind = Remap::self_extend; }),
             ContainsSubstring("remap self_extend needs a positive remap_window"));
  CHECK_THAT(text([](auto& p) { p.remap = {.kind = Remap::dual_chunk, .chunk = 4, .local = 4}; }),
             ContainsSubstring("remap dual_chunk and rpe_3d need a remap_chunk above remap_local"));
  CHECK_THAT(text([](auto& p) { p.remap.kind = Remap::lm_infinite; }),
             ContainsSubstring("positions.remap lm_infinite needs sees.window, sees.n_sinks and"));
  CHECK_THAT(text([](auto& p) { p.remap.group = 4; }),
             ContainsSubstring("which counts only where remap is self_extend"));
}
