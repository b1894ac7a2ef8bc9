#pragma once

#include <cctype>
#include <concepts>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include "seqmix/core/field.hpp"
#include "seqmix/layers/detail/config_fields.hpp"

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
void check_field(std::string_view layer, const FieldPath& path, const Field& value,
                 const Tags&... tags) {
  if constexpr (std::same_as<Field, Index>) {
    const Index least = find_tag<ZeroIsLegal>(tags...) ? 0 : 1;
    const Index most =
        find_tag<Unbounded>(tags...) ? std::numeric_limits<Index>::max() : largest_size;
    if (value >= least && value <= most) return;
    throw ConfigError(
        std::string(layer) + ": " + path.text() + " is " + std::to_string(value) +
        ", expected at " +
        (value < least ? "least " + std::to_string(least) : "most " + std::to_string(most)));
  } else if constexpr (std::floating_point<Field>) {
    static_assert((std::same_as<Tags, Range> || ...), "every floating field says its range");
    check_range(layer, path.text(), value, *find_tag<Range>(tags...));
  }
}

/// What a field that nothing reads would need, or null where it is read.
template <class... Tags>
const OnlyWhere* unmet_condition(const Tags&... tags) {
  const OnlyWhere* const condition = find_tag<OnlyWhere>(tags...);
  return condition == nullptr || condition->holds ? nullptr : condition;
}

/// Throws where a field that nothing reads has another value than its default.
template <class Config>
void check_unread(std::string_view layer, const Config& config) {
  const auto check = [&](const FieldPath& path, const auto& value, const auto& otherwise,
                         const auto&... tags) {
    const OnlyWhere* const needed = unmet_condition(tags...);
    if (needed == nullptr || value == otherwise) return;
    throw ConfigError(std::string(layer) + ": " + path.text() + " is " + text_of_field(value) +
                      ", which counts only where " + std::string(needed->condition));
  };
  visit_fields_of_both(config, Config{}, check);
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

/// "a is 1, b.c is 2": the numbers of a config that `sentence` speaks of.
template <class Config>
std::string values_of_fields(const Config& config, std::string_view sentence) {
  std::string values;
  visit_fields(
      config, [&]<class Field>(const FieldPath& path, const Field& value, const auto&... /*tags*/) {
        if constexpr (std::is_arithmetic_v<Field>) {
          const std::string name = path.text();
          if (!has_word(sentence, name)) return;
          values.append(values.empty() ? "" : ", ").append(name).append(" is ");
          values.append(text_of_field(value));
        }
      });
  return values;
}

}  // namespace detail

/// Throws `ConfigError` where a field of `config` has a value that it may not have, where the
/// `check` of the config or of a part objects, or where a field is set that nothing reads; the text
/// says the rule and the values that break it.
template <class Config>
void check_config(std::string_view layer, const Config& config) {
  visit_fields(config, [&](const FieldPath& path, const auto& value, const auto&... tags) {
    detail::check_field(layer, path, value, tags...);
  });
  visit_parts(config, [&](const FieldPath* path, const auto& part) {
    if constexpr (requires { part.check(); }) {
      try {
        part.check();
      } catch (const ConfigError& error) {
        const std::string values = detail::values_of_fields(part, error.what());
        throw ConfigError(std::string(layer) + ": " + (path == nullptr ? "" : path->text() + ": ") +
                          error.what() + (values.empty() ? "" : "; " + values));
      }
    }
  });
  detail::check_unread(layer, config);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
