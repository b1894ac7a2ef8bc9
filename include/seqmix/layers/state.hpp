#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/layers/name.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The state of a layer that remembers nothing between tokens.
struct NoState {
  static void visit(auto&, auto&&) {}
};

/// The numbers behind a member of a state, whatever its kind.
template <class Member>
auto& state_tensor(Member& member) {
  if constexpr (std::same_as<Member, Position>) {
    return member.tokens;
  } else if constexpr (requires { member.entries; }) {
    return member.entries;
  } else {
    return member;
  }
}

/// One member of a state with its type erased; the numbers are row-major, batch first.
struct StateMember {
  enum class Kind { fixed, appended, ring, position };

  std::string name;
  Kind kind = Kind::fixed;
  std::vector<Index> shape;
  Index axis = 0;         // of an appended member or a ring: the one that counts tokens
  Index window = 0;       // of a ring: the positions that its layer looks back on
  Index number_size = 0;  // bytes of one number
  Storage storage = Storage::native;
  bool integral = false;
  std::byte* data = nullptr;

  Index size() const {
    Index product = 1;
    for (const Index extent : shape) product *= extent;
    return product;
  }
  Index capacity() const { return shape[static_cast<std::size_t>(axis)]; }

  /// Calls `body(first byte, bytes)` for each run of bytes that holds what batch row `row`
  /// remembers of `tokens` tokens, in order: of a cache the entries that are there, else
  /// everything.
  void for_each_run(Index row, Index tokens, auto&& body) const {
    const Index row_bytes = shape[0] == 0 ? 0 : size() / shape[0] * number_size;
    std::byte* first = data + row * row_bytes;
    if (kind != Kind::appended && kind != Kind::ring) {
      if (row_bytes > 0) body(first, row_bytes);
      return;
    }
    if (kind == Kind::ring) tokens = std::min(tokens, capacity());
    Index outer = 1, inner = number_size;
    for (Index i = 1; i < axis; ++i) outer *= shape[static_cast<std::size_t>(i)];
    for (std::size_t i = static_cast<std::size_t>(axis) + 1; i < shape.size(); ++i) {
      inner *= shape[i];
    }
    for (Index i = 0; i < outer && tokens > 0; ++i) {
      body(first + i * capacity() * inner, tokens * inner);
    }
  }
};

/// The members of a state, in the order in which its `visit` names them.
class StateMembers {
 public:
  template <class State>
  requires(!std::is_const_v<State>) explicit StateMembers(State& state) {
    State::visit(state, [&]<class Member>(const Name& name, Member& member) {
      using Kind = StateMember::Kind;
      StateMember described;
      described.name = name.text();
      if constexpr (requires { Member::axis; }) {
        described.kind = Kind::appended, described.axis = Member::axis;
      } else if constexpr (requires { Member::ring_axis; }) {
        described.kind = Kind::ring, described.axis = Member::ring_axis;
        described.window = member.window;
      } else if constexpr (std::same_as<Member, Position>) {
        described.kind = Kind::position;
      }
      add(std::move(described), state_tensor(member));
    });
  }
  StateMembers() = default;

  const std::vector<StateMember>& list() const& { return list_; }
  std::vector<StateMember> list() && { return std::move(list_); }
  Index batch() const { return list_.empty() ? 0 : list_.front().shape.front(); }
  /// The number of tokens that `row` has seen; 0 where the state does not count them.
  Index tokens(Index row) const {
    const StateMember* position = find_position();
    if (position == nullptr) return 0;
    Index value = 0;
    std::memcpy(&value, position->data + row * position->number_size, sizeof(value));
    return value;
  }
  void set_tokens(Index row, Index value) const {
    for (const StateMember& member : list_) {
      if (member.kind != StateMember::Kind::position) continue;
      std::memcpy(member.data + row * member.number_size, &value, sizeof(value));
    }
  }

  /// Takes back the last tokens of `row`, so that it has seen `tokens`. Only what keeps its past
  /// entry by entry can do so: a state with any other member throws, and a ring that has
  /// overwritten what its layer would look back on. Then go back to a copy instead.
  void rewind(Index row, Index tokens) const {
    check_row("rewound", *this, row);
    const Index seen = this->tokens(row), back = seen - tokens;
    if (find_position() == nullptr || back < 0 || tokens < 0) {
      throw ShapeError("rewind: row " + std::to_string(row) + " has seen " + std::to_string(seen) +
                       " tokens, it cannot go back to " + std::to_string(tokens));
    }
    for (const StateMember& member : list_) {
      if (member.kind == StateMember::Kind::fixed) {
        throw ShapeError("rewind: state " + member.name + " does not keep its past; copy the row");
      }
      if (member.kind == StateMember::Kind::ring && seen > member.capacity() &&
          back > member.capacity() - member.window) {
        throw CapacityError("rewind: state " + member.name + " can take back " +
                            std::to_string(member.capacity() - member.window) + " tokens, not " +
                            std::to_string(back));
      }
    }
    set_tokens(row, tokens);
  }

