// What files do to the program that reads and writes them.

#include <sys/stat.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "seqmix/io/safetensors.hpp"
#include "support/allocations.hpp"
#include "support/error_of.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;
using test::Bytes;
using test::error_of;
using test::safetensors_file;
using test::SafetensorsBuilder;
using test::TemporaryFolder;

/// The text of the file at `path`, or of what a link leads to.
std::string text_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

TEST_CASE("a file that becomes shorter is an error, and what was read before stays") {
  const TemporaryFolder folder;
  const auto path = folder.write("a.safetensors",
                                 SafetensorsBuilder()
                                     .add("early", "F32", "[4]", std::vector<float>{1, 2, 3, 4})
                                     .add("late", "F32", "[4096]", std::vector<float>(4096, 5.0F))
                                     .add("whole", "I64", "[1]", std::vector<std::int64_t>{6})
                                     .build());
  const Safetensors file = Safetensors::open(path);
  const Checkpoint checkpoint = Checkpoint::open(path);
  const auto kept = file.parameter<float, 1>("late", {4096});
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 8000);
  CHECK(file.parameter<float, 1>("early", {4})[3] == 4);
  for (const StoredTensors* tensors :
       {static_cast<const StoredTensors*>(&file), static_cast<const StoredTensors*>(&checkpoint)}) {
    CHECK_THAT(error_of<CheckpointError>([&] { tensors->parameter<float, 1>("late", {4096}); }),
               StartsWith(path.string() + ": has become shorter"));
    CHECK_THAT(error_of<CheckpointError>([&] { tensors->parameter<double, 1>("late", {4096}); }),
               ContainsSubstring("has become shorter"));
    CHECK_THAT(error_of<CheckpointError>([&] { tensors->integers("whole"); }),
               ContainsSubstring("has become shorter"));
    // What does not fit is not read at all.
    CHECK_THAT(error_of<CheckpointError>([&] { tensors->parameter<float, 1>("late", {5}); }),
               ContainsSubstring("wrong shape"));
    CHECK_THAT(error_of<CheckpointError>([&] { tensors->parameter<float, 1>("whole", {1}); }),
               ContainsSubstring("wrong dtype"));
  }
  CHECK_THROWS_AS(save_safetensors(folder.path() / "b.safetensors", {file.entry("late")}),
                  CheckpointError);
  CHECK_FALSE(std::filesystem::exists(folder.path() / "b.safetensors"));
  CHECK(kept[4095] == 5);
}

TEST_CASE("an open file takes the memory of what is read") {
  const TemporaryFolder folder;
  const std::vector<float> many(1'000'000, 1.0F);
  const auto path =
      folder.write("a.safetensors", SafetensorsBuilder()
                                        .add("large", "F32", "[1000000]", many)
                                        .add("small", "F32", "[1]", std::vector<float>{1})
                                        .build());
  const auto memory_of = [](auto&& call) {
    support::forget_peak();
    const auto before = support::allocated_bytes();
    call();
    return support::peak_bytes() - before;
  };
  CHECK(memory_of([&] { Safetensors::open(path).parameter<float, 1>("small", {1}); }) < 20'000);
  const auto large = memory_of(
      [&] { CHECK(Safetensors::open(path).parameter<float, 1>("large", {1'000'000})[7] == 1); });
  CHECK(large < 5'000'000);
}

/// The memory that opening a file with the header takes at most, as a multiple of the header;
/// `error` is what it is refused for.
double memory_of_header(const std::string& header, std::string& error) {
  const TemporaryFolder folder;
  const auto path = folder.write("a.safetensors", safetensors_file(header, 0));
  error.reserve(1000);
  support::forget_peak();
  const auto before = support::allocated_bytes();
  error = error_of<CheckpointError>([&] { Safetensors::open(path); });
  return static_cast<double>(support::peak_bytes() - before) / static_cast<double>(header.size());
}

/// `item(i)` for ascending i, with commas between them, as many as `size` bytes hold.
std::string list_of(std::size_t size, auto&& item) {
  std::string list;
  for (Index i = 0; list.size() + 1000 < size; ++i) list.append(i == 0 ? "" : ",").append(item(i));
  return list;
}
/// A member of a header: an empty tensor.
std::string empty_tensor(const std::string& name, const std::string& shape) {
  return "\"" + name + R"(":{"dtype":"U8","shape":)" + shape + R"(,"data_offsets":[0,0]})";
}

