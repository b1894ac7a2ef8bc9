#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/blocks/block.hpp"
#include "seqmix/blocks/stack.hpp"
#include "seqmix/io/state.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/attention/cross_attention.hpp"
#include "seqmix/layers/channel/feed_forward.hpp"
#include "seqmix/layers/conv/hyena.hpp"
#include "seqmix/layers/linear/gated_linear_attention.hpp"
#include "seqmix/layers/rwkv/rwkv7.hpp"
#include "seqmix/testing/check_law.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using support::random_weights;
using support::relative_error;
using support::same_bits;
using test::error_of;
using Failures = std::vector<std::string>;
using Any = AnyMixer<double>;

constexpr Index D = 12;

template <class Layer>
Any make(const typename Layer::Config& config, unsigned seed) {
  return Layer(config, random_weights<typename Layer::Weights>(config, seed));
}
Any attention(unsigned seed = 1) {
  return make<Attention<double>>({.d_model = D,
                                  .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6},
                                  .positions = {.rotary_dim = 6}},
                                 seed);
}
Any feed_forward(unsigned seed = 30) {
  return make<FeedForward<double>>({.d_model = D, .d_ff = 20}, seed);
}
Any linear(unsigned seed = 50) {
  return make<GatedLinearAttention<double>>(
      {.d_model = D, .n_heads = 2, .head_k = 4, .head_v = 6, .gate_rank = 3}, seed);
}
Any hyena() {
  return make<Hyena<double>>({.d_model = D, .max_length = 400, .filter_width = 5}, 70);
}
Any bidirectional() {
  BidirectionalAttention<double>::Config config;
  config.d_model = D, config.heads.head_dim = 6;
  return make<BidirectionalAttention<double>>(config, 80);
}
Any cross_attention() {
  return make<CrossAttention<double>>({.d_model = D, .d_source = 7, .heads = {.head_dim = 6}}, 90);
}

Norm<double> norm(NormKind kind, unsigned seed) {
  Norm<double> result{.kind = kind, .weight = random_tensor<double, 1>({D}, seed)};
  if (kind == NormKind::layer) result.bias = random_tensor<double, 1>({D}, seed + 100);
  return result;
}
Norm<double> rms(unsigned seed) { return norm(NormKind::rms, seed); }

/// A decoder's: a mixer and a channel mixer, each behind a norm and around a residual.
Block<double> decoder(const Any& mixer, const Any& channel) {
  return Block<double>(
      {.branches = {{.before = rms(2), .parts = {{.name = "mixer", .mixer = mixer}}},
                    {.before = rms(3), .parts = {{.name = "channel", .mixer = channel}}}}});
}
Block<double> one(Branch<double> branch) {
  return Block<double>({.branches = {std::move(branch)}});
}

/// One branch of two parts in which all that there may be is there.
Branch<double> everything() {
  return {.before = norm(NormKind::layer, 4),
          .parts = {{.name = "attention",
                     .mixer = attention(),
                     .before = rms(5),
                     .after = norm(NormKind::rms_around_one, 6),
                     .input_multiplier = 0.7,
                     .output_multiplier = 1.3},
                    {.name = "linear",
                     .mixer = linear(),
                     .after = rms(7),
                     .input_multiplier = -0.4,
                     .output_multiplier = 0.6}},
          .after = rms(8),
          .multiplier = 0.22,
          .residual = 1.5,
          .last = norm(NormKind::layer, 9)};
}

Tensor<double, 3> forward(const Any& layer, const Tensor<double, 3>& x) {
  Tensor<double, 3> y(x.shape());
  Context context;
  layer.forward(x, y, context);
  return y;
}
/// The norm, written as its formula.
Tensor<double, 3> normed(const Norm<double>& norm, const Tensor<double, 3>& x) {
  if (norm.kind == NormKind::none) return x;
  Tensor<double, 3> y = x;
  for (Index b = 0; b < x.extent(0); ++b) {
    for (Index t = 0; t < x.extent(1); ++t) {
      double mean = 0, square = 0;
      for (Index d = 0; d < D && norm.kind == NormKind::layer; ++d) mean += x(b, t, d) / D;
      for (Index d = 0; d < D; ++d) square += (x(b, t, d) - mean) * (x(b, t, d) - mean) / D;
      for (Index d = 0; d < D; ++d) {
        const double weight = norm.weight[d] + (norm.kind == NormKind::rms_around_one ? 1 : 0);
        y(b, t, d) = (x(b, t, d) - mean) / std::sqrt(square + norm.eps) * weight +
                     (norm.bias ? norm.bias[d] : 0);
      }
    }
  }
  return y;
}
Tensor<double, 3> sum(double a, const Tensor<double, 3>& x, double b, const Tensor<double, 3>& y) {
  Tensor<double, 3> z(x.shape());
  for (Index i = 0; i < z.size(); ++i) z.data()[i] = a * x.data()[i] + b * y.data()[i];
  return z;
}
/// A branch, written as its formula.
Tensor<double, 3> by_hand(const Branch<double>& branch, const Tensor<double, 3>& x) {
  const Tensor<double, 3> input = normed(branch.before, x);
  Tensor<double, 3> all(x.shape());
  for (const Part<double>& part : branch.parts) {
    const auto own = normed(part.before, input);
    const auto out = forward(part.mixer, sum(part.input_multiplier, own, 0, own));
    all = sum(1, all, part.output_multiplier, normed(part.after, out));
  }
  all = normed(branch.after, all);
  return normed(branch.last, sum(branch.residual, x, branch.multiplier, all));
}

