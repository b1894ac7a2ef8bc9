#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "seqmix/kernels/attention/latent.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "seqmix/kernels/attention/selection.hpp"
#include "seqmix/kernels/attention/strided.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

constexpr Index B = 2, T = 75, H = 4, G = 2, K = 5, past_of_first_row = 41;

/// Two rows, the second from the start of its stream.
template <class S>
struct Case {
  Tensor<S, 4> q = random_tensor<S, 4>({B, T, H, K}, 1);
  Tensor<S, 4> keys = random_tensor<S, 4>({B, G, past_of_first_row + T, K}, 2);
  Tensor<S, 4> values = random_tensor<S, 4>({B, G, past_of_first_row + T, K}, 3);
  Tensor<Index, 1> past{Shape<1>{B}};

  Case() { past[0] = past_of_first_row, past[1] = 0; }

  Tensor<S, 4> run(const SparsePatterns& patterns, Form form, Context& context) {
    Tensor<S, 4> o({B, T, H, K});
    attend(flat(q), patterns, flat(o), TestCall(context, B, T, form));
    return o;
  }
  void attend(const View<S, 3>& queries, const SparsePatterns& patterns, const View<S, 3>& o,
              const Call& call) {
    attention(queries, keys, values, past, SparseMask{patterns}, PlainScore{0.4}, o, call);
    const ComposedScore<S> score(0.4, {});
    strided_attention<S>(queries, keys, values, past, patterns, score, o, call);
  }
  /// Row 1, then some of row 0.
  Tensor<S, 3> run_mixed(const SparsePatterns& patterns, Form form, Index of_row_0,
                         Context& context) {
    Tensor<S, 3> some({T + of_row_0, H, K}), o(some.shape());
    copy(q.view()[1], some.view().slice(axis::time, 0, T));
    copy(q.view()[0].slice(axis::time, 0, of_row_0), some.view().slice(axis::time, T, of_row_0));
    attend(some, patterns, o.view(),
           TestCall(context, {{1, 0, T, form}, {0, T, of_row_0, Form::parallel}}));
    return o;
  }
  /// In calls of other lengths, so in other panels.
  Tensor<S, 4> run_pieces(const SparsePatterns& patterns, Context& context) {
    Tensor<S, 4> o({B, T, H, K});
    for (Index b = 0; b < B; ++b) {
      Tensor<Index, 1> before = past;
      for (Index first = 0, count = 3; first < T; first += count, count = 66) {
        count = std::min(count, T - first);
        attention(q.view()[b].slice(axis::time, first, count), keys, values, before,
                  SparseMask{patterns}, PlainScore{0.4}, o[b].slice(axis::time, first, count),
                  TestCall(context, {{b, 0, count, Form::parallel}}));
        before[b] += count;
      }
    }
    return o;
  }
  Tensor<double, 4> expected(auto&& sees) const {
    Tensor<double, 4> o({B, T, H, K});
    for (Index b = 0; b < B; ++b) {
      for (Index t = 0; t < T; ++t) {
        for (Index h = 0; h < H; ++h) {
          const Index i = past[b] + t, g = h / (H / G);
          double total = 0;
          for (Index j = 0; j <= i; ++j) {
            if (!sees(h, i, j)) continue;
            double product = 0;
            for (Index n = 0; n < K; ++n) {
              product += static_cast<double>(q(b, t, h, n)) * static_cast<double>(keys(b, g, j, n));
            }
            const double weight = std::exp(0.4 * product);
            total += weight;
            for (Index n = 0; n < K; ++n) {
              o(b, t, h, n) += weight * static_cast<double>(values(b, g, j, n));
            }
          }
          for (Index n = 0; n < K; ++n) o(b, t, h, n) /= total;
        }
      }
    }
    return o;
  }
};

