#pragma once

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "seqmix/io/safetensors.hpp"
#include "seqmix/layers/state.hpp"

// A state file is a safetensors file with one tensor a member and batch row, `<member>.<row>`,
// without the batch axis; of a cache it holds the valid entries only, as they are stored, and the
// scales of 8-bit ones as `<member>.scales.<row>`. Metadata: `format`, `rows`.

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

/// The shape that row `row` of a member has in a file.
inline std::vector<Index> row_shape(const StateMember& member, Index tokens) {
  std::vector<Index> shape(member.shape.begin() + 1, member.shape.end());
  const auto axis = static_cast<std::size_t>(member.axis - 1);
  if (member.kind == StateMember::Kind::appended) shape[axis] = tokens;
  if (member.kind == StateMember::Kind::ring) shape[axis] = std::min(tokens, shape[axis]);
  return shape;
}

}  // namespace detail

/// Writes a state, its valid entries only.
inline void save_state(const std::filesystem::path& path, const StateMembers& state) {
  std::vector<StoredTensor> tensors;
  for (const StateMember& member : state.list()) {
    for (Index row = 0; row < state.batch(); ++row) {
      auto bytes = std::make_shared<std::vector<std::byte>>();
      member.for_each_run(row, state.tokens(row), [&](const std::byte* run, Index count) {
        bytes->insert(bytes->end(), run, run + count);
      });
      tensors.push_back({.name = member.name + "." + std::to_string(row),
                         .dtype = detail::state_dtype(member),
                         .shape = detail::row_shape(member, state.tokens(row)),
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
/// Throws `CheckpointError` on a file of another layer, batch, number type or storage and
/// `CapacityError` where a cache is too small; the state is then as it was.
inline void load_state(const std::filesystem::path& path, const StateMembers& state) {
  const Safetensors file = Safetensors::open(path);
  const auto expect = [&](const std::string& key, const std::string& expected) {
    const auto found = file.metadata().find(key);
    const std::string got = found == file.metadata().end() ? "nothing" : found->second;
    if (got == expected) return;
    throw CheckpointError(file.source() + ": metadata " + key + " is " + got + ", expected " +
                          expected);
  };
  expect("format", std::string(detail::state_format));
  expect("rows", std::to_string(state.batch()));

  const auto tensor_of = [&](const StateMember& member, Index row) {
    return file.entry(member.name + "." + std::to_string(row));
  };
  std::vector<Index> tokens(static_cast<std::size_t>(state.batch()), 0);
  for (const StateMember& member : state.list()) {
    if (member.kind != StateMember::Kind::position) continue;
    for (Index row = 0; row < state.batch(); ++row) {
      const StoredTensor tensor = tensor_of(member, row);
      if (tensor.dtype != DType::i64 || !tensor.shape.empty()) {
        tensor.fail("not a position", detail::shape_text(tensor.shape), "one I64 number");
      }
      const Index seen = static_cast<Index>(tensor.integers()[0]);
      if (seen < 0) tensor.fail("negative position", std::to_string(seen), "at least 0");
      tokens[static_cast<std::size_t>(row)] = seen;
    }
  }
  std::set<std::string, std::less<>> known;
  for (const StateMember& member : state.list()) {
    for (Index row = 0; row < state.batch(); ++row) {
      const Index seen = tokens[static_cast<std::size_t>(row)];
      const StoredTensor tensor = tensor_of(member, row);
      known.insert(tensor.name);
      const std::vector<Index> expected = detail::row_shape(member, seen);
      if (tensor.dtype != detail::state_dtype(member)) {
        tensor.fail("wrong dtype", to_string(tensor.dtype), to_string(detail::state_dtype(member)));
      }
      if (tensor.shape != expected) {
        tensor.fail("wrong shape", detail::shape_text(tensor.shape), detail::shape_text(expected));
      }
      if (member.kind == StateMember::Kind::position && tensor.integers()[0] != seen) {
        tensor.fail("positions disagree", std::to_string(tensor.integers()[0]),
                    std::to_string(seen));
      }
      if (member.kind == StateMember::Kind::appended && seen > member.capacity()) {
        throw CapacityError(file.source() + ": " + tensor.name + " holds " + std::to_string(seen) +
                            " tokens, more than the state's capacity of " +
                            std::to_string(member.capacity()));
      }
    }
  }
  file.expect_no_others(known);
  // All are read before the first is written: a file that ends too early leaves the state alone.
  std::vector<StoredBytes> loaded;
  for (const StateMember& member : state.list()) {
    for (Index row = 0; row < state.batch(); ++row) {
      loaded.push_back(tensor_of(member, row).bytes.load());
    }
  }
  auto next = loaded.begin();
  for (const StateMember& member : state.list()) {
    for (Index row = 0; row < state.batch(); ++row) {
      const std::byte* from = (next++)->data();
      member.for_each_run(row, tokens[static_cast<std::size_t>(row)],
                          [&](std::byte* run, Index count) {
                            std::memcpy(run, from, static_cast<std::size_t>(count));
                            from += count;
                          });
    }
  }
}

SEQMIX_END_NAMESPACE
}  // namespace seqmix
