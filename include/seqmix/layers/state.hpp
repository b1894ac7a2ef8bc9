#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "seqmix/core/cache.hpp"
#include "seqmix/core/call.hpp"
#include "seqmix/layers/detail/name.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE

/// The state of a layer that remembers nothing between tokens.
struct NoState {
  static void visit(auto&, auto&&) {}
};

/// The numbers behind a member of a state, whatever its kind.
template <class Member>
auto& state_tensor(Member& member) {
  if constexpr (std::same_as<std::remove_const_t<Member>, Position>) {
    return member.tokens;
  } else if constexpr (requires { member.entries; }) {
    return member.entries;
  } else {
    return member;
  }
}

namespace detail {

/// Its address is the same for one type, and another's for another.
template <class T>
inline constexpr char type_mark = 0;

}  // namespace detail

/// Bytes that lie in runs of one length at one distance.
struct ByteRuns {
  const std::byte* first = nullptr;
  Index count = 0, stride = 0, length = 0;

  Index size() const { return count * length; }
};

/// One member of a state with its type erased; the numbers are row-major, batch first.
struct StateMember {
  /// `fixed`: all of it is remembered. `mark`: of a ring, the most tokens that each row had seen
  /// before some were taken back. `length`: of a source, the entries that each row reads.
  enum class Kind { fixed, appended, ring, source, position, mark, length };

  Kind kind = Kind::fixed;
  std::array<Index, 8> extents{};
  Index rank = 0;
  Index axis = 0;         // of a cache: the one that counts entries
  Index capacity = 0;     // of a cache and what counts it: the entries that there is room for
  Index window = 0;       // of a ring and its mark: the positions that its layer looks back on
  Index number_size = 0;  // bytes of one number
  Storage storage = Storage::native;
  bool integral = false;
  const std::byte* data = nullptr;
  const Index* lengths = nullptr;  // of a source: [B]
  const void* type = nullptr;      // the same for all states of a layer's type

  std::span<const Index> shape() const { return {extents.data(), static_cast<std::size_t>(rank)}; }
  Index extent(Index i) const { return extents[static_cast<std::size_t>(i)]; }
  Index batch() const { return extents.front(); }
  /// Of a number a row: that of `row`.
  Index number(Index row) const {
    Index value = 0;
    std::memcpy(&value, data + row * number_size, sizeof(value));
    return value;
  }
  Index size() const { return product(0, rank); }
  bool is_cache() const {
    return kind == Kind::appended || kind == Kind::ring || kind == Kind::source;
  }

  /// Where the bytes lie that batch row `row` remembers: of a cache so many entries, else
  /// everything.
  ByteRuns runs(Index row, Index entries) const {
    const Index row_bytes = product(1, rank) * number_size;
    const std::byte* const first = data + row * row_bytes;
    if (!is_cache()) return {first, 1, row_bytes, row_bytes};
    const Index entry = product(axis + 1, rank) * number_size;
    return {first, product(1, axis), capacity * entry, std::min(entries, capacity) * entry};
  }
  /// The entries that a row holds which has seen `tokens` tokens and once had seen `reached`: those
  /// that were taken back have taken the place of older ones in a ring.
  Index held(Index row, Index tokens, Index reached) const {
    if (kind == Kind::source) return lengths[row];
    return kind == Kind::ring ? reached : tokens;
  }
  /// Whether the row can go back from `reached` tokens to `tokens`: whether what the layer would
  /// look back on has not been overwritten.
  bool can_go_back(Index reached, Index tokens) const {
    return reached <= capacity || reached - tokens <= capacity - window;
  }

 private:
  Index product(Index from, Index to) const {
    Index result = 1;
    for (Index i = from; i < to; ++i) result *= extent(i);
    return result;
  }
};
struct NamedStateMember : StateMember {
  std::string name;
};

