#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/io/safetensors.hpp"
#include "seqmix/layers/state.hpp"

// A state file is a safetensors file with one tensor a member and batch row, `<member>.<row>`,
// without the batch axis; of a cache it holds the valid entries only, as they are stored (of a ring
// those that tokens wrote which were taken back, too), the scales of 8-bit ones as
// `<member>.scales.<row>` and the number of those of a source as `<member>.length.<row>`. Metadata:
// `format`, `rows`.

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace detail {

inline constexpr std::string_view state_format = "seqmix state 1";

inline DType state_dtype(const StateMember& member) {
  if (member.integral) return DType::i64;
  if (member.storage == Storage::bf16) return DType::bf16;
  if (member.storage == Storage::f16) return DType::f16;
  if (member.storage == Storage::int8) return DType::i8;
  return member.number_size == 4 ? DType::f32 : DType::f64;
}

/// The shape that a row of a member has in a file, a cache with so many entries.
inline std::vector<Index> row_shape(const StateMember& member, Index entries) {
  const auto row = member.shape().subspan(1);
  std::vector<Index> shape(row.begin(), row.end());
  if (member.is_cache()) {
    const bool is_ring = member.kind == StateMember::Kind::ring;
    shape[static_cast<std::size_t>(member.axis - 1)] =
        is_ring ? std::min(entries, member.capacity) : entries;
  }
  return shape;
}

/// A state file beside the state that it is to fill.
class StateFile {
 public:
  StateFile(const std::filesystem::path& path, const StateMembers& state, HeaderLimit limit)
      : file_(Safetensors::open(path, FileAccess::read, limit)), state_(state) {
    expect_metadata("format", std::string(state_format));
    expect_metadata("rows", std::to_string(state.batch()));
    read_positions();
    for_each_tensor([&](const NamedStateMember& member, Index row, const StoredTensor& tensor) {
      check_tensor(member, row, tensor);
    });
    file_.expect_no_others(known_);
    // All are read before the first is written: a file that ends too early leaves the state alone.
    for_each_tensor([&](const NamedStateMember& member, Index row, const StoredTensor& tensor) {
      loaded_.push_back({tensor.bytes.load(), held_by(member, row)});
    });
  }
  void fill() {
    const Index none = 0;
    for (const NamedStateMember& member : members_) {
      for (Index row = 0; row < member.batch() && member.kind == StateMember::Kind::mark; ++row) {
        state_.fill_row(member, row, 0, reinterpret_cast<const std::byte*>(&none));
      }
    }
    auto next = loaded_.begin();
    for_each_tensor([&](const NamedStateMember& member, Index row, const StoredTensor&) {
      state_.fill_row(member, row, next->entries, next->bytes.data());
      ++next;
    });
  }

 private:
  void expect_metadata(const std::string& key, const std::string& expected) const {
    const auto found = file_.metadata().find(key);
    const std::string got = found == file_.metadata().end() ? "nothing" : found->second;
    if (got == expected) return;
    throw CheckpointError(file_.source() + ": metadata " + key + " is " + got + ", expected " +
                          expected);
  }
  /// What the file says of a row.
  struct Tokens {
    Index seen = 0, reached = 0;
  };
  Tokens& tokens_of(Index row) { return tokens_[static_cast<std::size_t>(row)]; }
  /// The entries of a row of one of `members_`; of a source the next member that is one counts
  /// them.
  Index held_by(const NamedStateMember& member, Index row) {
    const Tokens& tokens = tokens_of(row);
    if (member.kind != StateMember::Kind::source) {
      return member.held(row, tokens.seen, tokens.reached);
    }
    const NamedStateMember* length = &member;
    while (length->kind != StateMember::Kind::length) ++length;
    return count_of(file_.entry(length->name + "." + std::to_string(row)));
  }
  /// Calls `body(member, row, tensor)`; a file from before rings had marks has none of them.
  void for_each_tensor(auto&& body) {
    for (const NamedStateMember& member : members_) {
      for (Index row = 0; row < member.batch(); ++row) {
        const std::string name = member.name + "." + std::to_string(row);
        if (member.kind == StateMember::Kind::mark && !file_.contains(name)) continue;
        body(member, row, file_.entry(name));
      }
    }
  }
  /// The one integer of a tensor that counts tokens.
  static Index count_of(const StoredTensor& tensor) {
    if (tensor.dtype != DType::i64 || !tensor.shape.empty()) {
      tensor.fail("not a position", shape_text(tensor.shape), "one I64 number");
    }
    check_counts(tensor);
    return static_cast<Index>(tensor.integers()[0]);
  }
  static void check_counts(const StoredTensor& tensor) {
    const auto numbers = tensor.integers();
    for (Index i = 0; i < numbers.size(); ++i) {
      if (numbers[i] >= 0 && numbers[i] <= max_tokens) continue;
      tensor.fail("not a count of tokens", std::to_string(numbers[i]),
                  "0 to " + std::to_string(max_tokens));
    }
  }
  void read_positions() {
    for_each_tensor([&](const NamedStateMember& member, Index row, const StoredTensor& tensor) {
      if (member.kind == StateMember::Kind::position) tokens_of(row).seen = count_of(tensor);
      if (member.kind == StateMember::Kind::position || member.kind == StateMember::Kind::mark) {
        tokens_of(row).reached = std::max(tokens_of(row).reached, count_of(tensor));
      }
    });
  }
  void check_tensor(const NamedStateMember& member, Index row, const StoredTensor& tensor) {
    using Kind = StateMember::Kind;
    const Index seen = tokens_of(row).seen, held = held_by(member, row);
    known_.insert(tensor.name);
    if (tensor.dtype != state_dtype(member)) {
      tensor.fail("wrong dtype", to_string(tensor.dtype), to_string(state_dtype(member)));
    }
    const std::vector<Index> expected = row_shape(member, held);
    if (tensor.shape != expected) {
      tensor.fail("wrong shape", shape_text(tensor.shape), shape_text(expected));
    }
    const bool has_room = member.kind == Kind::ring || held <= member.capacity;
    if (member.is_cache() && !has_room) {
      throw CapacityError(file_.source() + ": " + tensor.name + " holds " + std::to_string(held) +
                          " tokens, more than the state's capacity of " +
                          std::to_string(member.capacity));
    }
    if (member.integral) check_counts(tensor);
    if (member.kind == Kind::position && count_of(tensor) != seen) {
      tensor.fail("positions disagree", std::to_string(count_of(tensor)), std::to_string(seen));
    }
    if (member.kind == Kind::mark) {
      const Index reached = std::max(count_of(tensor), seen);
      if (!member.can_go_back(reached, seen)) {
        tensor.fail("a ring that has overwritten what its layer looks back on",
                    std::to_string(reached) + " tokens, taken back to " + std::to_string(seen),
                    "at most " + std::to_string(member.capacity - member.window) + " taken back");
      }
    }
  }

  const Safetensors file_;
  const StateMembers state_;
  const std::vector<NamedStateMember> members_ = state_.list();
  std::vector<Tokens> tokens_ = std::vector<Tokens>(static_cast<std::size_t>(state_.batch()));
  std::set<std::string, std::less<>> known_;
  struct Loaded {
    StoredBytes bytes;
    Index entries;
  };
  std::vector<Loaded> loaded_;
};

}  // namespace detail

