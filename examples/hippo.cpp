// What a state-space layer remembers before it has learned anything: S4 starts from the HiPPO
// system of all the past, whose state holds the signal as polynomials in e^(-age). From the state
// alone the program reads what was heard, the more exactly the more recent it is.
//
// Gu et al. 2020, arXiv:2008.07669; Gu et al. 2021, arXiv:2111.00396, section 3.

#include "seqmix/kernels/scan/hippo.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "seqmix/layers/ssm/s4.hpp"

using seqmix::Index;
using seqmix::Shape;
using seqmix::Tensor;

namespace {

constexpr Index states = 64, tokens = 4000;
constexpr double step = 0.001;  // time from one token to the next

double signal(double time) { return std::sin(3 * time) + 0.5 * std::cos(11 * time); }

/// A layer of one channel with the matrix of HiPPO-LegS; what follows the state stays zero.
seqmix::S4<double> start_of_s4(const seqmix::DiagonalPlusLowRank& hippo) {
  using Weights = seqmix::S4Definition<double>::Weights;
  const seqmix::S4Config config{.d_model = 1, .state_size = states};
  auto weights = seqmix::make_weights<Weights>(
      config, []<Index Rank>(const auto&, Shape<Rank> shape, const auto&...) {
        return Tensor<double, Rank>(shape);
      });
  Tensor<double, 4> B({1, 1, states / 2, 2}), P({1, 1, states / 2, 2});
  Tensor<double, 2> A_real({1, states / 2}), A_imag({1, states / 2}), inv_dt({1, 1});
  copy(hippo.B.view(), B.view()[0][0]);
  copy(hippo.P.view()[0], P.view()[0][0]);
  for (Index n = 0; n < states / 2; ++n) {
    A_real(0, n) = std::log(-hippo.lambda(n, 0));
    A_imag(0, n) = -hippo.lambda(n, 1);
  }
  inv_dt(0, 0) = std::log(step);
  weights.B = std::move(B), weights.P = std::move(P), weights.inv_dt = std::move(inv_dt);
  weights.A_real = std::move(A_real), weights.A_imag = std::move(A_imag);
  return {config, std::move(weights)};
}

/// The coefficient i of the past: Re(V x) over the pairs of conjugate states x [N / 2, {re, im}].
double coefficient(const seqmix::DiagonalPlusLowRank& hippo, seqmix::View<const double, 3> x,
                   Index i) {
  double sum = 0;
  for (Index n = 0; n < states / 2; ++n) {
    sum += 2 * (hippo.V(i, n, 0) * x(n, 0, 0) - hippo.V(i, n, 1) * x(n, 1, 0));
  }
  return sum;
}

/// Σ c_i sqrt(2 i + 1) P_i(2 e^(-age) - 1), P_i Legendre's polynomials.
double heard(const seqmix::DiagonalPlusLowRank& hippo, seqmix::View<const double, 3> x,
             double age) {
  const double z = 2 * std::exp(-age) - 1;
  double sum = 0, before = 0, legendre = 1;
  for (Index i = 0; i < states; ++i) {
    const double n = static_cast<double>(i);
    sum += coefficient(hippo, x, i) * std::sqrt(2 * n + 1) * legendre;
    const double next = ((2 * n + 1) * z * legendre - n * before) / (n + 1);
    before = legendre, legendre = next;
  }
  return sum;
}

}  // namespace

int main() {
  const auto hippo = seqmix::hippo_dplr(seqmix::HippoMeasure::legs, states);
  const seqmix::S4<double> layer = start_of_s4(hippo);
  auto state = layer.make_state(1);
  seqmix::Context context;
  Tensor<double, 3> u({1, tokens, 1}), y(u.shape());
  for (Index t = 0; t < tokens; ++t) u(0, t, 0) = signal(step * static_cast<double>(t));
  layer.prefill(u, state, y, context);

  std::puts("   age   was heard   is remembered");
  double worst = 0;
  for (const double age : {0.05, 0.1, 0.2, 0.5, 1.0, 1.5}) {
    const double was = signal(step * static_cast<double>(tokens) - age);
    const double is = heard(hippo, state.ssm.view()[0], age);
    std::printf("  %4.2f   %+9.4f   %+9.4f\n", age, was, is);
    worst = std::max(worst, std::abs(is - was));
  }
  return worst < 0.02 ? 0 : 1;
}
