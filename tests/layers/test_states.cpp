// What a state promises beyond the law: going back, copies in place, and calls that change nothing.
// No register's width changes it: once is enough.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <random>

#include "seqmix/io/state.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/layer_case.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

template <class S>
LayerCase<S> layer_of(const std::string& name, const std::string& config) {
  const auto& twins = reference::twins();
  const auto twin = std::ranges::find(twins, name, &reference::Twin::layer);
  REQUIRE(twin != twins.end());
  return {*twin, config};
}

/// Sliding windows of 4 that can take 3 tokens back.
LayerCase<double> window_layer() {
  return layer_of<double>("sliding_window_attention",
                          R"({"d_model": 9, "n_heads": 2, "n_kv_heads": 1, "head_dim": 5,
                              "window": 4, "max_rollback": 3})");
}

/// A file in the folder of temporary ones that goes with the object.
struct TemporaryFile {
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("seqmix-" + std::to_string(std::random_device{}()) + ".state");
  ~TemporaryFile() { std::filesystem::remove(path); }
};

}  // namespace

TEST_CASE("a ring goes back only as far as it has not been overwritten") {
  const auto layer = window_layer();
  const Index T = 24;
  const auto x = layer.random_input(1, T, 5);
  Context context = poisoned();
  auto expected = unwritten<double>(x.shape()), y = unwritten<double>(x.shape());
  auto state = layer.make_state(1, T);
  const auto step = [&](AnyState& from, Index first, Index count, Tensor<double, 3>& to) {
    advance<double>(layer, x.view().slice<1>(first, count), from, to.view().slice<1>(first, count),
                    context, true);
  };
  step(state, 0, 20, expected);
  AnyState straight = state;
  step(straight, 20, 4, expected);

  state.members().rewind(0, 17);
  // The three tokens are in the ring still, and so are those that it has lost for them.
  const auto refuses = [&](AnyState& from, Index tokens) {
    CHECK_THROWS_AS(from.members().rewind(0, tokens), seqmix::CapacityError);
    CHECK(from.members().tokens(0) == 17);
  };
  refuses(state, 16);
  refuses(state, 14);
  AnyState fork = layer.make_state(1, T), assigned = layer.make_state(1, T);
  fork.members().copy_row(state.members(), 0, 0);
  refuses(fork, 14);
  assigned = state;
  refuses(assigned, 14);
  const TemporaryFile file;
  seqmix::save_state(file.path, state.members());
  AnyState loaded = layer.make_state(1, T);
  seqmix::load_state(file.path, loaded.members());
  refuses(loaded, 14);
  for (AnyState* from : {&state, &fork, &assigned, &loaded}) {
    step(*from, 17, 7, y);
    CHECK(same_bits(y.view().slice<1>(17, 7), expected.view().slice<1>(17, 7)));
  }

  // One token forward does not bring back what was lost.
  AnyState again = straight;
  again.members().rewind(0, 21);
  step(again, 21, 1, y);
  CHECK_THROWS_AS(again.members().rewind(0, 19), seqmix::CapacityError);
  again.members().rewind(0, 21);
  step(again, 21, 3, y);
  CHECK(same_bits(y.view().slice<1>(21, 3), expected.view().slice<1>(21, 3)));
  // Nor does a reset row remember any of it.
  layer.mixer().reset(again, 0);
  step(again, 0, 3, y);
  again.members().rewind(0, 0);
  step(again, 0, 20, y);
  CHECK(same_bits(y.view().slice<1>(0, 20), expected.view().slice<1>(0, 20)));
}

