// Writes the tables that are made of the registry, the golden files, tests/systems.tsv and the
// members of attention between their marks in Markdown files, or holds the files against them:
// catalogue [--check] FILE...

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/attention_parts.hpp"
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

/// What the slots of attention may hold.
std::string members_table() {
  std::ostringstream text;
  text << "| slot | member | of a config | layers |\n|---|---|---|---|\n";
  for (const support::AttentionMember& member : support::attention_members()) {
    text << "| " << member.slot << " | " << member.name << " | `" << member.config.dump() << "` | ";
    const char* before = "";
    for (const std::string& layer : support::layers_of_parts) {
      if (member.is_of(layer)) text << before << "`" << layer << "`", before = ", ";
    }
    text << " |\n";
  }
  return text.str();
}

/// The rule that `layer` breaks with these members; empty where it has them.
std::string broken_rule(const std::string& layer, const support::AttentionMember& one,
                        const support::AttentionMember& other) {
  try {
    support::registry<double>().complete_config(layer,
                                                support::attention_config(layer, {&one, &other}));
    return {};
  } catch (const seqmix::ConfigError& error) {
    const std::string text = error.what();
    const auto begin = layer.size() + 2;  // behind "layer: "
    return text.substr(begin, text.find("; ") - begin);
  }
}

/// Which pairs of members are refused, and why.
std::string exclusions_table() {
  using Names = std::vector<std::string>;
  const auto list = [](const Names& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
  };
  std::ostringstream text;
  text << "| layer | rule | refused |\n|---|---|---|\n";
  for (const std::string& layer : support::layers_of_parts) {
    Names rules;                                       // in order of their first pair
    std::map<std::string, std::map<Names, Names>> of;  // the first members of the same others
    for (const support::AttentionMember& one : support::attention_members()) {
      std::map<std::string, Names> others;
      for (const support::AttentionMember& other : support::attention_members()) {
        if (&other <= &one || !support::fit(layer, {&one, &other})) continue;
        const std::string rule = broken_rule(layer, one, other);
        if (rule.empty()) continue;
        if (!of.contains(rule) && !others.contains(rule)) rules.push_back(rule);
        others[rule].push_back(other.name);
      }
      for (const auto& [rule, names] : others) of[rule][names].push_back(one.name);
    }
    for (const std::string& rule : rules) {
      text << "| `" << layer << "` | " << rule << " |";
      for (const auto& [others, ones] : of[rule]) {
        text << (&others == &of[rule].begin()->first ? " " : "; ") << list(ones) << " × "
             << list(others);
      }
      text << " |\n";
    }
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
                                                              {"systems", systems_table},
                                                              {"members", members_table},
                                                              {"exclusions", exclusions_table}};
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
