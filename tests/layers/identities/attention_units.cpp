// Identities between attention and the layers that are close to it.

#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "seqmix/layers/attention/aaren.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "support/compare.hpp"
#include "support/forward.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::forward;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

TEST_CASE("Aaren is attention whose queries are the same for all tokens") {
  const AarenConfig config{.d_model = 12, .n_heads = 4, .head_k = 6, .head_v = 6};
  const auto weights = random_weights<AarenDefinition<double>::Weights>(config, 1);
  const AttentionConfig dense{
      .d_model = 12, .heads = {.n_heads = 4, .n_kv_heads = 4, .head_dim = 6, .q_bias = true}};
  AttentionWeights<double> others;
  others.q_proj.weight = Parameter<double, 2>(Tensor<double, 2>({24, 12}));
  Tensor<double, 1> queries({24});
  for (Index i = 0; i < 24; ++i) queries[i] = weights.query(i / 6, i % 6);
  others.q_proj.bias = std::move(queries);
  others.k_proj = weights.k_proj, others.v_proj = weights.v_proj, others.o_proj = weights.o_proj;
  const auto x = random_tensor<double, 3>({2, 150, 12}, 2);
  const auto y = forward(Aaren<double>(config, weights), x);
  CHECK(relative_error(y.view(), forward(Attention<double>(dense, others), x).view()) < 1e-13);
}
