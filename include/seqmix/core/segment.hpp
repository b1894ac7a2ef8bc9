#pragma once

#include <array>
#include <span>
#include <string_view>

#include "seqmix/core/numeric.hpp"

// What a caller says of a call: which tokens continue which rows, and how to compute.

namespace seqmix {

/// The two forms of a layer: the whole sequence at once, or one token after another. `automatic`:
/// one token is recurrence, more are parallel.
enum class Form { automatic, parallel, recurrent };

/// What a kernel that has two algorithms uses: the faster for the shape, or the one that is named.
enum class Algorithm { automatic, chunked, recurrent };

/// How the parallel forms multiply float matrices where the processor has matrix units for
/// bfloat16: not on them, on them with two terms a number, or with one. Sums are always float.
///
/// A product of N(0, 1) numbers differs from the exact one by at most 2e-5 of its rms (about 4e-6)
/// under `bf16x3`, and by 4e-3 (about 2e-3) under `bf16`; under `bf16x3` a number that is infinite
/// or above 3.38e38 gives NaN in its row. Units take several tokens of a row at a time: a NaN may
/// change earlier ones of them, which under `fp32` it does not. The same bits for any thread count
/// and batch hold at all three. Everything else is as under `fp32`: products of doubles, `step`,
/// which waits for memory, and all of it where `simd::matrix_units()` is false.
enum class Precision { fp32, bf16x3, bf16 };
constexpr std::array<std::string_view, 3> names_of(Precision) { return {"fp32", "bf16x3", "bf16"}; }

/// A run of tokens of a call: tokens [first, first + count) continue row `row` of the state.
struct Segment {
  Index row = 0, first = 0, count = 0;
  Form form = Form::automatic;
};

/// The segments of a call lie behind each other, from token 0 to the last.
using Segments = std::span<const Segment>;

}  // namespace seqmix
