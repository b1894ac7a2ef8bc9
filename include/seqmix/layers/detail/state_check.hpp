#pragma once

#include <span>
#include <string>
#include <string_view>

#include "seqmix/layers/detail/checks.hpp"
#include "seqmix/layers/state.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

/// A state that anybody may have made or written to, beside what a layer makes. Nothing allocates
/// unless it throws, or the state is of another block.
class StateCheck {
 public:
  using Coming = FunctionRef<Index(Index row)>;  // the tokens of a row that are about to come

  StateCheck(std::string_view layer, const ConstStateMembers& state)
      : layer_(layer), state_(state) {}

  /// The members in their order: how many there are, their extents, batch aside, the storages of
  /// caches and the windows of rings.
  void check_members(Index batch, const void* origin,
                     std::span<const NamedStateMember> expected) const {
    const bool same_names = state_.origin() == origin;
    state_.for_each([&](const Name& name, const StateMember& member) {
      if (expected.empty() || member.kind != expected.front().kind) {
        throw ShapeError(of_member(name) +
                         " is none of its members; the state is one of another config");
      }
      const NamedStateMember& wanted = expected.front();
      if (member.type != wanted.type || !(same_names || name.text() == wanted.name)) {
        throw ShapeError(std::string(layer_) + ": got the state of another layer");
      }
      check_extents(name, member, wanted, batch);
      if (member.storage != wanted.storage) {
        throw ShapeError(of_member(name) + " is stored as " +
                         std::string(to_string(member.storage)) + ", expected " +
                         std::string(to_string(wanted.storage)));
      }
      if (member.window != wanted.window) {
        throw ShapeError(of_member(name) + " has a window of " + std::to_string(member.window) +
                         ", expected " + std::to_string(wanted.window));
      }
      expected = expected.subspan(1);
    });
    if (expected.empty()) return;
    throw ShapeError(std::string(layer_) +
                     ": the state lacks members, as one of another config does");
  }

  /// What the rows have seen, what they read and the room for what comes.
  void check_tokens(Index batch, const PositionLimit& limit, Coming coming) const {
    Index past = 0, next = 0;  // of the row that will be longest
    state_.for_each([&](const Name& name, const StateMember& member) {
      for (Index row = 0; row < batch && member.kind == StateMember::Kind::position; ++row) {
        const Index seen = member.number(row), more = coming(row);
        check_position(name, row, seen, more);
        if (seen + more > past + next) past = seen, next = more;
      }
    });
    check_source([&](const StateMember& member, Index row) { return member.lengths[row]; }, batch);
    limit.check(layer_, past, next);
    state_.for_each([&](const Name& name, const StateMember& member) {
      if (member.kind != StateMember::Kind::appended || past + next <= member.capacity) return;
      throw CapacityError(of_member(name) + " holds " + std::to_string(past) + " tokens, " +
                          std::to_string(next) + " more do not fit in its capacity of " +
                          std::to_string(member.capacity) + "; grow the state");
    });
  }

  /// The room for the sources of `coming` tokens.
  void check_room_for_sources(Index batch, Coming coming) const {
    check_source([&](const StateMember&, Index row) { return coming(row); }, batch);
  }

 private:
  std::string of_member(const Name& name) const {
    return std::string(layer_) + ": state " + name.text();
  }
  void check_extents(const Name& name, const StateMember& member, const StateMember& wanted,
                     Index batch) const {
    const bool may_grow =
        member.kind == StateMember::Kind::appended || member.kind == StateMember::Kind::source;
    for (Index axis = 0; axis < member.rank; ++axis) {
      const Index extent = axis == 0 ? batch : wanted.extent(axis);
      if (member.extent(axis) == extent || (may_grow && axis > 0 && axis == member.axis)) continue;
      throw ShapeError(of_member(name) + " has shape " + text_of_extents(member.shape()) +
                       ", expected " + std::to_string(extent) + " on axis " + std::to_string(axis));
    }
  }
  void check_position(const Name& name, Index row, Index past, Index coming) const {
    if (past >= 0 && past <= max_tokens && coming <= max_tokens - past) return;
    throw CapacityError(of_member(name) + " of row " + std::to_string(row) + " is " +
                        std::to_string(past) + " and " + std::to_string(coming) +
                        " tokens are to come, expected 0 to " + std::to_string(max_tokens) +
                        " in all");
  }
  void check_source(auto&& length_of, Index batch) const {
    state_.for_each([&](const Name& name, const StateMember& member) {
      for (Index row = 0; row < batch && member.kind == StateMember::Kind::source; ++row) {
        const Index length = length_of(member, row);
        if (length >= 0 && length <= member.capacity) continue;
        throw CapacityError(of_member(name) + ": a source of " + std::to_string(length) +
                            " tokens for row " + std::to_string(row) +
                            " does not fit in a capacity of " + std::to_string(member.capacity));
      }
    });
  }

  std::string_view layer_;
  ConstStateMembers state_;
};

}  // namespace detail
SEQMIX_END_NAMESPACE
}  // namespace seqmix
