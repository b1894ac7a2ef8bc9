// The published systems of tests/systems.tsv: what each is made of exists, takes its config, and is
// what its evidence shows.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "reference/twin.hpp"
#include "seqmix/io/load.hpp"
#include "support/error_of.hpp"
#include "support/layers/registry.hpp"
#include "support/systems.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using seqmix::Json;
using support::System;
namespace fs = std::filesystem;

const fs::path source_folder = SEQMIX_SOURCE_DIR;
const std::string models = "models/";

bool is_model(const System& system) { return system.made_of.starts_with(models); }

bool has_fields(const Json& config, const Json& fields) {
  return std::all_of(fields.items().begin(), fields.items().end(), [&](const auto& field) {
    if (!config.contains(field.key())) return false;
    const Json& value = config.at(field.key());
    return field.value().is_object() ? has_fields(value, field.value()) : value == field.value();
  });
}

/// The configs that the evidence runs, every field given: that of the golden file; of a test or a
/// program those that every test of the layer runs, or that of the model.
std::vector<Json> configs_of(const System& system) {
  if (is_model(system)) {
    return {seqmix::read_json(source_folder / "examples" / system.made_of / "config.json")};
  }
  std::vector<Json> configs;
  if (system.evidence_kind == "golden") {
    const auto file = seqmix::Safetensors::open(source_folder / "tests/golden" /
                                                (system.evidence + ".safetensors"));
    CHECK(seqmix::layer_metadata(file, "layer") == system.made_of);
    configs.push_back(seqmix::layer_config(file));
  } else {
    for (const reference::Twin& twin : reference::twins()) {
      if (twin.layer != system.made_of) continue;
      for (const std::string& config : twin.configs) {
        configs.push_back(seqmix::parse_json(config, twin.layer));
      }
    }
  }
  for (Json& config : configs) {
    config = support::registry<double>().complete_config(system.made_of, config);
  }
  return configs;
}

/// The names of all test cases, as the sources have them.
std::set<std::string> test_cases() {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(source_folder / "tests")) {
    if (entry.path().extension() != ".cpp") continue;
    std::ifstream file(entry.path());
    const std::string text{std::istreambuf_iterator<char>(file), {}}, opening = "TEST_CASE(\"";
    for (auto at = text.find(opening); at != text.npos; at = text.find(opening, at)) {
      at += opening.size();
      names.insert(text.substr(at, text.find('"', at) - at));
    }
  }
  return names;
}

bool is_program(const std::string& name) {
  return fs::exists(source_folder / "examples" / name / "main.cpp") ||
         fs::exists(source_folder / "tests" / (name + ".cpp")) ||
         fs::exists(source_folder / "bench" / (name + ".cpp"));
}

}  // namespace

TEST_CASE("each published system is made of what it says, and its evidence exists") {
  const auto names = support::registry<double>().names();
  const auto cases = test_cases();
  std::set<std::string> unused(names.begin(), names.end());
  for (const System& system : support::systems()) {
    INFO(system.name << ", made of " << system.made_of << " " << system.config.dump() << ", by "
                     << system.evidence_kind << ":" << system.evidence);
    unused.erase(system.made_of);
    if (system.evidence_kind == "test") CHECK(cases.contains(system.evidence));
    if (system.evidence_kind == "program") CHECK(is_program(system.evidence));
    const auto configs = configs_of(system);
    CHECK(std::any_of(configs.begin(), configs.end(),
                      [&](const Json& config) { return has_fields(config, system.config); }));
  }
  CHECK(unused == std::set<std::string>{});
}

TEST_CASE("a table of systems that is wrong is refused with its line") {
  const std::string columns = "system\tpaper\tmade of\tconfig\tevidence\n";
  const std::string good = "RetNet\tSun 2023\tretention\t\tgolden:retention--fla-odd\n";
  const auto read = support::parse_systems(columns + good);
  REQUIRE(read.size() == 1);
  CHECK(read[0].made_of == "retention");
  CHECK(read[0].config == Json::object());
  CHECK(read[0].evidence == "retention--fla-odd");
  const auto refused = [&](const std::string& text, const std::string& line) {
    INFO(text);
    CHECK_THAT(seqmix::test::error_of<seqmix::ConfigError>([&] { support::parse_systems(text); }),
               ContainsSubstring("line " + line + ": got"));
  };
  refused("", "1");
  refused("system\tpaper\tmade of\tconfig\tevidence\tvalue\n" + good, "1");
  refused(columns + good + good, "3");                 // twice
  refused(columns + "a\tb\tc\tgolden:d\n", "2");       // too few
  refused(columns + "a\tb\tc\t\tgolden:d\te\n", "2");  // too many
  refused(columns + "a\t\tc\t\tgolden:d\n", "2");      // no paper
  refused(columns + "a\tb\tc\t[1]\tgolden:d\n", "2");  // no object
  for (const char* evidence : {"", "golden", "golden:", "paper:d", ":d"}) {
    refused(columns + "a\tb\tc\t\t" + evidence + "\n", "2");
  }
}
