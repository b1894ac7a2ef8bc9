// Weights and caches in narrow storage: every layer obeys its law there too, and errs by so much.

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "seqmix/io/state.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/layer_case.hpp"
#include "support/thread_executor.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using seqmix::Options;
using seqmix::Storage;

/// A layer whose weights or caches are narrow, and the same in its own type.
template <class S>
struct NarrowCase {
  Storage storage;
  bool caches;  // else weights
  LayerCase<S> layer, native;

  NarrowCase(const reference::Twin& twin, const std::string& config, Storage of, bool of_caches)
      : storage(of),
        caches(of_caches),
        layer(twin, config, 1,
              of_caches ? Options(Storage::native, of) : Options(of, Storage::native)),
        native(twin, config) {}

  std::string text() const {
    return std::string(to_string(storage)) + (caches ? " caches of " : " weights of ") +
           layer.text();
  }
  bool has_narrow_caches() const {
    AnyState state = layer.make_state(1, 1);
    const auto members = state.members();
    return std::ranges::any_of(members.list(), [](const seqmix::StateMember& member) {
      return member.storage != Storage::native;
    });
  }
};

/// How far outputs may be from those of the layer in its own type, in relative RMS. Where experts
/// are chosen, another one takes the place of one that was nearly even with it.
template <class S>
double accuracy(const NarrowCase<S>& narrow) {
  const auto of = [&](double bf16, double f16, double int8) {
    return narrow.storage == Storage::bf16 ? bf16 : narrow.storage == Storage::f16 ? f16 : int8;
  };
  if (narrow.caches) return of(4e-3, 5e-4, 1e-2);
  const std::string& name = narrow.layer.name();
  if (name == "mixture_of_experts" || name == "jamba_block") return of(0.1, 0.05, 0.25);
  return of(1e-2, 1e-3, 3e-2);
}

/// Calls `body(case)` for each storage of the weights of every layer, one config each, and of the
/// caches of every config that has some.
template <class S>
void for_each_narrow_layer(auto&& body) {
  const char* const only = std::getenv("SEQMIX_LAYER");
  for (const reference::Twin& twin : reference::twins()) {
    if (only != nullptr && twin.layer != only) continue;
    for (const std::string& config : twin.configs) {
      for (const Storage storage : {Storage::bf16, Storage::f16, Storage::int8}) {
        for (const bool caches : {false, true}) {
          if (!caches && config != twin.configs.front()) continue;
          const NarrowCase<S> narrow(twin, config, storage, caches);
          if (caches && !(narrow.layer.continues() && narrow.has_narrow_caches())) continue;
          INFO(narrow.text());
          body(narrow);
        }
      }
    }
  }
}

