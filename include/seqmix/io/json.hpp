#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "seqmix/core/named_enum.hpp"
#include "seqmix/layers/detail/weights.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

using Json = nlohmann::json;

/// A longer text or file is refused before it is parsed, and so is a longer word or string in it:
/// the parser keeps each several times while it reads it.
inline constexpr std::uintmax_t json_size_limit = 16'000'000, json_token_limit = 1'000'000;
/// Deeper nesting is refused: no description of a model needs it.
inline constexpr std::size_t json_depth_limit = 64;

namespace detail {

/// Text from a file as it may stand in an error message: short, in quotes, control bytes escaped.
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t longest = 120;
  std::string shown(text.substr(0, longest));
  if (text.size() > longest) shown += "...";
  return Json(std::move(shown)).dump(-1, ' ', true, Json::error_handler_t::replace);
}
inline std::string excerpt(const Json& value) {
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  if (value.is_structured()) return std::string("an ") + value.type_name();
  return value.dump();
}

/// The text of a regular file of at most `limit` bytes.
inline std::string read_text(const std::filesystem::path& path, std::uintmax_t limit) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw CheckpointError(path.string() + ": no such file, or not a regular one");
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw CheckpointError(path.string() + ": " + error.message());
  if (size > limit) {
    throw CheckpointError(path.string() + ": too long; got " + std::to_string(size) +
                          " bytes, expected at most " + std::to_string(limit));
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  std::ifstream stream(path, std::ios::binary);
  stream.read(text.data(), static_cast<std::streamsize>(size));
  if (!stream) throw CheckpointError(path.string() + ": cannot be read");
  return text;
}

/// Where the word, string, bracket or space that starts at `at` ends.
inline std::size_t end_of_token(std::string_view text, std::size_t at) {
  constexpr std::string_view structure = "{}[]:,\" \t\r\n";
  std::size_t end = at + 1;
  if (text[at] == '"') {
    while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
    return std::min(end + 1, text.size());
  }
  if (structure.find(text[at]) != structure.npos) return end;
  return std::min(text.find_first_of(structure, at), text.size());
}

/// What reads a JSON text event by event derives from this. Few bytes must not become many: the
/// memory that the reader says to need may be three times the text and a fixed part.
///
/// A `Reader` has `open(bool object)`, `close()`, `member(key)` and, for everything else,
/// `value(json)`; each throws on what it does not take.
template <class Reader>
class JsonEvents {
 public:
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  /// Reads `text`, RFC 8259 and no more.
  void read(std::string_view text) {
    limit_ += 3 * text.size();
    // The parser takes a zero byte for the end of the text and would ignore what follows.
    if (const std::size_t zero = text.find('\0'); zero != text.npos) {
      throw CheckpointError(name_ + ": zero byte in JSON text, at byte " + std::to_string(zero));
    }
    for (std::size_t at = 0, end = 0; at < text.size(); at = end) {
      end = end_of_token(text, at);
      if (end - at > json_token_limit) {
        throw CheckpointError(name_ + ": a word or string of JSON text is too long; got " +
                              std::to_string(end - at) + " bytes, expected at most " +
                              std::to_string(json_token_limit));
      }
    }
    Json::sax_parse(text.begin(), text.end(), static_cast<Reader*>(this));
  }

  bool null() { return reader().value(nullptr), true; }
  bool boolean(bool value) { return reader().value(value), true; }
  bool number_integer(number_integer_t value) { return reader().value(value), true; }
  bool number_unsigned(number_unsigned_t value) { return reader().value(value), true; }
  bool number_float(number_float_t value, const string_t&) { return reader().value(value), true; }
  bool string(const string_t& value) { return reader().value(value), true; }
  bool binary(const binary_t& value) { return reader().value(value), true; }
  bool start_object(std::size_t) { return reader().open(true), true; }
  bool start_array(std::size_t) { return reader().open(false), true; }
  bool end_object() { return reader().close(), true; }
  bool end_array() { return reader().close(), true; }
  bool key(const string_t& text) { return reader().member(text), true; }
  bool parse_error(std::size_t position, const std::string& token, const Json::exception& error) {
    // The parser's own text starts with a code in brackets, which says nothing to a reader.
    const std::string_view text = error.what();
    const std::size_t code = text.find("] ");
    throw CheckpointError(name_ + ": not valid JSON at byte " + std::to_string(position) +
                          ", near " + in_quotes(token) + ": " +
                          std::string(text.substr(code == text.npos ? 0 : code + 2, 200)));
  }