TEST_CASE("a decoder block is its parts put together by hand") {
  const auto x = random_tensor<double, 3>({2, 80, D}, 7);
  Context context;
  Tensor<double, 3> between(x.shape()), mixed(x.shape()), u(x.shape()), expected(x.shape());
  const auto add = [](auto a, auto b) { return a + b; };
  const Call call(context, {});
  rms(2).apply<3>(x, between, call);
  attention().forward(between, mixed, context);
  elementwise(call, add, u.view(), x.view(), mixed.view());
  rms(3).apply<3>(u, between, call);
  feed_forward().forward(between, mixed, context);
  elementwise(call, add, expected.view(), u.view(), mixed.view());
  CHECK(same_bits(forward(decoder(attention(), feed_forward()), x).view(), expected.view()));
}

TEST_CASE("a branch is its formula, whatever it has") {
  const auto x = random_tensor<double, 3>({2, 70, D}, 7);
  const auto check = [&](const Branch<double>& branch) {
    CHECK(relative_error(forward(one(branch), x).view(), by_hand(branch, x).view()) < 1e-14);
  };
  check(everything());
  const std::vector<Part<double>> parts = everything().parts;
  check({.parts = {parts[0]}});
  check({.parts = {parts[1]}, .residual = 0});
  check({.parts = {{.name = "a", .mixer = attention()}}, .residual = 0});
  check({.parts = {{.name = "a", .mixer = attention()}}, .multiplier = 0.5, .residual = 0});
  check({.parts = {{.name = "a", .mixer = attention()}, {.name = "f", .mixer = feed_forward()}}});
  check({.parts = parts, .multiplier = 2, .residual = 0});
  check({.parts = parts, .after = rms(3)});                   // Gemma 2's, behind
  check({.parts = parts, .last = norm(NormKind::layer, 3)});  // BERT's
  check({.before = norm(NormKind::rms_around_one, 3), .parts = parts, .multiplier = 0.3});
  Branch<double> weightless = everything();
  weightless.before = {.kind = NormKind::rms};
  CHECK(relative_error(forward(one(weightless), x).view(), forward(one(everything()), x).view()) >
        1e-3);
}

TEST_CASE("blocks of every shape obey the law") {
  const auto check = [](const Any& block) {
    INFO(block.name());
    CHECK(testing::check_law(block, {.rows = 3, .tokens = 150, .trials = 2}) == Failures{});
  };
  check(decoder(attention(), feed_forward()));
  check(one(everything()));
  check(one({.parts = {{.name = "linear", .mixer = linear()}}, .residual = 0}));
  check(decoder(hyena(), feed_forward()));         // sequences stay whole
  check(decoder(cross_attention(), attention()));  // reads a source
  check(decoder(bidirectional(), linear()));       // has no state
  const Any block = decoder(attention(), linear());
  check(stack<double>({block, block, feed_forward()}));
  check(decoder(stack<double>({block, linear()}), feed_forward()));
}

TEST_CASE("longer calls are cut where every part may be cut") {
  const Index T = 2 * composite_block_tokens + 300;
  const auto x = random_tensor<double, 3>({1, T, D}, 3);
  for (const Any& block : {Any(decoder(linear(), feed_forward())), Any(one(everything()))}) {
    const auto expected = forward(block, x);
    auto state = block.make_state(1, T);
    Tensor<double, 3> y(x.shape());
    Context context;
    for (Index first = 0; first < T; first += 640) {
      const Index count = std::min<Index>(640, T - first);
      block.prefill(x.view().slice<1>(first, count), state, y.view().slice<1>(first, count),
                    context);
    }
    CHECK(same_bits(y.view(), expected.view()));
  }
}

