// The one suite that every layer of the registry runs through, in float and in double.

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <filesystem>
#include <limits>
#include <random>
#include <set>
#include <utility>

#include "seqmix/io/state.hpp"
#include "seqmix/testing/state.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/layer_case.hpp"
#include "support/thread_executor.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using seqmix::Algorithm;
using seqmix::Shape;
using seqmix::testing::member_error;
using seqmix::testing::random_company;
using seqmix::testing::tokens_of;

template <class S>
struct Expected {
  reference::Output<double> truth;
  double bound = 0, state_bound = 0;

  Expected(const LayerCase<S>& layer, const Tensor<S, 3>& x) : truth(layer.truth(x)) {
    const auto literal = layer.literal(x);
    bound = layer.bound(relative_error<S, double>(literal.y.numbers, truth.y.numbers));
    double largest = 0;
    for (const auto& [name, values] : literal.state) {
      largest = std::max(largest, member_error(values.numbers, truth.state.at(name).numbers));
    }
    state_bound = layer.bound(largest);
    // A law about numbers that are nearly zero says nothing.
    double square = 0;
    for (const double value : truth.y.numbers) square += value * value;
    REQUIRE(std::sqrt(square / static_cast<double>(truth.y.numbers.size())) > 1e-3);
  }
  double error(const Tensor<S, 3>& y) const {
    return relative_error<S, double>(
        std::span<const S>(y.data(), static_cast<std::size_t>(y.size())), truth.y.numbers);
  }
};

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

#if !defined(SEQMIX_TEST_WIDTH)
TEMPLATE_LIST_TEST_CASE("every layer of the registry has a twin and two golden files", "",
                        support::TestScalars) {
  std::set<std::string> with_twin;
  for (const auto& twin : reference::twins()) with_twin.insert(twin.layer);
  const auto names = registry<TestType>().names();
  CHECK(std::set<std::string>(names.begin(), names.end()) == with_twin);
  for (const std::string& name : names) {
    INFO(name);
    int files = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator(SEQMIX_SOURCE_DIR "/tests/golden")) {
      files += entry.path().filename().string().starts_with(name + "--") ? 1 : 0;
    }
    CHECK(files >= 2);
  }
}
#endif

TEMPLATE_LIST_TEST_CASE("each verb gives its twin's outputs and final state", "",
                        support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    for (const Index T : {1, 2, 3, 17, 64, 65, 131}) {
      INFO(layer.text() << " T " << T);
      const auto x = layer.random_input(2, T, 7);
      const Expected<TestType> expected(layer, x);
      Context context = poisoned();
      CHECK(expected.error(forward<TestType>(layer, x, context)) <= expected.bound);
      if (!layer.continues()) continue;
      for (const bool by_steps : {false, true}) {
        INFO("by steps " << by_steps);
        auto state = layer.make_state(2, T);
        auto y = unwritten<TestType>(x.shape());
        advance<TestType>(layer, x, state, y, context, by_steps);
        CHECK(expected.error(y) <= expected.bound);
        CHECK(state_error(state, expected.truth) <= expected.state_bound);
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("any split of a sequence into prefill pieces and steps agrees", "",
                        support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    std::mt19937 random(3);
    const Index T = 270;
    const auto x = layer.random_input(1, T, 11);
    const Expected<TestType> expected(layer, x);
    Context context = poisoned();
    CHECK(expected.error(forward<TestType>(layer, x, context)) <= expected.bound);
    for (int trial = 0; trial < 4; ++trial) {
      auto state = layer.make_state(1, T + 5);
      auto y = unwritten<TestType>(x.shape());
      advance_randomly<TestType>(layer, x, state, y, context, random);
      CHECK(expected.error(y) <= expected.bound);
      CHECK(state_error(state, expected.truth) <= expected.state_bound);
    }
  });
}

TEMPLATE_LIST_TEST_CASE("each forced algorithm obeys the law", "", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    const auto x = layer.random_input(2, 150, 5);
    const Expected<TestType> expected(layer, x);
    for (const Algorithm algorithm : {Algorithm::chunked, Algorithm::recurrent}) {
      INFO(layer.text() << " algorithm " << static_cast<int>(algorithm));
      Context context = poisoned();
      context.set_algorithm(algorithm);
      CHECK(expected.error(forward<TestType>(layer, x, context)) <= expected.bound);
      if (!layer.continues()) continue;
      auto state = layer.make_state(2, 150);
      auto y = unwritten<TestType>(x.shape());
      std::mt19937 random(1);
      advance_randomly<TestType>(layer, x, state, y, context, random);
      CHECK(expected.error(y) <= expected.bound);
      CHECK(state_error(state, expected.truth) <= expected.state_bound);
    }
  });
}

