// Identities of the delta rules.

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "seqmix/layers/linear/delta_net.hpp"
#include "seqmix/layers/linear/gated_delta_net.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::random_weights;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

constexpr Algorithm algorithms[] = {Algorithm::recurrent, Algorithm::chunked};
constexpr Index B = 2, T = 50, H = 3, K = 9, V = 13;

/// Queries, keys of length 1, values, shares of a half and a state.
struct Inputs {
  Tensor<double, 4> q = random_tensor<double, 4>({B, T, H, K}, 1);
  Tensor<double, 4> k = random_tensor<double, 4>({B, T, H, K}, 2);
  Tensor<double, 4> v = random_tensor<double, 4>({B, T, H, V}, 3);
  Tensor<double, 4> state = random_tensor<double, 4>({B, H, K, V}, 4);
  Tensor<double, 3> beta = Tensor<double, 3>({B, T, H});

  explicit Inputs(double share) {
    Context context;
    l2_norm(k.view(), 0, TestCall(context));
    fill(beta.view(), share);
  }
};

struct Outputs {
  Tensor<double, 4> o, state;
};

Outputs run(const Inputs& in, const auto& decay, Algorithm algorithm) {
  Context context;
  context.set_algorithm(algorithm);
  Outputs out{Tensor<double, 4>({B, T, H, V}), in.state};
  delta_rule(flat(in.q), flat(in.k), flat(in.v), flat(in.beta), decay, 1, out.state.view(),
             flat(out.o), TestCall(context, B, T));
  return out;
}

double error(const Tensor<double, 4>& got, const Tensor<double, 4>& expected) {
  return relative_error(got.view(), expected.view());
}

}  // namespace

TEST_CASE("Gated DeltaNet that forgets nothing is DeltaNet with an output gate") {
  DeltaNetConfig plain{.d_model = 10, .n_heads = 2, .head_k = 3, .head_v = 5};
  plain.output_gate = true;
  const auto weights = random_weights<DeltaNetDefinition<double>::Weights>(plain, 1);
  GatedDeltaNetConfig gated{
      .d_model = 10, .n_heads = 2, .n_key_heads = 2, .head_k = 3, .head_v = 5};
  gated.norm_eps = plain.norm_eps;
  auto joined = random_weights<GatedDeltaNetDefinition<double>::Weights>(gated, 2);
  Tensor<double, 2> qkvz({32, 10}), ba = joined.in_proj_ba.weight.to_tensor();
  Index row = 0;
  for (Index h = 0; h < 2; ++h) {
    const auto add = [&](const Projection<double>& projection, Index width) {
      const auto rows = projection.weight.to_tensor();
      copy(rows.view().slice<0>(h * width, width), qkvz.view().slice<0>(row, width));
      row += width;
    };
    add(weights.heads.q_proj, 3), add(weights.heads.k_proj, 3);
    add(weights.heads.v_proj, 5), add(weights.g_proj, 5);
    copy(weights.b_proj.weight.to_tensor().view()[h], ba.view()[2 * h]);
  }
  Tensor<double, 3> conv({22, 1, 4});
  copy(weights.heads.q_conv.view(), conv.view().slice<0>(0, 6));
  copy(weights.heads.k_conv.view(), conv.view().slice<0>(6, 6));
  copy(weights.heads.v_conv.view(), conv.view().slice<0>(12, 10));
  Tensor<double, 1> no_decay({2});
  fill(no_decay.view(), -std::numeric_limits<double>::infinity());
  joined.in_proj_qkvz.weight = Parameter<double, 2>(std::move(qkvz));
  joined.in_proj_ba.weight = Parameter<double, 2>(std::move(ba));
  joined.conv = std::move(conv), joined.A_log = std::move(no_decay);
  joined.norm = weights.o_norm, joined.out_proj = weights.o_proj;

  const auto x = random_tensor<double, 3>({2, 70, 10}, 3);
  Tensor<double, 3> a(x.shape()), b(x.shape());
  Context context;
  DeltaNet<double>(plain, weights).forward(x, a, context);
  GatedDeltaNet<double>(gated, joined).forward(x, b, context);
  CHECK(relative_error(a.view(), b.view()) < 1e-13);
}

TEST_CASE("a gate that is equal over the key channels is one gate a head") {
  const Inputs in(0.5);
  Tensor<double, 3> head({B, T, H});
  Tensor<double, 4> channel({B, T, H, K});
  const auto noise = random_tensor<double, 3>(head.shape(), 5);
  for (Index i = 0; i < head.size(); ++i) {
    head.data()[i] = i % 17 == 0 ? -80 : -std::abs(noise.data()[i]);
    for (Index c = 0; c < K; ++c) channel.data()[i * K + c] = head.data()[i];
  }
  for (const Algorithm algorithm : algorithms) {
    const Outputs a = run(in, ScalarDecay<double>{flat(head)}, algorithm);
    const Outputs b = run(in, VectorDecay<double>{flat(channel)}, algorithm);
    CHECK(error(a.o, b.o) < 1e-13);
    CHECK(error(a.state, b.state) < 1e-13);
  }
}

TEST_CASE("a share of 0 keeps the state") {
  const Inputs in(0);
  for (const Algorithm algorithm : algorithms) {
    CHECK(same_bits(run(in, NoDecay{}, algorithm).state.view(), in.state.view()));
  }
}

TEST_CASE("a share of 1 recalls the last value exactly, and every value of orthogonal keys") {
  Inputs in(1);
  in.q = in.k;
  for (const Algorithm algorithm : algorithms) {
    CHECK(error(run(in, NoDecay{}, algorithm).o, in.v) < 1e-13);
  }
  fill(in.k.view(), 0);
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      for (Index h = 0; h < H; ++h) in.k(b, t, h, (t + h) % K) = 1;
    }
  }
  for (const Algorithm algorithm : algorithms) {
    const Outputs out = run(in, NoDecay{}, algorithm);
    for (Index h = 0; h < H; ++h) {
      for (Index t = T - K; t < T; ++t) {
        CHECK(relative_error(out.state.view()[1][h].slice<0>((t + h) % K, 1),
                             in.v.view()[1][t].slice<0>(h, 1)) < 1e-13);
      }
    }
  }
}

TEST_CASE("a share of 2 without a value is a reflection, its own inverse") {
  Inputs in(2);
  fill(in.v.view(), 0);
  for (Index b = 0; b < B; ++b) {
    for (Index t = 1; t < T; t += 2) copy(in.k.view()[b][t - 1], in.k.view()[b][t]);
  }
  for (const Algorithm algorithm : algorithms) {
    CHECK(error(run(in, NoDecay{}, algorithm).state, in.state) < 1e-13);
  }
}
