#pragma once

#include <cctype>
#include <concepts>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "seqmix/core/field.hpp"
#include "seqmix/layers/detail/config_fields.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

inline void check_size(std::string_view layer, const FieldPath& path, Index value, Index least,
                       Index most) {
  if (value >= least && value <= most) return;
  throw ConfigError(
      std::string(layer) + ": " + path.text() + " is " + std::to_string(value) + ", expected at " +
      (value < least ? "least " + std::to_string(least) : "most " + std::to_string(most)));
}

/// Throws unless a field has a value that its tags allow.
SEQMIX_COLD inline void check_field(std::string_view layer, const FieldPath& path,
                                    const FieldValue& value, const FieldTags& tags) {
  const auto check = [&]<class Number>(const FieldPath& where, Number number) {
    if constexpr (std::same_as<Number, double>) {
      if (!tags.range->has(number)) check_range(layer, where.text(), number, *tags.range);
    } else {
      const Index most = tags.unbounded ? std::numeric_limits<Index>::max() : largest_size;
      check_size(layer, where, number, tags.zero_is_legal ? 0 : 1, most);
    }
  };
  std::visit(
      [&]<class Field>(const Field& field) {
        if constexpr (std::same_as<Field, Index*> || std::same_as<Field, double*>) {
          check(path, *field);
        } else if constexpr (FieldList<std::remove_pointer_t<Field>>) {
          for (std::size_t i = 0; i < field->size(); ++i) {
            const std::string key = std::to_string(i);
            check(FieldPath(key, &path), (*field)[i]);
          }
        }
      },
      value);
}

/// Throws where a field that nothing reads has another value than its default.
SEQMIX_COLD inline void check_unread(std::string_view layer, const ConfigMembers& members,
                                     const ConfigMembers& defaults) {
  const std::vector<FieldValue> values = values_of(defaults);
  auto otherwise = values.begin();
  visit_fields(members, [&](const FieldPath& path, const FieldValue& value, const FieldTags& tags) {
    const FieldValue& usual = *otherwise++;
    if (tags.is_read() || same_field(value, usual)) return;
    throw ConfigError(std::string(layer) + ": " + path.text() + " is " + text_of_field(value) +
                      ", which counts only where " + std::string(tags.condition->condition));
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

/// "a is 1, b.c is 2": the numbers of a config that `sentence` speaks of.
SEQMIX_COLD inline std::string values_of_fields(const ConfigMembers& members,
                                                std::string_view sentence) {
  std::string values;
  visit_fields(members, [&](const FieldPath& path, const FieldValue& value, const FieldTags&) {
    const bool is_number = std::holds_alternative<bool*>(value) ||
                           std::holds_alternative<Index*>(value) ||
                           std::holds_alternative<double*>(value);
    const std::string name = path.text();
    if (!is_number || !has_word(sentence, name)) return;
    values.append(values.empty() ? "" : ", ").append(name).append(" is ");
    values.append(text_of_field(value));
  });
  return values;
}

/// `check_config` of a config of any type, with the defaults of its fields.
SEQMIX_COLD inline void check_members(std::string_view layer, const ConfigMembers& members,
                                      const ConfigMembers& defaults) {
  visit_fields(members, [&](const FieldPath& path, const FieldValue& value, const FieldTags& tags) {
    check_field(layer, path, value, tags);
  });
  visit_parts(members, [&](const FieldPath* path, const ConfigMembers& part) {
    if (part.check == nullptr) return;
    try {
      part.check(part.config);
    } catch (const ConfigError& error) {
      const std::string values = values_of_fields(part, error.what());
      throw ConfigError(std::string(layer) + ": " + (path == nullptr ? "" : path->text() + ": ") +
                        error.what() + (values.empty() ? "" : "; " + values));
    }
  });
  check_unread(layer, members, defaults);
}

}  // namespace detail

/// Throws `ConfigError` where a field of `config` has a value that it may not have, where the
/// `check` of the config or of a part objects, or where a field is set that nothing reads; the text
/// says the rule and the values that break it.
template <class Config>
void check_config(std::string_view layer, const Config& config) {
  const Config otherwise{};
  detail::check_members(layer, members_of(config), members_of(otherwise));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