TEMPLATE_LIST_TEST_CASE("no forced algorithm gives a row other bits in a batch", "",
                        support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    // Rows of a batch share blocks of time, of which there are several.
    for (const Index most : {65, 257, 700}) {
      const Index T = layer.longest(most);
      const auto x = layer.random_input(5, T, 15);
      for (const Algorithm algorithm :
           {Algorithm::automatic, Algorithm::chunked, Algorithm::recurrent}) {
        INFO(layer.text() << " T " << T << " algorithm " << static_cast<int>(algorithm));
        Context context = poisoned();
        context.set_algorithm(algorithm);
        const auto all = forward<TestType>(layer, x, context);
        for (const Index row : {0, 4}) {
          const auto alone = forward<TestType>(layer, x.view().template slice<0>(row, 1), context);
          CHECK(same_bits(alone.view()[0], all.view()[row]));
        }
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a token changes nothing before it", "", support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    const Index T = 140;
    auto x = layer.random_input(1, T, 9);
    Context context = poisoned();
    const auto before = forward<TestType>(layer, x, context);
    for (const Index changed : {0, 1, 63, 64, 100, 139}) {
      INFO(layer.text() << " token " << changed);
      auto other = x;
      for (Index d = 0; d < layer.d_model(); ++d) other(0, changed, d) += TestType(1 + d % 2);
      const auto after = forward<TestType>(layer, other, context);
      const auto left = before.view().template slice<1>(0, changed);
      const auto right = after.view().template slice<1>(0, changed);
      if (layer.is_indirect()) {
        // A transform mixes the rounding of all tokens: an error bound of the whole takes its
        // place.
        CHECK((changed == 0 || relative_error(right, left) < layer.bound(1e-6)));
      } else {
        CHECK(same_bits(left, right));
      }
      CHECK_FALSE(same_bits(before.view().template slice<1>(changed, 1),
                            after.view().template slice<1>(changed, 1)));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a batch row has the same bits anywhere, and NaN stays in its own", "",
                        support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    const Index B = 4, T = 70;
    auto x = layer.random_input(B, T, 13);
    Context context = poisoned();
    for (const Verb verb : verbs(layer)) {
      INFO(layer.text() << " verb " << static_cast<int>(verb));
      const auto all = run<TestType>(layer, x, context, verb);
      for (Index b = 0; b < B; ++b) {
        const auto alone = run<TestType>(layer, x.view().template slice<0>(b, 1), context, verb);
        CHECK(same_bits(alone.view(), all.view().template slice<0>(b, 1)));
      }
      auto sick = x;
      fill(sick.view()[2].template slice<0>(3, 2), nan_of<TestType>);
      const auto y = run<TestType>(layer, sick, context, verb);
      for (const Index b : {0, 1, 3}) CHECK(same_bits(y.view()[b], all.view()[b]));
      CHECK(std::isnan(y(2, 3, 0)));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("the number of threads changes no bit", "", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    const auto x = layer.random_input(2, 150, 17);
    Context serial = poisoned();
    for (const Verb verb : verbs(layer)) {
      const auto expected = run<TestType>(layer, x, serial, verb);
      for (const int threads : {1, 2, 3}) {
        INFO(layer.text() << " threads " << threads << " verb " << static_cast<int>(verb));
        ThreadExecutor executor(threads);
        Context context(executor);
        context.set_poison(true);
        CHECK(same_bits(run<TestType>(layer, x, context, verb).view(), expected.view()));
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("strided and shared views are windows on the same numbers", "",
                        support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    const Index B = 2, T = 67, D = layer.d_model(), width = 2 * D + 3;
    const auto x = layer.random_input(B, T, 19);
    Context context = poisoned();
    const auto expected = forward<TestType>(layer, x, context);

    // x and y are columns of one wide matrix; the numbers around y stay as they are.
    Tensor<TestType, 3> wide({B, T + 1, width});
    fill(wide.view(), TestType(42));
    const auto in = wide.view().template slice<1>(0, T).template slice<2>(1, D);
    const auto out = wide.view().template slice<1>(0, T).template slice<2>(D + 2, D);
    copy(x.view(), in);
    layer.forward(in, out, context);
    CHECK(same_bits(out, expected.view()));
    CHECK(same_bits(in, x.view()));
    for (Index b = 0; b < B; ++b) {
      for (Index t = 0; t <= T; ++t) {
        for (Index d = 0; d < width; ++d) {
          const bool column = (d >= 1 && d < 1 + D) || (d >= D + 2 && d < 2 * D + 2);
          if (t == T || !column) REQUIRE(wide(b, t, d) == TestType(42));
        }
      }
    }

    // y may be x.
    auto both = x;
    layer.forward(both, both, context);
    CHECK(same_bits(both.view(), expected.view()));
    if (layer.continues()) {
      auto state = layer.make_state(B, T);
      both = x;
      for (Index t = 0; t < T; ++t) {
        const auto token = both.view().template at<1>(t);
        layer.step(token, state, token, context);
      }
      CHECK(relative_error(both.view(), expected.view()) < layer.bound(1e-5));
    }

    // Any other overlap throws.
    Tensor<TestType, 3> memory({1, T + 1, D});
    const auto shifted = memory.view().template slice<1>(1, T);
    CHECK_THROWS_AS(layer.forward(memory.view().template slice<1>(0, T), shifted, context),
                    seqmix::ShapeError);
  });
}

TEMPLATE_LIST_TEST_CASE("a step allocates nothing, the first one too", "", support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    for (const Index B : {1, 3}) {
      Context context;
      const Index capacity = layer.longest(20'000);
      layer.mixer().prepare(context, B, B, capacity);
      const auto x = layer.random_input(B, 3, 23);
      auto state = layer.make_state(B, capacity);
      auto y = unwritten<TestType>(x.shape());
      const auto allocations_of_step = [&](Index t) {
        const SideValues<TestType> sides(layer.mixer(), x.view().template slice<1>(t, 1));
        const auto before = allocations();
        layer.mixer().step(x.view().template at<1>(t), state, y.view().template at<1>(t), context,
                           sides.views());
        return allocations() - before;
      };
      CHECK(allocations_of_step(0) == 0);
      // Nor does a later one, when caches have grown.
      const auto prompt = layer.random_input(B, 280, 29);
      auto out = unwritten<TestType>(prompt.shape());
      layer.prefill(prompt, state, out, context);
      allocations_of_step(1);
      CHECK(allocations_of_step(2) == 0);

      // The second sequence of a shape allocates nothing either.
      if (layer.reads_source() || !layer.mixer().sides().empty()) continue;  // the case allocates
      layer.forward(prompt, out, context);
      const auto before = allocations();
      layer.forward(prompt, out, context);
      CHECK(allocations() - before == 0);
    }
  });
  const auto before = allocations();
  ::operator delete(::operator new(100));  // a call, which no compiler may leave out
  CHECK(allocations() - before == 1);
}

TEMPLATE_LIST_TEST_CASE("no tokens and no rows are legal", "", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    Context context = poisoned();
    for (const Shape<3> shape :
         {Shape<3>{0, 5, layer.d_model()}, Shape<3>{2, 0, layer.d_model()}}) {
      Tensor<TestType, 3> nothing(shape);
      layer.forward(nothing, nothing, context);
      if (!layer.continues()) continue;
      auto state = layer.make_state(shape[0], 8);
      layer.prefill(nothing, state, nothing, context);
      for (Index row = 0; row < shape[0]; ++row) CHECK(state.members().tokens(row) == 0);
    }
  });
}

TEMPLATE_LIST_TEST_CASE("bad calls name what is wrong and leave the state as it was", "",
                        support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    const Index B = 2, T = 9, D = layer.d_model();
    Context context = poisoned();
    const auto x = layer.random_input(B, T, 31);
    auto y = unwritten<TestType>(x.shape());
    auto state = layer.make_state(B, T);
    layer.prefill(x.view().template slice<1>(0, 5), state, y.view().template slice<1>(0, 5),
                  context);
    AnyState snapshot = state;
    const auto prefill = [&](Shape<3> in, Shape<3> out, AnyState& with) {
      Tensor<TestType, 3> a(in), b(out);
      return seqmix::test::error_of<seqmix::Error>([&] { layer.prefill(a, with, b, context); });
    };
    const std::string name = support::definition_name(layer.name());
    CHECK(mentions(prefill({B, 2, D + 1}, {B, 2, D + 1}, state), name + ": x has shape"));
    CHECK(mentions(prefill({B, 2, D}, {B, 3, D}, state), "y has shape"));
    CHECK(mentions(prefill({B, 2, D}, {B + 1, 2, D}, state), "y has shape"));
    CHECK(mentions(seqmix::test::error_of<seqmix::Error>([&] {
                     Tensor<TestType, 3> a({B, 2, 2 * D}), b({B, 2, D});
                     const View<TestType, 3> gaps(a.data(), {B, 2, D}, {4 * D, 2 * D, 2});
                     if (D > 1) layer.forward(gaps, b, context);
                   }),
                   "last dimension of x"));
    if (!state.members().list().empty()) {
      CHECK(mentions(prefill({B + 1, 2, D}, {B + 1, 2, D}, state), "state"));
    }
    bool has_cache = false;
    for (const auto& member : state.members().list()) {
      has_cache |= member.kind == seqmix::StateMember::Kind::appended;
    }
    if (has_cache) {
      CHECK(mentions(prefill({B, T, D}, {B, T, D}, state), "capacity"));
      Tensor<TestType, 3> a({B, T, D});
      CHECK_THROWS_AS(layer.prefill(a, state, a, context), seqmix::CapacityError);
    }
    // A state of another layer, and no state at all.
    const auto other_name = name == "attention" ? "hyena" : "attention";
    for (const auto& twin : reference::twins()) {
      if (twin.layer != other_name) continue;
      AnyState foreign = LayerCase<TestType>(twin, twin.configs[0]).make_state(B, T);
      CHECK(mentions(prefill({B, 2, D}, {B, 2, D}, foreign), "another layer"));
    }
    AnyState none;
    CHECK(mentions(prefill({B, 2, D}, {B, 2, D}, none), "another layer"));

    CHECK(valid_numbers(state) == valid_numbers(snapshot));
    auto z = unwritten<TestType>(x.shape());
    layer.prefill(x.view().template slice<1>(5, 4), state, y.view().template slice<1>(5, 4),
                  context);
    layer.prefill(x.view().template slice<1>(5, 4), snapshot, z.view().template slice<1>(5, 4),
                  context);
    CHECK(same_bits(y.view().template slice<1>(5, 4), z.view().template slice<1>(5, 4)));
  });
}

TEMPLATE_LIST_TEST_CASE("rows are forked, reset, reserved, saved and restored alone", "",
                        support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    const Index T = 40, later = 30;
    Context context = poisoned();
    const auto x = layer.random_input(3, T, 37), next = layer.random_input(3, later, 41);
    auto y = unwritten<TestType>(x.shape());
    auto state = layer.make_state(3, T);
    layer.prefill(x, state, y, context);
    const auto go_on = [&](AnyState& from, View<const TestType, 3> with) {
      auto out = unwritten<TestType>(with.shape());
      advance<TestType>(layer, with, from, out, context, false);
      return out;
    };
    AnyState reference_state = state;
    layer.mixer().grow(reference_state, T + later);
    AnyState reserved = reference_state;
    const auto expected = go_on(reference_state, next);

    // A fork into another batch and capacity goes on as the row would have.
    auto fork = layer.make_state(2, T + later + 9);
    fork.members().copy_row(state.members(), 2, 0);
    fork.members().copy_row(state.members(), 0, 1);
    Tensor<TestType, 3> tokens({2, later, layer.d_model()});
    copy(next.view()[2], tokens.view()[0]);
    copy(next.view()[0], tokens.view()[1]);
    const auto forked = go_on(fork, tokens);
    CHECK(same_bits(forked.view()[0], expected.view()[2]));
    CHECK(same_bits(forked.view()[1], expected.view()[0]));

    // A reset row starts again; its neighbours, at other positions, go on.
    AnyState mixed = reserved;
    layer.reset(mixed, 1);
    const auto after = go_on(mixed, next);
    const auto fresh = forward<TestType>(layer, next.view().template slice<0>(1, 1), context);
    CHECK(same_bits(after.view()[0], expected.view()[0]));
    CHECK(same_bits(after.view()[2], expected.view()[2]));
    CHECK(relative_error(after.view()[1], fresh.view()[0]) < layer.bound(1e-6));

    // Saved and loaded into a larger capacity: the same bits.
    const auto path = std::filesystem::temp_directory_path() /
                      ("seqmix-" + layer.name() + std::to_string(sizeof(TestType)) + "-" +
                       std::to_string(std::random_device{}()) + ".state");
    seqmix::save_state(path, state.members());
    auto loaded = layer.make_state(3, T + later);
    seqmix::load_state(path, loaded.members());
    CHECK(same_bits(go_on(loaded, next).view(), expected.view()));
    if (!state.members().list().empty()) {
      auto fewer_rows = layer.make_state(2, T);
      CHECK_THROWS_AS(seqmix::load_state(path, fewer_rows.members()), seqmix::CheckpointError);
    }
    std::filesystem::remove(path);

    if (!state.members().list().empty()) {
      CHECK_THROWS_AS(fork.members().copy_row(state.members(), 3, 0), seqmix::ShapeError);
      CHECK(state.members().used_bytes() > 0);
      CHECK(state.members().reserved_bytes() >= state.members().used_bytes());
    }
  });
}