template <class S>
void check(const SparsePatterns& patterns, auto&& sees) {
  Case<S> inputs;
  const auto expected = inputs.expected(sees);
  Context serial;
  serial.set_poison(true);
  const auto parallel = inputs.run(patterns, Form::parallel, serial);
  const auto recurrent = inputs.run(patterns, Form::recurrent, serial);
  const double bound = std::is_same_v<S, float> ? 1e-6 : 1e-14;
  CHECK(relative_error(parallel.view(), expected.view()) < bound);
  CHECK(relative_error(recurrent.view(), expected.view()) < bound);
  if (patterns.of(0) != SparsePattern::strided) {
    CHECK(same_bits(inputs.run_pieces(patterns, serial).view(), parallel.view()));
  }
  support::ThreadExecutor executor(3);
  Context threads(executor);
  CHECK(same_bits(inputs.run(patterns, Form::parallel, threads).view(), parallel.view()));
  CHECK(same_bits(inputs.run(patterns, Form::recurrent, threads).view(), recurrent.view()));
  for (const Index count : {1, 7, 65}) {
    for (const Form form : {Form::parallel, Form::recurrent}) {
      const auto mixed = inputs.run_mixed(patterns, form, count, threads);
      const auto row_1 = (form == Form::parallel ? parallel : recurrent).view()[1];
      CHECK(same_bits(mixed.view().slice(axis::time, 0, T), row_1));
      CHECK(same_bits(mixed.view().slice(axis::time, T, count),
                      parallel.view()[0].slice(axis::time, 0, count)));
    }
  }
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("each pattern shows the keys that it says", "", support::TestScalars) {
  SparsePatterns patterns;
  SECTION("local with a prefix, and dense") {
    patterns.of_heads = sparse_patterns("local,dense");
    patterns.span = 9, patterns.prefix = 3;
    check<TestType>(patterns,
                    [](Index h, Index i, Index j) { return h % 2 == 1 || i - j < 9 || j < 3; });
  }
  SECTION("strided") {
    for (const Index span : {1, 7, 64, 500}) {
      patterns.of_heads = sparse_patterns("strided"), patterns.span = span;
      check<TestType>(patterns, [=](Index, Index i, Index j) { return (i - j) % span == 0; });
    }
  }
  SECTION("fixed") {
    for (const Index block : {1, 3, 16}) {
      patterns.of_heads = sparse_patterns("fixed");
      patterns.block = block, patterns.span = 4 * block, patterns.n_verticals = 2;
      check<TestType>(patterns, [=](Index h, Index i, Index j) {
        return i / (4 * block) == j / (4 * block) || j / block % 4 == 3 - h % 2;
      });
    }
  }
  SECTION("row") {
    for (const Index span : {1, 7, 64, 500}) {
      patterns.of_heads = sparse_patterns("row"), patterns.span = span;
      check<TestType>(patterns, [=](Index, Index i, Index j) { return i / span == j / span; });
    }
  }
  SECTION("stripes") {
    for (const Index block : {1, 5, 64}) {
      patterns.of_heads = sparse_patterns("stripes");
      patterns.block = block, patterns.n_local = 2, patterns.heads_per_group = H / G;
      patterns.stripe_stride = 5, patterns.stripe_step = 3, patterns.stripe_offset = 1;
      check<TestType>(patterns, [=](Index h, Index i, Index j) {
        return i / block - j / block < 2 || (j / block + h / (H / G) * 3 + 1) % 5 == 0;
      });
    }
  }
  SECTION("layout") {
    for (const Index block : {1, 5, 16, 64}) {
      const auto sees = [](Index h, Index i, Index j) {
        return i == j || (i > j && (3 * i + 5 * j + h) % 7 < 3);
      };
      Tensor<Index, 3> layout({H, 120, 120});
      for (Index h = 0; h < H; ++h) {
        for (Index i = 0; i < 120; ++i) {
          for (Index j = 0; j < 120; ++j) layout(h, i, j) = sees(h, i, j) ? 1 : 0;
        }
      }
      patterns.of_heads = sparse_patterns("layout");
      patterns.block = block, patterns.layout = std::move(layout);
      check<TestType>(patterns,
                      [=](Index h, Index i, Index j) { return sees(h, i / block, j / block); });
    }
  }
}

TEST_CASE("the draws of big_bird reach every earlier block, and differ by head and seed") {
  SparsePatterns patterns;
  patterns.n_global = 0, patterns.n_local = 1, patterns.n_random = 2;
  std::vector<int> seen(50);
  int differ_by_head = 0, differ_by_seed = 0;
  for (Index seed = 0; seed < 200; ++seed) {
    for (Index j = 0; j < 50; ++j) {
      const auto sees = [&](Index of_seed, Index head) {
        patterns.seed = of_seed;
        return patterns.sees(SparsePattern::big_bird, head, 49, j);
      };
      seen[static_cast<std::size_t>(j)] += sees(seed, 0) ? 1 : 0;
      differ_by_head += sees(seed, 0) != sees(seed, 1) ? 1 : 0;
      differ_by_seed += sees(seed, 0) != sees(seed + 1, 0) ? 1 : 0;
    }
  }
  for (std::size_t j = 0; j < 49; ++j) CHECK((seen[j] > 0 && seen[j] < 30));
  CHECK(seen[49] == 200);
  CHECK(differ_by_head > 300);
  CHECK(differ_by_seed > 300);
}

TEST_CASE("a list of patterns names what it cannot read") {
  CHECK(sparse_patterns("local,big_bird").size() == 2);
  for (const char* text : {"", "dense,", "Dense", "local, strided"}) {
    CHECK_THROWS_AS(sparse_patterns(text), ConfigError);
  }
}

TEMPLATE_LIST_TEST_CASE("latent attention is attention with expanded keys and values", "",
                        support::TestScalars) {
  using S = TestType;
  constexpr Index rank = 11, rotary = 4, V = 3, width = K + rotary;
  const auto q = random_tensor<S, 4>({B, T, H, width}, 5);
  const auto cache = random_tensor<S, 4>({B, 1, past_of_first_row + T, rank + rotary}, 6);
  const auto weight = random_tensor<S, 3>({H, K + V, rank}, 7);
  Tensor<S, 4> keys({B, H, cache.extent(2), width}), values({B, H, cache.extent(2), V});
  Tensor<Index, 1> past({B});
  past[0] = past_of_first_row;
  for (Index b = 0; b < B; ++b) {
    for (Index h = 0; h < H; ++h) {
      for (Index j = 0; j < cache.extent(2); ++j) {
        for (Index i = 0; i < K + V; ++i) {
          double sum = 0;
          for (Index n = 0; n < rank; ++n) {
            sum += static_cast<double>(weight(h, i, n)) * static_cast<double>(cache(b, 0, j, n));
          }
          (i < K ? keys(b, h, j, i) : values(b, h, j, i - K)) = static_cast<S>(sum);
        }
        for (Index i = 0; i < rotary; ++i) keys(b, h, j, K + i) = cache(b, 0, j, rank + i);
      }
    }
  }
  Context context;
  const TestCall parallel(context, B, T), recurrent(context, B, T, Form::recurrent);
  Tensor<S, 3> expected({B * T, H, V}), o({B * T, H, V});
  attention(flat(q), keys, values, past, Causal{}, PlainScore{0.2}, expected.view(), parallel);
  const LatentHeads<S> heads(weight, K);
  const ComposedScore<S> score(0.2, {});
  const double bound = std::is_same_v<S, float> ? 1e-5 : 1e-13;
  for (const Algorithm algorithm :
       {Algorithm::automatic, Algorithm::chunked, Algorithm::recurrent}) {
    fill(o.view(), std::numeric_limits<S>::quiet_NaN());
    latent_attention(flat(q), cache, past, heads, score, o.view(), parallel->with(algorithm));
    CHECK(relative_error(o.view(), expected.view()) < bound);
  }
  fill(o.view(), std::numeric_limits<S>::quiet_NaN());
  latent_attention(flat(q), cache, past, heads, score, o.view(), recurrent);
  CHECK(relative_error(o.view(), expected.view()) < bound);

  past[0] = cache.extent(2);
  CHECK_THROWS_AS(latent_attention(flat(q), cache, past, heads, score, o.view(), recurrent),
                  CapacityError);
  CHECK_THROWS_AS(latent_attention(flat(q), keys, past, heads, score, o.view(), recurrent),
                  ShapeError);
}

TEMPLATE_LIST_TEST_CASE("segments of latent attention choose their ways alone", "",
                        support::TestScalars) {
  using S = TestType;
  constexpr Index rank = 32, rotary = 4, V = 4, capacity = 150;
  const LatentHeads<S> heads(random_tensor<S, 3>({H, K + V, rank}, 7), K);
  const ComposedScore<S> score(0.2, {});
  constexpr Form parallel = Form::parallel, recurrent = Form::recurrent;
  // From 6 tokens on the latents are expanded.
  for (const std::vector<Segment>& segments :
       {std::vector<Segment>{{1, 0, 1, recurrent}, {0, 1, 3, parallel}, {3, 4, 1, recurrent}},
        {{4, 0, 65, parallel}, {1, 65, 1, recurrent}, {2, 66, 7, parallel}, {0, 73, 7, recurrent}},
        {{0, 0, 70, parallel}, {2, 70, 20, parallel}}}) {
    const Index tokens = segments.back().first + segments.back().count;
    const auto q = random_tensor<S, 3>({tokens, H, K + rotary}, 5);
    const auto numbers = random_tensor<S, 4>({5, 1, capacity, rank + rotary}, 6);
    Tensor<Index, 1> past({5});
    for (Index b = 0; b < 5; ++b) past[b] = 20 * b;
    for (const Storage storage : {Storage::native, Storage::bf16}) {
      Cache<S, 4> cache(numbers.shape(), {}, storage);
      store_entries<S>(numbers, cache.view());
      support::ThreadExecutor executor(3);
      Context serial, threads(executor);
      serial.set_poison(true), threads.set_poison(true);
      Tensor<S, 3> alone({tokens, H, V}), o({tokens, H, V});
      for (Segment segment : segments) {
        const auto own = [&, first = segment.first](const auto& view) {
          return view.slice(axis::time, first, segment.count);
        };
        const auto own_q = own(q.view());
        const auto own_o = own(alone.view());
        segment.first = 0;
        latent_attention(own_q, cache.view(), past, heads, score, own_o,
                         Call(serial, Segments(&segment, 1)));
      }
      for (Context* const context : {&serial, &threads}) {
        fill(o.view(), S(0));
        latent_attention(q, cache.view(), past, heads, score, o.view(), Call(*context, segments));
        CHECK(same_bits(o.view(), alone.view()));
      }
    }
  }
}
