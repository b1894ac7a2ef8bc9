#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/io/json.hpp"
#include "support/error_of.hpp"
#include "support/safetensors_builder.hpp"

namespace seqmix {
namespace {

using Catch::Matchers::ContainsSubstring;
using test::error_of;

constexpr double infinity = std::numeric_limits<double>::infinity();

enum class Gate { silu, gelu };
constexpr std::array<std::string_view, 2> names_of(Gate) { return {"silu", "gelu"}; }

struct ExampleConfig {
  Index d_model = 8;
  Index window = 0;
  double limit = infinity;
  bool bias = false;
  std::string note = "none";
  Gate gate = Gate::silu;

  static void visit(auto& self, auto&& field) {
    field("d_model", self.d_model, unbounded), field("window", self.window, zero_is_legal);
    field("limit", self.limit, is_number), field("bias", self.bias);
    field("note", self.note), field("gate", self.gate);
  }
  void check() const { require(limit > 0, "limit must be positive"); }
  friend bool operator==(const ExampleConfig&, const ExampleConfig&) = default;
};

struct UncheckedConfig {
  double value = 1;
  static void visit(auto& self, auto&& field) { field("value", self.value, is_number); }
};

struct ListConfig {
  std::vector<double> factors = {};

  static void visit(auto& self, auto&& field) { field("factors", self.factors, is_positive); }
};

/// A rule that divides by a size: it can only be asked when the sizes are right.
struct DividedConfig {
  Index heads = 4, groups = 2;
  static void visit(auto& self, auto&& field) {
    field("heads", self.heads), field("groups", self.groups);
  }
  void check() const { require(heads % groups == 0, "heads must be a multiple of groups"); }
};

ExampleConfig read(std::string_view text) {
  ExampleConfig config;
  read_config(parse_json(text, "text"), config, "example");
  return config;
}
std::string config_error(std::string_view text) {
  return error_of<ConfigError>([&] { read(text); });
}
std::string parse_error(std::string_view text) {
  return error_of<CheckpointError>([&] { parse_json(text, "config.json"); });
}

TEST_CASE("Python's bare numbers become strings, and only outside strings") {
  const Json json = parse_json(
      R"({"limits": [0.0, Infinity], "low": -Infinity, "none":NaN, "text": "NaN, \"Infinity\" ",
          "nested": {"a": [[NaN]]}})",
      "text");
  CHECK(json["limits"][0] == 0.0);
  CHECK(json["limits"][1] == "Infinity");
  CHECK(json["low"] == "-Infinity");
  CHECK(json["none"] == "NaN");
  CHECK(json["text"] == "NaN, \"Infinity\" ");
  CHECK(json["nested"]["a"][0][0] == "NaN");
  CHECK(parse_json("Infinity", "text") == "Infinity");
  CHECK(parse_json(R"(["\\", Infinity, "\\\"", NaN])", "text").size() == 4);
}

TEST_CASE("other words and misplaced numbers are no JSON") {
  for (const std::string_view text : {"[Infinityx]",
                                      "[xNaN]",
                                      "[--Infinity]",
                                      "[+Infinity]",
                                      "[nan]",
                                      "[inf]",
                                      "[- Infinity]",
                                      "[1Infinity]",
                                      "{NaN: 1}",
                                      "{Infinity : 1}",
                                      "[NaN Infinity]",
                                      "[\"a\" NaN]",
                                      "[1,]",
                                      "{\"a\": 1,}",
                                      "[01]",
                                      "['a']",
                                      "[1] [2]",
                                      "[1] x",
                                      "",
                                      "   ",
                                      "[1",
                                      "[\"a",
                                      "[\"a\\",
                                      "{\"a\"}",
                                      "/* a */ 1",
                                      "[1e999]",
                                      "[\"\xff\"]",
                                      "\"\n\""}) {
    INFO(text);
    CHECK_THAT(parse_error(text), ContainsSubstring("config.json: not valid JSON"));
  }
  using namespace std::string_view_literals;
  CHECK_THAT(parse_error("[1]\0, 2]"sv), ContainsSubstring("zero byte"));
}

TEST_CASE("duplicate keys are rejected at every level") {
  CHECK_THAT(parse_error(R"({"a": 1, "b": 2, "a": 1})"),
             ContainsSubstring("config.json: duplicate key \"a\""));
  CHECK_THAT(parse_error(R"({"x": [{"a": 1, "a": {}}]})"), ContainsSubstring("duplicate key"));
  CHECK_THAT(parse_error(R"({"a": null, "\u0061": 1})"), ContainsSubstring("duplicate key"));
  CHECK(parse_json(R"([{"a": 1}, {"a": 2}, {"b": {"a": {}}, "a": []}])", "text").size() == 3);
}

TEST_CASE("nesting and size are limited") {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  CHECK(parse_json(nested(json_depth_limit), "text").is_array());
  CHECK_THAT(parse_error(nested(json_depth_limit + 1)), ContainsSubstring("nested deeper than 64"));
  CHECK_THAT(parse_error(std::string(1'000'000, '[')), ContainsSubstring("nested deeper than 64"));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK_THAT(parse_error(objects), ContainsSubstring("nested deeper than 64"));

  std::string text(json_size_limit + 1, ' ');
  CHECK_THAT(parse_error(text), ContainsSubstring("too long"));
}