TEMPLATE_LIST_TEST_CASE("tokens are taken back where the past is kept entry by entry", "",
                        support::TestScalars) {
  using Kind = seqmix::StateMember::Kind;
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    const Index T = 40, kept = 38;
    Context context = poisoned();
    const auto x = layer.random_input(2, T, 47);
    auto y = unwritten<TestType>(x.shape()), again = unwritten<TestType>(x.shape());
    auto state = layer.make_state(2, T);
    advance<TestType>(layer, x, state, y, context, true);
    bool can = state.members().tokens(0) == T;
    for (const auto& member : state.members().list()) {
      can = can && member.kind != Kind::fixed &&
            (member.kind != Kind::ring || T <= member.capacity ||
             T - kept <= member.capacity - member.window);
    }
    if (!can) {
      CHECK_THROWS_AS(state.members().rewind(0, kept), seqmix::Error);
      return;
    }
    for (const Index row : {0, 1}) state.members().rewind(row, kept);
    const auto rest = x.view().template slice<1>(kept, T - kept);
    advance<TestType>(layer, rest, state, again.view().template slice<1>(kept, T - kept), context,
                      true);
    CHECK(same_bits(again.view().template slice<1>(kept, T - kept),
                    y.view().template slice<1>(kept, T - kept)));
    CHECK_THROWS_AS(state.members().rewind(0, T + 1), seqmix::ShapeError);
  });
}

