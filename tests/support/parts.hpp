#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "seqmix/core/call.hpp"
#include "seqmix/core/tensor.hpp"
#include "support/thread_executor.hpp"

namespace support {

/// Tokens [begin, begin + count) of a row of a batch [B, T, ...], in some company: what one segment
/// of a call takes.
struct Part {
  seqmix::Index row, begin, count;
  seqmix::Form form = seqmix::Form::parallel;
};
using Parts = std::vector<Part>;

/// The same tokens of rows [row, row + rows).
inline Parts parts_of(seqmix::Index row, seqmix::Index rows, seqmix::Index begin,
                      seqmix::Index count, seqmix::Form form = seqmix::Form::parallel) {
  Parts parts;
  for (seqmix::Index b = row; b < row + rows; ++b) parts.push_back({b, begin, count, form});
  return parts;
}

/// Their segments, behind each other.
inline std::vector<seqmix::Segment> segments_of(const Parts& parts) {
  std::vector<seqmix::Segment> segments;
  seqmix::Index first = 0;
  for (const Part& part : parts) {
    if (part.count > 0) segments.push_back({part.row, first, part.count, part.form});
    first += part.count;
  }
  return segments;
}

/// Their tokens of x [B, T, ...], behind each other.
template <class T, seqmix::Index Rank>
seqmix::Tensor<std::remove_const_t<T>, Rank - 1> gather(const seqmix::View<T, Rank>& x,
                                                        const Parts& parts) {
  seqmix::Shape<Rank - 1> shape = x[0].shape();
  shape[0] = 0;
  for (const Part& part : parts) shape[0] += part.count;
  seqmix::Tensor<std::remove_const_t<T>, Rank - 1> result(shape);
  seqmix::Index first = 0;
  for (const Part& part : parts) {
    copy(x[part.row].slice(seqmix::axis::time, part.begin, part.count),
         result.view().slice(seqmix::axis::time, first, part.count));
    first += part.count;
  }
  return result;
}
template <class T, seqmix::Index Rank>
seqmix::Tensor<T, Rank - 1> gather(const seqmix::Tensor<T, Rank>& x, const Parts& parts) {
  return gather(x.view(), parts);
}

/// Back to where `gather` has them from.
template <class T, seqmix::Index Rank>
void scatter(const seqmix::Tensor<T, Rank - 1>& from, const Parts& parts,
             const seqmix::View<T, Rank>& x) {
  seqmix::Index first = 0;
  for (const Part& part : parts) {
    copy(from.view().slice(seqmix::axis::time, first, part.count),
         x[part.row].slice(seqmix::axis::time, part.begin, part.count));
    first += part.count;
  }
}

/// Checks that rows 0 to 3 of T tokens have the results `expected` in pieces, in company of other
/// parts and alone, with any threads. `run(parts, result, context)` takes the tokens of one call;
/// results start as `fresh`.
template <class Result>
void check_parts(seqmix::Index T, const Result& fresh, const Result& expected, auto&& run) {
  const seqmix::Index rows = 4;
  const auto check = [&](seqmix::Context& context, const std::vector<Parts>& calls) {
    Result result = fresh;
    for (const Parts& parts : calls) run(parts, result, context);
    CHECK(result == expected);
  };
  std::vector<Parts> whole{parts_of(0, rows, 0, T)}, tokens, growing, alone;
  for (seqmix::Index t = 0; t < T; ++t) tokens.push_back(parts_of(0, rows, t, 1));
  for (seqmix::Index first = 0, count = 0; first < T; first += count, count = 2 * count + 1) {
    growing.push_back(parts_of(0, rows, first, std::min(count, T - first)));
  }
  for (const seqmix::Index row : {2, 0, 3, 1}) alone.push_back(parts_of(row, 1, 0, T));
  const auto one = seqmix::Form::recurrent;
  const std::vector<Parts> mixed{{{3, 0, 65}, {0, 0, 1, one}, {2, 0, 7}},
                                 {{1, 0, T}, {2, 7, T - 8}, {0, 1, 2, one}},
                                 {{2, T - 1, 1, one}, {0, 3, T - 3}, {3, 65, T - 65}}};
  for (const seqmix::Index workers : {1, 2, 3}) {
    ThreadExecutor executor(workers);
    seqmix::Context context(executor);
    for (const auto& calls : {whole, tokens, growing, alone, mixed}) check(context, calls);
  }
}

}  // namespace support
