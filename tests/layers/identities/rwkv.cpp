// Identities between the memories of RWKV and others.

#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "seqmix/kernels/memory/delta_rule.hpp"
#include "seqmix/kernels/memory/dplr.hpp"
#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/scan/wkv.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::relative_error;
using support::TestCall;

namespace {

constexpr Index B = 2, T = 70, H = 2, N = 9;

Tensor<double, 4> heads(unsigned seed) { return random_tensor<double, 4>({B, T, H, N}, seed); }

/// Log decays from slow to fast.
Tensor<double, 4> log_decays(unsigned seed) {
  auto g = heads(seed);
  for (Index i = 0; i < g.size(); ++i) g.data()[i] = -std::exp(2 * g.data()[i] - 2);
  return g;
}

/// A memory of no tokens.
Tensor<double, 4> empty_memory() { return Tensor<double, 4>({B, H, N, N}); }

}  // namespace

TEST_CASE("RWKV-4 does not see a constant that is added to all keys") {
  Context context;
  const Index D = 21;
  const auto k = random_tensor<double, 3>({B, T, D}, 1), v = random_tensor<double, 3>({B, T, D}, 2);
  const auto u = random_tensor<double, 1>({D}, 3);
  auto w = random_tensor<double, 1>({D}, 4);
  for (Index d = 0; d < D; ++d) w[d] = -std::exp(w[d] - 2);
  const auto mean = [&](double constant) {
    auto keys = k;
    for (Index i = 0; i < keys.size(); ++i) keys.data()[i] += constant;
    Tensor<double, 3> o(k.shape());
    Tensor<double, 2> num({B, D}), den({B, D}), top({B, D});
    fill(top.view(), wkv_initial_maximum);
    wkv4(flat(keys), flat(v), w, u, num, den, top, flat(o), TestCall(context, B, T));
    return o;
  };
  const auto expected = mean(0);
  for (const double constant : {-40.0, 3.0, 700.0}) {
    CHECK(relative_error(mean(constant).view(), expected.view()) < 1e-12);
  }
}

TEST_CASE("RWKV-6 is gated linear attention that is asked one step later") {
  Context context;
  const auto r = heads(1), k = heads(2), v = heads(3), g = log_decays(4);
  auto memory = empty_memory(), other = empty_memory();
  Tensor<double, 4> o(r.shape()), earlier(r.shape()), asked(r.shape());
  const TestCall call(context, B, T);
  linear_state(flat(r), flat(k), flat(v), ReadBefore<VectorDecay<double>>{{flat(g)}}, 1, memory,
               flat(o), call);
  copy(r.view().slice<1>(1, T - 1), asked.view().slice<1>(0, T - 1));
  linear_state(flat(asked), flat(k), flat(v), VectorDecay<double>{flat(g)}, 1, other, flat(earlier),
               call);
  CHECK(relative_error(o.view().slice<1>(1, T - 1), earlier.view().slice<1>(0, T - 1)) < 1e-14);
  CHECK(relative_error(memory.view(), other.view()) < 1e-14);

  // With u = 1 a token counts as those before it do: nothing forgets, so that it is linear
  // attention.
  Tensor<double, 4> open(g.shape()), linear(r.shape());
  Tensor<double, 2> ones({H, N});
  fill(ones.view(), 1.0);
  memory = empty_memory(), other = empty_memory();
  linear_state(flat(r), flat(k), flat(v), ReadBefore<VectorDecay<double>>{{flat(open)}}, 1, memory,
               flat(o), call);
  add_bonus(flat(r), ones, flat(k), flat(v), flat(o), call);
  linear_state(flat(r), flat(k), flat(v), NoDecay{}, 1, other, flat(linear), call);
  CHECK(relative_error(o.view(), linear.view()) < 1e-13);
}

TEST_CASE("RWKV-7's memory is the delta rule's where nothing decays") {
  Context context;
  const auto r = heads(1), v = heads(3);
  auto k = heads(2), written = k, erased = k;
  auto beta = random_tensor<double, 3>({B, T, H}, 5);
  for (Index row = 0; row < B * T * H; ++row) {
    double& rate = beta.data()[row];
    rate = 1 / (1 + std::exp(-rate));
    double square = 0;
    for (Index i = row * N; i < (row + 1) * N; ++i) square += k.data()[i] * k.data()[i];
    for (Index i = row * N; i < (row + 1) * N; ++i) {
      k.data()[i] /= std::sqrt(square);
      written.data()[i] = rate * k.data()[i], erased.data()[i] = -k.data()[i];
    }
  }
  const Tensor<double, 4> open(k.shape());
  auto memory = empty_memory(), other = empty_memory();
  Tensor<double, 4> o(r.shape()), expected(r.shape());
  dplr_state(flat(r), flat(open), flat(written), flat(v), flat(erased), flat(written), memory,
             flat(o), TestCall(context, B, T));
  delta_rule(flat(r), flat(k), flat(v), flat(beta), NoDecay{}, 1, other, flat(expected),
             TestCall(context, B, T, Form::recurrent));
  CHECK(relative_error(o.view(), expected.view()) < 1e-13);
  CHECK(relative_error(memory.view(), other.view()) < 1e-13);
}

TEST_CASE("RWKV-7's memory without erasing is gated linear attention's") {
  Context context;
  const auto r = heads(1), k = heads(2), v = heads(3), g = log_decays(4), a = heads(5);
  const Tensor<double, 4> nothing(k.shape());
  auto memory = empty_memory(), other = empty_memory();
  Tensor<double, 4> o(r.shape()), expected(r.shape());
  const TestCall call(context, B, T);
  dplr_state(flat(r), flat(g), flat(k), flat(v), flat(a), flat(nothing), memory, flat(o), call);
  linear_state(flat(r), flat(k), flat(v), VectorDecay<double>{flat(g)}, 1, other, flat(expected),
               call);
  CHECK(relative_error(o.view(), expected.view()) < 1e-13);
  CHECK(relative_error(memory.view(), other.view()) < 1e-13);
}