TEMPLATE_LIST_TEST_CASE("packed documents are what each is alone", "", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    if (layer.reads_source()) return;
    INFO(layer.text());
    const Index lengths[] = {5, 1, 0, 90, 140, 3}, T = 239, D = layer.d_model();
    Tensor<Index, 1> cu_seqlens({7});
    for (Index i = 0; i < 6; ++i) cu_seqlens[i + 1] = cu_seqlens[i] + lengths[i];
    Context context = poisoned();
    const auto x = layer.random_input(1, T, 53);
    const SideValues<TestType> sides(layer.mixer(), x);
    auto y = unwritten<TestType>(x.shape());
    layer.mixer().forward_documents(x.view()[0], cu_seqlens, y.view()[0], context, sides.views());
    const auto of = [&](auto&& view, Index i) {
      return view.template slice<1>(cu_seqlens[i], lengths[i]);
    };
    for (const Index i : {0, 1, 3, 4, 5}) {
      const auto alone = forward<TestType>(layer, of(x.view(), i), context);
      CHECK(relative_error(of(y.view(), i), alone.view()) < layer.bound(1e-6));
    }
    if (!layer.continues()) return;

    // The rows of a state go on, each by its document.
    auto state = layer.make_state(6, 280);
    auto z = unwritten<TestType>(x.shape());
    for (int round = 0; round < 2; ++round) {
      layer.mixer().prefill_documents(x.view()[0], cu_seqlens, state, z.view()[0], context,
                                      sides.views());
    }
    auto one = layer.make_state(1, 280);
    auto last = unwritten<TestType>({1, lengths[3], D});
    for (int round = 0; round < 2; ++round) {
      layer.prefill(of(x.view(), 3), one, last, context);
    }
    CHECK(relative_error(of(z.view(), 3), last.view()) < layer.bound(1e-6));

    const auto error_of = [&](std::initializer_list<Index> offsets) {
      Tensor<Index, 1> bad({static_cast<Index>(offsets.size())});
      std::copy(offsets.begin(), offsets.end(), bad.data());
      return seqmix::test::error_of<seqmix::Error>([&] {
        layer.mixer().forward_documents(x.view()[0], bad, y.view()[0], context, sides.views());
      });
    };
    CHECK(mentions(error_of({0, 9, 5, T}), "cu_seqlens[2] is 5"));
    CHECK(mentions(error_of({1, T}), "cu_seqlens[0] is 1"));
    CHECK(mentions(error_of({0, T - 1}), "cu_seqlens[1] is 238"));
    CHECK(mentions(error_of({}), "cu_seqlens[0] is missing"));
  });
}

