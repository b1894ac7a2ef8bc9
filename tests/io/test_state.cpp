#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <concepts>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "seqmix/io/state.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using support::random_tensor;
using test::error_of;
using test::TemporaryFolder;

/// One member of each kind.
template <class S>
struct ExampleState {
  Position position;         // [B]
  Tensor<S, 3> memory;       // [B, 2, 3]
  Appended<S, 4, 2> keys;    // [B, 2, capacity, 3]
  Appended<S, 3, 1> scores;  // [B, capacity, 1]

  static void visit(auto& self, auto&& tensor) {
    tensor("position", self.position), tensor("memory", self.memory);
    tensor("keys", self.keys), tensor("scores", self.scores);
  }
};

/// Random numbers everywhere, in what is not valid too; row `b` has seen `tokens[b]` tokens.
template <class S>
ExampleState<S> example(const std::vector<Index>& tokens, Index capacity, unsigned seed = 1) {
  const auto batch = static_cast<Index>(tokens.size());
  ExampleState<S> state{.position = {batch},
                        .memory = random_tensor<S, 3>({batch, 2, 3}, seed),
                        .keys = {},
                        .scores = {}};
  state.keys = {{batch, 2, capacity, 3}};
  state.scores = {{batch, capacity, 1}};
  copy(random_tensor<S, 4>({batch, 2, capacity, 3}, seed + 1).view(), state.keys.view().native());
  copy(random_tensor<S, 3>({batch, capacity, 1}, seed + 2).view(), state.scores.view().native());
  for (Index row = 0; row < batch; ++row) {
    state.position[row] = tokens[static_cast<std::size_t>(row)];
  }
  return state;
}

/// Every byte of a state, valid or not.
template <class State>
std::vector<std::byte> bytes_of(State& state) {
  std::vector<std::byte> bytes;
  for (const StateMember& member : ConstStateMembers(state).list()) {
    bytes.insert(bytes.end(), member.data, member.data + member.size() * member.number_size);
  }
  return bytes;
}

/// A file as it can be changed before it is written again.
struct EditedFile {
  std::map<std::string, std::string> metadata;
  std::map<std::string, StoredTensor> tensors;

  explicit EditedFile(const std::filesystem::path& path) {
    const Safetensors file = Safetensors::open(path);
    metadata = file.metadata();
    for (const std::string& name : file.names()) tensors[name] = file.entry(name);
  }
  void write(const std::filesystem::path& path) const {
    std::vector<StoredTensor> list;
    for (const auto& [name, tensor] : tensors) list.push_back(tensor);
    save_safetensors(path, list, metadata);
  }
};

template <class T>
StoredTensor one_number(const std::string& name, T value) {
  Tensor<T, 1> number({1});
  number[0] = value;
  StoredTensor tensor = stored_tensor(name, number.view());
  tensor.shape = {};
  return tensor;
}

TEMPLATE_TEST_CASE("a state comes back, each row with its own length", "", float, double) {
  using S = TestType;
  const TemporaryFolder folder;
  const auto path = folder.path() / "rows.state";
  const std::vector<Index> tokens{0, 3, 5, 1};
  auto saved = example<S>(tokens, 5);
  save_state(path, StateMembers(saved));
  for (const Index capacity : {5, 6, 40}) {
    INFO("capacity " << capacity);
    auto loaded = example<S>({9, 9, 9, 9}, capacity, 50);
    const auto before = loaded;
    load_state(path, StateMembers(loaded));
    CHECK(support::same_bits(loaded.memory.view(), saved.memory.view()));
    for (Index row = 0; row < 4; ++row) {
      const Index count = tokens[static_cast<std::size_t>(row)];
      CHECK(loaded.position[row] == count);
      const auto valid = [&](auto& state) {
        return state.keys.view().native()[row].template slice<1>(0, count);
      };
      const auto rest = [&](auto& state) {
        return state.keys.view().native()[row].template slice<1>(count, capacity - count);
      };
      CHECK(support::same_bits(valid(loaded), valid(saved)));
      CHECK(support::same_bits(rest(loaded), rest(before)));
      CHECK(support::same_bits(loaded.scores.view().native()[row].template slice<0>(0, count),
                               saved.scores.view().native()[row].template slice<0>(0, count)));
      CHECK(support::same_bits(
          loaded.scores.view().native()[row].template slice<0>(count, capacity - count),
          before.scores.view().native()[row].template slice<0>(count, capacity - count)));
    }
  }
}

