#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/caches.hpp"
#include "seqmix/kernels/attention/latent.hpp"
#include "seqmix/kernels/attention/masks.hpp"
#include "seqmix/kernels/attention/rings.hpp"
#include "seqmix/kernels/attention/scores.hpp"
#include "support/allocations.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

constexpr Storage storages[] = {Storage::native, Storage::bf16, Storage::f16, Storage::int8};

/// What a cache gives back.
template <class S, Index Rank>
Tensor<S, Rank> numbers_of(const Cache<S, Rank>& cache) {
  Tensor<S, Rank> numbers(cache.shape());
  load_entries<S>(cache.view(), numbers.view());
  return numbers;
}

template <class S>
Cache<S, 4> stored(const Tensor<S, 4>& x, Storage storage) {
  Cache<S, 4> cache(x.shape(), {}, storage);
  store_entries<S>(x, cache.view());
  return cache;
}

/// The largest error of a number over the largest of its entry.
double bound_of(Storage storage) {
  switch (storage) {
    case Storage::bf16:
      return 0x1p-8;
    case Storage::f16:
      return 0x1p-11;
    case Storage::int8:
      return 0.5 / 127 * 1.01;  // the scale is rounded too
    default:
      return 0;
  }
}

template <class S>
constexpr double tolerance = 16 * static_cast<double>(std::numeric_limits<S>::epsilon());

}  // namespace