TEST_CASE("a block steps without allocation, and without any runs a sequence again") {
  const Any inner = decoder(attention(), linear());
  for (const Any& block : {Any(decoder(attention(), feed_forward())), Any(one(everything())),
                           Any(stack<double>({inner, inner}))}) {
    const Index T = 150;
    const auto x = random_tensor<double, 3>({2, T, D}, 8);
    Context context;
    auto state = block.make_state(2, T);
    Tensor<double, 3> y(x.shape());
    block.prefill(x.view().slice<1>(0, 70), state, y.view().slice<1>(0, 70), context);
    block.prepare(context, 2, 2);
    AnyState snapshot = state;
    const auto before = support::allocations();
    for (Index t = 70; t < T; ++t) block.step(x.view().at<1>(t), state, y.view().at<1>(t), context);
    snapshot = state;
    snapshot.members().copy_row(state.members(), 0, 1);
    CHECK(support::allocations() == before);
    CHECK(relative_error(y.view(), forward(block, x).view()) < 1e-12);
    block.forward(x, y, context);
    const auto later = support::allocations();
    block.forward(x, y, context);
    CHECK(support::allocations() == later);
  }
}

TEST_CASE("the members of a block's state are its parts'") {
  using Names = std::vector<std::string>;
  const auto names = [](const Any& block) {
    Names result;
    AnyState state = block.make_state(1, 1);
    for (const auto& member : state.members().list()) result.push_back(member.name);
    return result;
  };
  const Any block = decoder(attention(), linear());
  CHECK(names(block) == Names{"mixer.position", "mixer.keys", "mixer.values", "channel.memory"});
  CHECK(names(stack<double>({linear(), block})) ==
        Names{"layers.0.memory", "layers.1.mixer.position", "layers.1.mixer.keys",
              "layers.1.mixer.values", "layers.1.channel.memory"});
}

TEST_CASE("a state goes on in a block of the same parts, and in no other") {
  const Any block = decoder(attention(), linear()), same = decoder(attention(), linear());
  const auto x = random_tensor<double, 3>({2, 9, D}, 3);
  Context context;
  Tensor<double, 3> y(x.shape());
  auto state = block.make_state(2, 30);
  block.prefill(x, state, y, context);
  AnyState copy = state;
  same.prefill(x, copy, y, context);
  CHECK(copy.members().tokens(0) == 18);

  const test::TemporaryFolder folder;
  save_state(folder.path() / "state", copy.members());
  auto loaded = same.make_state(2, 40);
  load_state(folder.path() / "state", loaded.members());
  CHECK(testing::valid_numbers(loaded.members()) == testing::valid_numbers(copy.members()));
  CHECK(copy.members().used_bytes() == loaded.members().used_bytes());

  const Any renamed =
      Block<double>({.branches = {{.parts = {{.name = "mix", .mixer = attention()},
                                             {.name = "channel", .mixer = linear()}}}}});
  const Any turned = decoder(linear(), attention()), deeper = stack<double>({block});
  for (const Any& other : {renamed, turned, deeper, attention()}) {
    AnyState foreign = other.make_state(2, 30);
    CHECK_THAT(error_of<ShapeError>([&] { block.prefill(x, foreign, y, context); }),
               ContainsSubstring("another"));
    CHECK_THROWS_AS(state.members().copy_row(foreign.members(), 0, 0), ShapeError);
  }
}

TEST_CASE("rows of a block grow, go back and begin again") {
  const Any block = decoder(attention(), feed_forward());
  const auto x = random_tensor<double, 3>({2, 20, D}, 3);
  Context context;
  const auto expected = forward(block, x);
  Tensor<double, 3> y(x.shape());
  auto state = block.make_state(2, 12);
  const auto run = [&](Index first, Index count) {
    block.prefill(x.view().slice<1>(first, count), state, y.view().slice<1>(first, count), context);
  };
  run(0, 12);
  block.grow(state, 20);
  run(12, 8);
  CHECK(relative_error(y.view(), expected.view()) < 1e-12);
  for (const Index row : {0, 1}) state.members().rewind(row, 15);
  run(15, 5);
  CHECK(relative_error(y.view(), expected.view()) < 1e-12);
  for (const Index row : {0, 1}) block.reset(state, row);
  run(0, 20);
  CHECK(relative_error(y.view(), expected.view()) < 1e-12);
}

TEST_CASE("a block whose later part refuses has changed no part") {
  const Any block = decoder(linear(), attention());
  const auto x = random_tensor<double, 3>({2, 10, D}, 3);
  Context context;
  Tensor<double, 3> y(x.shape());
  auto state = block.make_state(2, 6);
  block.prefill(x.view().slice<1>(0, 5), state, y.view().slice<1>(0, 5), context);
  AnyState before = state;
  CHECK_THAT(error_of<CapacityError>([&] { block.prefill(x, state, y, context); }),
             ContainsSubstring("block: state channel.keys holds 5 tokens"));
  CHECK(testing::valid_numbers(state.members()) == testing::valid_numbers(before.members()));
}

