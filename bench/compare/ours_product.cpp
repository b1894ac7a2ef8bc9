// Matrix products and mixtures of experts.

#include "compare/ours.hpp"
#include "seqmix/kernels/product/matmul.hpp"
#include "seqmix/layers/channel/mixture_of_experts.hpp"

namespace compare {
namespace {

class Matmul final : public KernelTo<2> {
 public:
  Matmul(const Request& r, Context& context)
      : KernelTo(context, {r["M"], r["N"]}),
        x_(read<2>(r, "x", {r["M"], r["K"]})),
        w_(read<2>(r, "w", {r["N"], r["K"]})) {}

 private:
  void run(const Call& call) override { seqmix::matmul<float>(x_, w_, y.view(), call); }

  Tensor<float, 2> x_;             // [M, K]
  seqmix::PackedMatrix<float> w_;  // [N, K]
};

class Experts final : public KernelTo<2> {
 public:
  Experts(const Request& r, Context& context)
      : KernelTo(context, {r["T"], r["D"]}),
        x_(read<2>(r, "x", {r["T"], r["D"]})),
        layer_({.d_model = r["D"],
                .d_ff = r["F"],
                .n_experts = r["E"],
                .n_experts_per_token = r["top"]},
               weights(r)) {}

 private:
  using Layer = seqmix::MixtureOfExperts<float>;

  static Layer::Weights weights(const Request& r) {
    const Index E = r["E"], D = r["D"], F = r["F"];
    const auto w1 = read<3>(r, "w1", {E, F, D}), w2 = read<3>(r, "w2", {E, D, F}),
               w3 = read<3>(r, "w3", {E, F, D});
    const auto of = [](const Tensor<float, 3>& all, Index e) {
      Tensor<float, 2> one({all.extent(1), all.extent(2)});
      seqmix::copy(all.view()[e], one.view());
      return seqmix::Parameter<float, 2>(std::move(one));
    };
    Layer::Weights result;
    result.gate.weight = seqmix::Parameter<float, 2>(read<2>(r, "gate", {E, D}));
    for (Index e = 0; e < E; ++e) {
      result.experts.push_back(
          {.w1 = {of(w1, e), {}}, .w2 = {of(w2, e), {}}, .w3 = {of(w3, e), {}}});
    }
    return result;
  }
  void run(const Call& call) override {
    layer_.forward(x_.view().insert<0>(), y.view().insert<0>(), call.context());
  }

  Tensor<float, 2> x_;  // [T, D]
  Layer layer_;
};

}  // namespace

std::unique_ptr<Work> make_product(const Request& request, Context& context) {
  const std::string& op = request.text("op");
  if (op == "matmul") return std::make_unique<Matmul>(request, context);
  if (op == "moe") return std::make_unique<Experts>(request, context);
  return nullptr;
}

}  // namespace compare