TEST_CASE("a header of the longest kind takes four times its length at most") {
  std::string error;
  const auto item = [](Index i) { return empty_tensor(std::to_string(i), "[0]"); };
  CHECK(memory_of_header("{" + list_of(16'000'000, item) + "}", error) < 4);
  CHECK(error.empty());
}

TEST_CASE("a header takes few times its length, whatever it says") {
  constexpr std::size_t size = 2'000'000;
  constexpr double most = 4 + 1.1 * (1 << 20) / size;  // the fixed part that any header may take
  std::string error;
  for (const std::string& prefix : {std::string(), std::string(15, 'n'), std::string(200, 'n')}) {
    for (const char* shape : {"[0]", "[0,0,0,0,0]", "[0,0,0,0,0,0,0,0]"}) {
      INFO(prefix << " " << shape);
      const auto item = [&](Index i) { return empty_tensor(prefix + std::to_string(i), shape); };
      CHECK(memory_of_header("{" + list_of(size, item) + "}", error) < most);
    }
  }

  // What would need more is refused.
  const auto text = [](Index i) { return "\"" + std::to_string(i) + R"(":"")"; };
  CHECK(memory_of_header(R"({"__metadata__":{)" + list_of(size, text) + "}}", error) < most);
  CHECK_THAT(error, ContainsSubstring("takes too much memory once it is read"));
  const std::string shape = "[" + list_of(size, [](Index) { return "0"; }) + "]";
  CHECK(memory_of_header("{" + empty_tensor("a", shape) + "}", error) < most);
  CHECK_THAT(error, ContainsSubstring("takes too much memory once it is read"));
  for (const std::string& token : {"\"" + std::string(size, 'a') + "\"", std::string(size, '7')}) {
    CHECK(memory_of_header("{" + token + ":1}", error) < most);
    CHECK_THAT(error, ContainsSubstring("a word or string of JSON text is too long; got 200000"));
  }
  CHECK(memory_of_header("{" + std::string(size, ' ') + "}", error) < most);
  CHECK(error.empty());
}

TEST_CASE("a longer header is read where that is asked for") {
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})" + std::string(16'000'000, ' ');
  const TemporaryFolder folder;
  const auto path = folder.write("model.safetensors", safetensors_file(header, 0));
  CHECK_THAT(error_of<CheckpointError>([&] { Safetensors::open(path); }),
             ContainsSubstring("header too long; got 16000053 bytes, expected at most 16000000"));
  const HeaderLimit limit{16'000'053};
  CHECK(Safetensors::open(path, FileAccess::read, limit).contains("a"));
  CHECK(Safetensors::open(path, FileAccess::mapped, limit).contains("a"));
  CHECK(Safetensors::parse(safetensors_file(header, 0), "a", limit).contains("a"));
  CHECK(Checkpoint::open(folder.path(), FileAccess::read, limit).contains("a"));
}

TEST_CASE("a JSON text takes at most four times its length and a fixed part") {
  const auto memory = [](const std::string& text, std::string& error) {
    error.reserve(1000);
    support::forget_peak();
    const auto before = support::allocated_bytes();
    error = error_of<CheckpointError>([&] { parse_json(text, "text"); });
    return support::peak_bytes() - before;
  };
  const auto most = [](std::size_t size) {
    return static_cast<std::int64_t>(4 * size + (1 << 24));
  };
  std::string error;
  const std::string lists = "[" + list_of(4'000'000, [](Index) { return "[]"; }) + "]";
  CHECK(memory(lists, error) < most(lists.size()));
  CHECK_THAT(error, StartsWith("text: takes too much memory once it is read"));
  // The index of the largest models has 8 MB.
  const std::string index =
      "{" +
      list_of(8'000'000,
              [](Index i) {
                return "\"model.layers." + std::to_string(i) +
                       R"(.mlp.experts.0.down_proj.weight":"model-00001-of-000163.safetensors")";
              }) +
      "}";
  CHECK(memory(index, error) < most(index.size()));
  CHECK(error.empty());
}

struct LimitConfig {
  Index d_model = 0;
  double limit = 1;
  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model), field("limit", self.limit, is_number);
  }
};