/// What two ways to the same outputs may differ by: each may err by the law's bound.
template <class S>
double law(const LayerCase<S>& layer, const Tensor<S, 3>& x) {
  const auto literal = layer.literal(x), truth = layer.truth(x);
  return 2 * layer.bound(relative_error<S, double>(literal.y.numbers, truth.y.numbers));
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("narrow storage costs so much accuracy and no more", "",
                        support::TestScalars) {
  for_each_narrow_layer<TestType>([](const NarrowCase<TestType>& narrow) {
    const auto x = narrow.layer.random_input(2, 90, 7);
    Context context = poisoned();
    const auto y = forward<TestType>(narrow.layer, x, context);
    const auto expected = forward<TestType>(narrow.native, x, context);
    const double error = relative_error(y.view(), expected.view());
    CHECK(error <= accuracy(narrow));
    CHECK((error > 0 || !narrow.caches));
  });
}

TEMPLATE_LIST_TEST_CASE("narrow storage obeys the law", "", support::TestScalars) {
  for_each_narrow_layer<TestType>([](const NarrowCase<TestType>& narrow) {
    if (!narrow.layer.continues()) return;
    const Index T = 150;
    const auto x = narrow.layer.random_input(1, T, 11);
    const double bound = law(narrow.layer, x);
    Context context = poisoned();
    const auto expected = forward<TestType>(narrow.layer, x, context);
    const auto check = [&](const Tensor<TestType, 3>& y) {
      CHECK(relative_error(y.view(), expected.view()) <= bound);
    };
    check(run<TestType>(narrow.layer, x, context, Verb::step));
    std::mt19937 random(3);
    auto state = narrow.layer.make_state(1, T + 5);
    auto y = unwritten<TestType>(x.shape());
    advance_randomly<TestType>(narrow.layer, x, state, y, context, random);
    check(y);
  });
}

TEMPLATE_LIST_TEST_CASE("narrow storage: same bits for any batch position and thread count", "",
                        support::TestScalars) {
  for_each_narrow_layer<TestType>([](const NarrowCase<TestType>& narrow) {
    const Index B = 3;
    const auto x = narrow.layer.random_input(B, 70, 13);
    Context context = poisoned();
    ThreadExecutor executor(3);
    Context threaded(executor);
    for (const Verb verb : verbs(narrow.layer)) {
      const auto all = run<TestType>(narrow.layer, x, context, verb);
      const auto last = x.view().template slice<0>(B - 1, 1);
      CHECK(same_bits(run<TestType>(narrow.layer, last, context, verb).view(),
                      all.view().template slice<0>(B - 1, 1)));
      CHECK(same_bits(run<TestType>(narrow.layer, x, threaded, verb).view(), all.view()));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a step with narrow storage allocates nothing", "", support::TestScalars) {
  for_each_narrow_layer<TestType>([](const NarrowCase<TestType>& narrow) {
    if (!narrow.layer.continues()) return;
    Context context;
    narrow.layer.mixer().reserve(context, 2);
    const auto x = narrow.layer.random_input(2, 2, 23);
    auto state = narrow.layer.make_state(2, 2);
    auto y = unwritten<TestType>(x.shape());
    for (Index t = 0; t < 2; ++t) {
      const SideValues<TestType> sides(narrow.layer.mixer(), x.view().template slice<1>(t, 1));
      const auto before = allocations();
      narrow.layer.mixer().step(x.view().template at<1>(t), state, y.view().template at<1>(t),
                                context, sides.views());
      CHECK(allocations() == before);
    }
  });
}

TEMPLATE_LIST_TEST_CASE("narrow caches are forked, reset, reserved, saved and restored", "",
                        support::TestScalars) {
  for_each_narrow_layer<TestType>([](const NarrowCase<TestType>& narrow) {
    if (!narrow.caches) return;
    const auto& layer = narrow.layer;
    const Index T = 40, later = 30;
    Context context = poisoned();
    const auto x = layer.random_input(2, T, 37), next = layer.random_input(2, later, 41);
    auto y = unwritten<TestType>(x.shape());
    auto state = layer.make_state(2, T), native = narrow.native.make_state(2, T);
    layer.prefill(x, state, y, context);
    narrow.native.prefill(x, native, y, context);
    CHECK(state.members().used_bytes() < native.members().used_bytes());
    const auto go_on = [&](AnyState& from, View<const TestType, 3> with) {
      auto out = unwritten<TestType>(with.shape());
      advance<TestType>(layer, with, from, out, context, true);
      return out;
    };
    AnyState reserved = state;
    layer.mixer().reserve(reserved, T + later);
    AnyState again = reserved, other = reserved;
    const auto expected = go_on(reserved, next);
    CHECK(same_bits(go_on(again, next).view(), expected.view()));

    AnyState fork = layer.make_state(1, T + later + 9);
    fork.members().copy_row(state.members(), 1, 0);
    CHECK(same_bits(go_on(fork, next.view().template slice<0>(1, 1)).view(),
                    expected.view().template slice<0>(1, 1)));

    const auto path =
        std::filesystem::temp_directory_path() /
        ("seqmix-narrow-" + layer.name() + "-" + std::to_string(std::random_device{}()) + ".state");
    seqmix::save_state(path, state.members());
    AnyState loaded = layer.make_state(2, T + later);
    seqmix::load_state(path, loaded.members());
    CHECK(same_bits(go_on(loaded, next).view(), expected.view()));
    CHECK_THROWS_AS(seqmix::load_state(path, native.members()), seqmix::CheckpointError);
    std::filesystem::remove(path);

    if (!layer.reads_source()) {
      layer.mixer().reset(other, 0);
      const auto after = go_on(other, next);
      const auto first = next.view().template slice<0>(0, 1);
      CHECK(same_bits(after.view().template slice<0>(0, 1),
                      run<TestType>(layer, first, context, Verb::step).view()));
      CHECK(same_bits(after.view()[1], expected.view()[1]));
    }
    // A state of the layer in its own type is another one.
    CHECK_THROWS_AS(layer.prefill(next, native, y, context), seqmix::ShapeError);
    CHECK_THROWS_AS(native.members().copy_row(state.members(), 0, 0), seqmix::ShapeError);
  });
}