TEMPLATE_TEST_CASE("a state file holds the valid entries of each row and no more", "", float,
                   double) {
  using S = TestType;
  const TemporaryFolder folder;
  const auto path = folder.path() / "rows.state";
  auto state = example<S>({0, 3}, 7);
  save_state(path, StateMembers(state));
  const Safetensors file = Safetensors::open(path);
  CHECK(file.metadata() ==
        std::map<std::string, std::string>{{"format", "seqmix state 1"}, {"rows", "2"}});
  const std::map<std::string, std::vector<Index>> expected{
      {"position.0", {}},    {"position.1", {}},    {"memory.0", {2, 3}}, {"memory.1", {2, 3}},
      {"keys.0", {2, 0, 3}}, {"keys.1", {2, 3, 3}}, {"scores.0", {0, 1}}, {"scores.1", {3, 1}},
  };
  CHECK(file.names().size() == expected.size());
  for (const auto& [name, shape] : expected) {
    INFO(name);
    CHECK(file.entry(name).shape == shape);
    const bool position = name.starts_with("position");
    CHECK(file.entry(name).dtype == (position                 ? DType::i64
                                     : std::same_as<S, float> ? DType::f32
                                                              : DType::f64));
  }
  CHECK(file.integers("position.1")[0] == 3);
  const auto keys = file.parameter<S, 3>("keys.1", {2, 3, 3});
  CHECK(support::same_bits(keys.view(),
                           std::as_const(state).keys.view().native()[1].template slice<1>(0, 3)));
}

TEST_CASE("a state file that does not fit is named, and the state stays as it was") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "valid.state", edited_path = folder.path() / "edited.state";
  auto saved = example<float>({2, 4}, 4);
  save_state(path, StateMembers(saved));
  auto state = example<float>({1, 3}, 4, 60);
  const auto before = bytes_of(state);
  const auto error = [&](auto&& edit) {
    EditedFile file(path);
    edit(file);
    file.write(edited_path);
    const std::string text =
        error_of<CheckpointError>([&] { load_state(edited_path, StateMembers(state)); });
    CHECK(bytes_of(state) == before);
    CHECK_THAT(text, ContainsSubstring("edited.state: "));
    return text;
  };
  const auto numbers = [](const std::string& name, Shape<3> shape) {
    return stored_tensor(name, random_tensor<float, 3>(shape, 9).view());
  };

  CHECK_THAT(error([](EditedFile& file) { file.metadata["format"] = "seqmix state 2"; }),
             ContainsSubstring("metadata format is seqmix state 2, expected seqmix state 1"));
  CHECK_THAT(error([](EditedFile& file) { file.metadata.erase("format"); }),
             ContainsSubstring("metadata format is nothing, expected seqmix state 1"));
  CHECK_THAT(error([](EditedFile& file) { file.metadata["rows"] = "3"; }),
             ContainsSubstring("metadata rows is 3, expected 2"));
  CHECK_THAT(error([](EditedFile& file) { file.metadata.clear(); }),
             ContainsSubstring("metadata format is nothing"));

  CHECK_THAT(error([](EditedFile& file) { file.tensors.erase("keys.1"); }),
             ContainsSubstring("tensor \"keys.1\" is missing"));
  CHECK_THAT(error([](EditedFile& file) { file.tensors.erase("position.0"); }),
             ContainsSubstring("tensor \"position.0\" is missing"));
  CHECK_THAT(
      error([](EditedFile& file) { file.tensors["values.0"] = one_number("values.0", 1.0F); }),
      ContainsSubstring("unexpected tensor \"values.0\""));
  CHECK_THAT(
      error([&](EditedFile& file) {
        file.tensors["keys.1"] = numbers("keys.1", {2, 4, 2});
      }),
      ContainsSubstring("tensor \"keys.1\": wrong shape; got [2, 4, 2], expected [2, 4, 3]"));
  CHECK_THAT(
      error([&](EditedFile& file) {
        file.tensors["keys.1"] = numbers("keys.1", {2, 3, 3});
      }),
      ContainsSubstring("tensor \"keys.1\": wrong shape; got [2, 3, 3], expected [2, 4, 3]"));
  CHECK_THAT(
      error([](EditedFile& file) {
        file.tensors["memory.0"] = stored_tensor("memory.0", Tensor<double, 2>({2, 3}).view());
      }),
      ContainsSubstring("tensor \"memory.0\": wrong dtype; got F64, expected F32"));

  CHECK_THAT(error([](EditedFile& file) {
               file.tensors["position.1"] = one_number("position.1", std::int64_t{-1});
             }),
             ContainsSubstring("tensor \"position.1\": not a count of tokens; got -1"));
  CHECK_THAT(
      error([](EditedFile& file) { file.tensors["position.1"] = one_number("position.1", 4.0F); }),
      ContainsSubstring("tensor \"position.1\": not a position"));
  CHECK_THAT(error([](EditedFile& file) { file.tensors["position.1"].shape = {1}; }),
             ContainsSubstring("tensor \"position.1\": not a position; got [1]"));
  constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t tokens : {max_tokens + 1, std::int64_t{1} << 62, largest - 1, largest}) {
    CHECK_THAT(error([&](EditedFile& file) {
                 file.tensors["position.1"] = one_number("position.1", tokens);
               }),
               ContainsSubstring("tensor \"position.1\": not a count of tokens; got " +
                                 std::to_string(tokens) + ", expected 0 to 9007199254740992"));
  }
  for (const std::int64_t tokens : {std::int64_t{3}, std::int64_t{5}, max_tokens}) {
    CHECK_THAT(error([&](EditedFile& file) {
                 file.tensors["position.1"] = one_number("position.1", tokens);
               }),
               ContainsSubstring("tensor \"keys.1\": wrong shape") &&
                   ContainsSubstring("expected [2, " + std::to_string(tokens) + ", 3]"));
  }

  // What was not changed loads.
  EditedFile(path).write(edited_path);
  load_state(edited_path, StateMembers(state));
  CHECK(bytes_of(state) != before);
  CHECK(state.position[1] == 4);
}

