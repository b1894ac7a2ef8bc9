#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "seqmix/layers/detail/check_config.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// A field of a config in words.
struct FieldDescription {
  std::string name = {};               // behind the names of its parts: "mixer.norm_eps"
  std::vector<std::string> keys = {};  // the same one by one
  std::string type = {};   // "integer", "number", "numbers", "true or false", "text" or "one of"
  std::string legal = {};  // its values; empty: all of the type
  std::string condition = {};  // when it is read at all; empty: always
  bool inherited = false;      // whether it is the outer config's where a part leaves it out
  bool required = false;       // whether it is not, and its default is no legal value
};

namespace detail {

SEQMIX_COLD inline FieldDescription describe_field(const FieldPath& path, const FieldValue& value,
                                                   const FieldTags& tags) {
  FieldDescription result{.name = path.text(), .keys = path.keys()};
  result.inherited = path.in_part() && path.key() == "d_model";
  if (tags.condition) result.condition = tags.condition->condition;
  const Index least = tags.zero_is_legal ? 0 : 1;
  const auto describe_number = [&](bool whole) {
    result.type = whole ? "integer" : "number";
    result.legal = whole ? "at least " + std::to_string(least) : tags.range->text();
  };
  std::visit(
      [&]<class Value>(const Value& field) {
        if constexpr (std::same_as<Value, bool*>) {
          result.type = "true or false";
        } else if constexpr (std::same_as<Value, Index*>) {
          describe_number(true);
          result.required = *field < least && !result.inherited;
        } else if constexpr (std::same_as<Value, double*>) {
          describe_number(false);
          result.required = !tags.range->has(*field);
        } else if constexpr (std::same_as<Value, std::string*>) {
          result.type = "text";
        } else if constexpr (std::same_as<Value, EnumField>) {
          result.type = "one of";
          for (const std::string_view one : field.names()) {
            result.legal.append(result.legal.empty() ? "" : ", ").append(one);
          }
        } else {
          describe_number(std::same_as<Value, std::vector<Index>*>);
          result.type += "s", result.legal.insert(0, "each ");
        }
      },
      value);
  return result;
}

}  // namespace detail

/// The fields of a config and of its parts.
SEQMIX_COLD inline std::vector<FieldDescription> describe_members(const ConfigMembers& members) {
  std::vector<FieldDescription> fields;
  visit_fields(members, [&](const FieldPath& path, const FieldValue& value, const FieldTags& tags) {
    fields.push_back(detail::describe_field(path, value, tags));
  });
  return fields;
}
template <class Config>
std::vector<FieldDescription> describe_config() {
  const Config config{};
  return describe_members(members_of(config));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
