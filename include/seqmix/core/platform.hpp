#pragma once

#include "seqmix/version.hpp"

// A fast-math build reorders sums and drops NaN, which breaks the library's law (parallel form ==
// recurrent form) in silence.
#if defined(__FAST_MATH__) && !defined(SEQMIX_ALLOW_FAST_MATH)
#error "seqmix refuses -ffast-math; define SEQMIX_ALLOW_FAST_MATH to accept other numbers"
#endif

// The inline namespace carries the version and the instruction set, so that translation units built
// with different flags never share a template instantiation.
#if defined(SEQMIX_SIMD_WIDTH)
#define SEQMIX_ISA emulated
#define SEQMIX_ISA_WIDTH SEQMIX_SIMD_WIDTH
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define SEQMIX_ISA avx512_
#define SEQMIX_ISA_WIDTH 512
#elif defined(__AVX2__) && defined(__FMA__)
#define SEQMIX_ISA avx2_fma_
#define SEQMIX_ISA_WIDTH 256
#elif defined(__AVX__)
#define SEQMIX_ISA avx_
#define SEQMIX_ISA_WIDTH 256
#elif defined(__SSE4_1__)
#define SEQMIX_ISA sse4_
#define SEQMIX_ISA_WIDTH 128
#elif defined(__x86_64__) || defined(_M_X64)
#define SEQMIX_ISA sse2_
#define SEQMIX_ISA_WIDTH 128
#elif defined(__aarch64__)
#define SEQMIX_ISA neon64_
#define SEQMIX_ISA_WIDTH 128
#else
#define SEQMIX_ISA generic_
#define SEQMIX_ISA_WIDTH 0
#endif

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define SEQMIX_AMX _amx
#else
#define SEQMIX_AMX
#endif

#define SEQMIX_JOIN_EXPANDED(major, minor, isa, width, amx) v##major##_##minor##_##isa##width##amx
#define SEQMIX_JOIN(major, minor, isa, width, amx) \
  SEQMIX_JOIN_EXPANDED(major, minor, isa, width, amx)
#define SEQMIX_ABI \
  SEQMIX_JOIN(SEQMIX_VERSION_MAJOR, SEQMIX_VERSION_MINOR, SEQMIX_ISA, SEQMIX_ISA_WIDTH, SEQMIX_AMX)

#define SEQMIX_BEGIN_NAMESPACE inline namespace SEQMIX_ABI {
#define SEQMIX_END_NAMESPACE }

// Around functions on registers: intrinsics of g++ 12 start from a register that they call
// undefined, and it warns about that where they are inlined (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#define SEQMIX_BEGIN_INTRINSICS                                                        \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define SEQMIX_END_INTRINSICS _Pragma("GCC diagnostic pop")
#else
#define SEQMIX_BEGIN_INTRINSICS
#define SEQMIX_END_INTRINSICS
#endif

#define SEQMIX_ALWAYS_INLINE inline __attribute__((always_inline))
// Of what runs on the way to an exception alone: not inlined, small.
#define SEQMIX_COLD __attribute__((noinline, cold))
