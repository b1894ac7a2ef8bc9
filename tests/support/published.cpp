#include "support/published.hpp"

#include <algorithm>
#include <cctype>
#include <regex>
#include <set>
#include <utility>

#include "seqmix/io/load.hpp"

namespace support {

namespace {

/// The class in a path like package.module.Class.method, else its last part; "" of other words.
std::string item_of(const std::string& word) {
  static const std::regex path(R"(([A-Za-z_]\w*\.)*[A-Za-z_]\w*)");
  static const std::regex type(R"((?:^|\.)([A-Z]\w*))");
  if (!std::regex_match(word, path)) return "";
  const std::sregex_iterator types(word.begin(), word.end(), type), none;
  if (types != none) {
    std::string last;
    for (auto found = types; found != none; ++found) last = (*found)[1];
    return last;
  }
  return word.substr(word.rfind('.') + 1);
}

}  // namespace

Published published_code(std::string_view source) {
  static const std::regex grammar(R"(([\w.-]+(?:/[\w.-]+)?) (?:\d[\w.]*|[0-9a-f]{7,40}),? )"
                                  R"((?:\S+\.py )?(.+?), (?:torch|jax) .*)");
  static const std::regex own(R"((own numpy form of [^;]+)(?:;.*)?)");
  const std::string text(source);
  std::smatch match;
  if (std::regex_match(text, match, own)) return {match[1], {}};
  Published result;
  if (std::regex_match(text, match, grammar)) {
    result.package = match[1];
    const std::string items = match[2];
    static const std::regex comma(", "), space(" ");
    const std::sregex_token_iterator end;
    for (std::sregex_token_iterator part(items.begin(), items.end(), comma, -1); part != end;
         ++part) {
      const std::string words = *part;
      const std::size_t before = result.items.size();
      for (std::sregex_token_iterator word(words.begin(), words.end(), space, -1); word != end;
           ++word) {
        const std::string item = item_of(*word);
        const bool alone = before == 0 && word->str() == words;  // a function's case says nothing
        if (!item.empty() && (alone || std::isupper(static_cast<unsigned char>(item[0])) != 0)) {
          result.items.push_back(item);
        }
      }
      if (result.items.size() == before) break;
    }
  }
  if (result.items.empty()) {
    throw seqmix::CheckpointError("source is \"" + text +
                                  "\", expected \"package version item, torch version, ...\" or "
                                  "\"own numpy form of ...\"");
  }
  return result;
}

std::map<std::string, std::string> published_by_layer(const std::filesystem::path& folder) {
  std::set<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.insert(entry.path());
  }
  std::map<std::string, std::vector<Published>> packages;
  for (const auto& path : files) {
    const auto file = seqmix::Safetensors::open(path);
    Published code;
    try {
      code = published_code(layer_metadata(file, "source"));
    } catch (const seqmix::CheckpointError& error) {
      throw seqmix::CheckpointError(path.string() + ": " + error.what());
    }
    auto& known = packages[layer_metadata(file, "layer")];
    auto same = std::find_if(known.begin(), known.end(),
                             [&](const Published& other) { return other.package == code.package; });
    if (same == known.end()) same = known.insert(known.end(), {code.package, {}});
    for (const std::string& item : code.items) {
      if (std::find(same->items.begin(), same->items.end(), item) == same->items.end()) {
        same->items.push_back(item);
      }
    }
  }
  std::map<std::string, std::string> result;
  for (const auto& [layer, codes] : packages) {
    std::string& text = result[layer];
    for (const Published& code : codes) {
      text += (text.empty() ? "" : "; ") + code.package;
      for (const std::string& item : code.items) {
        text += (&item == &code.items.front() ? " " : ", ") + item;
      }
    }
  }
  return result;
}

}  // namespace support