TEST_CASE("files are read, and named when they cannot be") {
  const test::TemporaryFolder folder;
  CHECK(read_json(folder.write("config.json", std::string_view(R"({"a": Infinity})")))["a"] ==
        "Infinity");
  const auto error = [&](const char* name) {
    return error_of<CheckpointError>([&] { read_json(folder.path() / name); });
  };
  CHECK_THAT(error("absent.json"), ContainsSubstring("absent.json: no such file"));
  CHECK_THAT(error("."), ContainsSubstring("not a regular one"));
  folder.write("bad.json", std::string_view("{\"a\": tru}"));
  CHECK_THAT(error("bad.json"), ContainsSubstring("bad.json: not valid JSON at byte"));
}

TEST_CASE("a config takes what is named and keeps the rest") {
  CHECK(read("{}") == ExampleConfig{});
  ExampleConfig expected;
  expected.d_model = 9007199254740993;
  expected.limit = 0.1;
  expected.bias = true;
  expected.note = "NaN";
  expected.gate = Gate::gelu;
  CHECK(read(R"({"d_model": 9007199254740993, "limit": 0.1, "bias": true, "note": "NaN",
                 "gate": "gelu"})") == expected);
  CHECK(read(R"({"window": 3})").window == 3);
  CHECK(read(R"({"window": 0})").window == 0);
  CHECK(read(R"({"limit": 3})").limit == 3.0);
  for (const std::string_view text :
       {R"({"limit": Infinity})", R"({"limit": "Infinity"})",
        R"({"limit": {"__float__": "Infinity"}})", R"({"limit": {"__float__": Infinity}})"}) {
    CHECK(read(text).limit == infinity);
  }
  UncheckedConfig unchecked;
  read_config(parse_json(R"({"value": {"__float__": "-Infinity"}})", "text"), unchecked, "low");
  CHECK(unchecked.value == -infinity);
}

TEST_CASE("a config names what it does not take") {
  CHECK_THAT(config_error(R"({"d_modle": 8})"),
             ContainsSubstring("example: unknown key \"d_modle\"") &&
                 ContainsSubstring("d_model, window, limit, bias, note, gate"));
  CHECK_THAT(config_error(R"({"d_model": 8.0})"),
             ContainsSubstring("example: d_model: got 8.0, expected an integer"));
  CHECK_THAT(config_error(R"({"d_model": 8.5})"), ContainsSubstring("got 8.5"));
  CHECK_THAT(config_error(R"({"d_model": "8"})"), ContainsSubstring("got \"8\""));
  CHECK_THAT(config_error(R"({"d_model": true})"), ContainsSubstring("got true"));
  CHECK_THAT(config_error(R"({"d_model": null})"), ContainsSubstring("got null"));
  CHECK_THAT(config_error(R"({"d_model": Infinity})"), ContainsSubstring("got \"Infinity\""));
  CHECK_THAT(config_error(R"({"d_model": 18446744073709551615})"), ContainsSubstring("63 bits"));
  CHECK_THAT(config_error(R"({"d_model": 18446744073709551616})"), ContainsSubstring("an integer"));
  CHECK_THAT(config_error(R"({"limit": "large"})"), ContainsSubstring("example: limit: got"));
  CHECK_THAT(config_error(R"({"limit": NaN})"), ContainsSubstring("got \"NaN\""));
  CHECK_THAT(config_error(R"({"limit": true})"), ContainsSubstring("got true"));
  CHECK_THAT(config_error(R"({"limit": [1]})"), ContainsSubstring("got an array"));
  CHECK_THAT(config_error(R"({"limit": {"__float__": 1}})"), ContainsSubstring("got an object"));
  CHECK_THAT(config_error(R"({"limit": {"__float__": "Infinity", "b": 1}})"),
             ContainsSubstring("got an object"));
  CHECK_THAT(config_error(R"({"bias": 1})"), ContainsSubstring("expected true or false"));
  CHECK_THAT(config_error(R"({"note": 1})"), ContainsSubstring("expected a string"));
  CHECK_THAT(config_error(R"({"gate": 1})"), ContainsSubstring("expected a string"));
  CHECK_THAT(config_error(R"({"gate": "relu"})"),
             ContainsSubstring("example: gate: got \"relu\", expected one of silu, gelu"));
  CHECK_THAT(config_error(R"({"limit": -1})"),
             ContainsSubstring("example: limit must be positive"));
  CHECK_THAT(config_error("[]"), ContainsSubstring("example: got an array, expected an object"));
}

