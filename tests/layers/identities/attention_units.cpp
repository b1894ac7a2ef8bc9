// Identities between attention and the layers that are close to it.

#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "seqmix/layers/attention/aaren.hpp"
#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/attention/gated_attention_unit.hpp"
#include "seqmix/layers/attention/mixed_chunk_attention.hpp"
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

TEST_CASE("mixed chunk attention of one group is a gated attention unit") {
  const Index group = 90, K = 6, D = 12;
  const MixedChunkAttentionConfig config{{.d_model = D, .head_k = K, .head_v = 20}, group};
  const GatedAttentionUnitConfig gated{{.d_model = D, .head_k = K, .head_v = 20}, group};
  const auto weights = random_weights<MixedChunkAttentionWeights<double>>(config, 1);
  GatedAttentionUnitWeights<double> others;
  static_cast<GatedUnitWeights<double>&>(others) = weights;
  const auto uses_of_attention = [&](const Parameter<double, 2>& all) {
    Tensor<double, 2> two({2, K});
    for (Index i = 0; i < K; ++i) two(0, i) = all(0, i), two(1, i) = all(2, i);
    return two;
  };
  others.gamma = uses_of_attention(weights.gamma), others.beta = uses_of_attention(weights.beta);
  // Biases that one divides by g and multiplies by √D, the other multiplies by √K.
  Tensor<double, 2> table = weights.bias.table.to_tensor();
  for (Index i = 0; i < table.size(); ++i) {
    table.data()[i] *= static_cast<double>(group) * std::sqrt(0.5);
  }
  others.bias.table = std::move(table);
  const auto x = random_tensor<double, 3>({2, 100, D}, 2);
  const auto y = forward(MixedChunkAttention<double>(config, weights), x);
  const auto z = forward(GatedAttentionUnit<double>(gated, others), x);
  const auto first = [&](const auto& all) { return all.view()[1].slice(axis::time, 0, group); };
  const auto rest = [&](const auto& all) { return all.view()[1].slice(axis::time, group, 10); };
  CHECK(relative_error(first(y), first(z)) < 1e-13);
  CHECK(relative_error(rest(y), rest(z)) > 1e-3);
}