TEST_CASE("a cache that is too small is named, and the state stays as it was") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "long.state";
  auto saved = example<double>({2, 4}, 4);
  save_state(path, StateMembers(saved));
  auto small = example<double>({0, 0}, 3, 70);
  const auto before = bytes_of(small);
  CHECK_THAT(error_of<CapacityError>([&] { load_state(path, StateMembers(small)); }),
             ContainsSubstring("keys.1 holds 4 tokens") && ContainsSubstring("capacity of 3"));
  CHECK(bytes_of(small) == before);
}

TEST_CASE("a state of other numbers, rows or members is refused") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "a.state";
  auto saved = example<float>({2, 4}, 4);
  save_state(path, StateMembers(saved));
  const auto error = [&](auto state) {
    const auto before = bytes_of(state);
    const std::string text =
        error_of<CheckpointError>([&] { load_state(path, StateMembers(state)); });
    CHECK(bytes_of(state) == before);
    return text;
  };
  CHECK_THAT(error(example<double>({0, 0}, 4)), ContainsSubstring("got F32, expected F64"));
  CHECK_THAT(error(example<float>({0}, 4)), ContainsSubstring("rows is 2, expected 1"));
  CHECK_THAT(error(example<float>({0, 0, 0}, 4)), ContainsSubstring("rows is 2, expected 3"));
  CHECK_THAT(error(NoState{}), ContainsSubstring("rows is 2, expected 0"));
  CHECK_THAT(error_of<CheckpointError>(
                 [&] { load_state(folder.path() / "absent.state", StateMembers(saved)); }),
             ContainsSubstring("absent.state"));
}

