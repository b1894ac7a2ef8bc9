#pragma once

#include <string>

#include "compare/worker.hpp"
#include "seqmix/core/context.hpp"
#include "seqmix/core/named_enum.hpp"
#include "seqmix/core/tensor.hpp"

// seqmix as a contestant: kernels, called as layers call them.

namespace compare {

using seqmix::Context;
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

/// A kernel with its operands.
class Kernel : public Work {
 public:
  explicit Kernel(Context& context) : context_(context) {}
  void run() final { run(context_); }

 protected:
  virtual void run(Context& context) = 0;

 private:
  Context& context_;
};

/// `Kernel` whose result is a tensor, `y`.
template <Index Rank>
class KernelTo : public Kernel {
 public:
  KernelTo(Context& context, Shape<Rank> shape) : Kernel(context), y(shape) {}
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