/// What a state holds, for reading: its members in the order in which its `visit` names them. The
/// state must outlive it. Nothing here allocates but texts and `list`.
class ConstStateMembers {
 public:
  ConstStateMembers() = default;
  template <class State>
  requires(!std::derived_from<State, ConstStateMembers>) explicit ConstStateMembers(
      const State& state)
      : state_(&state), visit_(&visit_state<State>), origin_(origin_of(state)) {}

  using Body = FunctionRef<void(const Name&, const StateMember&)>;
  void for_each(Body body) const {
    if (visit_ != nullptr) visit_(state_, body);
  }
  std::vector<NamedStateMember> list() const {
    std::vector<NamedStateMember> result;
    for_each([&](const Name& name, const StateMember& member) {
      result.push_back({member, name.text()});
    });
    return result;
  }
  bool empty() const {
    bool none = true;
    for_each([&](const Name&, const StateMember&) { none = false; });
    return none;
  }
  /// States of one origin have members of the same names and types in the same order: those of one
  /// type, or of one block.
  const void* origin() const { return origin_; }
  /// The rows that all members have.
  Index batch() const {
    Index rows = std::numeric_limits<Index>::max();
    for_each(
        [&](const Name&, const StateMember& member) { rows = std::min(rows, member.batch()); });
    return empty() ? 0 : rows;
  }
  /// The number of tokens that `row` has seen; 0 where the state does not count them. Throws where
  /// what anybody may have written there, or as the length of a source, is none or more than a
  /// cache has room for.
  Index tokens(Index row) const {
    check_row("tokens", row);
    const Index tokens = position_of(row);
    check_tokens("tokens", tokens);
    for_each([&](const Name& name, const StateMember& member) {
      if (member.kind == StateMember::Kind::source) {
        check_length("tokens", name, member.lengths[row], member.capacity);
      }
    });
    return tokens;
  }
  /// The most tokens that `row` has ever seen: more than now where some were taken back.
  Index reached(Index row) const {
    Index most = tokens(row);
    for_each([&](const Name&, const StateMember& member) {
      if (member.kind == StateMember::Kind::mark) most = std::max(most, member.number(row));
    });
    return most;
  }

  /// The bytes that the tokens so far need, and the bytes that are held.
  Index used_bytes() const {
    Index bytes = 0;
    for (Index row = 0; row < batch(); ++row) {
      const Index tokens = position_of(row);
      for_each([&](const Name&, const StateMember& member) {
        bytes += member.runs(row, member.held(row, tokens, tokens)).size();
      });
    }
    return bytes;
  }
  Index reserved_bytes() const {
    Index bytes = 0;
    for_each([&](const Name&, const StateMember& member) {
      bytes += member.size() * member.number_size;
    });
    return bytes;
  }

  /// Throws `ShapeError` unless both states have the same members, batch and capacities aside.
  void check_same_layer(const ConstStateMembers& other) const {
    Index members = 0, others = 0;
    for_each([&](const Name&, const StateMember&) { ++members; });
    other.for_each([&](const Name&, const StateMember&) { ++others; });
    bool same = members == others && (origin_ == other.origin_ || names() == other.names());
    if (same) {
      for_each_pair(other, [&](const Name&, const StateMember& a, const StateMember& b) {
        same = same && a.type == b.type && a.kind == b.kind && a.storage == b.storage &&
               a.rank == b.rank && a.axis == b.axis && a.window == b.window;
        for (Index i = 1; same && i < a.rank; ++i) {
          const bool has_capacity =
              a.kind == StateMember::Kind::appended || a.kind == StateMember::Kind::source;
          const bool is_capacity = has_capacity && i == a.axis;
          same = is_capacity || a.extent(i) == b.extent(i);
        }
      });
    }
    if (!same) {
      throw ShapeError("state of another layer or storage: got " + other.text() + ", expected " +
                       text());
    }
  }
  /// Throws `ShapeError` unless there is such a batch row; a state without members has any.
  void check_row(std::string_view verb, Index row) const {
    if ((row >= 0 && row < batch()) || empty()) return;
    throw ShapeError(std::string(verb) + ": row is " + std::to_string(row) + ", expected one of " +
                     std::to_string(batch()));
  }