 protected:
  /// `fixed`: the memory that any text may need. `name` stands for the text in errors.
  JsonEvents(std::string_view name, std::size_t fixed) : name_(name), limit_(fixed) {}

  void need(std::size_t bytes) {
    needed_ += bytes;
    if (needed_ <= limit_) return;
    throw CheckpointError(name_ + ": takes too much memory once it is read; got more than " +
                          std::to_string(limit_) + " bytes, three times the text and a fixed part");
  }
  [[noreturn]] void refuse_duplicate(const std::string& key) const {
    throw CheckpointError(name_ + ": duplicate key " + in_quotes(key));
  }

  std::string name_;

 private:
  Reader& reader() { return static_cast<Reader&>(*this); }

  std::size_t limit_, needed_ = 0;
};

/// A value that is taken apart without allocation: its own destructor allocates, and would end the
/// program where memory is exhausted.
class JsonDocument {
 public:
  JsonDocument() = default;
  JsonDocument(Json json) : json_(std::move(json)) {}
  JsonDocument(JsonDocument&&) = default;
  JsonDocument& operator=(const JsonDocument&) = delete;
  ~JsonDocument() { clear(json_); }

  Json& get() { return json_; }
  operator const Json&() const { return json_; }

 private:
  static void clear(Json& value) {
    if (!value.is_structured()) return;
    for (Json& item : value) clear(item);
    value.clear();
  }

  Json json_;
};

/// Builds the document and refuses what the parser's own builder accepts in silence: duplicate keys
/// (it keeps the last) and unlimited nesting.
class StrictJsonBuilder : public JsonEvents<StrictJsonBuilder> {
 public:
  explicit StrictJsonBuilder(std::string_view name) : JsonEvents(name, fixed_memory) {}
  Json take() { return std::move(root_.get()); }

  void value(Json value) { place(std::move(value)); }
  void open(bool object) {
    if (open_.size() == json_depth_limit) {
      throw CheckpointError(name_ + ": nested deeper than " + std::to_string(json_depth_limit) +
                            " levels");
    }
    need(sizeof(Json::object_t));
    open_.push_back(place(object ? Json::object() : Json::array()));
  }
  void close() { open_.pop_back(); }
  void member(const std::string& key) {
    need(tree_node + sizeof(std::string) + key.size());
    auto& members = open_.back()->get_ref<Json::object_t&>();
    const auto [member, inserted] = members.try_emplace(key);
    if (!inserted) refuse_duplicate(key);
    member_ = &member->second;
  }

 private:
  static constexpr std::size_t fixed_memory = std::size_t{1} << 24, tree_node = 64;

  Json* place(Json value) {
    // A list moves to a place twice as large when it grows.
    need(3 * sizeof(Json));
    if (value.is_string()) need(sizeof(std::string) + value.get_ref<std::string&>().size());
    Json* target = &root_.get();
    if (!open_.empty() && open_.back()->is_array()) {
      target = &open_.back()->get_ref<Json::array_t&>().emplace_back();
    } else if (!open_.empty()) {
      target = member_;
    }
    *target = std::move(value);
    return target;
  }

  JsonDocument root_;
  std::vector<Json*> open_;  // a container does not move while something inside it is open
  Json* member_ = nullptr;   // the value of the key that was read last
};

/// The text with the bare values NaN, Infinity and -Infinity, which Python writes, put in quotes.
inline std::string quote_bare_numbers(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0, end = 0; at < text.size(); at = end) {
    end = end_of_token(text, at);
    const std::string_view token = text.substr(at, end - at);
    if (token == "NaN" || token == "Infinity" || token == "-Infinity") {
      const std::size_t next = text.find_first_not_of(" \t\r\n", end);
      const bool is_key = next != text.npos && text[next] == ':';
      if (!is_key) {
        result.append("\"").append(token).append("\"");
        continue;
      }
    }
    result.append(token);
  }
  return result;
}

