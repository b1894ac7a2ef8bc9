// Identities between state-space layers: they catch what both forms of a layer get wrong together.

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <complex>
#include <vector>

#include "seqmix/kernels/scan/hippo.hpp"
#include "seqmix/layers/ssm/s4.hpp"
#include "seqmix/layers/ssm/s4d.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

namespace {

using S4Weights = S4Definition<double>::Weights;

Parameter<double, 2> logarithms_of_steps(Index d_model) {
  Tensor<double, 2> numbers({d_model, 1});
  for (Index d = 0; d < d_model; ++d) numbers(d, 0) = -4 + 0.3 * static_cast<double>(d);
  return numbers;
}

}  // namespace

TEST_CASE("S4 without its low rank part is S4D by the bilinear transform") {
  const S4Config config{.d_model = 7, .state_size = 10, .n_ssm = 7};
  S4Weights weights = random_weights<S4Weights>(config, 1);
  weights.P = Parameter<double, 4>(Tensor<double, 4>({1, 7, 5, 2}));
  weights.inv_dt = logarithms_of_steps(7);
  S4DDefinition<double>::Weights diagonal;
  Tensor<double, 4> ones({1, 7, 5, 2});
  Tensor<double, 3> C({7, 5, 2}), output({14, 7, 1});
  Tensor<double, 2> A_imag({7, 5});
  Tensor<double, 1> log_dt({7}), D({7});
  copy(weights.C.view()[0], C.view());
  copy(weights.output.weight.to_tensor().view(), output.view().at<2>(0));
  for (Index d = 0; d < 7; ++d) {
    log_dt[d] = weights.inv_dt(d, 0), D[d] = weights.D(0, d);
    for (Index n = 0; n < 5; ++n) ones(0, d, n, 0) = 1, A_imag(d, n) = -weights.A_imag(d, n);
  }
  weights.B = std::move(ones);
  diagonal.C = std::move(C), diagonal.log_dt = std::move(log_dt), diagonal.D = std::move(D);
  diagonal.A_imag = std::move(A_imag), diagonal.log_A_real = weights.A_real;
  diagonal.output_weight = Parameter<double, 3>(std::move(output));
  diagonal.output_bias = weights.output.bias;
  const S4<double> full(config, weights);
  const S4D<double> plain(
      {.d_model = 7, .state_size = 10, .discretization = Discretization::bilinear}, diagonal);
  const auto x = random_tensor<double, 3>({2, 150, 7}, 2);
  for (const Algorithm algorithm : {Algorithm::chunked, Algorithm::recurrent}) {
    Context context;
    context.set_algorithm(algorithm);
    Tensor<double, 3> a(x.shape()), b(x.shape());
    full.forward(x, a, context), plain.forward(x, b, context);
    CHECK(relative_error(a.view(), b.view()) < 1e-13);
  }
}

TEST_CASE("S4's convolution, its recurrence and its steps are one map") {
  const S4Config config{.d_model = 5, .state_size = 12, .n_ssm = 1, .l_kernel = 90};
  S4Weights weights = random_weights<S4Weights>(config, 3);
  weights.inv_dt = logarithms_of_steps(5);
  const S4<double> layer(config, weights);
  const auto x = random_tensor<double, 3>({1, 200, 5}, 4);
  Context context;
  Tensor<double, 3> convolved(x.shape()), scanned(x.shape()), stepped(x.shape());
  context.set_algorithm(Algorithm::chunked);
  layer.forward(x, convolved, context);
  context.set_algorithm(Algorithm::recurrent);
  layer.forward(x, scanned, context);
  auto state = layer.make_state(1);
  for (Index t = 0; t < 200; ++t) {
    layer.step(x.view().at<1>(t), state, stepped.view().at<1>(t), context);
  }
  CHECK(relative_error(convolved.view(), scanned.view()) < 1e-12);
  CHECK(relative_error(stepped.view(), scanned.view()) < 1e-15);
}

TEST_CASE("S4 in HiPPO's diagonal basis is the dense HiPPO recurrence") {
  const Index N = 16, half = N / 2, T = 120;
  for (const HippoMeasure measure : {HippoMeasure::legs, HippoMeasure::fourier}) {
    const S4Config config{.d_model = 1, .state_size = N};
    S4Weights weights = random_weights<S4Weights>(config, 5);
    const auto start = hippo_dplr(measure, N);
    Tensor<double, 4> B({1, 1, half, 2}), P({1, 1, half, 2});
    Tensor<double, 2> A_real({1, half}), A_imag({1, half}), inv_dt({1, 1});
    copy(start.B.view(), B.view()[0][0]);
    copy(start.P.view()[0], P.view()[0][0]);
    const double step = 0.05;
    inv_dt(0, 0) = std::log(step);
    // The logarithm needs a decay; Fourier's eigenvalues have none, nearly none does as well.
    for (Index n = 0; n < half; ++n) {
      A_real(0, n) = std::log(std::max(-start.lambda(n, 0), 1e-14));
      A_imag(0, n) = -start.lambda(n, 1);
    }
    weights.B = std::move(B), weights.P = std::move(P), weights.inv_dt = std::move(inv_dt);
    weights.A_real = std::move(A_real), weights.A_imag = std::move(A_imag);
    const S4<double> layer(config, weights);
    const auto u = random_tensor<double, 3>({1, T, 1}, 6);
    auto state = layer.make_state(1);
    Context context;
    Tensor<double, 3> y(u.shape());
    layer.prefill(u, state, y, context);

    // (1 - Δ/2 A) x_t = (1 + Δ/2 A) x_{t-1} + Δ B u_t
    const auto dense = hippo(measure, N);
    std::vector<double> x(static_cast<std::size_t>(N));
    detail::SquareMatrix minus(static_cast<std::size_t>(N));
    for (Index i = 0; i < N; ++i) {
      for (Index j = 0; j < N; ++j) {
        minus.row(static_cast<std::size_t>(i))[j] = (i == j ? 1 : 0) - step / 2 * dense.A(i, j);
      }
    }
    for (Index t = 0; t < T; ++t) {
      std::vector<double> right = x;
      for (Index i = 0; i < N; ++i) {
        double& number = right[static_cast<std::size_t>(i)];
        number += step * dense.B[i] * u(0, t, 0);
        for (Index j = 0; j < N; ++j) {
          number += step / 2 * dense.A(i, j) * x[static_cast<std::size_t>(j)];
        }
      }
      x = detail::solve(minus, right);
    }
    std::vector<double> from_layer(static_cast<std::size_t>(N));
    for (Index i = 0; i < N; ++i) {
      for (Index n = 0; n < half; ++n) {
        from_layer[static_cast<std::size_t>(i)] +=
            2 * (std::complex<double>(start.V(i, n, 0), start.V(i, n, 1)) *
                 std::complex<double>(state.ssm(0, n, 0, 0), state.ssm(0, n, 1, 0)))
                    .real();
      }
    }
    CHECK(relative_error<double, double>(from_layer, x) < 1e-11);
  }
}