  /// Throws `ShapeError` on a number of tokens that no row has seen, and `CapacityError` where a
  /// cache has no room for them.
  void check_tokens(std::string_view verb, Index tokens) const {
    if (tokens < 0 || tokens > max_tokens) {
      throw ShapeError(std::string(verb) + ": got " + std::to_string(tokens) +
                       " tokens, expected 0 to " + std::to_string(max_tokens));
    }
    for_each([&](const Name& name, const StateMember& member) {
      if (member.kind != StateMember::Kind::appended || tokens <= member.capacity) return;
      throw CapacityError(std::string(verb) + ": state " + name.text() + ": a row of " +
                          std::to_string(tokens) + " tokens does not fit in a capacity of " +
                          std::to_string(member.capacity));
    });
  }

  std::string text() const {
    std::string result = "{";
    for_each([&](const Name& name, const StateMember& member) {
      if (result.size() > 1) result += ", ";
      result += name.text() + " " + text_of_extents(member.shape());
      if (member.storage != Storage::native) {
        result.append(" ").append(to_string(member.storage));
      } else if (!member.integral) {
        result.append(member.number_size == 4 ? " float" : " double");
      }
      if (member.kind == StateMember::Kind::ring) {
        result.append(" with a window of ").append(std::to_string(member.window));
      }
    });
    return result + "}";
  }

 protected:
  static void check_length(std::string_view verb, const Name& name, Index length, Index capacity) {
    if (length >= 0 && length <= capacity) return;
    throw CapacityError(std::string(verb) + ": state " + name.text() + ": a source of " +
                        std::to_string(length) + " tokens does not fit in a capacity of " +
                        std::to_string(capacity));
  }
  /// Calls `body(name, member, other member)` for the members of two states side by side.
  void for_each_pair(const ConstStateMembers& other, auto&& body) const {
    std::array<StateMember, 32> others;  // as many at a time
    const auto stretch = static_cast<Index>(others.size());
    for (Index first = 0, found = stretch; found == stretch; first += stretch) {
      Index at = found = 0;
      other.for_each([&](const Name&, const StateMember& member) {
        if (at++ >= first && found < stretch) others[static_cast<std::size_t>(found++)] = member;
      });
      at = 0;
      for_each([&](const Name& name, const StateMember& member) {
        const Index i = at++ - first;
        if (i >= 0 && i < found) body(name, member, others[static_cast<std::size_t>(i)]);
      });
    }
  }
  Index position_of(Index row) const {
    Index tokens = 0;
    for_each([&](const Name&, const StateMember& member) {
      if (member.kind == StateMember::Kind::position) tokens = member.number(row);
    });
    return tokens;
  }

