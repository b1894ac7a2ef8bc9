#pragma once

#include <initializer_list>
#include <vector>

#include "seqmix/core/call.hpp"
#include "seqmix/core/tensor.hpp"

namespace support {

/// A context whose scratch is NaN until it is written.
inline seqmix::Context poisoned(seqmix::Algorithm algorithm = seqmix::Algorithm::automatic) {
  seqmix::Context context;
  context.set_algorithm(algorithm);
  context.set_poison(true);
  return context;
}

/// The call of a test of a kernel.
class TestCall {
 public:
  /// `batch` rows of `tokens` tokens each.
  TestCall(seqmix::Context& context, seqmix::Index batch, seqmix::Index tokens,
           seqmix::Form form = seqmix::Form::parallel)
      : call_(context, {}) {
    for (seqmix::Index row = 0; row < batch; ++row) {
      if (tokens > 0) segments_.push_back({row, row * tokens, tokens, form});
    }
    call_ = call_.with(segments_);
  }
  TestCall(seqmix::Context& context, std::initializer_list<seqmix::Segment> segments)
      : segments_(segments), call_(seqmix::Call(context, segments_)) {}
  /// One that no segment matters to.
  explicit TestCall(seqmix::Context& context) : TestCall(context, 0, 0) {}
  TestCall(const TestCall&) = delete;
  TestCall& operator=(const TestCall&) = delete;

  operator const seqmix::Call&() const { return call_; }
  const seqmix::Call& operator*() const { return call_; }
  const seqmix::Call* operator->() const { return &call_; }

 private:
  std::vector<seqmix::Segment> segments_;
  seqmix::Call call_;
};

/// Activations [B, T, ...] as a call has them, [B T, ...].
template <class T, seqmix::Index Rank>
seqmix::View<T, Rank - 1> flat(const seqmix::View<T, Rank>& x) {
  return x.template merge<0>();
}
template <class T, seqmix::Index Rank>
seqmix::View<T, Rank - 1> flat(seqmix::Tensor<T, Rank>& x) {
  return flat(x.view());
}
template <class T, seqmix::Index Rank>
seqmix::View<const T, Rank - 1> flat(const seqmix::Tensor<T, Rank>& x) {
  return flat(x.view());
}

}  // namespace support
