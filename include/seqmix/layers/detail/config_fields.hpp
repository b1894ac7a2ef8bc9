#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "seqmix/core/context.hpp"
#include "seqmix/core/field.hpp"
#include "seqmix/core/named_enum.hpp"

// A config as data. A config lists its members once, in `visit`:
//
//   field("norm_eps", self.norm_eps, at_least(0));   a field
//   field("mixer", self.mixer);                      a part, as the type of the member has a visit
//
// What reads, writes, checks and describes configs walks that list and is compiled once, however
// many configs there are.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// Takes whatever a `visit` hands out.
struct AnyVisitor {
  void operator()(auto&&...) const {}
};

}  // namespace detail

/// A member of a config that is a config itself: that of a part. One that knows its type at run
/// time alone has `members()`.
template <class Field>
concept PartConfig = requires(Field& field) {
  Field::visit(field, detail::AnyVisitor{});
}
|| requires(Field& field) { field.members(); };

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

/// A field that is an enumeration, whichever.
class EnumField {
 public:
  template <NamedEnum Enum>
  explicit EnumField(Enum& value) : value_(&value), type_(&type_of<Enum>) {}

  std::span<const std::string_view> names() const { return type_->names; }
  std::size_t index() const { return type_->get(value_); }
  void set(std::size_t index) const { type_->set(value_, index); }

 private:
  struct Type {
    std::span<const std::string_view> names;
    std::size_t (*get)(const void*);
    void (*set)(void*, std::size_t);
  };
  template <class Enum>
  static constexpr auto names_in = names_of(Enum{});
  template <class Enum>
  static constexpr Type type_of = {
      names_in<Enum>,
      [](const void* value) { return static_cast<std::size_t>(*static_cast<const Enum*>(value)); },
      [](void* value, std::size_t index) {
        *static_cast<Enum*>(value) = static_cast<Enum>(index);
      }};

  void* value_;
  const Type* type_;
};

/// What a config says of a field beside its name.
struct FieldTags {
  bool zero_is_legal = false, unbounded = false;
  std::optional<Range> range = {};
  std::optional<OnlyWhere> condition = {};
  std::optional<FlatKey> flat_key = {};

  /// Whether the field is read at all.
  bool is_read() const { return !condition || condition->holds; }

  void take(ZeroIsLegal) { zero_is_legal = true; }
  void take(Unbounded) { unbounded = true; }
  void take(const Range& tag) { range = tag; }
  void take(const OnlyWhere& tag) { condition = tag; }
  void take(const FlatKey& tag) { flat_key = tag; }
};

/// Where the value of a field lies.
using FieldValue = std::variant<bool*, Index*, double*, std::string*, std::vector<Index>*,
                                std::vector<double>*, EnumField>;

struct ConfigMember;

/// The members of a config in the order in which it lists them; those of a const one are only read.
/// What they say holds until the config changes.
struct ConfigMembers {
  std::vector<ConfigMember> list;
  Index* d_model = nullptr;  // if it has one
  void* config = nullptr;
  void (*check)(const void* config) = nullptr;  // its own, if it has one
  ConfigMembers (*list_again)(void*) = nullptr;

  ConfigMembers again() const;
  bool has_parts() const;
};

/// A field of a config, or a part.
struct ConfigMember {
  std::string key;
  FieldTags tags;
  std::variant<FieldValue, ConfigMembers> what;

  const FieldValue* field() const { return std::get_if<FieldValue>(&what); }
  const ConfigMembers* part() const { return std::get_if<ConfigMembers>(&what); }
};

inline ConfigMembers ConfigMembers::again() const { return list_again(config); }
inline bool ConfigMembers::has_parts() const {
  for (const ConfigMember& member : list) {
    if (member.part() != nullptr) return true;
  }
  return false;
}

/// What a config holds in all: its members.
template <class Config>
ConfigMembers members_of(Config& config);

namespace detail {

/// Takes what `visit` of a config lists.
class MemberList {
 public:
  explicit MemberList(ConfigMembers& members) : members_(members) {}

  template <class Field, class... Tags>
  void operator()(std::string_view key, Field& member, const Tags&... tags) const {
    static_assert(!(std::same_as<Field, double> || std::same_as<Field, std::vector<double>>) ||
                      (std::same_as<Tags, Range> || ...),
                  "every floating field says its range");
    FieldTags all;
    (all.take(tags), ...);
    if constexpr (PartConfig<Field>) {
      add(key, all, members_of(member));
    } else if constexpr (NamedEnum<Field>) {
      add(key, all, FieldValue(EnumField(member)));
    } else {
      static_assert(
          requires { FieldValue(&member); },
          "a config holds Index, double, bool, std::string, enumerations and lists of "
          "double or Index");
      add(key, all, FieldValue(&member));
    }
  }

 private:
  SEQMIX_COLD void add(std::string_view key, const FieldTags& tags,
                       std::variant<FieldValue, ConfigMembers> what) const {
    members_.list.push_back({std::string(key), tags, std::move(what)});
  }