TEST_CASE("where memory ends is std::bad_alloc, and nothing ends the program") {
  const TemporaryFolder folder;
  const Bytes bytes = SafetensorsBuilder()
                          .add("a", "F32", "[2]", std::vector<float>{1, 2})
                          .add_text(R"("__metadata__":{"some key of a length":"and its value"})")
                          .add("a tensor with a longer name", "F16", "[0,3]", Bytes{})
                          .build();
  const auto path = folder.write("one.safetensors", bytes);
  folder.write("model.safetensors.index.json", std::string_view(R"({"metadata": {"a": [[1], {}]},
      "weight_map": {"a": "one.safetensors", "a tensor with a longer name": "one.safetensors"}})"));
  for (const FileAccess access : {FileAccess::read, FileAccess::mapped}) {
    support::exhaust([&] { Safetensors::open(path, access).parameter<double, 1>("a", {2}); });
    support::exhaust(
        [&] { Checkpoint::open(folder.path(), access).parameter<float, 1>("a", {2}); });
  }
  support::exhaust([] {
    LimitConfig config;
    const detail::JsonDocument json = parse_json(
        R"({"d_model": 4, "limit": {"__float__": "Infinity"}})", "a config with a long name");
    read_config(json, config, "limit");
  });
}

TEST_CASE("what is no safetensors file is called what it is") {
  const auto error = [](std::string_view start) {
    const auto bytes = std::as_bytes(std::span(start));
    return error_of<CheckpointError>([&] {
      Safetensors::parse({bytes.begin(), bytes.end()}, "model.bin");
    });
  };
  using namespace std::string_view_literals;
  const std::string rule = "model.bin: no safetensors file; it starts with ";
  CHECK(error("# A model\n\nThis model is\n") == rule + "\"# A model\\n\\nThis model is\", text");
  CHECK(error("short") == rule + "\"short\", text");
  CHECK_THAT(error("{\"hidden_size\": 4096}"), StartsWith(rule + "\"{\\\"hidden\", JSON text"));
  CHECK_THAT(error("PK\x03\x04\x14\0\0\x08\x08\0\0\0"sv),
             StartsWith(rule) && ContainsSubstring("a zip archive, as .pt and .bin files"));
  CHECK_THAT(error("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j"sv),
             StartsWith(rule) && ContainsSubstring("a pickle"));
  CHECK_THAT(error("GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0"sv), ContainsSubstring("a GGUF file"));
  CHECK_THAT(error("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"),
             ContainsSubstring("Git LFS: fetch the file itself"));
  CHECK_THAT(error("\xff\xff\xff\xff\xff\xff\xff\x7f text"sv),
             ContainsSubstring("header too long"));
  CHECK_THAT(error("\x01\x02\x03"), ContainsSubstring("truncated before the header's length"));
}

TEST_CASE("errors name a path once") {
  const TemporaryFolder folder;
  const auto good = SafetensorsBuilder().add("a", "F32", "[1]", std::vector<float>{1}).build();
  folder.write("text.safetensors", std::string_view("some text that is no header\n"));
  folder.write("cut.safetensors", Bytes(good.begin(), good.end() - 1));
  folder.write("bad.json", std::string_view("{\"a\": tru}"));
  folder.write("map/model.safetensors.index.json", std::string_view(R"({"weight_map": 1})"));
  folder.write("a/good.safetensors", good);
  const auto count = [](const std::string& error, const std::string& path) {
    Index found = 0;
    for (auto at = error.find(path); at != error.npos; at = error.find(path, at + 1)) ++found;
    return found;
  };
  for (const char* name : {"absent", "text.safetensors", "cut.safetensors", "map", "bad.json", "a",
                           "a/good.safetensors/b"}) {
    const std::string path = (folder.path() / name).string();
    INFO(name);
    CHECK(count(error_of<CheckpointError>([&] { Checkpoint::open(path); }), path) == 1);
    CHECK(count(error_of<CheckpointError>([&] { read_json(path); }), path) == 1);
  }
  const std::string saved = (folder.path() / "no" / "folder").string();
  CHECK(count(error_of<CheckpointError>([&] { save_safetensors(saved, {}); }), saved) == 1);
}