  /// The bytes that the tokens so far need, and the bytes that are held.
  Index used_bytes() const {
    Index bytes = 0;
    for (const StateMember& member : list_) {
      for (Index row = 0; row < batch(); ++row) {
        member.for_each_run(row, tokens(row), [&](std::byte*, Index run) { bytes += run; });
      }
    }
    return bytes;
  }
  Index reserved_bytes() const {
    Index bytes = 0;
    for (const StateMember& member : list_) bytes += member.size() * member.number_size;
    return bytes;
  }

  /// Copies batch row `from_row` of `from` to `to_row` of this state; capacities may differ.
  void copy_row(const StateMembers& from, Index from_row, Index to_row) const {
    check_same_layer(from);
    if (list_.empty()) return;
    check_row("source", from, from_row);
    check_row("target", *this, to_row);
    const Index tokens = from.tokens(from_row);
    for (const StateMember& member : list_) {
      if (member.kind == StateMember::Kind::appended && tokens > member.capacity()) {
        throw CapacityError("state " + member.name + ": a row of " + std::to_string(tokens) +
                            " tokens does not fit in a capacity of " +
                            std::to_string(member.capacity()));
      }
    }
    for (std::size_t i = 0; i < list_.size(); ++i) {
      std::vector<std::byte*> targets;
      list_[i].for_each_run(to_row, tokens, [&](std::byte* run, Index) { targets.push_back(run); });
      std::size_t next = 0;
      from.list_[i].for_each_run(from_row, tokens, [&](std::byte* run, Index bytes) {
        std::memmove(targets[next++], run, static_cast<std::size_t>(bytes));
      });
    }
  }

  /// Throws `ShapeError` unless both states have the same members, batch and capacities aside.
  void check_same_layer(const StateMembers& other) const {
    bool same = list_.size() == other.list_.size();
    for (std::size_t i = 0; same && i < list_.size(); ++i) {
      const StateMember &a = list_[i], &b = other.list_[i];
      same = a.name == b.name && a.kind == b.kind && a.number_size == b.number_size &&
             a.storage == b.storage && a.shape.size() == b.shape.size() && a.axis == b.axis;
      for (std::size_t axis = 1; same && axis < a.shape.size(); ++axis) {
        same = a.shape[axis] == b.shape[axis] ||
               (a.kind == StateMember::Kind::appended && static_cast<Index>(axis) == a.axis);
      }
    }
    if (!same) {
      throw ShapeError("state of another layer or storage: got " + other.text() + ", expected " +
                       text());
    }
  }

  std::string text() const {
    std::string result = "{";
    for (const StateMember& member : list_) {
      if (result.size() > 1) result += ", ";
      result += member.name + " " + text_of_extents(member.shape);
      if (member.storage != Storage::native) {
        result.append(" ").append(to_string(member.storage));
      }
    }
    return result + "}";
  }

 private:
  template <class T, Index Rank>
  void add(StateMember member, Tensor<T, Rank>& tensor) {
    const auto& extents = tensor.shape().extents;
    member.shape.assign(extents.begin(), extents.end());
    member.number_size = static_cast<Index>(sizeof(T));
    member.integral = std::integral<T>;
    member.data = reinterpret_cast<std::byte*>(tensor.data());
    list_.push_back(std::move(member));
  }
  /// The numbers of a cache, then, of 8-bit ones, the scales as a member of their own.
  template <class Scalar, Index Rank>
  void add(StateMember member, Cache<Scalar, Rank>& cache) {
    StateMember scales = member;
    add(std::move(member), cache.bytes());
    list_.back().shape.back() = cache.extent(Rank - 1);
    list_.back().number_size = number_size<Scalar>(cache.storage());
    list_.back().storage = cache.storage();
    if (cache.storage() != Storage::int8) return;
    scales.name += ".scales";
    scales.storage = Storage::bf16;
    add(std::move(scales), cache.scales());
    list_.back().shape.pop_back();
  }
  const StateMember* find_position() const {
    for (const StateMember& member : list_) {
      if (member.kind == StateMember::Kind::position) return &member;
    }
    return nullptr;
  }
  static void check_row(std::string_view which, const StateMembers& state, Index row) {
    if (row < 0 || row >= state.batch()) {
      throw ShapeError("copy_row: " + std::string(which) + " row is " + std::to_string(row) +
                       ", expected one of " + std::to_string(state.batch()));
    }
  }

  std::vector<StateMember> list_;
};
SEQMIX_END_NAMESPACE
}  // namespace seqmix