/// Writes a state, its valid entries only.
inline void save_state(const std::filesystem::path& path, const ConstStateMembers& state) {
  std::vector<StoredTensor> tensors;
  for (const NamedStateMember& member : state.list()) {
    for (Index row = 0; row < state.batch(); ++row) {
      const Index held = member.held(row, state.tokens(row), state.reached(row));
      const ByteRuns runs = member.runs(row, held);
      auto bytes = std::make_shared<std::vector<std::byte>>();
      for (Index i = 0; i < runs.count; ++i) {
        const std::byte* const run = runs.first + i * runs.stride;
        bytes->insert(bytes->end(), run, run + runs.length);
      }
      tensors.push_back({.name = member.name + "." + std::to_string(row),
                         .dtype = detail::state_dtype(member),
                         .shape = detail::row_shape(member, held),
                         .bytes = {*bytes, bytes},
                         .file = path.string()});
    }
  }
  save_safetensors(
      path, std::move(tensors),
      {{"format", std::string(detail::state_format)}, {"rows", std::to_string(state.batch())}});
}

/// Fills a state that the same layer made for as many rows from a file; capacities may differ.
///
/// Throws `CheckpointError` on a file of another layer, batch, number type or storage and on counts
/// of tokens that no state has, and `CapacityError` where a cache is too small; the state is then
/// as it was. A file of very many rows and members may need a longer header than the usual one.
inline void load_state(const std::filesystem::path& path, const StateMembers& state,
                       HeaderLimit limit = {}) {
  detail::StateFile(path, state, limit).fill();
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