/// A value of a document as a member of a config; `where` is for the error.
template <class Field>
Field field_from_json(const Json& value, const std::string& where) {
  const auto fail = [&](std::string_view expected) {
    throw ConfigError(where + ": got " + excerpt(value) + ", expected " + std::string(expected));
  };
  if constexpr (std::same_as<Field, bool>) {
    if (!value.is_boolean()) fail("true or false");
    return value.get<bool>();
  } else if constexpr (std::same_as<Field, Index>) {
    if (!value.is_number_integer()) fail("an integer");
    if (value.is_number_unsigned() && !std::in_range<Index>(value.get<std::uint64_t>())) {
      fail("an integer of at most 63 bits");
    }
    return value.get<Index>();
  } else if constexpr (std::same_as<Field, double>) {
    // Newer Hugging Face files write {"__float__": "Infinity"}, older ones the bare word.
    const bool boxed = value.is_object() && value.size() == 1 && value.contains("__float__");
    const Json& number = boxed ? value.at("__float__") : value;
    if (number.is_number() && !boxed) return number.get<double>();
    // Compared as strings: the comparison of two values allocates, and may not throw.
    if (number.is_string()) {
      const std::string& text = number.get_ref<const std::string&>();
      if (text == "Infinity") return std::numeric_limits<double>::infinity();
      if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
    }
    fail("a number, \"Infinity\" or \"-Infinity\"");
  } else if constexpr (FieldList<Field>) {
    if (!value.is_array()) fail("a list of numbers");
    Field numbers;
    for (const Json& number : value) {
      const std::string name = where + "." + std::to_string(numbers.size());
      numbers.push_back(field_from_json<typename Field::value_type>(number, name));
    }
    return numbers;
  } else {
    if (!value.is_string()) fail("a string");
    const std::string& text = value.get_ref<const std::string&>();
    if constexpr (std::is_enum_v<Field>) {
      Field result{};
      try {
        from_string(text, result);
      } catch (const ConfigError& error) {
        throw ConfigError(where + ": " + error.what());
      }
      return result;
    } else {
      static_assert(std::same_as<Field, std::string>,
                    "a config holds Index, double, bool, std::string, enumerations and "
                    "lists of double or Index");
      return text;
    }
  }
  return {};
}

/// The same in the other direction; `where` is for the error.
template <class Field>
Json field_to_json(const Field& value, const std::string& where) {
  if constexpr (std::same_as<Field, double>) {
    if (std::isnan(value)) throw ConfigError(where + " is NaN, which a config cannot hold");
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return value;
  } else if constexpr (FieldList<Field>) {
    Json list = Json::array();
    for (const auto number : value) {
      list.push_back(field_to_json(number, where + "." + std::to_string(list.size())));
    }
    return list;
  } else {
    return value;
  }
}

/// Sets a field from a value of a document; `where` is for the error.
SEQMIX_COLD inline void read_field(const Json& json, const FieldValue& value,
                                   const std::string& where) {
  std::visit(
      [&]<class Value>(const Value& field) {
        if constexpr (std::same_as<Value, EnumField>) {
          const auto text = field_from_json<std::string>(json, where);
          try {
            field.set(index_of_name(text, field.names()));
          } catch (const ConfigError& error) {
            throw ConfigError(where + ": " + error.what());
          }
        } else {
          *field = field_from_json<std::remove_pointer_t<Value>>(json, where);
        }
      },
      value);
}

/// The same in the other direction.
SEQMIX_COLD inline Json write_field(const FieldValue& value, const std::string& where) {
  return std::visit(
      [&]<class Value>(const Value& field) {
        if constexpr (std::same_as<Value, EnumField>) {
          return Json(text_of_field(FieldValue(field)));
        } else {
          return field_to_json(*field, where);
        }
      },
      value);
}

