#pragma once

#include <cmath>
#include <concepts>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "seqmix/core/error.hpp"
#include "seqmix/core/numeric.hpp"

// What the fields of a config may hold; what its parts are, see `PartConfig`. A config says it
// where it lists them, and `check_config` reads it:
//
//   field("n_heads", self.n_heads);                  a size: positive
//   field("n_sinks", self.n_sinks, zero_is_legal);   a size that may be 0
//   field("seed", self.seed, unbounded);             an integer that is no size
//   field("norm_eps", self.norm_eps, at_least(0),    a floating field must say its range
//         only_where(self.norm, "norm is true"));    and any field when it is read at all

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The largest size that a config may have. Products of two sizes, a few of them added up, fit in
/// `Index`, so that widths and shapes are computed without a check.
inline constexpr Index largest_size = Index{1} << 30;

/// Says that a size of a config may be zero; every other size must be positive.
struct ZeroIsLegal {};
inline constexpr ZeroIsLegal zero_is_legal;

/// Says that an integer of a config is no size: nothing is multiplied by it.
struct Unbounded {};
inline constexpr Unbounded unbounded;

/// The values of a floating field; NaN is never one of them. A config does not know the type that
/// its layer computes with: what is finite or positive is so in float.
struct Range {
  static constexpr double smallest = std::numeric_limits<float>::min();
  static constexpr double largest = std::numeric_limits<float>::max();
  static constexpr double infinity = std::numeric_limits<double>::infinity();

  double least = -largest, most = largest;
  bool zero = false;  // whether 0 is legal besides

  constexpr bool has(double value) const {
    return (value >= least && value <= most) || (zero && value == 0);
  }
  constexpr Range or_zero() const { return {least, most, true}; }
  constexpr Range or_infinity() const { return {least, infinity, zero}; }

  /// "at least 0 and finite in float": what is expected.
  std::string text() const {
    std::ostringstream result;
    if (zero) result << "0, or ";
    if (least == smallest) {
      result << "positive";
    } else if (least > -largest) {
      result << "at least " << least;
    }
    if (most == infinity) {
      result << (least < -largest ? "a number" : "");
    } else {
      result << (least > -largest ? " and " : "") << "finite in float";
    }
    return result.str();
  }
};
inline constexpr Range is_finite, is_positive{Range::smallest, Range::largest};
inline constexpr Range is_number{-Range::infinity, Range::infinity};
constexpr Range at_least(double least) { return {least, Range::largest}; }

/// Says when a field of a config is read at all; elsewhere it must keep its default, as nothing
/// that is asked for is ignored.
struct OnlyWhere {
  bool holds = true;
  std::string_view condition;  // in words, from the field that decides
};
constexpr OnlyWhere only_where(bool holds, std::string_view condition) {
  return {holds, condition};
}

/// Something that a config asks for and not everything goes with.
struct Demand {
  bool made;
  std::string_view field;           // that makes it
  std::string_view otherwise = {};  // what the field is where it does not

  /// Throws if it is made where there is no `what`.
  void needs(std::string_view what) const {
    if (made) throw ConfigError(std::string(field).append(" needs ").append(what));
  }
  void excludes(std::initializer_list<Demand> others) const {
    for (const Demand& other : others) {
      if (other.made) needs(other.otherwise);
    }
  }
};

/// The key of a field in a flat file, where the fields of all parts stand side by side and another
/// name says what is meant. One key may be that of several fields; `or_own`: the field's own one
/// speaks for it alone. One that is the name of an enumeration's value is a flag there: true is
/// that value.
struct FlatKey {
  std::string_view key;
  bool own = false;

  constexpr FlatKey or_own() const { return {key, true}; }
};
constexpr FlatKey flat_key(std::string_view key) { return {key}; }

/// A field that is a list: its tags are of each number.
template <class Field>
concept FieldList =
    std::same_as<Field, std::vector<double>> || std::same_as<Field, std::vector<Index>>;

/// A value of a field as an error shows it.
template <class Field>
SEQMIX_COLD std::string text_of_field(const Field& value) {
  std::ostringstream text;
  if constexpr (std::is_enum_v<Field>) {
    text << to_string(value);
  } else if constexpr (FieldList<Field>) {
    const char* before = "[";
    for (const auto number : value) text << before << number, before = ", ";
    text << (value.empty() ? "[]" : "]");
  } else {
    text << std::boolalpha << value;
  }
  return text.str();
}

/// Throws `ConfigError` unless the range has the value of `field`.
inline void check_range(std::string_view who, std::string_view field, double value,
                        const Range& range) {
  if (range.has(value)) return;
  throw ConfigError(std::string(who) + ": " + std::string(field) + " is " +
                    (std::isnan(value) ? "NaN" : text_of_field(value)) + ", expected " +
                    range.text());
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
