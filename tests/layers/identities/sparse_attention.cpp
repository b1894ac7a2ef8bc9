// Identities between the layers of sparse and latent attention and the dense ones.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "seqmix/layers/attention/attention.hpp"
#include "seqmix/layers/attention/big_bird_attention.hpp"
#include "seqmix/layers/attention/block_sparse_attention.hpp"
#include "seqmix/layers/attention/longformer_attention.hpp"
#include "seqmix/layers/attention/multi_head_latent_attention.hpp"
#include "support/compare.hpp"
#include "support/error_of.hpp"
#include "support/random.hpp"

using namespace seqmix;
using support::random_tensor;
using support::random_weights;
using support::relative_error;

namespace {

template <class Layer>
Tensor<double, 3> forward(const Layer& layer, const Tensor<double, 3>& x,
                          Algorithm algorithm = Algorithm::automatic) {
  Context context;
  context.set_algorithm(algorithm);
  Tensor<double, 3> y(x.shape());
  layer.forward(x, y, context);
  return y;
}

double difference(const Tensor<double, 3>& a, const Tensor<double, 3>& b) {
  return relative_error(a.view(), b.view());
}

Parameter<double, 2> identity(Index size) {
  Tensor<double, 2> matrix({size, size});
  for (Index i = 0; i < size; ++i) matrix(i, i) = 1;
  return matrix;
}

const AttentionConfig grouped{.d_model = 12,
                              .heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6},
                              .positions = {.rotary_dim = 6}};

/// `grouped` with a pattern, and `attention`'s weights.
struct Sparse {
  BlockSparseAttentionConfig config{
      .d_model = grouped.d_model, .heads = grouped.heads, .positions = grouped.positions};
  BlockSparseAttentionWeights<double> weights;

  explicit Sparse(const char* pattern) {
    config.pattern = pattern;
    if (!config.has(SparsePattern::local) && !config.has(SparsePattern::strided)) config.block = 8;
    static_cast<AttentionWeights<double>&>(weights) = dense();
  }
  static AttentionWeights<double> dense() {
    return random_weights<AttentionWeights<double>>(grouped, 1);
  }
  /// `n` blocks of which each sees the earlier ones for which `sees(i, j)`.
  void set_layout(Index n, auto&& sees) {
    Tensor<Index, 3> layout({1, n, n});
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) layout(0, i, j) = sees(i, j);
    }
    weights.layout = std::move(layout);
    config.layout_heads = 1, config.layout_blocks = n;
  }
  BlockSparseAttention<double> layer() const { return {config, weights}; }
};

const auto x_of_decoder = random_tensor<double, 3>({2, 150, 12}, 2);

/// Weights of Longformer or BigBird in those of bidirectional attention with three projections.
AttentionWeights<double> as_dense(const Projection<double>& query, const Projection<double>& key,
                                  const Projection<double>& value) {
  AttentionWeights<double> dense;
  dense.q_proj = query, dense.k_proj = key, dense.v_proj = value;
  dense.o_proj.weight = identity(query.weight.shape()[0]);
  return dense;
}
const AttentionConfig encoder{.d_model = 12,
                              .heads = {.n_heads = 3,
                                        .n_kv_heads = 3,
                                        .head_dim = 4,
                                        .q_bias = true,
                                        .k_bias = true,
                                        .v_bias = true}};
const auto x_of_encoder = random_tensor<double, 3>({2, 83, 12}, 3);

BigBirdAttentionDefinition<double>::Weights big_bird_weights(Index row_count, Index draws,
                                                             auto&& block) {
  BigBirdAttentionConfig fixed{.d_model = 12, .n_heads = 3};
  auto weights = random_weights<AttentionWeights<double>>(encoder, 4);
  BigBirdAttentionDefinition<double>::Weights result;
  result.query = weights.q_proj, result.key = weights.k_proj, result.value = weights.v_proj;
  if (draws == 0) return result;
  Tensor<Index, 3> table({fixed.n_heads, row_count, draws});
  for (Index h = 0; h < fixed.n_heads; ++h) {
    for (Index row = 0; row < row_count; ++row) {
      for (Index draw = 0; draw < draws; ++draw) table(h, row, draw) = block(draw);
    }
  }
  result.random_blocks = std::move(table);
  return result;
}

}  // namespace

TEST_CASE("all blocks are dense attention") {
  Sparse sparse("layout");
  sparse.set_layout(19, [](Index i, Index j) { return i >= j ? 1 : 0; });
  const auto dense = forward(Attention<double>(grouped, Sparse::dense()), x_of_decoder);
  CHECK(difference(forward(sparse.layer(), x_of_decoder), dense) < 1e-14);
  sparse.set_layout(19, [](Index i, Index j) { return i == j ? 1 : 0; });
  CHECK(difference(forward(sparse.layer(), x_of_decoder), dense) > 1e-2);
}

