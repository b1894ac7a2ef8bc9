#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "seqmix/core/platform.hpp"

// Errors, shapes, views and enumerations hold no vector code and stand in plain `namespace seqmix`,
// so that they cross libraries that are built with other flags.
namespace seqmix {

/// The base of everything that the library throws. The text says who, which tensor, what was got,
/// what was expected and why.
class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A view, state or batch whose shape does not fit the call.
class ShapeError : public Error {
  using Error::Error;
};

/// A configuration that no layer can have.
class ConfigError : public Error {
  using Error::Error;
};

/// A checkpoint, state file or model description that breaks a rule of its format.
class CheckpointError : public Error {
  using Error::Error;
};

/// More tokens than a cache has room for.
class CapacityError : public Error {
  using Error::Error;
};

/// Throws `ConfigError` with `sentence` unless `condition` holds.
inline void require(bool condition, std::string_view sentence) {
  if (!condition) throw ConfigError(std::string(sentence));
}

}  // namespace seqmix
