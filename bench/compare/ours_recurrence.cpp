// Linear attention and its relatives, and state-space models.

#include "compare/ours.hpp"
#include "seqmix/kernels/delta_rule.hpp"
#include "seqmix/kernels/dplr.hpp"
#include "seqmix/kernels/linear_state.hpp"
#include "seqmix/kernels/selective_scan.hpp"

namespace compare {
namespace {

using seqmix::Form;

/// A memory [1, H, K, V] that T tokens pass through: queries [1, T, G, K] and keys, values
/// [1, T, H, V].
class Memory : public KernelTo<4> {
 public:
  Memory(const Request& r, Context& context, Index groups, const char* query, const char* key)
      : KernelTo(context, {1, r["T"], r["H"], r["V"]}),
        q(read<4>(r, query, {1, r["T"], groups, r["K"]})),
        k(read<4>(r, key, {1, r["T"], groups, r["K"]})),
        v(read<4>(r, "v", y.shape())),
        state({1, r["H"], r["K"], r["V"]}) {}

 protected:
  Tensor<float, 4> q, k, v, state;

 private:
  virtual void advance(Context& context) = 0;
  void run(Context& context) override {
    seqmix::fill(state.view(), 0.F);
    advance(context);
  }
};

/// A number for each token and head, [1, T, H], or also for each key channel, [1, T, H, K].
Tensor<float, 3> of_heads(const Request& r, const char* name) {
  return read<3>(r, name, {1, r["T"], r["H"]});
}
Tensor<float, 4> of_channels(const Request& r, const char* name) {
  return read<4>(r, name, {1, r["T"], r["H"], r["K"]});
}

class LinearAttention final : public Memory {
 public:
  LinearAttention(const Request& r, Context& context) : Memory(r, context, r["H"], "q", "k") {}

 private:
  void advance(Context& context) override {
    seqmix::linear_state<Form::parallel, float>(q, k, v, seqmix::NoDecay{}, 1, state, y, context);
  }
};

class Retention final : public Memory {
 public:
  Retention(const Request& r, Context& context)
      : Memory(r, context, r["H"], "q", "k"), decay_(read<1>(r, "factor", Shape<1>{r["H"]})) {}

 private:
  void advance(Context& context) override {
    seqmix::linear_state<Form::parallel, float>(q, k, v, decay_, 1, state, y, context);
  }
  seqmix::ConstantDecay<float> decay_;
};

class GatedLinearAttention final : public Memory {
 public:
  GatedLinearAttention(const Request& r, Context& context)
      : Memory(r, context, r["H"], "q", "k"), g_(of_channels(r, "g")) {}

 private:
  void advance(Context& context) override {
    seqmix::linear_state<Form::parallel, float>(q, k, v, seqmix::VectorDecay<float>{g_.view()}, 1,
                                                state, y, context);
  }
  Tensor<float, 4> g_;
};

class GatedDeltaRule final : public Memory {
 public:
  GatedDeltaRule(const Request& r, Context& context)
      : Memory(r, context, r["H"], "q", "k"), g_(of_heads(r, "g")), beta_(of_heads(r, "beta")) {}

 private:
  void advance(Context& context) override {
    seqmix::delta_rule<Form::parallel, float>(q, k, v, beta_, seqmix::ScalarDecay<float>{g_.view()},
                                              1, state, y, context);
  }
  Tensor<float, 3> g_, beta_;
};

class Rwkv6 final : public Memory {
 public:
  Rwkv6(const Request& r, Context& context)
      : Memory(r, context, r["H"], "r", "k"),
        g_(of_channels(r, "g")),
        u_(read<2>(r, "u", {r["H"], r["K"]})) {}

 private:
  void advance(Context& context) override {
    const seqmix::ReadBeforeWithBonus<float> decay{{{g_.view()}}, u_.view()};
    seqmix::linear_state<Form::parallel, float>(q, k, v, decay, 1, state, y, context);
  }
  Tensor<float, 4> g_;
  Tensor<float, 2> u_;
};

class Rwkv7 final : public Memory {
 public:
  Rwkv7(const Request& r, Context& context)
      : Memory(r, context, r["H"], "r", "k"),
        g_(of_channels(r, "g")),
        a_(of_channels(r, "a")),
        b_(of_channels(r, "b")) {}

 private:
  void advance(Context& context) override {
    seqmix::dplr_state<Form::parallel, float>(q, g_, k, v, a_, b_, state, y, context);
  }
  Tensor<float, 4> g_, a_, b_;
};

/// The heads share one key and query.
class Mamba2 final : public Memory {
 public:
  Mamba2(const Request& r, Context& context)
      : Memory(r, context, 1, "C", "B"), g_(of_heads(r, "g")) {}

 private:
  void advance(Context& context) override {
    seqmix::linear_state<Form::parallel, float>(q, k, v, seqmix::ScalarDecay<float>{g_.view()}, 1,
                                                state, y, context);
  }
  Tensor<float, 3> g_;
};

class Mamba final : public KernelTo<3> {
 public:
  Mamba(const Request& r, Context& context)
      : KernelTo(context, {1, r["T"], r["D"]}),
        x_(read<3>(r, "x", y.shape())),
        dt_(read<3>(r, "dt", y.shape())),
        z_(read<3>(r, "z", y.shape())),
        B_(read<3>(r, "B", {1, r["T"], r["N"]})),
        C_(read<3>(r, "C", {1, r["T"], r["N"]})),
        rates_(read<2>(r, "A", {r["N"], r["D"]})),
        skip_(read<1>(r, "skip", Shape<1>{r["D"]})),
        state_({1, r["N"], r["D"]}) {
    constexpr float log2_e = 1.44269504F;
    for (Index i = 0; i < rates_.size(); ++i) rates_.data()[i] *= log2_e;
  }

 private:
  void run(Context& context) override {
    seqmix::fill(state_.view(), 0.F);
    seqmix::selective_scan<float>(x_, dt_, rates_, B_, C_, skip_, z_, state_, y.view(), context);
  }

  Tensor<float, 3> x_, dt_, z_, B_, C_;  // [1, T, D], [1, T, N]
  Tensor<float, 2> rates_;               // [N, D]
  Tensor<float, 1> skip_;                // [D]
  Tensor<float, 3> state_;               // [1, N, D]
};

}  // namespace

std::unique_ptr<Work> make_recurrence(const Request& request, Context& context) {
  const std::string& op = request.text("op");
  if (op == "linear_attention") return std::make_unique<LinearAttention>(request, context);
  if (op == "retention") return std::make_unique<Retention>(request, context);
  if (op == "gla") return std::make_unique<GatedLinearAttention>(request, context);
  if (op == "gated_delta_rule") return std::make_unique<GatedDeltaRule>(request, context);
  if (op == "rwkv6") return std::make_unique<Rwkv6>(request, context);
  if (op == "rwkv7") return std::make_unique<Rwkv7>(request, context);
  if (op == "mamba") return std::make_unique<Mamba>(request, context);
  if (op == "mamba2") return std::make_unique<Mamba2>(request, context);
  return nullptr;
}

}  // namespace compare