TEST_CASE("a stride of one and a segment of everything are dense attention") {
  const auto dense = forward(Attention<double>(grouped, Sparse::dense()), x_of_decoder);
  Sparse strided("strided"), fixed("fixed"), local("local");
  strided.config.span = 1, fixed.config.span = 152, local.config.span = 150;
  CHECK(difference(forward(strided.layer(), x_of_decoder), dense) < 1e-14);
  CHECK(difference(forward(fixed.layer(), x_of_decoder), dense) < 1e-14);
  CHECK(difference(forward(local.layer(), x_of_decoder), dense) < 1e-14);
  local.config.span = 3, local.config.prefix = 150;
  CHECK(difference(forward(local.layer(), x_of_decoder), dense) < 1e-14);
}

TEST_CASE("the pattern local is a sliding window") {
  Sparse local("local");
  local.config.span = 21;
  AttentionConfig window = grouped;
  window.sees.window = 21;
  CHECK(difference(forward(local.layer(), x_of_decoder),
                   forward(SlidingWindowAttention<double>(window, Sparse::dense()), x_of_decoder)) <
        1e-14);
}

TEST_CASE("blocks without later or random ones are block-diagonal attention") {
  Sparse big_bird("big_bird"), layout("layout");
  big_bird.config.n_global = 0, big_bird.config.n_local = 1;
  layout.set_layout(19, [](Index i, Index j) { return i == j ? 1 : 0; });
  CHECK(difference(forward(big_bird.layer(), x_of_decoder), forward(layout.layer(), x_of_decoder)) <
        1e-14);
}

TEST_CASE("a bad layout is named") {
  Sparse sparse("layout");
  sparse.set_layout(5, [](Index i, Index j) { return i == 1 && j == 3 ? 1 : 0; });
  CHECK(test::error_of<Error>([&] { sparse.layer(); }) ==
        "block_sparse_attention: layout(0, 1, 3) is 1, expected 0: a block sees no later one");
  sparse.set_layout(5, [](Index i, Index j) { return i == 2 && j == 2 ? 7 : 0; });
  CHECK(test::error_of<Error>([&] { sparse.layer(); }) ==
        "block_sparse_attention: layout(0, 2, 2) is 7, expected 0 or 1");
  sparse.set_layout(5, [](Index i, Index j) { return i == j ? 1 : 0; });
  CHECK(test::error_of<Error>([&] { forward(sparse.layer(), x_of_decoder); }) ==
        "block_sparse_attention: 150 tokens after 0 exceed the 40 positions of layout_blocks * "
        "block");
  CHECK(sparse.layer().make_state(1, 40).keys.capacity() == 40);
}

TEST_CASE("a query whose layout shows nothing gets zeros") {
  Sparse sparse("layout");
  sparse.set_layout(19, [](Index i, Index j) { return i != 2 && i == j ? 1 : 0; });
  const auto y = forward(sparse.layer(), x_of_decoder);
  for (Index d = 0; d < 12; ++d) {
    CHECK(y(0, 16, d) == 0);
    CHECK(y(1, 24, d) != 0);
  }
}

TEST_CASE("Longformer with a window over everything is bidirectional attention") {
  const LongformerAttentionConfig config{.d_model = 12, .n_heads = 3, .window = 166};
  using Definition = LongformerAttentionDefinition<double>;
  const auto weights = random_weights<Definition::Weights>(config, 5);
  const auto dense = [&](const Projection<double>& query, const Projection<double>& key,
                         const Projection<double>& value) {
    return forward(BidirectionalAttention<double>({encoder}, as_dense(query, key, value)),
                   x_of_encoder);
  };
  const auto local = forward(LongformerAttention<double>(config, weights), x_of_encoder);
  CHECK(difference(local, dense(weights.query, weights.key, weights.value)) < 1e-14);
  // All tokens global: the other projections.
  auto global = config;
  global.window = 2, global.n_global = 100;
  CHECK(difference(forward(LongformerAttention<double>(global, weights), x_of_encoder),
                   dense(weights.query_global, weights.key_global, weights.value_global)) < 1e-14);
}

TEST_CASE("BigBird of four blocks is bidirectional attention") {
  const auto weights = big_bird_weights(0, 0, [](Index) { return Index{0}; });
  const BigBirdAttentionConfig config{.d_model = 12, .n_heads = 3, .block = 21};
  const auto dense = forward(BidirectionalAttention<double>(
                                 {encoder}, as_dense(weights.query, weights.key, weights.value)),
                             x_of_encoder);
  CHECK(difference(forward(BigBirdAttention<double>(config, weights), x_of_encoder), dense) <
        1e-14);
  auto smaller = config;
  smaller.block = 10;
  CHECK(difference(forward(BigBirdAttention<double>(smaller, weights), x_of_encoder), dense) >
        1e-2);
}

