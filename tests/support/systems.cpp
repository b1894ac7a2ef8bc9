#include "support/systems.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace support {

std::vector<System> parse_systems(std::string_view text) {
  std::istringstream lines{std::string(text)};
  std::string line;
  int number = 1;
  const auto expect = [&](bool condition, const std::string& expected) {
    if (condition) return;
    throw seqmix::ConfigError("systems.tsv, line " + std::to_string(number) + ": got \"" + line +
                              "\", expected " + expected);
  };
  const std::string columns = "system\tpaper\tmade of\tconfig\tevidence";
  std::getline(lines, line);
  expect(line == columns, "\"" + columns + "\"");
  std::vector<System> systems;
  for (++number; std::getline(lines, line); ++number) {
    std::vector<std::string> cells{""};
    for (const char c : line) {
      if (c == '\t') {
        cells.emplace_back();
      } else {
        cells.back() += c;
      }
    }
    expect(cells.size() == 5, "5 columns");
    const auto colon = std::min(cells[4].find(':'), cells[4].size());
    System system{cells[0],
                  cells[1],
                  cells[2],
                  seqmix::parse_json(cells[3].empty() ? "{}" : cells[3], "config of " + cells[0]),
                  cells[4].substr(0, colon),
                  cells[4].substr(std::min(colon + 1, cells[4].size()))};
    expect(!system.name.empty() && !system.paper.empty() && !system.made_of.empty(),
           "a system, its paper and what it is made of");
    expect(std::none_of(systems.begin(), systems.end(),
                        [&](const System& other) { return other.name == system.name; }),
           "each system once");
    expect(system.config.is_object(), "a config that is an object, or none");
    expect((system.evidence_kind == "golden" || system.evidence_kind == "test" ||
            system.evidence_kind == "program") &&
               !system.evidence.empty(),
           "evidence \"golden:NAME\", \"test:NAME\" or \"program:NAME\"");
    systems.push_back(std::move(system));
  }
  return systems;
}

std::vector<System> systems() {
  std::ifstream file(SEQMIX_SOURCE_DIR "/tests/systems.tsv");
  return parse_systems(std::string{std::istreambuf_iterator<char>(file), {}});
}

}  // namespace support
