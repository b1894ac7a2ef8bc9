#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "seqmix/core/named_enum.hpp"
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

template <class Field, class... Tags>
FieldDescription describe_field(const FieldPath& path, const Field& value, const Tags&... tags) {
  FieldDescription result{.name = path.text(), .keys = path.keys()};
  result.inherited = path.in_part() && path.key() == "d_model";
  if (const OnlyWhere* const read = find_tag<OnlyWhere>(tags...)) {
    result.condition = read->condition;
  }
  if constexpr (std::same_as<Field, bool>) {
    result.type = "true or false";
  } else if constexpr (std::same_as<Field, Index>) {
    const Index least = find_tag<ZeroIsLegal>(tags...) ? 0 : 1;
    result.type = "integer";
    result.legal = "at least " + std::to_string(least);
    result.required = value < least && !result.inherited;
  } else if constexpr (std::floating_point<Field>) {
    const Range& range = *find_tag<Range>(tags...);
    result.type = "number";
    result.legal = range.text();
    result.required = !range.has(value);
  } else if constexpr (FieldList<Field>) {
    const auto one = describe_field(path, typename Field::value_type(), tags...);
    result.type = one.type + "s";
    result.legal = "each " + one.legal;
  } else if constexpr (NamedEnum<Field>) {
    result.type = "one of";
    for (const std::string_view one : names_of(value)) {
      result.legal.append(result.legal.empty() ? "" : ", ").append(one);
    }
  } else {
    result.type = "text";
  }
  return result;
}

}  // namespace detail

/// Calls `body(FieldDescription)` for the fields of a config and of its parts.
template <class Config>
void describe_config(auto&& body) {
  const Config config{};
  visit_fields(config, [&](const FieldPath& path, const auto& value, const auto&... tags) {
    body(detail::describe_field(path, value, tags...));
  });
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
