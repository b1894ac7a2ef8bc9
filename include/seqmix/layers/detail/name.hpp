#pragma once

#include <string>
#include <string_view>

#include "seqmix/core/view.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The name of a parameter or of a state's member, joined only when it is read, so that visiting
/// allocates nothing.
class Name {
 public:
  constexpr Name(const char* text) : text_(text) {}
  constexpr Name(std::string_view text) : text_(text) {}
  /// `list.number.text`: a parameter of one part of a list; `list.number`: the part.
  constexpr Name(std::string_view list, Index number, std::string_view text = {})
      : list_(list), number_(number), text_(text) {}

  /// This name as seen from a parent that calls the part `prefix`. Both names must outlive it.
  constexpr Name within(const Name& prefix) const {
    Name result("");
    result.prefix_ = &prefix, result.inner_ = this;
    return result;
  }
  std::string text() const {
    if (inner_ != nullptr) return prefix_->text() + "." + inner_->text();
    std::string result;
    if (!list_.empty()) {
      result.append(list_).append(".").append(std::to_string(number_));
      if (!text_.empty()) result.append(".");
    }
    return result.append(text_);
  }

 private:
  const Name* prefix_ = nullptr;
  const Name* inner_ = nullptr;
  std::string_view list_;
  Index number_ = 0;
  std::string_view text_;
};

/// A visitor as it is handed to the part called `prefix`: the part's names grow by the prefix.
template <class Visitor>
class Prefixed {
 public:
  Prefixed(const Name& prefix, Visitor& visitor) : prefix_(prefix), visitor_(visitor) {}

  /// A parameter, its expected shape and what else its declaration says.
  template <class P>
  void operator()(const Name& name, P& parameter, Shape<P::rank> shape, auto... tags) const {
    visitor_(name.within(prefix_), parameter, shape, tags...);
  }
  /// A member of a state.
  template <class Member>
  void operator()(const Name& name, Member& member) const {
    visitor_(name.within(prefix_), member);
  }

 private:
  Name prefix_;
  Visitor& visitor_;
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
