#pragma once

#include <cctype>
#include <concepts>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

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

inline void check_size(std::string_view layer, const FieldPath& path, Index value, Index least,
                       Index most) {
  if (value >= least && value <= most) return;
  throw ConfigError(
      std::string(layer) + ": " + path.text() + " is " + std::to_string(value) + ", expected at " +
      (value < least ? "least " + std::to_string(least) : "most " + std::to_string(most)));
}

/// Throws unless a field has a value that its tags allow.
template <class Field, class... Tags>
void check_field(std::string_view layer, const FieldPath& path, const Field& value,
                 const Tags&... tags) {
  if constexpr (std::same_as<Field, Index>) {
    const Index least = find_tag<ZeroIsLegal>(tags...) ? 0 : 1;
    const Index most =
        find_tag<Unbounded>(tags...) ? std::numeric_limits<Index>::max() : largest_size;
    check_size(layer, path, value, least, most);
  } else if constexpr (std::floating_point<Field>) {
    static_assert((std::same_as<Tags, Range> || ...), "every floating field says its range");
    const Range& range = *find_tag<Range>(tags...);
    if (!range.has(value)) check_range(layer, path.text(), value, range);
  } else if constexpr (FieldList<Field>) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      const std::string key = std::to_string(i);
      check_field(layer, FieldPath(key, &path), value[i], tags...);
    }
  }
}

/// What a field that nothing reads would need, or null where it is read.
template <class... Tags>
const OnlyWhere* unmet_condition(const Tags&... tags) {
  const OnlyWhere* const condition = find_tag<OnlyWhere>(tags...);
  return condition == nullptr || condition->holds ? nullptr : condition;
}

[[noreturn]] SEQMIX_COLD inline void refuse_unread(std::string_view layer, const FieldPath& path,
                                                   const std::string& value,
                                                   std::string_view condition) {
  throw ConfigError(std::string(layer) + ": " + path.text() + " is " + value +
                    ", which counts only where " + std::string(condition));
}

/// Throws where a field that nothing reads, as `needed` is not null, has another value than its
/// default.
template <class Field>
__attribute__((noinline)) void check_read(std::string_view layer, const FieldPath& path,
                                          const Field& value, const Field& otherwise,
                                          const OnlyWhere* needed) {
  if (needed == nullptr || value == otherwise) return;
  refuse_unread(layer, path, text_of_field(value), needed->condition);
}
template <class Config>
void check_unread(std::string_view layer, const Config& config) {
  visit_fields_of_both(
      config, Config{},
      [&](const FieldPath& path, const auto& value, const auto& otherwise, const auto&... tags) {
        check_read(layer, path, value, otherwise, unmet_condition(tags...));
      });
}

/// Whether `word` stands in `text` on its own, not as a part of a longer name.
SEQMIX_COLD inline bool has_word(std::string_view text, std::string_view word) {
  const auto is_letter = [&](std::size_t i) {
    return i < text.size() && (text[i] == '_' || std::isalnum(static_cast<unsigned char>(text[i])));
  };
  for (auto at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    if (!(at > 0 && is_letter(at - 1)) && !is_letter(at + word.size())) return true;
  }
  return false;
}

/// Appends "a is 1" to `values` where `sentence` speaks of the field.
template <class Number>
SEQMIX_COLD void append_value(std::string& values, std::string_view sentence, const FieldPath& path,
                              Number value) {
  const std::string name = path.text();
  if (!has_word(sentence, name)) return;
  values.append(values.empty() ? "" : ", ").append(name).append(" is ");
  values.append(text_of_field(value));
}

/// "a is 1, b.c is 2": the numbers of a config that `sentence` speaks of.
template <class Config>
std::string values_of_fields(const Config& config, std::string_view sentence) {
  std::string values;
  visit_fields(
      config, [&]<class Field>(const FieldPath& path, const Field& value, const auto&... /*tags*/) {
        if constexpr (std::is_arithmetic_v<Field>) {
          append_value(values, sentence, path, value);
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