TEMPLATE_TEST_CASE("narrow caches are saved as they are stored, and refused by another storage", "",
                   float, double) {
  using S = TestType;
  const TemporaryFolder folder;
  const auto path = folder.path() / "narrow.state";
  constexpr Storage storages[] = {Storage::native, Storage::bf16, Storage::f16, Storage::int8};
  const auto narrow = [](Storage storage, Index capacity, unsigned seed) {
    auto state = example<S>({4, 2}, capacity, seed);
    state.keys = {{2, 2, capacity, 3}, {}, storage};
    store_entries<S>(random_tensor<S, 4>({2, 2, capacity, 3}, seed), state.keys.view());
    return state;
  };
  for (const Storage storage : storages) {
    INFO(to_string(storage));
    auto saved = narrow(storage, 4, 7), loaded = narrow(storage, 9, 8);
    const auto valid = [](auto& state, Index row) {
      const Index count = state.position[row];
      Tensor<S, 3> numbers({2, count, 3});
      load_entries<S>(state.keys.view()[row].template slice<1>(0, count), numbers.view());
      return numbers;
    };
    save_state(path, StateMembers(saved));
    const Safetensors file = Safetensors::open(path);
    const bool scaled = storage == Storage::int8;
    const DType native = std::same_as<S, float> ? DType::f32 : DType::f64;
    CHECK(file.entry("keys.1").shape == std::vector<Index>{2, 2, 3});
    CHECK(file.entry("keys.1").dtype == (storage == Storage::bf16  ? DType::bf16
                                         : storage == Storage::f16 ? DType::f16
                                         : scaled                  ? DType::i8
                                                                   : native));
    CHECK(file.contains("keys.scales.1") == scaled);
    if (scaled) {
      CHECK(file.entry("keys.scales.1").shape == std::vector<Index>{2, 2});
      CHECK(file.entry("keys.scales.1").dtype == DType::bf16);
    }
    load_state(path, StateMembers(loaded));
    for (const Index row : {0, 1}) {
      CHECK(support::same_bits(valid(loaded, row).view(), valid(saved, row).view()));
    }
    auto fork = narrow(storage, 5, 9);
    StateMembers(fork).copy_row(StateMembers(saved), 1, 0);
    CHECK(support::same_bits(valid(fork, 0).view(), valid(saved, 1).view()));

    // 6 entries of 2 x 3 numbers, and what the other members hold.
    const Index number = number_size<S>(storage),
                others = StateMembers(saved).used_bytes() - 36 * number;
    CHECK(others == 2 * 8 + (2 * 6 + 6) * static_cast<Index>(sizeof(S)) + (scaled ? 6 * 2 * 2 : 0));
    for (const Storage other : storages) {
      if (other == storage) continue;
      auto target = narrow(other, 4, 10);
      const auto before = bytes_of(target);
      CHECK_THROWS_AS(load_state(path, StateMembers(target)), CheckpointError);
      CHECK_THAT(
          error_of<ShapeError>([&] { StateMembers(target).copy_row(StateMembers(saved), 0, 0); }),
          ContainsSubstring("storage"));
      CHECK(bytes_of(target) == before);
    }
  }
}

/// A ring of 5 rows whose layer looks back on 3.
struct RingState {
  Position position;       // [B]
  Ring<float, 3, 1> keys;  // [B, 5, 2]

  static void visit(auto& self, auto&& tensor) {
    tensor("position", self.position), tensor("keys", self.keys);
  }
};
RingState ring_state() { return {{2}, {{2, 5, 2}, 3}}; }

/// Counts that are no position.
struct CountState {
  Tensor<Index, 2> counts{{2, 2}};  // [B, 2]

  static void visit(auto& self, auto&& tensor) { tensor("counts", self.counts); }
};

TEST_CASE("what a ring has overwritten is part of a state file") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "ring.state", edited_path = folder.path() / "edited.state";
  RingState saved = ring_state();
  StateMembers(saved).set_tokens(0, 20), StateMembers(saved).set_tokens(1, 4);
  StateMembers(saved).rewind(0, 18);
  save_state(path, ConstStateMembers(std::as_const(saved)));

  RingState loaded = ring_state();
  load_state(path, StateMembers(loaded));
  CHECK(loaded.keys.reached[0] == 20);
  CHECK_THROWS_AS(StateMembers(loaded).rewind(0, 17), CapacityError);
  StateMembers(loaded).rewind(1, 0);

  // A file from before rings had marks: nothing was taken back.
  EditedFile older(path);
  for (const char* const name : {"keys.reached.0", "keys.reached.1"}) older.tensors.erase(name);
  older.write(edited_path);
  load_state(edited_path, StateMembers(loaded));
  CHECK(loaded.keys.reached[0] == 0);
  StateMembers(loaded).rewind(0, 16);
  CHECK_THROWS_AS(StateMembers(loaded).rewind(0, 15), CapacityError);

  const auto before = bytes_of(loaded);
  const auto error = [&](const std::string& name, std::int64_t number) {
    EditedFile file(path);
    file.tensors[name] = one_number(name, number);
    file.write(edited_path);
    const auto text =
        error_of<CheckpointError>([&] { load_state(edited_path, StateMembers(loaded)); });
    CHECK(bytes_of(loaded) == before);
    return text;
  };
  CHECK_THAT(error("keys.reached.0", 21), ContainsSubstring("keys.reached.0\": a ring that has"));
  CHECK_THAT(error("keys.reached.0", -1), ContainsSubstring("not a count of tokens; got -1"));
  CHECK_THAT(error("keys.reached.0", std::int64_t{1} << 62), ContainsSubstring("not a count"));
  CHECK_THAT(error("position.0", std::numeric_limits<std::int64_t>::max() - 1),
             ContainsSubstring("position.0\": not a count of tokens"));
}