  ConfigMembers& members_;
};

template <class Config>
SEQMIX_COLD ConfigMembers list_members(void* config) {
  Config& self = *static_cast<Config*>(config);
  ConfigMembers members;
  members.config = config, members.list_again = &list_members<Config>;
  if constexpr (requires { self.d_model = Index{}; }) members.d_model = &self.d_model;
  if constexpr (requires { self.check(); }) {
    members.check = [](const void* of) { static_cast<const Config*>(of)->check(); };
  }
  Config::visit(self, MemberList(members));
  return members;
}

}  // namespace detail

template <class Config>
ConfigMembers members_of(Config& config) {
  using Plain = std::remove_const_t<Config>;
  if constexpr (requires { config.members(); }) {
    return config.members();
  } else {
    return detail::list_members<Plain>(const_cast<Plain*>(&config));
  }
}

/// A config whose type its layer knows: a value.
class AnyConfig {
 public:
  template <class Config>
  requires(!std::same_as<Config, AnyConfig>) explicit AnyConfig(Config config)
      : held_(std::make_unique<Holder<Config>>(std::move(config))) {}
  AnyConfig(const AnyConfig& other) : held_(other.held_->clone()) {}
  AnyConfig(AnyConfig&&) noexcept = default;
  AnyConfig& operator=(AnyConfig other) noexcept {
    held_ = std::move(other.held_);
    return *this;
  }
  ~AnyConfig() = default;

  /// Those of a const config are only read.
  ConfigMembers members() const { return held_->members(); }
  /// The config, which is a `Config`.
  template <class Config>
  const Config& get() const {
    return static_cast<const Holder<Config>&>(*held_).config;
  }

 private:
  struct Held {
    virtual ~Held() = default;
    virtual std::unique_ptr<Held> clone() const = 0;
    virtual ConfigMembers members() = 0;
  };
  template <class Config>
  struct Holder final : Held {
    Config config;
    explicit Holder(Config value) : config(std::move(value)) {}
    std::unique_ptr<Held> clone() const override { return std::make_unique<Holder>(*this); }
    ConfigMembers members() override { return members_of(config); }
  };

  std::unique_ptr<Held> held_;
};

using VisitField = FunctionRef<void(const FieldPath&, const FieldValue&, const FieldTags&)>;

/// Calls `body(path, value, tags)` for the fields of a config and of all its parts.
SEQMIX_COLD inline void visit_fields(const ConfigMembers& members, VisitField body,
                                     const FieldPath* outer = nullptr) {
  for (const ConfigMember& member : members.list) {
    const FieldPath path(member.key, outer);
    if (const ConfigMembers* const part = member.part()) {
      visit_fields(*part, body, &path);
    } else {
      body(path, *member.field(), member.tags);
    }
  }
}

/// The values of all fields in that order.
SEQMIX_COLD inline std::vector<FieldValue> values_of(const ConfigMembers& members) {
  std::vector<FieldValue> values;
  visit_fields(members, [&](const FieldPath&, const FieldValue& value, const FieldTags&) {
    values.push_back(value);
  });
  return values;
}

/// Calls `body(path, part)` for the parts of a config, inner ones first, and at last for the config
/// itself, whose path is null.
SEQMIX_COLD inline void visit_parts(
    const ConfigMembers& members,
    FunctionRef<void(const FieldPath* path, const ConfigMembers& part)> body,
    const FieldPath* outer = nullptr) {
  for (const ConfigMember& member : members.list) {
    const FieldPath path(member.key, outer);
    if (const ConfigMembers* const part = member.part()) visit_parts(*part, body, &path);
  }
  body(outer, members);
}

/// The value of a field as an error shows it.
SEQMIX_COLD inline std::string text_of_field(const FieldValue& value) {
  return std::visit(
      []<class Field>(const Field& field) {
        if constexpr (std::same_as<Field, EnumField>) {
          const auto names = field.names();
          return std::string(field.index() < names.size() ? names[field.index()] : "unknown");
        } else {
          return text_of_field(*field);
        }
      },
      value);
}

/// Whether two fields of one type have the same value.
SEQMIX_COLD inline bool same_field(const FieldValue& a, const FieldValue& b) {
  return std::visit(
      [&]<class Field>(const Field& field) {
        const Field& other = std::get<Field>(b);
        if constexpr (std::same_as<Field, EnumField>) {
          return field.index() == other.index();
        } else {
          return *field == *other;
        }
      },
      a);
}

/// What a field was once.
class FieldCopy {
 public:
  SEQMIX_COLD explicit FieldCopy(const FieldValue& of) {
    std::visit(
        [&]<class Field>(const Field& field) {
          if constexpr (std::same_as<Field, EnumField>) {
            value_ = field.index();
          } else {
            value_ = *field;
          }
        },
        of);
  }
  /// Sets the field, or one of its type, to that again.
  SEQMIX_COLD void restore(const FieldValue& to) const {
    std::visit(
        [&]<class Field>(const Field& field) {
          if constexpr (std::same_as<Field, EnumField>) {
            field.set(std::get<std::size_t>(value_));
          } else {
            *field = std::get<std::remove_pointer_t<Field>>(value_);
          }
        },
        to);
  }

 private:
  std::variant<bool, Index, double, std::string, std::vector<Index>, std::vector<double>,
               std::size_t>
      value_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