 private:
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for_each([&](const Name& name, const StateMember&) { result.push_back(name.text()); });
    return result;
  }

  template <class State>
  static const void* origin_of(const State& state) {
    if constexpr (requires { state.origin(); }) {
      return state.origin();
    } else {
      return &detail::type_mark<State>;
    }
  }
  template <class State>
  static void visit_state(const void* state, Body body) {
    State::visit(*static_cast<const State*>(state),
                 [&]<class Member>(const Name& name, const Member& member) {
                   if constexpr (std::same_as<Member, StateMember>) {
                     body(name, member);  // of a part, described already
                   } else {
                     describe(name, member, {.type = &detail::type_mark<State>}, body);
                   }
                 });
  }
  template <class Member>
  static void describe(const Name& name, const Member& member, StateMember described, Body body) {
    using Kind = StateMember::Kind;
    if constexpr (std::same_as<Member, Position>) {
      described.kind = Kind::position;
    } else if constexpr (requires { member.reached; }) {
      described.kind = Kind::ring, described.axis = Member::ring_axis;
      described.capacity = member.rows();
      described.window = member.window;
    } else if constexpr (requires { member.length; }) {
      described.kind = Kind::source, described.axis = Member::source_axis;
      described.capacity = member.capacity();
      described.lengths = member.length.data();
    } else if constexpr (requires { Member::axis; }) {
      described.kind = Kind::appended, described.axis = Member::axis;
      described.capacity = member.capacity();
    }
    const auto& numbers = state_tensor(member);
    if constexpr (requires { numbers.storage(); }) {
      describe_cache(name, described, numbers, body);
    } else {
      body(name, of_tensor(described, numbers));
    }
    if constexpr (requires { member.reached; }) {
      described.kind = Kind::mark, described.axis = 0;
      const Name mark("reached");
      body(mark.within(name), of_tensor(described, member.reached));
    }
    if constexpr (requires { member.length; }) {
      described.kind = Kind::length, described.axis = 0;
      const Name length("length");
      body(length.within(name), of_tensor(described, member.length));
    }
  }
  template <class T, Index Rank>
  static StateMember of_tensor(StateMember member, const Tensor<T, Rank>& tensor) {
    static_assert(Rank <= static_cast<Index>(std::tuple_size_v<decltype(member.extents)>));
    std::copy_n(tensor.shape().extents.begin(), Rank, member.extents.begin());
    member.rank = Rank;
    member.number_size = static_cast<Index>(sizeof(T));
    member.integral = std::integral<T>;
    member.data = reinterpret_cast<const std::byte*>(tensor.data());
    return member;
  }
  /// The numbers of a cache, then, of 8-bit ones, the scales as a member of their own.
  template <class Scalar, Index Rank>
  static void describe_cache(const Name& name, const StateMember& described,
                             const Cache<Scalar, Rank>& cache, Body body) {
    StateMember numbers = of_tensor(described, cache.bytes());
    numbers.extents[Rank - 1] = cache.extent(Rank - 1);
    numbers.number_size = number_size<Scalar>(cache.storage());
    numbers.storage = cache.storage();
    body(name, numbers);
    if (cache.storage() != Storage::int8) return;
    StateMember scales = of_tensor(described, cache.scales());
    scales.rank = Rank - 1;
    scales.storage = Storage::bf16;
    const Name suffix("scales");
    body(suffix.within(name), scales);
  }

  const void* state_ = nullptr;
  void (*visit_)(const void*, Body) = nullptr;
  const void* origin_ = nullptr;
};

/// The same of a state that may be changed. Nothing here allocates unless it throws.
class StateMembers : public ConstStateMembers {
 public:
  StateMembers() = default;
  template <class State>
  requires(!std::is_const_v<State> &&
           !std::derived_from<State, ConstStateMembers>) explicit StateMembers(State& state)
      : ConstStateMembers(state) {}

  /// Says that `row` has seen `value` tokens; that the entries are theirs is the caller's word.
  void set_tokens(Index row, Index value) const {
    check_row("set_tokens", row);
    check_tokens("set_tokens", value);
    for_each([&](const Name&, const StateMember& member) {
      if (member.kind == StateMember::Kind::position) set_number(member, row, value);
      if (member.kind == StateMember::Kind::mark) set_number(member, row, 0);
    });
  }

  /// Makes `row` one that reads no source.
  void clear_source(Index row) const {
    check_row("read", row);
    for_each([&](const Name&, const StateMember& member) {
      if (member.kind == StateMember::Kind::length) set_number(member, row, 0);
    });
  }

  /// Makes `row` one that has seen no token, reads nothing and whose other numbers are zeros.
  void clear_row(Index row) const {
    check_row("reset", row);
    for_each([&](const Name&, const StateMember& member) {
      const ByteRuns all = member.runs(row, 0);  // of a cache none: its position says so
      if (all.length > 0) std::memset(writable(all), 0, static_cast<std::size_t>(all.length));
    });
  }