/// Throws unless the keys of an object are all among `known`.
inline void check_keys(const Json& object, const std::vector<std::string>& known,
                       const std::string& who) {
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(known, key) != known.end()) continue;
    std::string list;
    for (const std::string& one : known) list.append(list.empty() ? "" : ", ").append(one);
    throw ConfigError(who + ": unknown key " + in_quotes(key) + ", expected one of: " + list);
  }
}

void read_members(const Json& object, const ConfigMembers& members, const std::string& layer,
                  const FieldPath* outer = nullptr);

/// Sets the members of a config, or of the part at `outer`, from its object.
SEQMIX_COLD inline void read_nested(const Json& object, const ConfigMembers& members,
                                    const std::string& layer, const FieldPath* outer) {
  std::vector<std::string> known;
  for (const ConfigMember& member : members.list) {
    known.push_back(member.key);
    const FieldPath path(member.key, outer);
    const auto found = object.find(member.key);
    if (const ConfigMembers* const part = member.part()) {
      if (part->d_model != nullptr && members.d_model != nullptr) *part->d_model = *members.d_model;
      read_members(found == object.end() ? Json::object() : *found, *part, layer, &path);
    } else if (found != object.end()) {
      read_field(*found, *member.field(), layer + ": " + path.text());
    }
  }
  check_keys(object, known, outer == nullptr ? layer : layer + ": " + outer->text());
}

/// The key of a field in a flat object.
inline std::string_view flat_key_of(const FieldPath& path, const FieldTags& tags) {
  return tags.flat_key ? tags.flat_key->key : path.key();
}

/// Sets a field from the value of a flat object at `key`. Where that is the name of one of an
/// enumeration's values, it is a flag.
SEQMIX_COLD inline void read_flat_field(const Json& json, std::string_view key,
                                        const FieldValue& value, const std::string& layer) {
  const std::string where = layer + ": " + std::string(key);
  if (const auto* const one_of = std::get_if<EnumField>(&value)) {
    const auto names = one_of->names();
    if (std::ranges::find(names, key) != names.end()) {
      if (field_from_json<bool>(json, where)) one_of->set(index_of_name(key, names));
      return;
    }
  }
  read_field(json, value, where);
}

/// The same where the fields of all parts stand in one object. Fields of one key are one, which
/// goes to every part that reads it.
SEQMIX_COLD inline void read_flat(const Json& object, const ConfigMembers& members,
                                  const std::string& layer) {
  std::vector<std::string> known;
  const auto add_known = [&](std::string_view key) {
    if (std::ranges::find(known, key) == known.end()) known.emplace_back(key);
  };
  for (const ConfigMember& member : members.list) add_known(member.key);
  std::vector<FieldCopy> before;
  visit_fields(members, [&](const FieldPath& path, const FieldValue& value, const FieldTags& tags) {
    before.emplace_back(value);
    const auto read_key = [&](std::string_view key) {
      add_known(key);
      const auto found = object.find(key);
      if (found != object.end()) read_flat_field(*found, key, value, layer);
    };
    read_key(flat_key_of(path, tags));
    if (tags.flat_key && tags.flat_key->own) read_key(path.key());
  });
  check_keys(object, known, layer);

  // Which fields are read is known now.
  const ConfigMembers settled = members.again();
  std::set<std::string, std::less<>> read;
  visit_fields(settled, [&](const FieldPath& path, const FieldValue&, const FieldTags& tags) {
    if (tags.is_read()) read.emplace(flat_key_of(path, tags));
  });
  auto untouched = before.begin();
  visit_fields(settled, [&](const FieldPath& path, const FieldValue& value, const FieldTags& tags) {
    if (!tags.is_read() && read.contains(flat_key_of(path, tags))) untouched->restore(value);
    ++untouched;
  });
}