TEST_CASE("parts that share weights have states of their own") {
  const Any shared = linear(), other = linear(51);
  const auto pair = [](const Any& a, const Any& b) { return Any(decoder(a, b)); };
  CHECK(pair(shared, shared).parameters() == shared.parameters() + 2 * D);
  CHECK(pair(shared, other).parameters() == 2 * shared.parameters() + 2 * D);
  const Any block = pair(shared, shared);
  CHECK(Any(stack<double>({block, block})).parameters() == block.parameters());
  AnyState state = block.make_state(1);
  CHECK(state.members().list().size() == 2);
}

TEST_CASE("side values go through a block by name") {
  const auto rwkv = [](Index layer, unsigned seed) {
    return make<Rwkv7<double>>({.d_model = D,
                                .head_dim = 4,
                                .d_ff = 20,
                                .decay_rank = 3,
                                .rate_rank = 3,
                                .value_rank = 2,
                                .gate_rank = 4,
                                .layer_index = layer},
                               seed);
  };
  const Any first = rwkv(0, 1), later = rwkv(1, 40);
  const Any both = stack<double>({first, later});
  REQUIRE(both.sides().size() == 1);
  CHECK(both.sides()[0].role == SideRole::output);
  CHECK(testing::check_law(both, {.rows = 2, .tokens = 100, .trials = 1}) == Failures{});
  const Any needs = stack<double>({later, later});
  REQUIRE(needs.sides().size() == 1);
  CHECK(needs.sides()[0].role == SideRole::input);
  CHECK_THAT(error_of<ConfigError>([&] {
               stack<double>({later, first});
             }),
             ContainsSubstring("is given behind a part that takes it"));
}

TEST_CASE("a block without a state has forward alone, one that reads needs a source") {
  const Any encoder = decoder(bidirectional(), feed_forward());
  CHECK_FALSE(encoder.continues());
  CHECK_THAT(error_of<Error>([&] { encoder.make_state(1); }),
             ContainsSubstring("block has no state"));
  AnyState none;
  Tensor<double, 2> x({1, D});
  Context context;
  CHECK_THAT(error_of<Error>([&] { encoder.step(x, none, x, context); }),
             ContainsSubstring("block has no state"));

  const Any reader = decoder(cross_attention(), feed_forward());
  CHECK(reader.d_source() == 7);
  Tensor<double, 3> whole({1, 3, D}), source({1, 4, 7});
  CHECK_THAT(error_of<Error>([&] { reader.forward(whole, whole, context); }),
             ContainsSubstring("block has no forward without a source"));
  reader.forward(whole, source, whole, context);
  CHECK_THAT(error_of<Error>([&] { encoder.forward(whole, source, whole, context); }),
             ContainsSubstring("block has no source"));
}

TEST_CASE("a block says what does not fit") {
  const auto error = [](Branch<double> branch) {
    return error_of<Error>([&] { one(std::move(branch)); });
  };
  const auto with = [&](const auto& change) {
    Branch<double> branch = everything();
    change(branch);
    return error(std::move(branch));
  };
  CHECK(error_of<ConfigError>([] { Block<double>({}); }) == "block: has no parts");
  CHECK(error({}) == "block: has no parts");
  CHECK(with([](auto& branch) { branch.parts[1].name = "attention"; }) ==
        "block: attention: two parts have this name");
  CHECK_THAT(with([](auto& branch) { branch.parts[1].name = ""; }),
             ContainsSubstring("a part needs a name"));
  CHECK(with([](auto& branch) {
          branch.parts[1].mixer = make<FeedForward<double>>({.d_model = 5, .d_ff = 2}, 1);
        }) == "block: linear: has d_model 5, expected 12 as other parts have");
  CHECK_THAT(with([](auto& branch) { branch.multiplier = std::nan(""); }),
             ContainsSubstring("block: attention: multiplier is NaN"));
  CHECK_THAT(with([](auto& branch) { branch.parts[1].input_multiplier = HUGE_VAL; }),
             ContainsSubstring("block: linear: input_multiplier is"));
  CHECK_THAT(with([](auto& branch) { branch.before.weight = random_tensor<double, 1>({3}, 1); }),
             ContainsSubstring("block: attention: norm: weight has shape [3], expected [12]"));
  CHECK_THAT(with([](auto& branch) { branch.parts[0].before.bias = branch.before.bias; }),
             ContainsSubstring("a bias needs the kind layer"));
  CHECK_THAT(with([](auto& branch) { branch.last.kind = NormKind::none; }),
             ContainsSubstring("norm: "));
  CHECK_THAT(with([](auto& branch) { branch.after.eps = -1; }), ContainsSubstring("eps is -1"));
}

}  // namespace
}  // namespace seqmix