TEST_CASE("what cannot go back says so") {
  const auto error_of = [](AnyState& state, Index row, Index tokens) -> std::string {
    try {
      state.members().rewind(row, tokens);
    } catch (const seqmix::Error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  for_each_continuing_layer<float>([&](const LayerCase<float>& layer) {
    INFO(layer.text());
    AnyState state = layer.make_state(2, 5);
    if (state.members().empty()) {
      CHECK_THAT(error_of(state, 0, 0), ContainsSubstring("does not count tokens"));
      return;
    }
    CHECK_THAT(error_of(state, 2, 0), ContainsSubstring("rewind: row is 2, expected one of 2"));
    CHECK_THAT(error_of(state, 0, 1), ContainsSubstring("does not keep its past") ||
                                          ContainsSubstring("row 0 has seen 0 tokens") ||
                                          ContainsSubstring("does not count tokens"));
    CHECK_THROWS_AS(state.members().tokens(2), seqmix::ShapeError);
    CHECK_THROWS_AS(state.members().tokens(-1), seqmix::ShapeError);
    CHECK_THROWS_AS(state.members().set_tokens(2, 0), seqmix::ShapeError);
    CHECK_THROWS_AS(state.members().set_tokens(0, -1), seqmix::ShapeError);
    CHECK_THROWS_AS(state.members().set_tokens(0, seqmix::max_tokens + 1), seqmix::ShapeError);
  });
}

TEST_CASE("resetting, forking and restoring allocate nothing") {
  for_each_continuing_layer<float>([](const LayerCase<float>& layer) {
    INFO(layer.text());
    Context context;
    const auto x = layer.random_input(2, 9, 3);
    auto y = unwritten<float>(x.shape());
    AnyState state = layer.make_state(2, 40), other = layer.make_state(2, 40);
    layer.prefill(x, state, y, context);
    const AnyState warm = state;
    const auto before = allocations();
    other = warm;
    other.members().copy_row(warm.members(), 0, 1);
    layer.mixer().reset(state, 0);
    state = warm;
    CHECK(allocations() - before == 0);
    CHECK(valid_numbers(state) == valid_numbers(const_cast<AnyState&>(warm)));
  });
}

TEST_CASE("a state that is const can be read and saved") {
  const auto layer = window_layer();
  AnyState state = layer.make_state(1, 5);
  const AnyState& constant = state;
  CHECK(constant.members().tokens(0) == 0);
  CHECK(constant.members().batch() == 1);
  CHECK(constant.members().reserved_bytes() > 0);
  const TemporaryFile file;
  seqmix::save_state(file.path, constant.members());
  seqmix::load_state(file.path, state.members());
}

TEST_CASE("an output whose tokens share numbers is refused") {
  for_each_layer<float>([](const LayerCase<float>& layer) {
    INFO(layer.text());
    const Index B = 2, T = 3, D = layer.d_model();
    const auto x = layer.random_input(B, T, 3);
    Tensor<float, 3> memory({B, T, D});
    Context context;
    const auto refuses = [&](View<float, 3> y) {
      CHECK_THROWS_MATCHES(layer.forward(x, y, context), seqmix::ShapeError,
                           MessageMatches(ContainsSubstring("y overlaps itself")));
    };
    refuses({memory.data(), {B, T, D}, {0, D, 1}});
    refuses({memory.data(), {B, T, D}, {T * D, 0, 1}});
    if (D > 1) refuses({memory.data(), {B, T, D}, {T * D, D - 1, 1}});
  });
}

TEST_CASE("the state of another config of the same layer is refused, and stays as it was") {
  struct Pair {
    std::string layer, a, b;
  };
  const std::string heads = R"({"d_model": 8, "n_heads": 2, )", sizes = R"("head_dim": 4, )",
                    widths = R"("head_k": 4, "head_v": 4, )";
  const std::vector<Pair> pairs{
      {"sliding_window_attention", heads + sizes + R"("n_kv_heads": 1, "window": 4})",
       heads + sizes + R"("n_kv_heads": 1, "window": 4, "n_sinks": 2})"},
      {"sliding_window_attention",
       heads + sizes + R"("n_kv_heads": 1, "window": 3, "max_rollback": 4})",
       heads + sizes + R"("n_kv_heads": 1, "window": 5, "max_rollback": 2})"},
      {"retention", heads + widths + R"("score_norm": "none"})",
       heads + widths + R"("score_norm": "scores"})"},
      {"linear_attention", heads + widths + R"("feature_map": "relu", "normalize": false})",
       heads + widths + R"("feature_map": "relu", "normalize": true})"},
      {"rwkv4", R"({"d_model": 8, "d_ff": 8})", R"({"d_model": 4, "d_ff": 8})"},
  };
  Context context;
  const auto refuses = [&](const LayerCase<double>& layer, const LayerCase<double>& other) {
    INFO(other.text() << " for " << layer.text());
    const auto x = layer.random_input(1, 3, 5);
    auto y = unwritten<double>(x.shape());
    AnyState state = other.make_state(1, 8), own = layer.make_state(1, 8);
    const auto before = valid_numbers(state);
    CHECK_THROWS_AS(layer.prefill(x, state, y, context), seqmix::ShapeError);
    const seqmix::Segment segment{0, 0, 1};
    CHECK_THROWS_AS(layer.mixer().check(state, {&segment, 1}, 1, context), seqmix::ShapeError);
    CHECK_THROWS_AS(layer.mixer().reset(state, 0), seqmix::ShapeError);
    CHECK_THROWS_AS(own.members().copy_row(state.members(), 0, 0), seqmix::ShapeError);
    CHECK(valid_numbers(state) == before);
  };
  for (const Pair& pair : pairs) {
    const auto a = layer_of<double>(pair.layer, pair.a), b = layer_of<double>(pair.layer, pair.b);
    refuses(a, b), refuses(b, a);
  }
}

TEST_CASE("a side value that overlaps what is written is refused") {
  Context context;
  for (const bool writes : {true, false}) {
    const auto layer = layer_of<double>("rwkv7", R"({"d_model": 8, "head_dim": 4, "d_ff": 8,
        "decay_rank": 2, "rate_rank": 2, "value_rank": 2, "gate_rank": 2, "layer_index": )" +
                                                     std::string(writes ? "0}" : "1}"));
    auto x = layer.random_input(1, 3, 5), y = x, values = x;
    const auto with = [&](View<double, 3> side) {
      const seqmix::NamedView<double> sides[] = {{"value_first", side.merge(seqmix::axis::row)}};
      layer.mixer().forward(x, y, context, sides);
    };
    const auto refuses = [&](View<double, 3> side) {
      CHECK_THROWS_MATCHES(
          with(side), seqmix::ShapeError,
          MessageMatches(ContainsSubstring("side value value_first overlaps x or y")));
    };
    with(values);
    refuses(y);
    if (writes) refuses(x);
    if (!writes) with(x);
  }
}

TEST_CASE("a position that no stream reaches is refused") {
  const auto layer = window_layer();
  const auto x = layer.random_input(1, 6, 3);
  auto y = unwritten<double>(x.shape());
  Context context;
  AnyState state = layer.make_state(1, 6);
  state.members().set_tokens(0, seqmix::max_tokens - 5);
  CHECK_THROWS_AS(layer.prefill(x, state, y, context), seqmix::CapacityError);
  CHECK(state.members().tokens(0) == seqmix::max_tokens - 5);
}

TEST_CASE("a mixer takes no memory for a state that nobody has asked for") {
  const auto bytes_of = [](const std::string& name, const std::string& config) {
    forget_peak();
    const auto before = allocated_bytes();
    const auto layer = layer_of<float>(name, config);
    CHECK(layer.continues());
    return peak_bytes() - before;
  };
  for (const std::string field :
       {R"("window": 300000000)", R"("window": 4, "max_rollback": 300000000)",
        R"("window": 4, "dilation": 300000000)", R"("window": 4, "n_sinks": 300000000)"}) {
    INFO(field);
    CHECK(bytes_of("sliding_window_attention",
                   R"({"d_model": 4, "n_heads": 1, "n_kv_heads": 1, "head_dim": 4, )" + field +
                       "}") < 1'000'000);
  }
  CHECK(bytes_of("linear_attention", R"({"d_model": 1, "n_heads": 1, "head_k": 20000, "head_v": 4,
                                         "feature_map": "taylor"})") < 3'000'000);
}

TEST_CASE("a mixer that holds no layer says so") {
  AnyMixer<float> none;
  CHECK(!none);
  CHECK_THROWS_MATCHES(none.d_model(), seqmix::Error,
                       MessageMatches(ContainsSubstring("holds no layer")));
  CHECK_THROWS_AS(none.make_state(1), seqmix::Error);
}