/// Sets the members of a config, or of the part at `outer`, from an object of either kind: one that
/// names a part is nested.
SEQMIX_COLD inline void read_members(const Json& object, const ConfigMembers& members,
                                     const std::string& layer, const FieldPath* outer) {
  const std::string who = outer == nullptr ? layer : layer + ": " + outer->text();
  if (!object.is_object()) {
    throw ConfigError(who + ": got " + excerpt(object) + ", expected an object");
  }
  const bool names_part = std::ranges::any_of(members.list, [&](const ConfigMember& member) {
    return member.part() != nullptr && object.contains(member.key);
  });
  if (!members.has_parts() || names_part) return read_nested(object, members, layer, outer);
  if (members.d_model != nullptr && outer != nullptr && !object.contains("d_model")) {
    Json fields = object;
    fields["d_model"] = *members.d_model;
    return read_flat(fields, members, who);
  }
  read_flat(object, members, who);
}

/// A config, or the part at `outer`, as an object.
SEQMIX_COLD inline Json write_members(const ConfigMembers& members,
                                      const FieldPath* outer = nullptr) {
  Json object = Json::object();
  for (const ConfigMember& member : members.list) {
    const FieldPath path(member.key, outer);
    const ConfigMembers* const part = member.part();
    object[member.key] =
        part != nullptr ? write_members(*part, &path) : write_field(*member.field(), path.text());
  }
  return object;
}

}  // namespace detail

/// A JSON text, strictly: duplicate keys, nesting beyond `json_depth_limit` and anything outside
/// the standard are a `CheckpointError`, except the bare values NaN, Infinity and -Infinity, which
/// become strings. `name` stands for the text in errors.
inline Json parse_json(std::string_view text, std::string_view name) {
  if (text.size() > json_size_limit) {
    throw CheckpointError(std::string(name) + ": too long; got " + std::to_string(text.size()) +
                          " bytes, expected at most " + std::to_string(json_size_limit));
  }
  std::string quoted;
  if (text.find("NaN") != text.npos || text.find("Infinity") != text.npos) {
    quoted = detail::quote_bare_numbers(text);
    text = quoted;
  }
  detail::StrictJsonBuilder builder(name);
  builder.read(text);
  return builder.take();
}

inline Json read_json(const std::filesystem::path& path) {
  return parse_json(detail::read_text(path, json_size_limit), path.string());
}

/// The value at `key` of an object as Index, double, bool, std::string or an enumeration with
/// `from_string`; a `ConfigError` that starts with `name` where it is absent or of another type.
///
/// A double may be given as a number, "Infinity", "-Infinity" or {"__float__": "Infinity"}.
template <class Field>
Field json_field(const Json& object, std::string_view key, std::string_view name) {
  const std::string where = std::string(name) + ": " + std::string(key);
  if (!object.is_object()) {
    throw ConfigError(where + ": got " + detail::excerpt(object) +
                      " around it, expected an object");
  }
  const auto found = object.find(key);
  if (found == object.end()) throw ConfigError(where + " is missing");
  return detail::field_from_json<Field>(*found, where);
}
/// The same, with a value for an absent key.
template <class Field>
Field json_field(const Json& object, std::string_view key, std::string_view name, Field otherwise) {
  if (object.is_object() && !object.contains(key)) return otherwise;
  return json_field<Field>(object, key, name);
}

/// Sets the members of a config from an object; what the object does not name keeps its value.
///
/// A part's config is an object under the part's name, and has the outer `d_model` where it names
/// none. An object that names no part of what it describes gives each of its fields to every part
/// that knows it.
///
/// Throws `ConfigError`, and leaves the config as it was, on an unknown key, on a value of another
/// type and on whatever `check_config` rejects. `name` stands for the object in errors.
template <class Config>
void read_config(const Json& object, Config& config, std::string_view name) {
  Config result = config;
  detail::read_members(object, members_of(result), std::string(name));
  check_config(name, result);
  config = std::move(result);
}
/// The same of a config whose type its layer knows; `config` is at its defaults.
inline void read_config(const Json& object, AnyConfig& config, std::string_view name) {
  AnyConfig result = config;
  detail::read_members(object, result.members(), std::string(name));
  detail::check_members(name, result.members(), config.members());
  config = std::move(result);
}

/// A config as an object that `read_config` reads back to the same numbers; infinities are strings.
template <class Config>
Json write_config(const Config& config) {
  return detail::write_members(members_of(config));
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
