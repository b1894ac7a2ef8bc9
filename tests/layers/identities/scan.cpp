// Identities between diagonal recurrences, and with linear attention.

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "seqmix/kernels/memory/linear_state.hpp"
#include "seqmix/kernels/scan/diagonal.hpp"
#include "seqmix/kernels/scan/selective_scan.hpp"
#include "seqmix/layers/ssm/lru.hpp"
#include "seqmix/layers/ssm/mamba2.hpp"
#include "seqmix/layers/ssm/rg_lru.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

namespace {

double softplus(double x) { return std::log1p(std::exp(x)); }
double silu(double x) { return x / (1 + std::exp(-x)); }

/// W x_t of token t of one row.
std::vector<double> product(const Tensor<double, 2>& w, const Tensor<double, 3>& x, Index t) {
  std::vector<double> y(static_cast<std::size_t>(w.extent(0)));
  for (Index i = 0; i < w.extent(0); ++i) {
    for (Index j = 0; j < w.extent(1); ++j) y[static_cast<std::size_t>(i)] += w(i, j) * x(0, t, j);
  }
  return y;
}

}  // namespace

TEST_CASE("Mamba-2 is attention under a mask of decays") {
  // y = (L ∘ C Bᵀ) (dt x), L_ts = exp(Σ of A dt over s < r <= t), gated and projected. Dao & Gu
  // 2024, arXiv:2405.21060, eq. 16.
  Mamba2Config config{.d_model = 10, .n_heads = 4, .head_dim = 3, .state_size = 5, .n_groups = 2};
  config.conv_kernel = 1, config.rms_norm = false;
  const auto weights = random_weights<Mamba2Definition<double>::Weights>(config, 1);
  const Mamba2<double> layer(config, weights);
  const Index T = 70, H = 4, P = 3, N = 5, inner = H * P;
  const auto x = random_tensor<double, 3>({1, T, 10}, 2);
  Tensor<double, 3> y(x.shape()), expected(x.shape());
  Context context;
  layer.forward(x, y, context);

  const auto in_proj = weights.in_proj.weight.to_tensor();
  const auto out_proj = weights.out_proj.weight.to_tensor();
  std::vector<std::vector<double>> rows;
  for (Index t = 0; t < T; ++t) {
    auto row = product(in_proj, x, t);
    for (Index d = 0; d < config.channels(); ++d) {
      double& value = row[static_cast<std::size_t>(inner + d)];
      value = silu(weights.conv(d, 0, 0) * value + weights.conv_bias[d]);
    }
    for (Index h = 0; h < H; ++h) {
      double& dt = row[static_cast<std::size_t>(inner + config.channels() + h)];
      dt = softplus(dt + weights.dt_bias[h]);
    }
    rows.push_back(row);
  }
  const auto at = [&](Index t, Index i) {
    return rows[static_cast<std::size_t>(t)][static_cast<std::size_t>(i)];
  };
  for (Index t = 0; t < T; ++t) {
    for (Index h = 0; h < H; ++h) {
      const Index keys = inner + inner + h / 2 * N, queries = keys + 2 * N;
      const Index dt = inner + config.channels() + h;
      for (Index p = 0; p < P; ++p) {
        double sum = weights.D[h] * at(t, inner + h * P + p), log_decay = 0;
        for (Index s = t; s >= 0; --s) {
          double score = 0;
          for (Index n = 0; n < N; ++n) score += at(t, queries + n) * at(s, keys + n);
          sum += std::exp(log_decay) * score * at(s, dt) * at(s, inner + h * P + p);
          log_decay -= at(s, dt) * std::exp(weights.A_log[h]);
        }
        const double gated = sum * silu(at(t, h * P + p));
        for (Index i = 0; i < 10; ++i) expected(0, t, i) += out_proj(i, h * P + p) * gated;
      }
    }
  }
  CHECK(relative_error(y.view(), expected.view()) < 1e-13);
}

TEST_CASE("the norm of Mamba-2 sees one group of heads, or all of them where that is asked for") {
  Mamba2Config config{.d_model = 10, .n_heads = 4, .head_dim = 3, .state_size = 5, .n_groups = 2};
  const auto weights = random_weights<Mamba2Definition<double>::Weights>(config, 1);
  const auto x = random_tensor<double, 3>({1, 20, 10}, 2);
  const auto run = [&](Mamba2Norm norm, Index norm_groups) {
    config.norm = norm, config.norm_groups = norm_groups;
    Tensor<double, 3> y(x.shape());
    Context context;
    Mamba2<double>(config, weights).forward(x, y, context);
    return y;
  };
  const auto by_group = run(Mamba2Norm::group, 0), over_width = run(Mamba2Norm::width, 0);
  CHECK(support::same_bits(by_group.view(), run(Mamba2Norm::group, 2).view()));
  CHECK(support::same_bits(over_width.view(), run(Mamba2Norm::group, 1).view()));
  CHECK(relative_error(by_group.view(), over_width.view()) > 1e-3);
  CHECK_THROWS_AS(run(Mamba2Norm::width, 2), ConfigError);
}