TEST_CASE("a random block of BigBird that is listed again adds the log of its count") {
  // Four blocks, so that all is visible: block 2 is listed twice and weighs three times as much for
  // the queries of blocks 1 and 2. Three copies of its keys do the same without any list.
  const auto weights = big_bird_weights(2, 2, [](Index) { return Index{2}; });
  const BigBirdAttentionConfig config{
      .d_model = 12, .n_heads = 3, .block = 21, .n_random = 2, .n_blocks = 4};
  const auto y = forward(BigBirdAttention<double>(config, weights), x_of_encoder);
  Tensor<double, 3> longer({2, 83 + 42, 12});
  for (Index b = 0; b < 2; ++b) {
    copy(x_of_encoder.view()[b], longer.view()[b].slice<0>(0, 83));
    copy(x_of_encoder.view()[b].slice<0>(42, 21), longer.view()[b].slice<0>(83, 21));
    copy(x_of_encoder.view()[b].slice<0>(42, 21), longer.view()[b].slice<0>(104, 21));
  }
  const auto expected = forward(BidirectionalAttention<double>(
                                    {encoder}, as_dense(weights.query, weights.key, weights.value)),
                                longer);
  CHECK(relative_error(y.view().slice<1>(21, 42), expected.view().slice<1>(21, 42)) < 1e-14);
  CHECK(relative_error(y.view().slice<1>(0, 21), expected.view().slice<1>(0, 21)) > 1e-2);

  CHECK(test::error_of<Error>([&] {
          BigBirdAttention<double>(config, big_bird_weights(2, 2, [](Index draw) {
                                     return draw == 1 ? Index{4} : Index{0};
                                   }));
        }) == "big_bird_attention: random_blocks(0, 0, 1) is 4, expected a block, 0 to 3");
  CHECK(test::error_of<Error>([&] {
          forward(BigBirdAttention<double>(config, weights), longer);
        }) == "big_bird_attention: 125 tokens after 0 exceed the 84 positions of n_blocks * block");
}

TEST_CASE("absorbed and expanded latent attention agree") {
  const MultiHeadLatentAttentionConfig config{.d_model = 12,
                                              .n_heads = 4,
                                              .q_rank = 9,
                                              .kv_rank = 20,
                                              .nope_dim = 6,
                                              .head_v = 5,
                                              .positions = {.rotary_dim = 4}};
  using Definition = MultiHeadLatentAttentionDefinition<double>;
  const MultiHeadLatentAttention<double> layer(config,
                                               random_weights<Definition::Weights>(config, 6));
  const auto expanded = forward(layer, x_of_decoder, Algorithm::chunked);
  const auto absorbed = forward(layer, x_of_decoder, Algorithm::recurrent);
  CHECK(difference(absorbed, expanded) < 1e-13);
  CHECK(difference(absorbed, expanded) > 0);  // two ways of computing it, not one
}

TEST_CASE("a latent of full width without positions is multi-head attention") {
  // W_kva and the norm's weight leave x as it is up to its length, which all tokens here share.
  const Index D = 8, H = 2, K = 4;
  MultiHeadLatentAttentionConfig config{
      .d_model = D, .n_heads = H, .kv_rank = D, .nope_dim = K, .shared_dim = 2, .head_v = K};
  config.norm_eps = 0;
  auto x = random_tensor<double, 3>({1, 40, D}, 7);
  for (Index t = 0; t < 40; ++t) {
    double square = 0;
    for (Index d = 0; d < D; ++d) square += x(0, t, d) * x(0, t, d);
    for (Index d = 0; d < D; ++d) x(0, t, d) *= std::sqrt(static_cast<double>(D) / square);
  }
  MultiHeadLatentAttentionDefinition<double>::Weights weights;
  const auto queries = random_tensor<double, 2>({H * K, D}, 8);
  const auto pairs = random_tensor<double, 2>({H * 2 * K, D}, 9);
  Tensor<double, 2> q({H * (K + 2), D}), down({D + 2, D}), keys({H * K, D}), values({H * K, D});
  Tensor<double, 1> ones({D});
  fill(ones.view(), 1);
  for (Index d = 0; d < D; ++d) down(d, d) = 1;  // nothing for the rotated part
  for (Index h = 0; h < H; ++h) {
    copy(queries.view().slice<0>(h * K, K), q.view().slice<0>(h * (K + 2), K));
    copy(pairs.view().slice<0>(h * 2 * K, K), keys.view().slice<0>(h * K, K));
    copy(pairs.view().slice<0>(h * 2 * K + K, K), values.view().slice<0>(h * K, K));
  }
  weights.heads.q_proj.weight = Parameter<double, 2>(q);
  weights.kv_a_proj.weight = Parameter<double, 2>(down);
  weights.kv_a_layernorm = Parameter<double, 1>(ones);
  weights.kv_b_proj.weight = Parameter<double, 2>(pairs);
  weights.heads.o_proj.weight = identity(D);
  AttentionConfig dense{.d_model = D, .heads = {.n_heads = H, .n_kv_heads = H, .head_dim = K}};
  dense.scores = config.scaled_scores();
  AttentionWeights<double> plain;
  plain.q_proj.weight = Parameter<double, 2>(queries);
  plain.k_proj.weight = Parameter<double, 2>(keys);
  plain.v_proj.weight = Parameter<double, 2>(values);
  plain.o_proj.weight = identity(D);
  CHECK(difference(forward(MultiHeadLatentAttention<double>(config, weights), x),
                   forward(Attention<double>(dense, plain), x)) < 1e-13);
}
