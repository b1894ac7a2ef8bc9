#pragma once

#include <initializer_list>
#include <type_traits>
#include <vector>

#include "seqmix/core/call.hpp"
#include "seqmix/core/tensor.hpp"

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

}  // namespace support
