// Prints the README's table of layers from the registry and the golden files, or holds a README
// against it: catalogue [--check README.md]

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "support/layers/registry.hpp"
#include "support/published.hpp"

namespace {

std::string table() {
  std::ostringstream text;
  text << "| name | layer | paper | forward | step | state | header | checked against |\n"
          "|---|---|---|---|---|---|---|---|\n";
  const auto& registry = support::registry<double>();
  auto published = support::published_by_layer(SEQMIX_SOURCE_DIR "/tests/golden");
  for (const std::string& name : registry.names()) {
    const seqmix::LayerCard& card = registry.card(name);
    const auto code = published.extract(name);
    if (!code) throw seqmix::ConfigError("the layer " + name + " has no golden file");
    text << "| `" << name << "` | " << card.title << " | " << card.paper << " | " << card.forward
         << " | " << card.step << " | " << card.state << " | `" << card.header << "` | "
         << code.mapped() << " |\n";
  }
  if (!published.empty()) {
    throw seqmix::ConfigError("golden files name the unknown layer " + published.begin()->first);
  }
  return text.str();
}

int check(const std::string& path) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::string open = "<!-- catalogue -->\n", close = "<!-- /catalogue -->";
  const auto first = text.find(open), last = text.find(close);
  if (first == std::string::npos || last == std::string::npos) {
    std::cerr << "catalogue: " << path << " has no catalogue\n";
    return 1;
  }
  const std::string got = text.substr(first + open.size(), last - first - open.size());
  if (got == table()) return 0;
  std::cerr << "catalogue: " << path << " differs; expected\n" << table();
  return 1;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[0] == "--check") return check(arguments[1]);
  std::cout << table();
  return 0;
} catch (const std::exception& error) {
  std::cerr << "catalogue: " << error.what() << "\n";
  return 1;
}
