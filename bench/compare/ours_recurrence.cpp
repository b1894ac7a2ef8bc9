// Linear attention and its relatives, and state-space models.

#include "compare/ours.hpp"
#include "seqmix/kernels/memory/delta_rule.hpp"
#include "seqmix/kernels/memory/dplr.hpp"
#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/scan/selective_scan.hpp"
#include "seqmix/layers/mixer.hpp"

namespace compare {
namespace {

/// A memory [1, H, K, V] that T tokens pass through: queries [T, G, K] and keys, values [T, H, V].
class Memory : public KernelTo<3> {
 public:
  Memory(const Request& r, Context& context, Index groups, const char* query, const char* key)
      : KernelTo(context, {r["T"], r["H"], r["V"]}),
        q_(read<3>(r, query, {r["T"], groups, r["K"]})),
        k_(read<3>(r, key, {r["T"], groups, r["K"]})),
        v_(read<3>(r, "v", y.shape())),
        state_({1, r["H"], r["K"], r["V"]}) {}

 protected:
  /// A block of time.
  struct Block {
    Index first, count;
    View<const float, 3> q, k, v;
    View<float, 4> state;
    View<float, 3> y;

    auto operator()(const auto& all) const {
      return std::as_const(all).view().slice(seqmix::axis::time, first, count);
    }
  };

 private:
  virtual void advance(const Block& block, const Call& call) = 0;
  /// In blocks of time, as a mixer calls it.
  void run(const Call& call) override {
    seqmix::fill(state_.view(), 0.F);
    const Index tokens = y.extent(0);
    for (Index first = 0; first < tokens; first += seqmix::usual_block_tokens) {
      const Index count = std::min(seqmix::usual_block_tokens, tokens - first);
      const auto part = [&](auto view) { return view.slice(seqmix::axis::time, first, count); };
      const seqmix::Segment segment{0, 0, count, Form::parallel};
      advance({first, count, part(std::as_const(q_).view()), part(std::as_const(k_).view()),
               part(std::as_const(v_).view()), state_.view(), part(y.view())},
              call.with(seqmix::Segments(&segment, 1)));
    }
  }

  Tensor<float, 3> q_, k_, v_;
  Tensor<float, 4> state_;
};

/// A number for each token and head, [T, H], or also for each key channel, [T, H, K].
Tensor<float, 2> of_heads(const Request& r, const char* name) {
  return read<2>(r, name, {r["T"], r["H"]});
}
Tensor<float, 3> of_channels(const Request& r, const char* name) {
  return read<3>(r, name, {r["T"], r["H"], r["K"]});
}

class LinearAttention final : public Memory {
 public:
  LinearAttention(const Request& r, Context& context) : Memory(r, context, r["H"], "q", "k") {}

 private:
  void advance(const Block& b, const Call& call) override {
    seqmix::linear_state<float>(b.q, b.k, b.v, seqmix::NoDecay{}, 1, b.state, b.y, call);
  }
};

class Retention final : public Memory {
 public:
  Retention(const Request& r, Context& context)
      : Memory(r, context, r["H"], "q", "k"), decay_(read<1>(r, "factor", Shape<1>{r["H"]})) {}

 private:
  void advance(const Block& b, const Call& call) override {
    seqmix::linear_state<float>(b.q, b.k, b.v, decay_, 1, b.state, b.y, call);
  }
  seqmix::ConstantDecay<float> decay_;
};

class GatedLinearAttention final : public Memory {
 public:
  GatedLinearAttention(const Request& r, Context& context)
      : Memory(r, context, r["H"], "q", "k"), g_(of_channels(r, "g")) {}

 private:
  void advance(const Block& b, const Call& call) override {
    seqmix::linear_state<float>(b.q, b.k, b.v, seqmix::VectorDecay<float>{b(g_)}, 1, b.state, b.y,
                                call);
  }
  Tensor<float, 3> g_;
};

class GatedDeltaRule final : public Memory {
 public:
  GatedDeltaRule(const Request& r, Context& context)
      : Memory(r, context, r["H"], "q", "k"), g_(of_heads(r, "g")), beta_(of_heads(r, "beta")) {}

 private:
  void advance(const Block& b, const Call& call) override {
    seqmix::delta_rule<float>(b.q, b.k, b.v, b(beta_), seqmix::ScalarDecay<float>{b(g_)}, 1,
                              b.state, b.y, call);
  }
  Tensor<float, 2> g_, beta_;
};

class Rwkv6 final : public Memory {
 public:
  Rwkv6(const Request& r, Context& context)
      : Memory(r, context, r["H"], "r", "k"),
        g_(of_channels(r, "g")),
        u_(read<2>(r, "u", {r["H"], r["K"]})) {}

 private:
  void advance(const Block& b, const Call& call) override {
    const seqmix::ReadBeforeWithBonus<float> decay{{{b(g_)}}, u_.view()};
    seqmix::linear_state<float>(b.q, b.k, b.v, decay, 1, b.state, b.y, call);
  }
  Tensor<float, 3> g_;
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
  void advance(const Block& b, const Call& call) override {
    seqmix::dplr_state<float>(b.q, b(g_), b.k, b.v, b(a_), b(b_), b.state, b.y, call);
  }
  Tensor<float, 3> g_, a_, b_;
};

/// The heads share one key and query.
class Mamba2 final : public Memory {
 public:
  Mamba2(const Request& r, Context& context)
      : Memory(r, context, 1, "C", "B"), g_(of_heads(r, "g")) {}

 private:
  void advance(const Block& b, const Call& call) override {
    seqmix::linear_state<float>(b.q, b.k, b.v, seqmix::ScalarDecay<float>{b(g_)}, 1, b.state, b.y,
                                call);
  }
  Tensor<float, 2> g_;
};

class Mamba final : public KernelTo<2> {
 public:
  Mamba(const Request& r, Context& context)
      : KernelTo(context, {r["T"], r["D"]}),
        x_(read<2>(r, "x", y.shape())),
        dt_(read<2>(r, "dt", y.shape())),
        z_(read<2>(r, "z", y.shape())),
        B_(read<2>(r, "B", {r["T"], r["N"]})),
        C_(read<2>(r, "C", {r["T"], r["N"]})),
        rates_(read<2>(r, "A", {r["N"], r["D"]})),
        skip_(read<1>(r, "skip", Shape<1>{r["D"]})),
        state_({1, r["N"], r["D"]}) {
    constexpr float log2_e = 1.44269504F;
    for (Index i = 0; i < rates_.size(); ++i) rates_.data()[i] *= log2_e;
  }

 private:
  void run(const Call& call) override {
    seqmix::fill(state_.view(), 0.F);
    seqmix::selective_scan<float>(x_, dt_, rates_, B_, C_, skip_, z_, state_, y.view(), call);
  }

  Tensor<float, 2> x_, dt_, z_, B_, C_;  // [T, D], [T, N]
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
