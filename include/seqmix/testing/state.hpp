#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "seqmix/layers/state.hpp"
#include "seqmix/testing/compare.hpp"

namespace seqmix {
SEQMIX_BEGIN_NAMESPACE
namespace testing {

/// The valid numbers of each member of a state, row after row; the marks of rings are not among
/// them, as only going back sets them.
inline std::map<std::string, std::vector<double>> valid_numbers(const ConstStateMembers& members) {
  std::map<std::string, std::vector<double>> result;
  for (const NamedStateMember& member : members.list()) {
    if (member.kind == StateMember::Kind::mark) continue;
    std::vector<double>& numbers = result[member.name];
    const auto append = [&]<class T>(T, const std::byte* run, Index bytes) {
      std::vector<T> typed(static_cast<std::size_t>(bytes) / sizeof(T));
      std::memcpy(typed.data(), run, static_cast<std::size_t>(bytes));
      std::transform(typed.begin(), typed.end(), std::back_inserter(numbers), [](T value) {
        if constexpr (std::is_arithmetic_v<T>)
          return static_cast<double>(value);
        else
          return static_cast<double>(static_cast<float>(value));
      });
    };
    for (Index row = 0; row < members.batch(); ++row) {
      const Index tokens = members.tokens(row);
      const ByteRuns runs = member.runs(row, member.held(row, tokens, tokens));
      for (Index i = 0; i < runs.count; ++i) {
        const std::byte* const run = runs.first + i * runs.stride;
        const Index bytes = runs.length;
        if (member.integral) {
          append(std::int64_t{}, run, bytes);
        } else if (member.storage == Storage::bf16) {
          append(bfloat16{}, run, bytes);
        } else if (member.storage == Storage::f16) {
          append(float16{}, run, bytes);
        } else if (member.storage == Storage::int8) {
          append(std::int8_t{}, run, bytes);
        } else if (member.number_size == sizeof(float)) {
          append(float{}, run, bytes);
        } else {
          append(double{}, run, bytes);
        }
      }
    }
  }
  return result;
}

/// The relative error of a state member. One that is expected to be zeros must be so exactly.
template <class T, class U>
double member_error(const std::vector<T>& got, const std::vector<U>& expected) {
  const auto is_zero = [](auto value) { return value == 0; };
  if (got.size() == expected.size() && std::ranges::all_of(expected, is_zero)) {
    return std::ranges::all_of(got, is_zero) ? 0 : failed;
  }
  return relative_error<T, U>(got, expected);
}

}  // namespace testing
SEQMIX_END_NAMESPACE
}  // namespace seqmix
