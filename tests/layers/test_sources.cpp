// What rows read beside their tokens: cross attention, whose rows have sources of their own
// lengths. No register's width changes it: once is enough.

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <random>

#include "seqmix/io/state.hpp"
#include "seqmix/layers/any_mixer.hpp"
#include "seqmix/layers/attention/cross_attention.hpp"
#include "seqmix/testing/state.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using Catch::Matchers::ContainsSubstring;
using seqmix::CapacityError;
using seqmix::CrossAttention;
using seqmix::Segment;
using seqmix::Segments;
using seqmix::StateMembers;
using seqmix::Storage;
using seqmix::test::error_of;
using seqmix::testing::valid_numbers;

template <class S>
using State = typename CrossAttention<S>::State;

template <class S>
CrossAttention<S> layer_of(Storage caches = Storage::native) {
  const seqmix::CrossAttentionConfig config{
      .d_model = 9,
      .d_source = 5,
      .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6, .v_bias = true, .o_bias = true}};
  unsigned seed = 1;
  auto weights = seqmix::make_weights<typename CrossAttention<S>::Weights>(
      config, [&]<class Shape>(const auto&, Shape shape) {
        return random_tensor<S, static_cast<Index>(shape.extents.size())>(shape, seed++);
      });
  return {config, std::move(weights), {Storage::native, caches}};
}

/// Segments of these numbers of tokens behind each other, for rows in the order of `rows`.
std::vector<Segment> segments_of(std::initializer_list<Index> rows,
                                 std::initializer_list<Index> counts) {
  std::vector<Segment> segments;
  Index first = 0;
  auto row = rows.begin();
  for (const Index count : counts) {
    segments.push_back({*row++, first, count});
    first += count;
  }
  return segments;
}
Index tokens_of(const std::vector<Segment>& segments) {
  return segments.back().first + segments.back().count;
}

template <class S>
auto part(const View<S, 2>& view, const Segment& segment) {
  return view.slice(seqmix::axis::time, segment.first, segment.count);
}

/// A composite: twice what a part that reads makes of its tokens.
struct TwiceDefinition {
  using Scalar = double;
  using Part = seqmix::CrossAttentionDefinition<double>;
  using Config = seqmix::CrossAttentionConfig;
  static constexpr seqmix::Traits traits{.name = "twice", .composite = true, .has_source = true};
  using Weights = Part::Weights;
  struct State {
    Part::State part;
    static void visit(auto& self, auto&& tensor) {
      Part::State::visit(self.part, seqmix::Prefixed("part", tensor));
    }
  };
  Config c;
  Weights w;
  Part part{c, w};