TEST_CASE("Mamba whose A is the same for all state numbers is Mamba-2 with heads of one channel") {
  const Index B = 2, T = 70, D = 37, N = 11;
  const auto x = random_tensor<double, 3>({B, T, D}, 1),
             raw = random_tensor<double, 3>({B, T, D}, 2);
  const auto keys = random_tensor<double, 3>({B, T, N}, 3);
  const auto queries = random_tensor<double, 3>({B, T, N}, 4);
  const auto gate = random_tensor<double, 3>({B, T, D}, 5);
  const auto start = random_tensor<double, 3>({B, N, D}, 6);
  Tensor<double, 2> rates({N, D});
  Tensor<double, 1> skip({D});
  Tensor<double, 3> log_decay({B, T, D}), y({B, T, D}), state = start;
  Tensor<double, 4> v({B, T, D, 1}), o({B, T, D, 1}), memory({B, D, N, 1});
  for (Index d = 0; d < D; ++d) {
    const double A = -0.1 * static_cast<double>(d + 1);
    for (Index n = 0; n < N; ++n) rates(n, d) = A / std::log(2.0);
    for (Index b = 0; b < B; ++b) {
      for (Index n = 0; n < N; ++n) memory(b, d, n, 0) = start(b, n, d);
      for (Index t = 0; t < T; ++t) {
        log_decay(b, t, d) = softplus(raw(b, t, d)) * A;
        v(b, t, d, 0) = softplus(raw(b, t, d)) * x(b, t, d);
      }
    }
  }
  Context context;
  const support::TestCall call(context, B, T);
  selective_scan<double>(flat(x), flat(raw), rates, flat(keys), flat(queries), skip, flat(gate),
                         state, flat(y), call);
  linear_state(flat(queries).insert<1>(), flat(keys).insert<1>(), flat(v),
               ScalarDecay<double>{flat(log_decay)}, 1, memory, flat(o), call);
  Tensor<double, 3> expected({B, T, D}), final_state({B, N, D});
  for (Index b = 0; b < B; ++b) {
    for (Index d = 0; d < D; ++d) {
      for (Index n = 0; n < N; ++n) final_state(b, n, d) = memory(b, d, n, 0);
      for (Index t = 0; t < T; ++t) expected(b, t, d) = o(b, t, d, 0) * silu(gate(b, t, d));
    }
  }
  CHECK(relative_error(y.view(), expected.view()) < 1e-13);
  CHECK(relative_error(state.view(), final_state.view()) < 1e-13);
}

TEST_CASE("a real-gated linear recurrent unit whose recurrent gate is shut keeps its state") {
  const RgLruConfig config{.d_model = 9, .lru_width = 12, .n_heads = 3};
  auto weights = random_weights<RgLruDefinition<double>::Weights>(config, 1);
  Tensor<double, 3> no_weight({3, 4, 4});
  Tensor<double, 2> shut({3, 4});
  fill(shut.view(), -1e4);
  weights.recurrent_gate_weight = no_weight, weights.recurrent_gate_bias = shut;
  const RgLru<double> layer(config, weights);
  const auto x = random_tensor<double, 3>({2, 80, 9}, 2);
  Tensor<double, 3> y(x.shape());
  Context context;
  auto state = layer.make_state(2);
  layer.prefill(x.view().slice<1>(0, 1), state, y.view().slice<1>(0, 1), context);
  const auto kept = state.hidden;
  layer.prefill(x.view().slice<1>(1, 79), state, y.view().slice<1>(1, 79), context);
  CHECK(support::same_bits(state.hidden.view(), kept.view()));
  CHECK(std::abs(kept(0, 0)) > 1e-3);
}

TEST_CASE("a linear recurrent unit that does not turn is a real moving average") {
  const Index D = 7, N = 5, T = 90;
  const LruConfig config{.d_model = D, .state_size = N};
  auto weights = random_weights<LruDefinition<double>::Weights>(config, 1);
  Tensor<double, 1> still({N}), slow({N});
  fill(still.view(), -std::numeric_limits<double>::infinity()), fill(slow.view(), -3.0);
  weights.theta_log = still, weights.nu_log = slow, weights.B_im = Tensor<double, 2>({N, D});
  const Lru<double> layer(config, weights);
  const auto x = random_tensor<double, 3>({1, T, D}, 2);
  Tensor<double, 3> y(x.shape()), expected(x.shape());
  Context context;
  layer.forward(x, y, context);
  const double keep = std::exp(-std::exp(-3.0));
  std::vector<double> average(static_cast<std::size_t>(N));
  for (Index t = 0; t < T; ++t) {
    const auto in = product(weights.B_re.to_tensor(), x, t);
    for (Index d = 0; d < D; ++d) expected(0, t, d) = weights.D[d] * x(0, t, d);
    for (Index n = 0; n < N; ++n) {
      const auto i = static_cast<std::size_t>(n);
      average[i] = keep * average[i] + std::exp(weights.gamma_log[n]) * in[i];
      for (Index d = 0; d < D; ++d) expected(0, t, d) += weights.C_re(d, n) * average[i];
    }
  }
  CHECK(relative_error(y.view(), expected.view()) < 1e-14);
}