TEST_CASE("a config holds lists of numbers, each in the range of their field") {
  const auto list = [](std::string_view text) {
    ListConfig config;
    read_config(parse_json(text, "text"), config, "list");
    return config;
  };
  const auto error = [&](std::string_view text) {
    return error_of<ConfigError>([&] { list(text); });
  };
  const ListConfig config = list(R"({"factors": [1, 0.1, 3e4]})");
  CHECK(config.factors == std::vector<double>{1, 0.1, 3e4});
  CHECK(list(write_config(config).dump()).factors == config.factors);
  CHECK(list("{}").factors.empty());
  CHECK(list(R"({"factors": []})").factors.empty());
  CHECK_THAT(error(R"({"factors": 1})"), ContainsSubstring("factors: got 1, expected a list"));
  CHECK_THAT(error(R"({"factors": [1, "a"]})"), ContainsSubstring("list: factors.1: got \"a\""));
  CHECK_THAT(error(R"({"factors": [1, 2, -1]})"),
             ContainsSubstring("list: factors.2 is -1, expected positive"));
}

TEST_CASE("the sizes of a config are checked before its own rules") {
  CHECK_THAT(config_error(R"({"d_model": 0})"),
             ContainsSubstring("example: d_model is 0, expected at least 1"));
  CHECK_THAT(config_error(R"({"d_model": -9223372036854775808, "limit": -1})"),
             ContainsSubstring("example: d_model is -9223372036854775808, expected at least 1"));
  CHECK_THAT(config_error(R"({"window": -1})"),
             ContainsSubstring("example: window is -1, expected at least 0"));
  const auto divided = [](std::string_view text) {
    return error_of<ConfigError>([&] {
      DividedConfig config;
      read_config(parse_json(text, "text"), config, "divided");
    });
  };
  CHECK(divided(R"({"groups": 4})").empty());
  CHECK_THAT(divided(R"({"groups": 0})"),
             ContainsSubstring("divided: groups is 0, expected at least 1"));
  CHECK_THAT(divided(R"({"groups": 3})"),
             ContainsSubstring("divided: heads must be a multiple of groups"));
}

TEST_CASE("a config stays as it was where it is rejected") {
  ExampleConfig config;
  CHECK_THROWS_AS(
      read_config(parse_json(R"({"d_model": 5, "limit": -1})", "text"), config, "example"),
      ConfigError);
  CHECK_THROWS_AS(
      read_config(parse_json(R"({"bias": true, "other": 1})", "text"), config, "example"),
      ConfigError);
  CHECK(config == ExampleConfig{});
}

TEST_CASE("a config comes back from JSON text with the same numbers") {
  ExampleConfig config;
  config.note = "quote \" and \n line, ä";
  config.bias = true;
  config.gate = Gate::gelu;
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    config.d_model = static_cast<Index>(random() >> 1 | 1);
    config.limit = std::bit_cast<double>(random() >> 1);
    if (std::isnan(config.limit) || config.limit == 0) config.limit = infinity;
    REQUIRE(read(write_config(config).dump()) == config);
  }
  for (const double limit : {infinity, 0.1, 1e-310, 5e-324, 1.7976931348623157e308, 16.0}) {
    config.limit = limit;
    CHECK(read(write_config(config).dump()) == config);
  }
  CHECK(write_config(ExampleConfig{})["limit"] == "Infinity");
  CHECK(write_config(UncheckedConfig{-infinity})["value"] == "-Infinity");
  CHECK_THROWS_AS(write_config(UncheckedConfig{std::nan("")}), ConfigError);
}

TEST_CASE("single fields are read from any object") {
  const Json json = parse_json(R"({"n": 3, "x": Infinity, "gate": "gelu"})", "text");
  CHECK(json_field<Index>(json, "n", "file") == 3);
  CHECK(json_field<double>(json, "n", "file") == 3.0);
  CHECK(json_field<double>(json, "x", "file") == infinity);
  CHECK(json_field<Gate>(json, "gate", "file") == Gate::gelu);
  CHECK(json_field<Index>(json, "absent", "file", 7) == 7);
  CHECK(json_field<Index>(json, "n", "file", 7) == 3);
  CHECK_THAT(error_of<ConfigError>([&] { json_field<Index>(json, "absent", "file"); }),
             ContainsSubstring("file: absent is missing"));
  CHECK_THAT(error_of<ConfigError>([&] { json_field<Index>(json, "x", "file", 7); }),
             ContainsSubstring("file: x: got \"Infinity\", expected an integer"));
  CHECK_THROWS_AS(json_field<Index>(Json::array(), "n", "file", 7), ConfigError);
}

TEST_CASE("a damaged text is parsed or refused") {
  const std::string valid =
      R"({"a": [1, -2.5e3, Infinity, "x\u00e9\n"], "b": {"c": NaN, "d": [[], {}, true, null]}})";
  std::mt19937 random(7);
  int parsed = 0, refused = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string text = valid;
    for (auto edits = 1 + random() % 3; edits > 0; --edits) {
      const std::size_t at = random() % text.size();
      if (random() % 4 == 0) {
        text.erase(at, random() % 8);
        text.push_back(' ');
      } else if (random() % 2 == 0) {
        text[at] = static_cast<char>(random());
      } else {
        text[at] = "{}[]:,\"\\0NaI-"[random() % 13];
      }
    }
    try {
      parse_json(text, "text");
      ++parsed;
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(parsed > 100);
  CHECK(refused > 1000);
}

}  // namespace
}  // namespace seqmix
