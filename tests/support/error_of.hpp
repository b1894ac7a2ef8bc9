#pragma once

#include <string>

namespace seqmix::test {

/// The text of the `Expected` that `call` throws; empty where it throws nothing.
template <class Expected>
std::string error_of(auto&& call) {
  try {
    call();
  } catch (const Expected& error) {
    return error.what();
  }
  return {};
}

}  // namespace seqmix::test
