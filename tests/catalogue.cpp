// Writes the tables that are made of the registry, the golden files and tests/systems.tsv between
// their marks in Markdown files, or holds the files against them: catalogue [--check] FILE...

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/layers/registry.hpp"
#include "support/published.hpp"
#include "support/systems.hpp"

namespace {

/// Every layer: what it is, costs and is checked against.
std::string layers_table() {
  std::ostringstream text;
  text << "| name | layer | paper | forward | step | state | header | checked against |\n"
          "|---|---|---|---|---|---|---|---|\n";
  const auto& registry = support::registry<double>();
  auto published = support::published_by_layer(SEQMIX_SOURCE_DIR "/tests/golden");
  for (const std::string& name : registry.names()) {
    const seqmix::Traits& card = registry.traits(name);
    const auto code = published.extract(name);
    if (!code) throw seqmix::ConfigError("the layer " + name + " has no golden file");
    text << "| `" << name << "` | " << card.title << " | " << card.paper << " | " << card.forward
         << " | " << card.step << " | " << card.state << " | `" << card.header() << "` | "
         << code.mapped() << " |\n";
  }
  if (!published.empty()) {
    throw seqmix::ConfigError("golden files name the unknown layer " + published.begin()->first);
  }
  return text.str();
}

/// Every published system: what it is made of, and where that is shown.
std::string systems_table() {
  std::ostringstream text;
  text << "| system | paper | made of | config | evidence |\n|---|---|---|---|---|\n";
  for (const support::System& system : support::systems()) {
    text << "| " << system.name << " | " << system.paper << " | `" << system.made_of << "` | ";
    if (!system.config.empty()) text << "`" << system.config.dump() << "` ";
    text << "| ";
    if (system.evidence_kind == "golden") {
      text << "[" << system.evidence << "](golden/" << system.evidence << ".safetensors)";
    } else {
      text << system.evidence_kind << " `" << system.evidence << "`";
    }
    text << " |\n";
  }
  return text.str();
}

std::string read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The text with each table that has its marks in it, <!-- name --> and <!-- /name -->, as it is
/// made today.
std::string with_tables(std::string text, const std::string& path) {
  const std::pair<const char*, std::string (*)()> tables[] = {{"catalogue", layers_table},
                                                              {"systems", systems_table}};
  bool any = false;
  for (const auto& [name, table] : tables) {
    const std::string open = std::string("<!-- ") + name + " -->\n";
    const auto mark = text.find(open), first = mark + open.size();
    if (mark == std::string::npos) continue;
    const auto last = text.find(std::string("<!-- /") + name + " -->", first);
    if (last == std::string::npos) continue;
    text.replace(first, last - first, table());
    any = true;
  }
  if (!any) throw seqmix::ConfigError(path + " has the marks of no table");
  return text;
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<std::string> paths(argv + 1, argv + argc);
  const bool check = !paths.empty() && paths[0] == "--check";
  if (check) paths.erase(paths.begin());
  if (paths.empty()) throw seqmix::ConfigError("usage: catalogue [--check] FILE...");
  for (const std::string& path : paths) {
    const std::string got = read(path), expected = with_tables(got, path);
    if (got == expected) continue;
    if (check) throw seqmix::ConfigError(path + " differs; `catalogue FILE` writes its tables");
    std::ofstream(path) << expected;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "catalogue: " << error.what() << "\n";
  return 1;
}