TEST_CASE("a ring of other rows does not take what was written over its past") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "ring.state";
  const auto save = [&](Index tokens) {
    RingState small = ring_state();
    StateMembers(small).set_tokens(0, tokens);
    if (tokens > 4) StateMembers(small).rewind(0, 4);
    save_state(path, ConstStateMembers(std::as_const(small)));
  };
  RingState large{{2}, {{2, 9, 2}, 3}};
  save(6);  // position 5 lies where position 0 did
  const auto before = bytes_of(large);
  CHECK_THROWS_AS(load_state(path, StateMembers(large)), CheckpointError);
  CHECK(bytes_of(large) == before);
  RingState same = ring_state();
  load_state(path, StateMembers(same));
  for (const Index tokens : {5, 4}) {
    save(tokens);
    load_state(path, StateMembers(large));
    StateMembers(large).rewind(0, 0);
  }
}

TEST_CASE("a position that no file can hold is not saved or copied") {
  const TemporaryFolder folder;
  for (const Index position : {Index{-5}, max_tokens + 1}) {
    RingState state = ring_state(), other = ring_state();
    state.position[0] = position;
    const auto before = bytes_of(other);
    CHECK_THROWS_AS(save_state(folder.path() / "a.state", ConstStateMembers(std::as_const(state))),
                    ShapeError);
    CHECK_THROWS_AS(StateMembers(other).copy_row(ConstStateMembers(std::as_const(state)), 0, 0),
                    ShapeError);
    CHECK(bytes_of(other) == before);
  }
  // Rows that one member lacks are rows of none.
  RingState uneven = ring_state();
  uneven.position = Position(7);
  CHECK(ConstStateMembers(std::as_const(uneven)).batch() == 2);
  uneven.position = Position(1);
  CHECK(ConstStateMembers(std::as_const(uneven)).batch() == 1);
}

TEST_CASE("a state file with a long header is read where that is asked for") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "many.state";
  CountState many{Tensor<Index, 2>({200, 2})};
  save_state(path, ConstStateMembers(std::as_const(many)));
  CHECK_THROWS_AS(load_state(path, StateMembers(many), HeaderLimit{1000}), CheckpointError);
  load_state(path, StateMembers(many), HeaderLimit{100'000});
}

TEST_CASE("counts in a state file have bounds") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "counts.state";
  for (const std::int64_t count : {std::int64_t{-1}, std::int64_t{7}, max_tokens + 1}) {
    CountState saved, loaded;
    saved.counts(1, 0) = count;
    save_state(path, StateMembers(saved));
    const auto load = [&] { load_state(path, StateMembers(loaded)); };
    if (count == 7) {
      load();
      CHECK(loaded.counts(1, 0) == 7);
    } else {
      CHECK_THAT(
          error_of<CheckpointError>(load),
          ContainsSubstring("counts.1\": not a count of tokens; got " + std::to_string(count)));
      CHECK(loaded.counts(1, 0) == 0);
    }
  }
}

TEST_CASE("states without rows or members are legal") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "empty.state";
  NoState none;
  save_state(path, StateMembers(none));
  load_state(path, StateMembers(none));
  CHECK(Safetensors::open(path).names().empty());
  auto no_rows = example<float>({}, 4);
  save_state(path, StateMembers(no_rows));
  load_state(path, StateMembers(no_rows));
  CHECK(StateMembers(no_rows).batch() == 0);
}

TEST_CASE("a damaged state file is loaded whole or not at all") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "valid.state";
  auto saved = example<float>({2, 4}, 4);
  save_state(path, StateMembers(saved));
  std::ifstream stream(path, std::ios::binary);
  const std::string valid{std::istreambuf_iterator<char>(stream), {}};
  auto state = example<float>({1, 3}, 4, 80);
  const auto before = bytes_of(state);
  std::mt19937 random(5);
  int loaded = 0, refused = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string text = valid;
    for (auto edits = 1 + random() % 2; edits > 0; --edits) {
      const std::size_t at = random() % text.size();
      if (random() % 8 == 0) {
        text.resize(at + 1);
      } else {
        text[at] =
            random() % 2 == 0 ? static_cast<char>(random()) : "0123456789[],\"FI"[random() % 16];
      }
    }
    auto target = state;
    try {
      load_state(folder.write("damaged.state", text), StateMembers(target));
      ++loaded;
      REQUIRE(target.position[0] == 2);
      REQUIRE(target.position[1] == 4);
    } catch (const Error&) {
      ++refused;
      REQUIRE(bytes_of(target) == before);
    }
  }
  CHECK(loaded > 50);
  CHECK(refused > 500);
}

}  // namespace
}  // namespace seqmix