TEMPLATE_LIST_TEST_CASE("an entry comes back rounded, and goes in again as the same bits", "",
                        support::TestScalars) {
  using S = TestType;
  for (const Storage storage : storages) {
    for (const Index K : {1, 3, 16, 37, 64}) {
      INFO(to_string(storage) << " K " << K);
      auto x = random_tensor<S, 4>({2, 3, 5, K}, 3);
      for (Index i = 0; i < x.size(); ++i) x.data()[i] *= static_cast<S>(std::exp2(i % 40 / 4));
      const Cache<S, 4> cache = stored(x, storage);
      const auto back = numbers_of(cache);
      for (Index i = 0; i < x.size(); i += K) {
        double largest = 0, error = 0;
        for (Index k = 0; k < K; ++k) {
          const double number = static_cast<double>(x.data()[i + k]);
          largest = std::max(largest, std::abs(number));
          error = std::max(error, std::abs(number - static_cast<double>(back.data()[i + k])));
        }
        REQUIRE(error <= bound_of(storage) * largest);
      }
      CHECK(same_bits(numbers_of(stored(back, storage)).view(), back.view()));
      Context context;
      Tensor<S, 4> rounded(x.shape());
      round_entries<S>(flat(x), storage, flat(rounded), TestCall(context));
      CHECK(same_bits(rounded.view(), back.view()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("zeros, tiny and huge numbers stay finite in a cache, and NaN stays NaN",
                        "", support::TestScalars) {
  using S = TestType;
  const S nan = std::numeric_limits<S>::quiet_NaN();
  for (const Storage storage : storages) {
    INFO(to_string(storage));
    Tensor<S, 4> x({1, 1, 6, 4});
    fill(x[0][0][1], S(1e-38));
    fill(x[0][0][2], S(3e38));
    fill(x[0][0][3], S(-7e4));
    x(0, 0, 4, 2) = nan;
    fill(x[0][0][5], std::numeric_limits<S>::max());
    const auto back = numbers_of(stored(x, storage));
    for (Index k = 0; k < 4; ++k) {
      CHECK(back(0, 0, 0, k) == 0);
      CHECK(std::abs(back(0, 0, 1, k)) < 2e-38);
      CHECK((std::isfinite(back(0, 0, 2, k)) && back(0, 0, 2, k) > 6e4));
      CHECK((std::isfinite(back(0, 0, 3, k)) && back(0, 0, 3, k) < -6e4));
      CHECK((std::isfinite(back(0, 0, 5, k)) && back(0, 0, 5, k) >= back(0, 0, 2, k)));
    }
    CHECK(std::isnan(back(0, 0, 4, 2)));
    CHECK((storage == Storage::int8 || back(0, 0, 4, 1) == 0));
  }
}

TEST_CASE("appending writes behind what each row has") {
  for (const Storage storage : storages) {
    INFO(to_string(storage));
    Tensor<float, 4> x({2, 2, 3, 1});
    fill(x.view(), 1.0F);
    Tensor<Index, 1> past({2});
    past[1] = 3;
    Appended<float, 4, 2> cache({2, 3, 5, 1}, {}, storage);
    Context context;
    append<float>(flat(x), past, cache.view(), TestCall(context, 2, 2));
    const auto numbers = numbers_of(cache.entries);
    CHECK(cache.capacity() == 5);
    CHECK(std::abs(numbers(0, 2, 1, 0) - 1) < 0.01F);
    CHECK(numbers(0, 2, 2, 0) == 0);
    CHECK(numbers(1, 0, 2, 0) == 0);
    CHECK(std::abs(numbers(1, 0, 4, 0) - 1) < 0.01F);
  }
  // Two tokens of row 2, then one of row 0.
  const auto x = random_tensor<float, 3>({3, 2, 4}, 1);
  Tensor<Index, 1> past({3});
  past[2] = 3;
  Tensor<float, 4> mixed({3, 2, 6, 4}), leading({3, 2, 4, 4});
  Context context;
  const TestCall call(context, {{2, 0, 2, Form::parallel}, {0, 2, 1, Form::recurrent}});
  append<float>(x, past, mixed.view(), call);
  append_leading<float>(x, past, leading.view(), call);
  for (Index g = 0; g < 2; ++g) {
    for (const Tensor<float, 4>& written : {mixed, leading}) {
      CHECK(same_bits(written[2][g][3], x[0][g]));
      CHECK(same_bits(written[0][g][0], x[2][g]));
      CHECK(written(2, g, 2, 0) == 0);
      CHECK(written(1, g, 0, 0) == 0);
      CHECK(written(0, g, 1, 0) == 0);
    }
    CHECK(same_bits(mixed[2][g][4], x[1][g]));
  }

  const Tensor<float, 4> other({1, 1, 3, 2});
  Cache<float, 4> cache({1, 1, 3, 1}, {}, Storage::bf16);
  CHECK_THROWS_AS(store_entries<float>(other, cache.view()), ShapeError);
  CHECK_THROWS_AS(cache.view().native(), ShapeError);
}

TEMPLATE_LIST_TEST_CASE("attention reads a narrow cache as the numbers that it gives back", "",
                        support::TestScalars) {
  using S = TestType;
  struct Sizes {
    Index B, T, H, G, K, V, past;
  };
  for (const Sizes n : {Sizes{1, 1, 1, 1, 1, 1, 0}, Sizes{2, 3, 4, 2, 16, 16, 62},
                        Sizes{1, 70, 8, 2, 64, 64, 5}, Sizes{1, 2, 6, 2, 37, 19, 130},
                        Sizes{1, 1, 7, 1, 24, 83, 1100}, Sizes{2, 1, 8, 8, 64, 64, 63}}) {
    const auto q = random_tensor<S, 4>({n.B, n.T, n.H, n.K}, 1);
    const Index capacity = n.past + n.T + 3;
    Tensor<Index, 1> past({n.B});
    fill(past.view(), n.past);
    for (const Storage storage : storages) {
      INFO(to_string(storage) << " K " << n.K << " past " << n.past);
      auto keys = stored(random_tensor<S, 4>({n.B, n.G, capacity, n.K}, 2), storage);
      auto values = stored(random_tensor<S, 4>({n.B, n.G, capacity, n.V}, 3), storage);
      const auto plain_keys = numbers_of(keys), plain_values = numbers_of(values);
      Context context;
      context.set_poison(true);
      Tensor<S, 4> o({n.B, n.T, n.H, n.V}), expected(o.shape());
      const PlainScore score{inverse_sqrt(n.K)};
      const TestCall parallel(context, n.B, n.T), recurrent(context, n.B, n.T, Form::recurrent);
      attention<S>(flat(q), plain_keys, plain_values, past, Causal{}, score, flat(expected),
                   parallel);
      attention<S>(flat(q), keys.view(), values.view(), past, Causal{}, score, flat(o), parallel);
      CHECK(same_bits(o.view(), expected.view()));
      attention<S>(flat(q), keys.view(), values.view(), past, Causal{}, score, flat(o), recurrent);
      CHECK(support::relative_error(o.view(), expected.view()) <= tolerance<S>);
      attention<S>(flat(q), plain_keys, plain_values, past, Causal{}, score, flat(expected),
                   recurrent);
      CHECK(support::relative_error(o.view(), expected.view()) <= tolerance<S>);
      CHECK((storage == Storage::int8 || same_bits(o.view(), expected.view())));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a narrow ring holds what its queries have seen", "",
                        support::TestScalars) {
  using S = TestType;
  const Index T = 150, H = 4, G = 2, K = 24, width = 20;
  const auto q = random_tensor<S, 3>({T, H, K}, 1);
  const auto k = random_tensor<S, 3>({T, G, K}, 2), v = random_tensor<S, 3>({T, G, K}, 3);
  for (const Index dilation : {1, 3}) {
    const Index rows = round_up((width - 1) * dilation + 1, dilation);
    // In pieces, between those of another row.
    const auto run = [&](Form form, Storage storage, const auto& from_k, const auto& from_v,
                         Index piece) {
      Cache<S, 4> keys({3, G, rows, K}, {}, storage), values({3, G, rows, K}, {}, storage);
      Tensor<S, 3> o({T, H, K});
      Tensor<Index, 1> past({3});
      Context context;
      context.set_poison(true);
      for (Index first = 0; first < T; first += piece) {
        const Index count = std::min(piece, T - first), before = std::min<Index>(first, 2);
        const auto tokens = [&](const auto& view) {
          return view.slice(axis::time, first - before, before + count);
        };
        Tensor<S, 3> part({before + count, H, K});
        past[1] = first;
        if (before == 0) {
          dilated_ring_attention(tokens(q.view()), tokens(from_k.view()), tokens(from_v.view()),
                                 past, Band::window(width), dilation, PlainScore{0.2}, keys.view(),
                                 values.view(), part.view(),
                                 TestCall(context, {{1, 0, count, form}}));
        } else {
          dilated_ring_attention(
              tokens(q.view()), tokens(from_k.view()), tokens(from_v.view()), past,
              Band::window(width), dilation, PlainScore{0.2}, keys.view(), values.view(),
              part.view(),
              TestCall(context, {{2, 0, before, Form::parallel}, {1, before, count, form}}));
        }
        copy(part.view().slice(axis::time, before, count),
             o.view().slice(axis::time, first, count));
        past[2] += before;
      }
      return o;
    };
    for (const Storage storage : storages) {
      INFO(to_string(storage) << " dilation " << dilation);
      Context context;
      Tensor<S, 3> rounded_k(k.shape()), rounded_v(v.shape());
      round_entries<S>(k, storage, rounded_k.view(), TestCall(context));
      round_entries<S>(v, storage, rounded_v.view(), TestCall(context));
      const auto expected = run(Form::parallel, Storage::native, rounded_k, rounded_v, T);
      for (const Index piece : {Index{1}, Index{7}, Index{64}, T}) {
        for (const Form form : {Form::parallel, Form::recurrent}) {
          CHECK(support::relative_error(run(form, storage, k, v, piece).view(), expected.view()) <=
                tolerance<S>);
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("latent attention reads a narrow cache in each of its ways", "",
                        support::TestScalars) {
  using S = TestType;
  const Index T = 5, H = 3, K = 8, V = 12, rank = 20, rotary = 6, before = 70;
  const auto weight = random_tensor<S, 3>({H, K + V, rank}, 4);
  const LatentHeads<S> heads(weight, K);
  const ComposedScore<S> score(0.1, {});
  const auto q = random_tensor<S, 4>({2, T, H, K + rotary}, 1);
  Tensor<Index, 1> past({2});
  past[0] = before, past[1] = 3;
  for (const Storage storage : storages) {
    INFO(to_string(storage));
    auto cache = stored(random_tensor<S, 4>({2, 1, before + T, rank + rotary}, 2), storage);
    const auto plain = numbers_of(cache);
    Context context;
    context.set_poison(true);
    const TestCall parallel(context, 2, T), recurrent(context, 2, T, Form::recurrent);
    Tensor<S, 3> o({2 * T, H, V}), expected(o.shape());
    for (const Algorithm algorithm : {Algorithm::chunked, Algorithm::recurrent}) {
      const Call call = parallel->with(algorithm);
      latent_attention<S>(flat(q), plain, past, heads, score, expected.view(), call);
      latent_attention<S>(flat(q), cache.view(), past, heads, score, o.view(), call);
      CHECK(same_bits(o.view(), expected.view()));
    }
    latent_attention<S>(flat(q), cache.view(), past, heads, score, o.view(), recurrent);
    CHECK(support::relative_error(o.view(), expected.view()) <= 4 * tolerance<S>);
  }
}

TEST_CASE("decoding from any cache: same bits for any thread count, and no allocation") {
  const Index H = 8, G = 2, K = 32, length = 5000;
  const auto q = random_tensor<float, 3>({2, H, K}, 1);
  Tensor<Index, 1> past({2});
  past[0] = length - 1, past[1] = 700;
  for (const Storage storage : storages) {
    INFO(to_string(storage));
    auto keys = stored(random_tensor<float, 4>({2, G, length, K}, 2), storage);
    auto values = stored(random_tensor<float, 4>({2, G, length, K}, 3), storage);
    const auto decode = [&](Context& context) {
      Tensor<float, 3> o({2, H, K});
      const TestCall call(context, 2, 1, Form::recurrent);
      const auto before = support::allocations();
      attention<float>(q, keys.view(), values.view(), past, Causal{}, PlainScore{0.2}, o.view(),
                       call);
      return std::pair{std::move(o), support::allocations() - before};
    };
    Context serial;
    const auto expected = decode(serial).first;
    CHECK(decode(serial).second == 0);
    for (const Index threads : {1, 2, 3}) {
      support::ThreadExecutor executor(threads);
      Context context(executor);
      CHECK(same_bits(decode(context).first.view(), expected.view()));
    }
  }
}
