#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "seqmix/core/view.hpp"

// Walks of a config whose parts have configs of their own:
//
//   field("norm_eps", self.norm_eps, at_least(0));   a field
//   field("mixer", self.mixer);                      a part, as the type of the member has a visit

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Takes whatever a `visit` hands out.
struct AnyVisitor {
  void operator()(auto&&...) const {}
};

}  // namespace detail

/// A member of a config that is a config itself: that of a part. The config around it names
/// `d_model` before its parts.
template <class Field>
concept PartConfig = requires(Field& field) {
  Field::visit(field, detail::AnyVisitor{});
};

/// Where a field or a part stands in a config: its key, behind those of the parts around it. What
/// it is made of must outlive it.
class FieldPath {
 public:
  explicit FieldPath(std::string_view key, const FieldPath* outer = nullptr)
      : key_(key), outer_(outer) {}

  std::string_view key() const { return key_; }
  bool in_part() const { return outer_ != nullptr; }
  /// The outermost first.
  std::vector<std::string> keys() const {
    std::vector<std::string> result = in_part() ? outer_->keys() : std::vector<std::string>();
    result.emplace_back(key_);
    return result;
  }
  /// "mixer.norm_eps"
  std::string text() const {
    std::string result = in_part() ? outer_->text() + "." : std::string();
    return result.append(key_);
  }

 private:
  std::string_view key_;
  const FieldPath* outer_;
};

/// Calls `body(path, value, tags...)` for the fields of a config and of all its parts.
template <class Config>
void visit_fields(Config& config, auto&& body, const FieldPath* outer = nullptr) {
  using Visited = std::remove_const_t<Config>;
  Visited::visit(config, [&]<class Field>(std::string_view key, Field& value, const auto&... tags) {
    const FieldPath path(key, outer);
    if constexpr (PartConfig<std::remove_const_t<Field>>) {
      visit_fields(value, body, &path);
    } else {
      body(path, value, tags...);
    }
  });
}

/// The same for two configs of one type: `body(path, value, other_value, tags...)`.
template <class Config>
void visit_fields_of_both(Config& config, const std::remove_const_t<Config>& other, auto&& body) {
  std::vector<const void*> values;
  visit_fields(other, [&](const FieldPath&, const auto& value, const auto&...) {
    values.push_back(&value);
  });
  auto next = values.begin();
  visit_fields(config, [&]<class Field>(const FieldPath& path, Field& value, const auto&... tags) {
    body(path, value, *static_cast<const Field*>(*next++), tags...);
  });
}

/// Calls `body(path, part)` for the parts of a config, inner ones first, and at last for the config
/// itself, whose path is null.
template <class Config>
void visit_parts(const Config& config, auto&& body, const FieldPath* outer = nullptr) {
  Config::visit(config, [&]<class Field>(std::string_view key, const Field& value, const auto&...) {
    if constexpr (PartConfig<Field>) {
      const FieldPath path(key, outer);
      visit_parts(value, body, &path);
    }
  });
  body(outer, config);
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