  /// Takes back the last tokens of `row`, so that it has seen `tokens`. Only what keeps its past
  /// entry by entry can do so: a state with any other member throws, and a ring that has
  /// overwritten what its layer would look back on. Then go back to a copy instead. What the row
  /// reads is no token's: it stays.
  void rewind(Index row, Index tokens) const {
    check_row("rewind", row);
    const Index seen = position_of(row);
    bool counts = false;
    for_each([&](const Name& name, const StateMember& member) {
      counts = counts || member.kind == StateMember::Kind::position;
      if (member.kind == StateMember::Kind::fixed) {
        throw ShapeError("rewind: state " + name.text() +
                         " does not keep its past; go back to a copy of the row");
      }
    });
    if (!counts) throw ShapeError("rewind: the state does not count tokens");
    if (tokens < 0 || tokens > seen) {
      throw ShapeError("rewind: row " + std::to_string(row) + " has seen " + std::to_string(seen) +
                       " tokens, it cannot go back to " + std::to_string(tokens));
    }
    for_each([&](const Name& name, const StateMember& member) {
      if (member.kind != StateMember::Kind::mark) return;
      const Index reached = std::max(seen, member.number(row));
      if (member.can_go_back(reached, tokens)) return;
      throw CapacityError("rewind: state " + name.text() + " is " + std::to_string(reached) +
                          " tokens in row " + std::to_string(row) + ", it can go back to " +
                          std::to_string(reached - (member.capacity - member.window)) +
                          ", not to " + std::to_string(tokens));
    });
    for_each([&](const Name&, const StateMember& member) {
      if (member.kind == StateMember::Kind::position) set_number(member, row, tokens);
      if (member.kind == StateMember::Kind::mark) {
        set_number(member, row, std::max(seen, member.number(row)));
      }
    });
  }

  /// Copies batch row `from_row` of `from` to `to_row` of this state; capacities may differ.
  void copy_row(const ConstStateMembers& from, Index from_row, Index to_row) const {
    check_same_layer(from);
    from.check_row("copy_row: source", from_row);
    check_row("copy_row: target", to_row);
    const Index tokens = from.tokens(from_row), reached = from.reached(from_row);
    check_tokens("copy_row", tokens);
    for_each_pair(from, [&](const Name& name, const StateMember& to, const StateMember& other) {
      if (other.kind != StateMember::Kind::source) return;
      check_length("copy_row", name, other.lengths[from_row], to.capacity);
    });
    for_each_pair(from, [&](const Name&, const StateMember& to, const StateMember& other) {
      const Index held = other.held(from_row, tokens, reached);
      const ByteRuns bytes = other.runs(from_row, held);
      for (Index i = 0; i < bytes.count; ++i) {
        write_run(to.runs(to_row, held), i, bytes.first + i * bytes.stride);
      }
    });
  }

  /// Fills what `row` remembers in one member, of a cache so many entries, from bytes behind each
  /// other.
  void fill_row(const StateMember& member, Index row, Index entries, const std::byte* bytes) const {
    const ByteRuns runs = member.runs(row, entries);
    for (Index i = 0; i < runs.count; ++i) write_run(runs, i, bytes + i * runs.length);
  }

 private:
  // The state of this class is one that may be changed: see its constructor.
  static std::byte* writable(const ByteRuns& runs) { return const_cast<std::byte*>(runs.first); }
  static void write_run(const ByteRuns& to, Index i, const std::byte* bytes) {
    if (to.length == 0) return;
    std::memmove(writable(to) + i * to.stride, bytes, static_cast<std::size_t>(to.length));
  }
  static void set_number(const StateMember& member, Index row, Index value) {
    write_run(member.runs(row, 0), 0, reinterpret_cast<const std::byte*>(&value));
  }
};

SEQMIX_END_NAMESPACE
}  // namespace seqmix
