#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/layers/attention/detail/biases.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::random_tensor;

namespace {

using Kind = DistanceBiasKind;

std::string error_of(const DistanceBiasConfig& config) {
  return test::error_of<ConfigError>([&] { check_config("bias", config); });
}

std::vector<DistanceBiasConfig> all_kinds() {
  return {{.kind = Kind::alibi, .alibi_bias_max = 4},
          {.kind = Kind::falcon_alibi},
          {.kind = Kind::t5, .num_buckets = 8, .bidirectional = true, .max_distance = 20},
          {.kind = Kind::relative, .max_distance = 5},
          {.kind = Kind::kerple_log},
          {.kind = Kind::kerple_power},
          {.kind = Kind::sandwich, .sandwich_dim = 10, .max_positions = 90},
          {.kind = Kind::fire, .fire_width = 6, .fire_initial_length = 30},
          {.kind = Kind::inverse_square},
          {.kind = Kind::log_square}};
}

template <class S>
DistanceBiasWeights<S> random_weights(const DistanceBiasConfig& config, Index heads) {
  DistanceBiasWeights<S> weights;
  unsigned seed = 1;
  DistanceBiasWeights<S>::visit(
      weights, config, heads,
      [&]<class P>(const auto& /*name*/, P& parameter, Shape<P::rank> shape, auto...) {
        parameter = random_tensor<S, P::rank>(shape, seed++);
      });
  return weights;
}

}  // namespace

TEMPLATE_TEST_CASE("biases of a config act alike in both forms", "[distance_biases]", float,
                   double) {
  using S = TestType;
  const Index T = 80, H = 6, K = 5;
  const auto q = random_tensor<S, 3>({T, H, K}, 1);
  const auto keys = random_tensor<S, 4>({1, H, T, K}, 2);
  const auto values = random_tensor<S, 4>({1, H, T, K}, 3);
  const Tensor<Index, 1> past({1});
  Context context;
  Tensor<S, 3> plain({T, H, K});
  attention(q, keys, values, past, Causal{}, PlainScore{}, plain.view(),
            support::TestCall(context, 1, T, Form::parallel));
  for (const DistanceBiasConfig& config : all_kinds()) {
    INFO(to_string(config.kind));
    CHECK(error_of(config) == "");
    Index called = 0;
    make_distance_biases(config, random_weights<S>(config, H), H, 1, 1, [&](auto biases) {
      const OwnedBiases owned{std::move(biases)};
      Tensor<S, 3> parallel({T, H, K}), recurrent({T, H, K});
      const auto run = [&](Form form, const View<S, 3>& o) {
        attention(q, keys, values, past, Causal{}, owned, o,
                  support::TestCall(context, 1, T, form));
      };
      run(Form::parallel, parallel.view()), run(Form::recurrent, recurrent.view());
      const double tolerance = 64 * static_cast<double>(std::numeric_limits<S>::epsilon());
      CHECK(support::relative_error(parallel.view(), recurrent.view()) < tolerance);
      CHECK(support::relative_error(parallel.view(), plain.view()) > 0.01);
      ++called;
    });
    CHECK(called == 1);
  }
  make_distance_biases(DistanceBiasConfig{}, DistanceBiasWeights<S>{}, H, 1, 1,
                       [](const auto&) { FAIL("there are no biases"); });
}

TEST_CASE("configs of biases that cannot be are refused", "[distance_biases]") {
  const auto refused = [](const DistanceBiasConfig& config, const std::string& why) {
    INFO(error_of(config));
    CHECK(error_of(config).find(why) != std::string::npos);
  };
  refused({.kind = Kind::t5, .num_buckets = 1}, "num_buckets must be at least 2 a direction");
  refused({.kind = Kind::t5, .num_buckets = 3, .bidirectional = true}, "num_buckets");
  refused({.kind = Kind::t5, .max_distance = 16}, "max_distance must exceed");
  refused({.kind = Kind::relative, .max_distance = 0}, "max_distance");
  refused({.kind = Kind::sandwich}, "max_positions");
  refused({.kind = Kind::sandwich, .sandwich_dim = 7, .max_positions = 9}, "sandwich_dim");
  refused({.kind = Kind::alibi, .alibi_bias_max = -1}, "alibi_bias_max");
  refused({.kind = Kind::fire, .fire_eps = -1}, "fire_eps");
  // What nothing reads.
  refused({.alibi_bias_max = 4}, "kind is alibi");
  refused({.kind = Kind::relative, .num_buckets = 8}, "kind is t5");
  refused({.kind = Kind::t5, .fire_width = 8}, "kind is fire");
}
