// Weights and caches in narrow storage: every layer obeys its law there too, and errs by so much.

#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <random>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/io/state.hpp"
#include "support/allocations.hpp"
#include "support/compare.hpp"
#include "support/layer_case.hpp"
#include "support/random_weights.hpp"
#include "support/thread_executor.hpp"
#include "support/verbs.hpp"

namespace {

using namespace support;
using seqmix::Options;
using seqmix::Storage;

constexpr Storage narrow_storages[] = {Storage::bf16, Storage::f16, Storage::int8};

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
/// are chosen by what narrow layers before them say, another one takes the place of one that was
/// nearly even with it.
template <class S>
double accuracy(const NarrowCase<S>& narrow) {
  const auto of = [&](double bf16, double f16, double int8) {
    return narrow.storage == Storage::bf16 ? bf16 : narrow.storage == Storage::f16 ? f16 : int8;
  };
  if (narrow.caches) return of(4e-3, 6e-4, 1e-2);
  if (narrow.layer.name() == "jamba_block") return of(0.05, 0.02, 0.15);
  return of(8e-3, 1e-3, 2e-2);
}

/// Calls `body(case)` for each storage of the weights of every layer, one config each, and of the
/// caches of every config that has some.
template <class S>
void for_each_narrow_layer(auto&& body) {
  const char* const only = std::getenv("SEQMIX_LAYER");
  for (const reference::Twin& twin : reference::twins()) {
    if (only != nullptr && twin.layer != only) continue;
    for (const std::string& config : twin.configs) {
      for (const Storage storage : narrow_storages) {
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

const reference::Twin& twin_of(std::string_view layer) {
  return *std::ranges::find(reference::twins(), layer, &reference::Twin::layer);
}

/// A config of a twin and random weights of it, which can be changed.
template <class S>
struct Ingredients {
  std::string layer;
  seqmix::Json config;
  seqmix::MemoryTensors weights;

  Ingredients(const reference::Twin& twin, const std::string& text)
      : layer(twin.layer),
        config(registry<S>().complete_config(layer, seqmix::parse_json(text, layer))),
        weights(random_layer_weights(registry<S>(), layer, config)) {}

  AnyMixer<S> mix(Storage storage) const {
    return mix(storage, [](const auto&...) {});
  }
  /// The layer after `change(name, shape, numbers)` of every weight of floating point.
  AnyMixer<S> mix(Storage storage, auto&& change) const {
    std::vector<seqmix::StoredTensor> tensors;
    for (const std::string& name : weights.names()) {
      tensors.push_back(weights.entry(name));
      if (tensors.back().dtype != seqmix::DType::f32) continue;
      const std::vector<Index> shape = tensors.back().shape;
      tensors.back().shape = {static_cast<Index>(tensors.back().bytes.size() / sizeof(float))};
      auto numbers =
          tensors.back().template parameter<float, 1>({tensors.back().shape[0]}).to_tensor();
      change(name, shape, numbers);
      tensors.back() = seqmix::stored_tensor(name, numbers.view());
      tensors.back().shape = shape;
    }
    return registry<S>().make(layer, config, seqmix::MemoryTensors(std::move(tensors)), "",
                              Options(storage, Storage::native));
  }
};

/// Calls `body(ingredients)` for each config of a layer.
template <class S>
void for_each_config(std::string_view layer, auto&& body) {
  const reference::Twin& twin = twin_of(layer);
  for (const std::string& config : twin.configs) {
    INFO(layer << " " << config);
    body(Ingredients<S>(twin, config));
  }
}

/// N(0, 1) numbers, [B, T, D].
template <class S>
Tensor<S, 3> random_tokens(Shape<3> shape) {
  std::mt19937 random(17);
  std::normal_distribution<float> normal;
  Tensor<S, 3> x(shape);
  std::generate_n(x.data(), x.size(), [&] { return static_cast<S>(normal(random)); });
  return x;
}

/// What one token leaves of a state whose `member` is ones: the difference to what it makes of
/// zeros.
template <class S>
std::vector<S> kept_by_a_token(const AnyMixer<S>& mixer, const std::string& member) {
  auto x = random_tokens<S>({1, 2, mixer.d_model()});
  copy(x.view()[0][0], x.view()[0][1]);
  AnyState state = mixer.make_state(2);
  const auto members = state.members().list();
  const auto found = std::ranges::find(members, member, &seqmix::NamedStateMember::name);
  const Index row = found->size() / 2;
  const std::vector<S> ones(static_cast<std::size_t>(row), S(1));
  state.members().fill_row(*found, 0, 0, reinterpret_cast<const std::byte*>(ones.data()));
  Context context = poisoned();
  mixer.step(x.view()[0], state, Tensor<S, 2>({2, mixer.d_model()}), context);
  const S* const numbers = reinterpret_cast<const S*>(found->data);
  std::vector<S> kept(numbers, numbers + row);
  for (Index i = 0; i < row; ++i) kept[static_cast<std::size_t>(i)] -= numbers[row + i];
  return kept;
}

/// Weights that pick a branch or set how long a state lasts; of blocks the ends of their names.
const std::map<std::string, std::vector<std::string>> kept_weights{
    {"delta_net", {"b_proj.weight"}},
    {"gated_delta_net", {"in_proj_ba.weight"}},
    {"gated_linear_attention", {"gk_proj.0.weight", "gk_proj.1.weight"}},
    {"hgrn2", {"f_proj.weight"}},
    {"jamba_block", {"channel.gate.weight", "mixer.x_proj.weight", "mixer.dt_proj.weight"}},
    {"kimi_delta_attention", {"f_a_proj.weight", "f_b_proj.weight", "b_proj.weight"}},
    {"mamba", {"x_proj.weight", "dt_proj.weight"}},
    {"mixture_of_experts", {"gate.weight"}},
    {"mlstm", {"igate_preact.weight", "fgate_preact.weight"}},
    {"recurrent_gemma_block", {"rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight"}},
    {"rg_lru", {"rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight"}},
    {"rwkv6", {"att.time_decay_w1", "att.time_decay_w2"}},
    {"rwkv7", {"att.w1", "att.w2", "att.a1", "att.a2"}},
    {"switch_mixture_of_experts", {"router.classifier.weight"}}};

bool is_kept(const std::string& layer, const std::string& weight) {
  const auto found = kept_weights.find(layer);
  return found != kept_weights.end() &&
         std::ranges::any_of(found->second, [&](const std::string& end) {
           return weight == end || weight.ends_with("." + end);
         });
}

/// What two ways to the same outputs may differ by: each may err by the law's bound.
template <class S>
double law(const LayerCase<S>& layer, const Tensor<S, 3>& x) {
  const auto literal = layer.literal(x);
  const auto truth = layer.truth(x);
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

TEMPLATE_LIST_TEST_CASE("any storage chooses the experts that float chooses", "",
                        support::TestScalars) {
  using S = TestType;
  for (const auto* const layer : {"mixture_of_experts", "switch_mixture_of_experts"}) {
    for_each_config<S>(layer, [&](const Ingredients<S>& with) {
      // Experts of integers up to 127 are exact in every storage: all that can differ is the
      // choice.
      const auto exact_experts = [&](const std::string& name, const std::vector<Index>& shape,
                                     Tensor<float, 1>& numbers) {
        if (is_kept(with.layer, name) || shape.size() < 2) return;
        for (Index i = 0; i < numbers.size(); ++i) {
          numbers[i] = i % shape[1] == 0 ? 127 : std::nearbyint(10 * std::tanh(numbers[i]));
        }
      };
      const auto expected = with.mix(Storage::native, exact_experts);
      const auto x = random_tokens<S>({2, 300, expected.d_model()});
      Context context = poisoned();
      Tensor<S, 3> chosen(x.shape()), y(x.shape());
      expected.forward(x, chosen, context);
      for (const Storage storage : narrow_storages) {
        INFO(to_string(storage));
        with.mix(storage, exact_experts).forward(x, y, context);
        CHECK(same_bits(y.view(), chosen.view()));
      }
    });
  }
}

TEMPLATE_LIST_TEST_CASE("in any storage a state lasts as long as in float", "",
                        support::TestScalars) {
  using S = TestType;
  const double bound = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const auto& [layer, member] :
       {std::pair{"gated_linear_attention", "memory"}, std::pair{"hgrn2", "memory"},
        std::pair{"mamba2", "ssm"}, std::pair{"mlstm", "memory"}}) {
    for_each_config<S>(layer, [&, of = member](const Ingredients<S>& with) {
      const auto expected = kept_by_a_token<S>(with.mix(Storage::native), of);
      for (const Storage storage : narrow_storages) {
        INFO(to_string(storage));
        CHECK(relative_error<S, S>(kept_by_a_token<S>(with.mix(storage), of), expected) <= bound);
      }
    });
  }
}

TEMPLATE_LIST_TEST_CASE("a finite weight stays finite, or its name is in the error", "",
                        support::TestScalars) {
  using S = TestType;
  const auto refusal = [](const Ingredients<S>& with, const std::string& weight, Storage storage,
                          float number, bool last) -> std::string {
    try {
      with.mix(storage, [&](const std::string& name, const auto&, Tensor<float, 1>& numbers) {
        if (name == weight) numbers[last ? numbers.size() - 1 : 0] = number;
      });
    } catch (const seqmix::ConfigError& error) {
      return error.what();
    }
    return {};
  };
  const char* const only = std::getenv("SEQMIX_LAYER");
  for (const reference::Twin& twin : reference::twins()) {
    if (only != nullptr && twin.layer != only) continue;
    const Ingredients<S> with(twin, twin.configs.front());
    std::size_t refused = 0, kept = 0;
    for (const std::string& name : with.weights.names()) {
      if (with.weights.entry(name).shape.size() < 2) continue;
      INFO(twin.layer << " " << name);
      // A block names the part before the layer that it is, which names its weight.
      const std::regex of_part(": ([^:]+): [a-z0-9_]+: weight ");
      const auto flat = [&](const std::string& text) {
        return std::regex_replace(text, of_part, ": weight $1.");
      };
      const std::string f16 = flat(refusal(with, name, Storage::f16, -1e5F, false));
      const std::string bf16 = flat(refusal(with, name, Storage::bf16, 3.4e38F, false));
      CHECK(f16.empty() == bf16.empty());
      if (is_kept(twin.layer, name)) {
        ++kept;
        CHECK(f16.empty());
      }
      if (f16.empty()) continue;
      ++refused;
      const std::string who = support::definition_name(twin.layer) + ": weight " + name;
      CHECK(f16 == who +
                       ": a number of row 0 is -100000, expected at most 65504 in size: f16 holds "
                       "no more");
      CHECK(bf16.starts_with(who + ": "));
      CHECK(refusal(with, name, Storage::int8, 3.4e38F, false).empty());
      CHECK(refusal(with, name, Storage::f16, 65504, false).empty());
      const bool last_is_kept = twin.layer == "mamba2" && name == "in_proj.weight";
      CHECK(refusal(with, name, Storage::f16, -1e5F, true).empty() == last_is_kept);
    }
    CHECK((refused > 0 || twin.layer == "lru"));
    const auto expected = kept_weights.find(twin.layer);
    CHECK((expected == kept_weights.end() || kept >= expected->second.size()));
  }
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
    narrow.layer.mixer().prepare(context, 2, 2);
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
    layer.mixer().grow(reserved, T + later);
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

    layer.reset(other, 0);
    const auto after = go_on(other, next);
    const auto first = next.view().template slice<0>(0, 1);
    CHECK(same_bits(after.view().template slice<0>(0, 1),
                    run<TestType>(layer, first, context, Verb::step).view()));
    CHECK(same_bits(after.view()[1], expected.view()[1]));
    // A state of the layer in its own type is another one.
    CHECK_THROWS_AS(layer.prefill(next, native, y, context), seqmix::ShapeError);
    CHECK_THROWS_AS(native.members().copy_row(state.members(), 0, 0), seqmix::ShapeError);
  });
}