TEST_CASE("saving follows links and keeps them") {
  const TemporaryFolder folder;
  const auto at = [&](const char* name) { return folder.path() / name; };
  folder.write("store/old", std::string_view("old"));
  std::filesystem::create_symlink(std::filesystem::path("store") / "old", at("link"));
  std::filesystem::create_symlink(at("link"), at("chain"));
  std::filesystem::create_symlink(std::filesystem::path("store") / "new", at("dangling"));
  std::filesystem::create_symlink("loop", at("loop"));

  Tensor<float, 1> a({2});
  a[1] = 3;
  const auto value = [](const std::filesystem::path& path) {
    return Safetensors::open(path).parameter<float, 1>("a", {2})[1];
  };
  for (const char* name : {"link", "chain", "dangling"}) {
    INFO(name);
    a[1] += 1;
    save_safetensors(at(name), {stored_tensor("a", a.view())});
    CHECK(std::filesystem::is_symlink(at(name)));
    CHECK(value(at(name)) == a[1]);
  }
  CHECK(value(folder.path() / "store" / "old") == 5);
  CHECK(value(folder.path() / "store" / "new") == 6);
  CHECK(std::distance(std::filesystem::directory_iterator(at("store")), {}) == 2);
  CHECK_THAT(error_of<CheckpointError>([&] { save_safetensors(at("loop"), {}); }),
             ContainsSubstring("loop: cannot be replaced: a link to itself"));
  CHECK(std::filesystem::is_symlink(at("loop")));
}

TEST_CASE("what exists and is no regular file is not replaced") {
  const TemporaryFolder folder;
  const auto fifo = folder.path() / "fifo", directory = folder.path() / "directory",
             link = folder.path() / "link";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  std::filesystem::create_directory(directory);
  std::filesystem::create_symlink(fifo, link);
  const auto refused = [](const std::filesystem::path& path) {
    const std::string rule = path.string() + ": cannot be replaced: it is no regular file";
    return error_of<CheckpointError>([&] { save_safetensors(path, {}); }) == rule;
  };
  CHECK(refused(fifo));
  CHECK(refused(directory));
  CHECK(refused(link));
  CHECK(std::filesystem::is_fifo(fifo));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 3);
  // The device itself is tried only where everything else was refused, before any renaming.
  if (refused(fifo) && refused(directory)) {
    CHECK(refused("/dev/null"));
    CHECK(std::filesystem::is_character_file("/dev/null"));
  }
}

TEST_CASE("a save that fails keeps the old file, and one that does not replaces it") {
  const TemporaryFolder folder;
  const auto path = folder.write("a.safetensors", std::string_view("old"));
  const auto source = folder.write(
      "b.safetensors",
      SafetensorsBuilder().add("b", "F32", "[1024]", std::vector<float>(1024)).build());
  const StoredTensor tensor = Safetensors::open(source).entry("b");
  std::filesystem::resize_file(source, 100);
  CHECK_THROWS_AS(save_safetensors(path, {tensor}), CheckpointError);  // in the middle of writing
  CHECK(text_of(path) == "old");
  save_safetensors(path, {});
  CHECK(Safetensors::open(path).names().empty());
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 2);
}

TEST_CASE("numbers that overflow in a narrower type are not saved") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  Tensor<float, 2> numbers({2, 2});
  const auto error = [&]<class To>(To, float value) {
    numbers(1, 0) = value;
    return error_of<CheckpointError>([&] { stored_tensor<To>("q_proj.weight", numbers.view()); });
  };
  CHECK_THAT(error(float16{}, 65520),
             ContainsSubstring("tensor \"q_proj.weight\": number 2 does not "
                               "fit; got 65520"));
  CHECK_THAT(error(float16{}, -1e9F), ContainsSubstring("expected a number that F16 holds"));
  CHECK_THAT(error(bfloat16{}, 3.4e38F), ContainsSubstring("number 2 does not fit; got 3.3999"));
  CHECK(error(float16{}, 65519).empty());
  CHECK(error(float16{}, infinity).empty());
  CHECK(error(bfloat16{}, std::numeric_limits<float>::quiet_NaN()).empty());
  CHECK(error(bfloat16{}, 3.38e38F).empty());
  const auto transposed = View<const float, 2>(numbers.data(), {2, 2}, {1, 2});
  numbers(1, 0) = 70000;
  CHECK_THAT(error_of<CheckpointError>([&] { stored_tensor<float16>("t", transposed); }),
             ContainsSubstring("number 1 does not fit; got 70000"));
}

TEST_CASE("a shape whose strides overflow is refused, though it is empty") {
  for (const char* shape : {"[0,1099511627776,1099511627776]", "[9223372036854775807,0,2]"}) {
    const std::string header =
        R"({"a":{"dtype":"F32","data_offsets":[0,0],"shape":)" + std::string(shape) + "}}";
    CHECK_THAT(
        error_of<CheckpointError>([&] { Safetensors::parse(safetensors_file(header, 0), "test"); }),
        ContainsSubstring("shape overflows"));
  }
}

}  // namespace
}  // namespace seqmix