namespace {

/// Two workers that take turns on one thread, so that no thread is made.
struct TurnExecutor final : seqmix::Executor {
  Index workers() const override { return 2; }
  void run(Index count, seqmix::FunctionRef<void(Index, Index)> body) override {
    for (Index task = 0; task < count; ++task) body(task, task % 2);
  }
};

}  // namespace

TEMPLATE_LIST_TEST_CASE("a segment has the same bits in any company", "", support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    std::mt19937 random(5);
    const Index rows = 5, rounds = 2, longest = layer.longest(600) / rounds;
    for (const Algorithm algorithm :
         {Algorithm::automatic, Algorithm::chunked, Algorithm::recurrent}) {
      for (int trial = 0; trial < (algorithm == Algorithm::automatic ? 4 : 1); ++trial) {
        Context context = poisoned();
        context.set_algorithm(algorithm);
        ThreadExecutor executor(3);
        Context threaded(executor);
        threaded.set_poison(true);
        threaded.set_algorithm(algorithm);
        const Index capacity = layer.longest(600);
        auto company = layer.make_state(rows, capacity), alone = layer.make_state(rows, capacity);
        for (Index round = 0; round < rounds; ++round) {
          const auto segments = random_company(rows, longest, random);
          const auto input = layer.random_input(1, tokens_of(segments), 61);
          const auto x = input.view()[0];
          auto y = unwritten<TestType>(input.shape()), z = y;
          layer.advance(x, segments, company, y.view()[0], trial % 2 == 0 ? context : threaded);
          for (const seqmix::Segment& segment : segments) {
            const auto part = [&](const auto& view) {
              return view.slice(seqmix::axis::time, segment.first, segment.count);
            };
            const seqmix::Segment one{segment.row, 0, segment.count};
            layer.advance(part(x), {&one, 1}, alone, part(z.view()[0]), context);
            INFO(layer.text() << " algorithm " << static_cast<int>(algorithm) << " trial " << trial
                              << " round " << round << " row " << segment.row << " of "
                              << segment.count << " tokens");
            CHECK(same_bits(part(y.view()[0]), part(z.view()[0])));
          }
          INFO(layer.text() << " trial " << trial << " round " << round);
          CHECK(valid_numbers(company) == valid_numbers(alone));
        }
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("bad segments name themselves", "", support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    INFO(layer.text());
    Context context = poisoned();
    const auto input = layer.random_input(1, 9, 31);
    auto y = unwritten<TestType>(input.shape());
    auto state = layer.make_state(2, 20);
    const auto error_of = [&](std::initializer_list<seqmix::Segment> list) {
      const std::vector<seqmix::Segment> segments(list);
      return seqmix::test::error_of<seqmix::Error>(
          [&] { layer.advance(input.view()[0], segments, state, y.view()[0], context); });
    };
    CHECK(mentions(error_of({{0, 0, 4}, {1, 5, 4}}), "segment 1"));
    CHECK(mentions(error_of({{0, 0, 4}, {1, 4, 6}}), "segment 1"));
    CHECK(mentions(error_of({{0, 0, -1}}), "segment 0"));
    CHECK(mentions(error_of({{0, 0, 4}}), "expected those of x, 9"));
    if (state.members().empty()) return;
    CHECK(mentions(error_of({{0, 0, 4}, {2, 4, 5}}), "segment 1 is row 2"));
    CHECK(mentions(error_of({{1, 0, 4}, {1, 4, 5}}), "a row that no other segment has"));
  });
}

TEMPLATE_LIST_TEST_CASE("a prepared context allocates nothing", "", support::TestScalars) {
  for_each_continuing_layer<TestType>([](const LayerCase<TestType>& layer) {
    if (!layer.mixer().sides().empty()) return;  // the case allocates
    std::mt19937 random(7);
    const Index rows = 3;
    TurnExecutor executor;
    for (const auto& [threaded, most] :
         {std::pair<bool, Index>{false, 100}, {true, 100}, {false, 500}, {true, 500}}) {
      const Index longest = layer.longest(most), tokens = rows * longest / 2;
      Context context = threaded ? Context(executor) : Context();
      layer.mixer().prepare(context, rows, tokens);
      for (int split = 0; split < (most > 100 ? 4 : 20); ++split) {
        std::vector<seqmix::Segment> segments;
        Index first = 0;
        for (Index row = 0; row < rows; ++row) {
          const Index left = std::min(longest, tokens - first - (rows - 1 - row));
          const Index count = 1 + static_cast<Index>(random() % static_cast<unsigned>(left));
          segments.push_back({row, first, random() % 3 == 0 ? 1 : count});
          first += segments.back().count;
        }
        const auto input = layer.random_input(1, first, 71);
        auto y = unwritten<TestType>(input.shape());
        auto state = layer.make_state(rows, longest);
        Tensor<Index, 1> cu_seqlens({rows + 1});
        for (Index row = 0; row < rows; ++row) {
          const seqmix::Segment& segment = segments[static_cast<std::size_t>(row)];
          cu_seqlens[row + 1] = segment.first + segment.count;
        }
        const std::span<const seqmix::NamedView<TestType>> none;
        const auto x = input.view()[0];
        const auto out = y.view()[0];
        std::vector<seqmix::Segment> later;  // what there is room for behind these tokens
        for (const seqmix::Segment& segment : segments) {
          const Index at = later.empty() ? 0 : later.back().first + later.back().count;
          later.push_back(
              {segment.row, at, std::min({longest - segment.count, segment.count, Index{7}})});
        }
        const Index few = later.back().first + later.back().count;
        const auto head = [few](const auto& view) {
          return view.slice(seqmix::axis::time, 0, few);
        };
        const auto before = allocations();
        layer.mixer().advance(x, segments, state, out, context, none);
        layer.mixer().advance(head(x), later, state, head(out), context, none);
        if (layer.mixer().d_source() == 0) {
          layer.mixer().forward_documents(x, cu_seqlens, out, context, none);
        }
        const auto made = allocations() - before;
        INFO(layer.text() << " threaded " << threaded << " tokens " << tokens << " split "
                          << split);
        CHECK(made == 0);
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a layer says which side values it misses", "", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    if (layer.mixer().sides().empty()) return;
    INFO(layer.text());
    Context context = poisoned();
    const auto x = layer.random_input(1, 3, 59);
    auto y = unwritten<TestType>(x.shape());
    const auto text =
        seqmix::test::error_of<seqmix::Error>([&] { layer.mixer().forward(x, y, context); });
    CHECK(mentions(text, "side value " + layer.mixer().sides().front().name));
  });
}

TEMPLATE_LIST_TEST_CASE("large and small inputs stay finite", "", support::TestScalars) {
  for_each_layer<TestType>([](const LayerCase<TestType>& layer) {
    for (const double scale : {0.0, 1e-6, 1e3}) {
      INFO(layer.text() << " scale " << scale);
      auto x = layer.random_input(1, 130, 43);
      for (Index i = 0; i < x.size(); ++i) x.data()[i] *= static_cast<TestType>(scale);
      Context context = poisoned();
      for (const Verb verb : verbs(layer)) {
        const auto y = run<TestType>(layer, x, context, verb);
        CHECK(std::all_of(y.data(), y.data() + y.size(),
                          [](TestType v) { return std::isfinite(v); }));
      }
    }
  });
}

#if !defined(SEQMIX_TEST_WIDTH)
TEST_CASE("a stream of a million tokens stays finite and lawful") {
  using Kind = seqmix::StateMember::Kind;
  std::set<std::string> seen;
  for_each_continuing_layer<float>([&](const LayerCase<float>& layer) {
    if (seen.contains(layer.name())) return;
    AnyState state = layer.make_state(1, 0);
    for (const auto& member : state.members().list()) {
      if (member.kind == Kind::appended) return;  // its memory would grow with the stream
    }
    seen.insert(layer.name());
    INFO(layer.text());
    Context context;
    const Index piece = 4096, last = 1000;
    const auto x = layer.random_input(1, piece, 67);
    Tensor<float, 3> y(x.shape());
    const auto finite = [](const Tensor<float, 3>& numbers) {
      return std::all_of(numbers.data(), numbers.data() + numbers.size(),
                         [](float v) { return std::isfinite(v); });
    };
    for (Index token = 0; token < 1'000'000; token += piece) {
      layer.prefill(x, state, y, context);
      REQUIRE(finite(y));
    }
    AnyState stepped = state;
    const auto tokens = x.view().slice<1>(0, last);
    auto by_prefill = unwritten<float>(tokens.shape()), by_steps = unwritten<float>(tokens.shape());
    advance<float>(layer, tokens, state, by_prefill, context, false);
    advance<float>(layer, tokens, stepped, by_steps, context, true);
    CHECK(finite(by_steps));
    // A layer whose capacity is used up gives zeros.
    CHECK((same_bits(by_prefill.view(), by_steps.view()) ||
           relative_error(by_prefill.view(), by_steps.view()) < layer.bound(1e-6)));
  });
  CHECK(seen.size() > 15);
}
#endif