  TwiceDefinition(Config config, Weights weights) : c(config), w(std::move(weights)) {}
  State make_state(Index batch, Index capacity, seqmix::Memory memory) const {
    return {part.make_state(batch, capacity, memory)};
  }
  void read(View<const double, 2> source, State& state, const seqmix::Call& call) const {
    seqmix::read(part, source, state.part, call);
  }
  void run(View<const double, 2> x, State& state, View<double, 2> y,
           const seqmix::Call& call) const {
    seqmix::run(part, x, state.part, y, call);
    for (Index t = 0; t < y.extent(0); ++t) {
      for (Index d = 0; d < y.extent(1); ++d) y(t, d) *= 2;
    }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("rows whose sources differ have the bits of each alone", "", float, double) {
  using S = TestType;
  for (const Storage caches : {Storage::native, Storage::bf16, Storage::int8}) {
    const auto layer = layer_of<S>(caches);
    // Read in another order than they lie in the state, one not at all, one longer than a block.
    const auto sources = segments_of({3, 1, 5, 0, 2}, {13, 1, 0, 2101, 64});
    const auto queries = segments_of({2, 4, 0, 1, 5, 3}, {7, 2, 130, 1, 5, 66});
    const auto source = random_tensor<S, 2>({tokens_of(sources), 5}, 2);
    const auto x = random_tensor<S, 2>({tokens_of(queries), 9}, 3);
    const auto run = [&](Context& context, Tensor<S, 2>& y) {
      auto state = layer.make_state(6, 2101);
      layer.read(source, sources, state, context);
      for (int round = 0; round < 2; ++round) layer.advance(x, queries, state, y, context);
      return state;
    };
    Context context = poisoned();
    Tensor<S, 2> together(x.shape()), threaded(x.shape());
    State<S> state = run(context, together);
    ThreadExecutor executor(3);
    Context threads(executor);
    run(threads, threaded);
    CHECK(same_bits(threaded.view(), together.view()));

    for (const Segment& query : queries) {
      const auto of_row = std::ranges::find(sources, query.row, &Segment::row);
      const Segment read = of_row == sources.end() ? Segment{} : *of_row;
      INFO("row " << query.row << " of " << read.count << " source tokens, " << to_string(caches));
      CHECK(state.keys.length[query.row] == read.count);
      auto alone = layer.make_state(1, read.count);
      const Segment whole_source{0, 0, read.count}, whole{0, 0, query.count};
      layer.read(part(source.view(), read), {&whole_source, 1}, alone, context);
      Tensor<S, 2> y({query.count, 9});
      layer.advance(part(x.view(), query), {&whole, 1}, alone, y, context);
      CHECK(same_bits(y.view(), part(together.view(), query)));

      // `forward` is the same of one length.
      Tensor<S, 3> by_forward({1, query.count, 9});
      if (query.count == 1) continue;  // takes the parallel form
      layer.forward(part(x.view(), query).insert(seqmix::axis::row),
                    part(source.view(), read).insert(seqmix::axis::row), by_forward, context);
      CHECK(same_bits(by_forward.view()[0], y.view()));
    }
  }
}

TEMPLATE_TEST_CASE("a row that reads nothing gives what no keys give", "", float, double) {
  using S = TestType;
  const auto layer = layer_of<S>();
  for (const Index capacity : {0, 40}) {
    for (const Index T : {1, 3, 70}) {
      auto state = layer.make_state(2, capacity);
      const auto x = random_tensor<S, 3>({2, T, 9}, 3);
      Tensor<S, 3> y(x.shape());
      Context context = poisoned();
      layer.prefill(x, state, y, context);
      layer.step(x.view().template at<1>(0), state, y.view().template at<1>(0), context);
      for (Index t = 0; t < T; ++t) {
        for (Index d = 0; d < 9; ++d) CHECK(y(1, t, d) == layer.weights().o_proj.bias[d]);
      }
    }
  }
}

TEST_CASE("reading again replaces, and changes no other row") {
  const auto layer = layer_of<float>();
  const auto source = random_tensor<float, 2>({30, 5}, 2);
  const auto x = random_tensor<float, 3>({3, 4, 9}, 3);
  Context context = poisoned();
  const auto outputs = [&](State<float> state) {
    Tensor<float, 3> y(x.shape());
    layer.prefill(x, state, y, context);
    return y;
  };
  const auto read = [&](State<float>& state, std::initializer_list<Index> rows,
                        std::initializer_list<Index> counts) {
    const auto segments = segments_of(rows, counts);
    layer.read(source.view().slice<0>(0, tokens_of(segments)), segments, state, context);
  };
  auto state = layer.make_state(3, 30), fresh = layer.make_state(3, 30);
  read(state, {0, 1, 2}, {10, 12, 8});
  const auto before = outputs(state);
  read(state, {1}, {5}), read(fresh, {1}, {5});
  auto after = outputs(state);
  CHECK(same_bits(after.view()[0], before.view()[0]));
  CHECK(same_bits(after.view()[1], outputs(fresh).view()[1]));
  CHECK(same_bits(after.view()[2], before.view()[2]));

  // None is one of no tokens; a reset row reads none either.
  read(state, {1, 2}, {0, 0}), layer.reset(state, 0);
  auto empty = layer.make_state(3, 7);
  CHECK(valid_numbers(StateMembers(state)) == valid_numbers(StateMembers(empty)));
  after = outputs(state);
  CHECK(same_bits(after.view(), outputs(layer.make_state(3)).view()));
  CHECK_THAT(error_of<seqmix::ShapeError>([&] { StateMembers(state).rewind(0, 0); }),
             ContainsSubstring("does not count tokens"));
}

TEST_CASE("a source that a state has no room for is refused, and the state stays as it was") {
  const auto layer = layer_of<double>();
  const auto source = random_tensor<double, 2>({12, 5}, 2);
  Context context;
  auto state = layer.make_state(2, 7);
  const Segment first[] = {{0, 0, 7}, {1, 7, 5}};
  layer.read(source, first, state, context);
  const auto before = valid_numbers(StateMembers(state));
  const auto refused = [&]<class Error>(Error*, std::vector<Segment> segments) {
    const std::string text = error_of<Error>([&] { layer.read(source, segments, state, context); });
    CHECK(valid_numbers(StateMembers(state)) == before);
    return text;
  };
  constexpr CapacityError* capacity = nullptr;
  constexpr seqmix::ShapeError* shape = nullptr;
  CHECK_THAT(refused(capacity, {{0, 0, 4}, {1, 4, 8}}),
             ContainsSubstring("state keys: a source of 8 tokens for row 1 does not fit in a "
                               "capacity of 7"));
  CHECK_THAT(refused(shape, {{0, 0, 4}}), ContainsSubstring("expected those of source, 12"));
  CHECK_THAT(refused(shape, {{0, 0, 6}, {0, 6, 6}}), ContainsSubstring("no other segment has"));
  CHECK_THAT(refused(shape, {{0, 0, 6}, {2, 6, 6}}), ContainsSubstring("one of 2 rows"));
  CHECK_THAT(error_of<seqmix::ShapeError>([&] {
               layer.read(Tensor<double, 2>({12, 4}), first, state, context);
             }),
             ContainsSubstring("source has shape [1, 12, 4], expected [B, T, 5]"));

  // A number that somebody wrote where the length stands is never read by.
  const auto x = random_tensor<double, 2>({2, 9}, 3);
  Tensor<double, 2> y(x.shape());
  for (const Index length : {Index{-1}, Index{8}, Index{1} << 60}) {
    auto spoilt = state, other = state;
    spoilt.values.length[1] = length;
    CHECK_THROWS_AS(layer.step(x, spoilt, y, context), CapacityError);
    CHECK_THROWS_AS(StateMembers(other).copy_row(StateMembers(spoilt), 1, 0), CapacityError);
    CHECK_THROWS_AS(seqmix::save_state("nowhere", StateMembers(spoilt)), CapacityError);
  }
}

TEST_CASE("rows with sources are forked, grown, saved and restored across capacities") {
  for (const Storage caches : {Storage::native, Storage::f16, Storage::int8}) {
    const auto layer = layer_of<double>(caches);
    const auto source = random_tensor<double, 2>({20, 5}, 2);
    const auto x = random_tensor<double, 3>({2, 3, 9}, 3);
    Context context = poisoned();
    const auto outputs = [&](State<double>& state) {
      Tensor<double, 3> y(x.shape());
      layer.prefill(x, state, y, context);
      return y;
    };
    auto state = layer.make_state(2, 13);
    const Segment segments[] = {{1, 0, 13}, {0, 13, 7}};
    layer.read(source, segments, state, context);
    const auto expected = outputs(state);

    auto grown = state, fork = layer.make_state(2, 50);
    layer.grow(grown, 31);
    CHECK(grown.keys.capacity() == 31);
    CHECK(same_bits(outputs(grown).view(), expected.view()));
    CHECK_THROWS_AS(layer.grow(grown, 12), CapacityError);
    for (const Index row : {0, 1}) StateMembers(fork).copy_row(StateMembers(state), row, row);
    CHECK(same_bits(outputs(fork).view(), expected.view()));
    CHECK(StateMembers(fork).used_bytes() == StateMembers(state).used_bytes());
    auto small = layer.make_state(2, 7);
    StateMembers(small).copy_row(StateMembers(state), 0, 1);
    CHECK_THAT(
        error_of<CapacityError>([&] { StateMembers(small).copy_row(StateMembers(state), 1, 0); }),
        ContainsSubstring("copy_row: state keys: a source of 13 tokens does not fit in a capacity "
                          "of 7"));
    CHECK(small.keys.length[0] == 0);

    const auto path = std::filesystem::temp_directory_path() /
                      ("seqmix-source-" + std::to_string(std::random_device{}()) + ".state");
    seqmix::save_state(path, StateMembers(state));
    {
      const auto file = seqmix::Safetensors::open(path);
      CHECK(file.entry("keys.0").shape == std::vector<Index>{2, 7, 6});
      CHECK(file.entry("values.length.1").integers()[0] == 13);
    }
    auto loaded = layer.make_state(2, 40);
    seqmix::load_state(path, StateMembers(loaded));
    CHECK(same_bits(outputs(loaded).view(), expected.view()));
    const auto before = valid_numbers(StateMembers(small));
    CHECK_THROWS_AS(seqmix::load_state(path, StateMembers(small)), CapacityError);
    CHECK(valid_numbers(StateMembers(small)) == before);
    std::filesystem::remove(path);
  }
}

TEST_CASE("reading in a prepared context allocates nothing") {
  const auto layer = layer_of<float>();
  const Index rows = 3, tokens = 500;
  const auto source = random_tensor<float, 2>({tokens, 5}, 2);
  const auto x = random_tensor<float, 3>({3, 40, 9}, 3);
  Context context;
  layer.prepare(context, rows, tokens);
  auto state = layer.make_state(rows, tokens);
  Tensor<float, 3> y(x.shape());
  const auto before = allocations();
  for (const auto& [a, b] : {std::pair<Index, Index>{1, 1}, {400, 50}, {166, 167}}) {
    const Segment segments[] = {{2, 0, a}, {0, a, b}, {1, a + b, tokens - a - b}};
    layer.read(source, segments, state, context);
    layer.prefill(x, state, y, context);
  }
  layer.forward(x, source.view().slice<0>(0, 3 * 166).split<0>(3, 166), y, context);
  CHECK(allocations() - before == 0);
}

TEST_CASE("sources go through composites and erased layers") {
  const auto plain = layer_of<double>();
  const seqmix::Mixer<TwiceDefinition> twice(plain.config(), plain.weights());
  const seqmix::AnyMixer<double> erased(twice);
  CHECK(erased.d_source() == 5);
  // Longer than a block of a composite.
  const Segment segments[] = {{1, 0, 2500}, {0, 2500, 3}};
  const auto source = random_tensor<double, 2>({2503, 5}, 2);
  const auto x = random_tensor<double, 3>({2, 4, 9}, 3);
  Context context = poisoned();
  auto state = plain.make_state(2, 2500);
  seqmix::AnyState any = erased.make_state(2, 2500);
  Tensor<double, 3> y(x.shape()), z(x.shape());
  for (int round = 0; round < 2; ++round) {
    plain.read(source, segments, state, context);
    erased.read(source, segments, any, context);
  }
  plain.prefill(x, state, y, context), erased.prefill(x, any, z, context);
  for (Index i = 0; i < y.size(); ++i) CHECK(z.data()[i] == 2 * y.data()[i]);
  erased.reset(any, 0), erased.grow(any, 2600);
  CHECK_THROWS_AS(erased.forward(x, z, context), seqmix::Error);
}
