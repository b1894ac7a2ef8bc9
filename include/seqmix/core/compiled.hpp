#pragma once

#include "seqmix/core/platform.hpp"

// What `seqmix::compiled` compiles once is named in the header that defines it. To a program that
// links that target, which sets SEQMIX_COMPILED_FLOAT, SEQMIX_COMPILED_DOUBLE or both, the names
// are declarations; the target's sources make SEQMIX_EXTERN empty before they include what is
// theirs.

#define SEQMIX_EXTERN extern

#ifdef SEQMIX_COMPILED_FLOAT
#define SEQMIX_IF_FLOAT(...) __VA_ARGS__
#else
#define SEQMIX_IF_FLOAT(...)
#endif
#ifdef SEQMIX_COMPILED_DOUBLE
#define SEQMIX_IF_DOUBLE(...) __VA_ARGS__
#else
#define SEQMIX_IF_DOUBLE(...)
#endif

/// The instances of a function template for each scalar: DECLARATION(S, arguments...) is a macro
/// that declares one.
#define SEQMIX_COMPILE(DECLARATION, ...)                                                   \
  SEQMIX_IF_FLOAT(SEQMIX_EXTERN template DECLARATION(float __VA_OPT__(, ) __VA_ARGS__);)   \
  SEQMIX_IF_DOUBLE(SEQMIX_EXTERN template DECLARATION(double __VA_OPT__(, ) __VA_ARGS__);) \
  static_assert(true)
