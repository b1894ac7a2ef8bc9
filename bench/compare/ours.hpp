#pragma once

#include <string>

#include "compare/worker.hpp"
#include "seqmix/core/call.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/tensor.hpp"

// seqmix as a contestant: kernels, called as layers call them.

namespace compare {

using seqmix::Call;
using seqmix::Context;
using seqmix::Form;
using seqmix::Index;
using seqmix::Shape;
using seqmix::Tensor;
using seqmix::View;

template <Index Rank>
Tensor<float, Rank> read(const Request& request, const std::string& name, Shape<Rank> shape) {
  Tensor<float, Rank> numbers(shape);
  request.read(name, numbers.data(), numbers.size());
  return numbers;
}

/// The value of an enumeration that a case names, or its first one.
template <seqmix::NamedEnum Enum>
Enum choice(const Request& request, const std::string& name) {
  Enum value{};
  seqmix::from_string(request.text(name, std::string(seqmix::to_string(value))), value);
  return value;
}

/// A kernel with its operands, called with all tokens of one row.
class Kernel : public Work {
 public:
  Kernel(Context& context, Index tokens, Form form)
      : segment_{0, 0, tokens, form}, call_(context, {&segment_, 1}) {}
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  void run() final { run(call_); }

 protected:
  virtual void run(const Call& call) = 0;
  const Call& call() const { return call_; }

 private:
  seqmix::Segment segment_;
  Call call_;
};

/// `Kernel` whose result is a tensor, `y`.
template <Index Rank>
class KernelTo : public Kernel {
 public:
  /// [T, ...]
  KernelTo(Context& context, Shape<Rank> shape, Form form = Form::parallel)
      : Kernel(context, shape[0], form), y(shape) {}
  std::span<const float> output() override {
    return {y.data(), static_cast<std::size_t>(y.size())};
  }

 protected:
  Tensor<float, Rank> y;
};

/// What can be asked for in one file each; null where the op is none of theirs.
std::unique_ptr<Work> make_product(const Request& request, Context& context);
std::unique_ptr<Work> make_attention(const Request& request, Context& context);
std::unique_ptr<Work> make_recurrence(const Request& request, Context& context);
std::unique_ptr<Work> make_convolution(const Request& request, Context& context);

}  // namespace compare
