#pragma once

#include <cctype>
#include <concepts>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "seqmix/core/field.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

template <class Tag, class Other>
const Tag* as_tag(const Other& other) {
  if constexpr (std::same_as<Tag, Other>) return &other;
  return nullptr;
}
/// The one of `tags` that is a `Tag`, or null.
template <class Tag, class... Tags>
const Tag* find_tag(const Tags&... tags) {
  const Tag* found = nullptr;
  ((found = found != nullptr ? found : as_tag<Tag>(tags)), ...);
  return found;
}

/// Throws unless a field has a value that its tags allow.
template <class Field, class... Tags>
void check_field(std::string_view layer, std::string_view name, const Field& value,
                 const Tags&... tags) {
  if constexpr (std::same_as<Field, Index>) {
    const Index least = find_tag<ZeroIsLegal>(tags...) ? 0 : 1;
    const Index most =
        find_tag<Unbounded>(tags...) ? std::numeric_limits<Index>::max() : largest_size;
    if (value >= least && value <= most) return;
    throw ConfigError(
        std::string(layer) + ": " + std::string(name) + " is " + std::to_string(value) +
        ", expected at " +
        (value < least ? "least " + std::to_string(least) : "most " + std::to_string(most)));
  } else if constexpr (std::floating_point<Field>) {
    static_assert((std::same_as<Tags, Range> || ...), "every floating field says its range");
    check_range(layer, name, value, *find_tag<Range>(tags...));
  }
}

/// Throws where a field that nothing reads has another value than its default. Fields of one name,
/// which the parts of a composite share, are read if one of them is.
template <class Config>
void check_unread(std::string_view layer, const Config& config) {
  std::set<std::string_view> read;
  Config::visit(config, [&](std::string_view name, const auto&, const auto&... tags) {
    const OnlyWhere* condition = find_tag<OnlyWhere>(tags...);
    if (condition == nullptr || condition->holds) read.insert(name);
  });
  const Config fresh{};
  std::vector<const void*> defaults;
  Config::visit(fresh, [&](std::string_view, const auto& value, const auto&...) {
    defaults.push_back(&value);
  });
  auto next = defaults.begin();
  Config::visit(config,
                [&]<class Field>(std::string_view name, const Field& value, const auto&... tags) {
                  const bool is_default = value == *static_cast<const Field*>(*next++);
                  if (is_default || read.contains(name)) return;
                  throw ConfigError(std::string(layer) + ": " + std::string(name) + " is " +
                                    text_of_field(value) + ", which counts only where " +
                                    std::string(find_tag<OnlyWhere>(tags...)->condition));
                });
}

/// Whether `word` stands in `text` on its own, not as a part of a longer name.
inline bool has_word(std::string_view text, std::string_view word) {
  const auto is_letter = [&](std::size_t i) {
    return i < text.size() && (text[i] == '_' || std::isalnum(static_cast<unsigned char>(text[i])));
  };
  for (auto at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    if (!(at > 0 && is_letter(at - 1)) && !is_letter(at + word.size())) return true;
  }
  return false;
}

/// "a is 1, b is 2": the numbers of a config that `sentence` speaks of.
template <class Config>
std::string values_of_fields(const Config& config, std::string_view sentence) {
  std::string values;
  Config::visit(
      config, [&]<class Field>(std::string_view name, const Field& value, const auto&... /*tags*/) {
        if constexpr (std::is_arithmetic_v<Field>) {
          if (!has_word(sentence, name) || has_word(values, name)) return;
          values.append(values.empty() ? "" : ", ").append(name).append(" is ");
          values.append(text_of_field(value));
        }
      });
  return values;
}

}  // namespace detail

/// Throws `ConfigError` where a field of `config` has a value that it may not have, where the
/// config's own `check` objects, or where a field is set that nothing reads; the text says the rule
/// and the values that break it.
template <class Config>
void check_config(std::string_view layer, const Config& config) {
  Config::visit(config, [&](std::string_view name, const auto& value, const auto&... tags) {
    detail::check_field(layer, name, value, tags...);
  });
  if constexpr (requires { config.check(); }) {
    try {
      config.check();
    } catch (const ConfigError& error) {
      const std::string values = detail::values_of_fields(config, error.what());
      throw ConfigError(std::string(layer) + ": " + error.what() +
                        (values.empty() ? "" : "; " + values));
    }
  }
  detail::check_unread(layer, config);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
