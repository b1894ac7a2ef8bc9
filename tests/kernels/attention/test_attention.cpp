#include <algorithm>
#include <array>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
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
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

/// Heads [B, T, G, K] as caches have them, [B, G, T, K].
template <class T>
View<T, 4> heads_first(const View<T, 4>& x) {
  return {x.data(),
          {x.extent(0), x.extent(2), x.extent(1), x.extent(3)},
          {x.stride(0), x.stride(2), x.stride(1), x.stride(3)}};
}

/// A query sees its window of keys, itself included, and the first tokens of the stream.
struct SinksAndWindow {
  Index sinks = 0, width = 0;

  SinksAndWindow of(Index /*row*/, Index /*head*/) const { return *this; }
  Visibility visibility(Span queries, Span keys) const {
    const bool some_seen =
        keys.begin < queries.end && (keys.begin < sinks || keys.end + width > queries.begin + 1);
    if (!some_seen) return Visibility::none;
    const bool all_seen =
        keys.end <= queries.begin + 1 && (keys.end <= sinks || keys.begin + width >= queries.end);
    return all_seen ? Visibility::all : Visibility::partial;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    const simd::Batch<S> distance = pairs.query - pairs.key;
    const simd::Batch<S> sinks_here(static_cast<S>(sinks - pairs.origin));
    return distance >= simd::Batch<S>(S(0)) &&
           (distance < simd::Batch<S>(static_cast<S>(width)) || pairs.key < sinks_here);
  }
};

/// Blocks of 16 queries see blocks of 16 keys, chosen for each head without regard to order.
struct Blocks {
  Index row = 0, head = 0;

  Blocks of(Index b, Index h) const { return {b, h}; }
  bool sees(Index query, Index key) const {
    const Index query_block = query / 16, key_block = key / 16;
    return (query_block + key_block + row + head) % 3 != 0;
  }
  Visibility visibility(Span queries, Span keys) const {
    bool some = false, all = true;
    for (Index i = queries.begin; i < queries.end; ++i) {
      for (Index j = keys.begin; j < keys.end; ++j) some |= sees(i, j), all &= sees(i, j);
    }
    return all ? Visibility::all : some ? Visibility::partial : Visibility::none;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    std::array<S, static_cast<std::size_t>(simd::lanes<S>)> query, key;
    simd::store<S>(query.data(), pairs.query), simd::store<S>(key.data(), pairs.key);
    for (std::size_t i = 0; i < query.size(); ++i) {
      key[i] = sees(pairs.origin + static_cast<Index>(query[i]),
                    pairs.origin + static_cast<Index>(key[i]));
    }
    return simd::load<S>(key.data()) == simd::Batch<S>(S(1));
  }
};

/// A mask of which no more than `count` keys are visible.
template <class Mask>
struct WithEnd : Mask {
  Index count = 0;

  WithEnd of(Index /*row*/, Index /*head*/) const { return *this; }
  Span reach(Span queries) const {
    const Span reached = Mask::reach(queries);
    return {reached.begin, std::min(reached.end, count)};
  }
};
template <class Mask>
WithEnd(Mask, Index) -> WithEnd<Mask>;

/// Nothing is visible to the first queries of the stream.
struct LateCausal {
  Index first = 0;

  LateCausal of(Index /*row*/, Index /*head*/) const { return *this; }
  Visibility visibility(Span queries, Span keys) const {
    if (queries.end <= first) return Visibility::none;
    const Visibility causal = Causal{}.visibility(queries, keys);
    return causal == Visibility::all && queries.begin < first ? Visibility::partial : causal;
  }
  template <class S>
  simd::Mask<S> allows(const Pairs<S>& pairs) const {
    return pairs.key <= pairs.query &&
           pairs.query >= simd::Batch<S>(static_cast<S>(first - pairs.origin));
  }
};

/// A cap on the score, then a bias that grows with the distance: cap · tanh(s / cap) - slope · (i -
/// j).
struct CappedAlibi {
  double scale = 1, cap = 1, slope = 0;

  CappedAlibi of(Index /*row*/, Index head) const {
    return {scale, cap, slope * std::pow(0.5, static_cast<double>(head))};
  }
  template <class S>
  simd::Batch<S> operator()(const simd::Batch<S>& products, const Pairs<S>& pairs) const {
    const simd::Batch<S> limit(static_cast<S>(cap)), steepness(static_cast<S>(slope));
    const simd::Batch<S> capped = limit * simd::tanh(products / limit);
    return simd::fnma<S>(steepness, pairs.query - pairs.key, capped);
  }
};

struct Sizes {
  Index B = 1, T = 1, H = 1, G = 1, K = 1, V = 1;
  std::vector<Index> past;
  Index spare = 0;  // entries of the caches that no token fills

  Index capacity() const { return *std::max_element(past.begin(), past.end()) + T + spare; }
};

/// One call: inputs, and outputs in the middle of wider buffers.
template <class S>
struct Case {
  Sizes n;
  Tensor<S, 3> q_buffer, o_buffer;
  Tensor<S, 4> keys, values;
  Tensor<Index, 1> past;
  Tensor<S, 2> log_sum_exp;
  double scale;

  explicit Case(Sizes sizes, unsigned seed = 1)
      : n(sizes),
        q_buffer(random_tensor<S, 3>({n.B * n.T + 1, n.H, n.K + 3}, seed)),
        o_buffer({n.B * n.T, n.H + 1, n.V + 2}),
        keys(random_tensor<S, 4>({n.B, n.G, n.capacity(), n.K}, seed + 1)),
        values(random_tensor<S, 4>({n.B, n.G, n.capacity(), n.V}, seed + 2)),
        past({n.B}),
        log_sum_exp({n.B * n.T, n.H}),
        scale(1.5 * inverse_sqrt(n.K)) {
    std::copy(n.past.begin(), n.past.end(), past.data());
    fill(o_buffer.view(), S(-77));
    // What lies behind the valid entries is never looked at.
    for (Index b = 0; b < n.B; ++b) {
      for (Index g = 0; g < n.G; ++g) {
        for (Index j = past(b) + n.T; j < n.capacity(); ++j) {
          fill(keys[b][g][j], std::numeric_limits<S>::quiet_NaN());
          fill(values[b][g][j], std::numeric_limits<S>::quiet_NaN());
        }
      }
    }
  }

  /// [B T, H, K] and [B T, H, V].
  View<S, 3> q() {
    return q_buffer.view().slice(axis::time, 1, n.B * n.T).slice(axis::channel, 2, n.K);
  }
  View<S, 3> o() { return o_buffer.view().slice(axis::head, 1, n.H).slice(axis::channel, 1, n.V); }
  Tensor<S, 3> copy_of_o() {
    Tensor<S, 3> copied({n.B * n.T, n.H, n.V});
    copy(o(), copied.view());
    return copied;
  }

  template <class Mask = Causal, class Score = PlainScore>
  void run(Form form, Context& context, Mask mask, Score score) {
    const TestCall call(context, n.B, n.T, form);
    attention(q(), keys, values, past, mask, score, o(), call, log_sum_exp.view());
  }
  void run(Form form, Context& context) { run(form, context, Causal{}, PlainScore{scale}); }
  /// Tokens [first, first + count) of row b, those before in the cache.
  void run_part(Form form, Index b, Index first, Index count, Context& context) {
    run_part(form, b, first, count, context, PlainScore{scale});
  }
  void run_part(Form form, Index b, Index first, Index count, Context& context, auto score) {
    Tensor<Index, 1> before = past;
    before(b) += first;
    const auto tokens = [&](const auto& view) {
      return view.slice(axis::time, b * n.T + first, count);
    };
    attention(tokens(q()), keys, values, before, Causal{}, score, tokens(o()),
              TestCall(context, {{b, 0, count, form}}), tokens(log_sum_exp.view()));
  }
  bool gaps_are_untouched() {
    bool untouched = true;
    for (Index t = 0; t < n.B * n.T; ++t) {
      for (Index i = 0; i < n.V + 2; ++i) untouched &= o_buffer(t, 0, i) == S(-77);
      for (Index h = 1; h <= n.H; ++h) {
        untouched &= o_buffer(t, h, 0) == S(-77) && o_buffer(t, h, n.V + 1) == S(-77);
      }
    }
    return untouched;
  }

  /// Softmax over the keys that `sees(b, h, i, j)`, of score(h, product, i - j) or score(h,
  /// product, i, j), in double.
  struct Expected {
    Tensor<double, 3> o;
    Tensor<double, 2> log_sum_exp;
  };
  Expected expected(auto&& sees, auto&& score) {
    const auto score_of = [&](Index h, double product, Index i, Index j) {
      if constexpr (requires { score(h, product, i, j); }) {
        return score(h, product, i, j);
      } else {
        return score(h, product, i - j);
      }
    };
    Expected result{Tensor<double, 3>({n.B * n.T, n.H, n.V}), Tensor<double, 2>({n.B * n.T, n.H})};
    for (Index b = 0; b < n.B; ++b) {
      for (Index t = 0; t < n.T; ++t) {
        for (Index h = 0; h < n.H; ++h) {
          const Index i = past(b) + t, g = h / (n.H / n.G), token = b * n.T + t;
          const S* const query = &q()(token, h, 0);
          std::vector<double> weight(static_cast<std::size_t>(past(b) + n.T));
          double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
          for (std::size_t at = 0; at < weight.size(); ++at) {
            const auto j = static_cast<Index>(at);
            const S* const key = &keys(b, g, j, 0);
            double product = 0;
            for (Index e = 0; e < n.K; ++e) {
              product += static_cast<double>(query[e]) * static_cast<double>(key[e]);
            }
            weight[at] = sees(b, h, i, j) ? score_of(h, scale * product, i, j)
                                          : -std::numeric_limits<double>::infinity();
            maximum = std::max(maximum, weight[at]);
          }
          for (double& w : weight) sum += w = std::isinf(maximum) ? 0 : std::exp(w - maximum);
          result.log_sum_exp(token, h) = maximum + std::log(sum);
          double* const o = &result.o(token, h, 0);
          for (std::size_t at = 0; at < weight.size(); ++at) {
            if (weight[at] == 0) continue;
            const S* const value = &values(b, g, static_cast<Index>(at), 0);
            for (Index e = 0; e < n.V; ++e)
              o[e] += weight[at] / sum * static_cast<double>(value[e]);
          }
        }
      }
    }
    return result;
  }
  Expected expected() {
    return expected([](Index, Index, Index i, Index j) { return j <= i; },
                    [](Index, double product, Index) { return product; });
  }
};

template <class S>
constexpr double tolerance() {
  return 16 * static_cast<double>(std::numeric_limits<S>::epsilon());
}

/// Runs both forms against the expected result.
template <class S>
void check_forms(Case<S>& c, const typename Case<S>::Expected& expected, auto&&... policies) {
  Context context;
  context.set_poison(true);
  const auto check = [&] {
    CHECK(support::relative_error(View<const S, 3>(c.o()), expected.o.view()) <= tolerance<S>());
    CHECK(support::relative_error(c.log_sum_exp.view(), expected.log_sum_exp.view()) <=
          tolerance<S>());
    CHECK(c.gaps_are_untouched());
    fill(c.o(), S(0)), fill(c.log_sum_exp.view(), S(0));
  };
  c.run(Form::parallel, context, policies...);
  check();
  c.run(Form::recurrent, context, policies...);
  check();
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("both forms of attention are the softmax written out", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  constexpr std::array<std::array<Index, 2>, 4> heads{{{1, 1}, {4, 2}, {6, 1}, {5, 5}}};
  constexpr std::array<std::array<Index, 2>, 7> widths{
      {{1, 1}, {8, 8}, {10, 64}, {64, 10}, {65, 65}, {64, 64}, {1, 65}}};
  std::size_t turn = 0;
  for (const Index T : {1, 63, 64, 65, 130}) {
    for (const Index past : {0, 1, 63, 64, 100}) {
      const auto [H, G] = heads[turn % heads.size()];
      const auto [K, V] = widths[turn % widths.size()];
      ++turn;
      INFO("T " << T << " past " << past << " H " << H << " G " << G << " K " << K << " V " << V);
      Case<S> c({.B = 2,
                 .T = T,
                 .H = H,
                 .G = G,
                 .K = K,
                 .V = V,
                 .past = {past, past / 2 + 1},
                 .spare = past % 2 * 3});
      check_forms(c, c.expected(), Causal{}, PlainScore{c.scale});
    }
  }
}

TEMPLATE_LIST_TEST_CASE("attention over several spans of keys and many heads", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  // Nine query heads of a key head do not fit in one task; three spans, of 40 in flight.
  Case<S> c({.B = 2, .T = 3, .H = 63, .G = 7, .K = 5, .V = 3, .past = {1200, 30}});
  check_forms(c, c.expected(), Causal{}, PlainScore{c.scale});
}

TEMPLATE_LIST_TEST_CASE("attention of nothing does nothing", "[attention]", support::TestScalars) {
  using S = TestType;
  Context context;
  for (const auto& [B, T] : {std::array<Index, 2>{0, 5}, {2, 0}}) {
    Tensor<S, 3> q({B * T, 4, 8}), o({B * T, 4, 8});
    Tensor<S, 4> keys({B, 2, 9, 8});
    Tensor<Index, 1> past({B});
    CHECK_NOTHROW(
        attention(q, keys, keys, past, Causal{}, PlainScore{}, o.view(), TestCall(context, B, T)));
  }
}

TEMPLATE_LIST_TEST_CASE("masks and scores of the user's own", "[attention]", support::TestScalars) {
  using S = TestType;
  const auto plain = [](Index, double product, Index) { return product; };
  for (const auto& [T, past] : {std::array<Index, 2>{150, 0}, {70, 77}, {1, 130}}) {
    Case<S> c({.B = 2, .T = T, .H = 4, .G = 2, .K = 9, .V = 6, .past = {past, past / 3 + 2}});
    for (const auto& mask : {SinksAndWindow{0, 1}, SinksAndWindow{0, 40}, SinksAndWindow{5, 20},
                             SinksAndWindow{70, 65}}) {
      const auto sees = [&](Index, Index, Index i, Index j) {
        return j <= i && (j < mask.sinks || i - j < mask.width);
      };
      check_forms(c, c.expected(sees, plain), mask, PlainScore{c.scale});
    }
    const auto in_block = [](Index b, Index h, Index i, Index j) {
      return Blocks{b, h}.sees(i, j);
    };
    check_forms(c, c.expected(in_block, plain), Blocks{}, PlainScore{c.scale});
    const auto capped = [](Index h, double product, Index distance) {
      const double slope = 0.25 * std::pow(0.5, static_cast<double>(h));
      return 2 * std::tanh(product / 2) - slope * static_cast<double>(distance);
    };
    check_forms(c, c.expected([](Index, Index, Index i, Index j) { return j <= i; }, capped),
                Causal{}, CappedAlibi{c.scale, 2, 0.25});
  }
}

TEMPLATE_LIST_TEST_CASE("a mask of the user's own has the bits of a built-in one", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  for (const auto& [T, past] : {std::array<Index, 2>{150, 0}, {70, 77}, {1, 130}}) {
    Case<S> c({.B = 1, .T = T, .H = 4, .G = 2, .K = 9, .V = 6, .past = {past}});
    for (const Form form : {Form::parallel, Form::recurrent}) {
      c.run(form, context, Band::window(40), PlainScore{c.scale});
      const Tensor<S, 3> built_in = c.copy_of_o();
      c.run(form, context, SinksAndWindow{0, 40}, PlainScore{c.scale});
      CHECK(support::same_bits(View<const S, 3>(c.o()), built_in.view()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a query that sees no key gives zeros", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  context.set_poison(true);
  Case<S> c({.B = 1, .T = 90, .H = 2, .G = 1, .K = 4, .V = 5, .past = {20}});
  const Index hidden = 47;  // 27 tokens of this call
  const auto check = [&] {
    const auto expected =
        c.expected([&](Index, Index, Index i, Index j) { return i >= hidden && j <= i; },
                   [](Index, double product, Index) { return product; });
    CHECK(support::relative_error(View<const S, 3>(c.o()), expected.o.view()) <= tolerance<S>());
    bool zeros = true, none = true, finite = true;
    for (Index t = 0; t < 90; ++t) {
      for (Index h = 0; h < 2; ++h) {
        const S log_sum_exp = c.log_sum_exp(t, h);
        if (t >= 27) {
          finite &= std::isfinite(log_sum_exp);
          continue;
        }
        none &= log_sum_exp == -std::numeric_limits<S>::infinity();
        for (Index e = 0; e < 5; ++e) zeros &= c.o()(t, h, e) == 0;
      }
    }
    CHECK(zeros);
    CHECK(none);
    CHECK(finite);
  };
  c.run(Form::parallel, context, LateCausal{hidden}, PlainScore{c.scale});
  check();
  fill(c.o(), S(1));
  c.run(Form::recurrent, context, LateCausal{hidden}, PlainScore{c.scale});
  check();
}

TEMPLATE_LIST_TEST_CASE("a sink is a key whose value is zero", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  const std::vector<double> sinks{-30, 0.3, 2, 40};
  Case<S> c({.B = 2, .T = 70, .H = 4, .G = 2, .K = 9, .V = 19, .past = {130, 0}});
  const auto with_sinks = [&](typename Case<S>::Expected expected) {
    for (Index t = 0; t < c.n.B * c.n.T; ++t) {
      for (Index h = 0; h < c.n.H; ++h) {
        const double keys = expected.log_sum_exp(t, h), sink = sinks[static_cast<std::size_t>(h)];
        const double both = std::max(keys, sink) + std::log1p(std::exp(-std::abs(keys - sink)));
        for (Index e = 0; e < c.n.V; ++e) expected.o(t, h, e) *= std::exp(keys - both);
        expected.log_sum_exp(t, h) = both;
      }
    }
    return expected;
  };
  const ComposedScore<S> plain(c.scale, {}, sinks);
  check_forms(c, with_sinks(c.expected()), Causal{}, AnyScore<S>(plain));
  // Of queries that see no key, too.
  const auto sees = [](Index, Index, Index i, Index j) { return j <= i && i >= 20; };
  const auto capped = [](Index, double product, Index) { return 2 * std::tanh(product / 2); };
  const SoftCap cap(c.scale, 2);
  const ComposedScore<S> with_cap(cap.scale, {ComposedScore<S>::map(cap)}, sinks);
  check_forms(c, with_sinks(c.expected(sees, capped)), LateCausal{20}, AnyScore<S>(with_cap));
}

TEMPLATE_LIST_TEST_CASE("biases by distance", "[attention]", support::TestScalars) {
  using S = TestType;
  Case<S> c({.B = 1, .T = 150, .H = 4, .G = 2, .K = 9, .V = 19, .past = {130}});
  const auto sees = [](Index, Index, Index i, Index j) { return j <= i + 40; };
  for (const auto& [least, most] : {std::array<Index, 2>{0, 0}, {0, 37}, {-17, 100}, {-300, 300}}) {
    INFO("distances " << least << " to " << most);
    const auto bias = [first = least, last = most](Index h, Index distance) {
      return std::sin(static_cast<double>(std::clamp(distance, first, last) + 7 * h));
    };
    const DistanceTable<S> table(4, least, most, bias);
    const auto score = [&](Index h, double product, Index distance) {
      return 2 * std::tanh(product / 2) + bias(h, distance);
    };
    check_forms(c, c.expected(sees, score), WithEnd{Band{.ahead = 40}, 280},
                DistanceBias(SoftCap(c.scale, 2), table));
  }
}

TEMPLATE_LIST_TEST_CASE("any bias by distance with any mask", "[attention]", support::TestScalars) {
  using S = TestType;
  Case<S> c({.B = 2, .T = 150, .H = 4, .G = 2, .K = 9, .V = 19, .past = {130, 3}});
  const std::vector<double> sinks{-1, 0.3, 2, 4};
  const auto causal = [](Index, Index, Index i, Index j) { return j <= i; };
  const auto window = [](Index, Index, Index i, Index j) { return j <= i && j > i - 50; };
  const auto blocks = [](Index b, Index h, Index i, Index j) { return Blocks{b, h}.sees(i, j); };
  const auto check = [&](const auto& biases, auto&& bias) {
    const auto score = [&](Index h, double product, Index i, Index j) {
      return product + bias(h, i, j);
    };
    const DistanceBias biased(PlainScore{c.scale}, biases);
    check_forms(c, c.expected(causal, score), Causal{}, biased);
    check_forms(c, c.expected(window, score), Band::window(50), biased);
    check_forms(c, c.expected(blocks, score), Blocks{}, biased);
    const auto capped = [&](Index h, double product, Index i, Index j) {
      return 2 * std::tanh(product / 2) + bias(h, i, j);
    };
    check_forms(c, c.expected(causal, capped), Causal{}, DistanceBias(SoftCap(c.scale, 2), biases));
    const auto with_sinks = c.expected(causal, score);
    const ComposedScore<S> and_sinks(c.scale, {ComposedScore<S>::map(biased)}, sinks);
    Context context;
    for (const Form form : {Form::parallel, Form::recurrent}) {
      c.run(form, context, Causal{}, AnyScore<S>(and_sinks));
      for (Index h = 0; h < 4; ++h) {
        const double sink = std::exp(sinks[static_cast<std::size_t>(h)]);
        const double sum = std::exp(with_sinks.log_sum_exp(140, h)) + sink;
        CHECK(std::abs(static_cast<double>(c.log_sum_exp(140, h)) - std::log(sum)) < 1e-4);
      }
      fill(c.o(), S(0));
    }
    c.run(Form::parallel, context, Causal{}, biased);
    const Tensor<S, 3> whole = c.copy_of_o();
    fill(c.o(), S(0));
    for (Index b = 0; b < c.n.B; ++b) {
      for (Index first = 0, count = 1; first < c.n.T; first += count, count = 2 * count + 3) {
        count = std::min(count, c.n.T - first);
        c.run_part(Form::parallel, b, first, count, context, biased);
      }
    }
    CHECK(same_bits(c.o(), whole.view()));
  };
  const auto distance = [](Index i, Index j) { return static_cast<double>(std::abs(i - j)); };
  const std::vector<double> p{0.1, 0.5, 1, 2}, a{0.3, 0.02, 1, 0.05};
  const auto of = [](const std::vector<double>& numbers, Index h) {
    return numbers[static_cast<std::size_t>(h)];
  };
  check(LinearBiases(a), [&](Index h, Index i, Index j) { return -of(a, h) * distance(i, j); });
  check(KerpleLogBiases(p, a), [&](Index h, Index i, Index j) {
    return -of(p, h) * std::log1p(of(a, h) * distance(i, j));
  });
  check(KerplePowerBiases(p, a),
        [&](Index h, Index i, Index j) { return -of(a, h) * std::pow(distance(i, j), of(p, h)); });
  check(LogSquareBiases{},
        [&](Index, Index i, Index j) { return -std::pow(std::log(distance(i, j) + 1), 2); });
  const auto table = random_tensor<S, 2>({12, 4}, 5);
  check(t5_biases<S>(table, true, 40), [&](Index h, Index i, Index j) {
    return static_cast<double>(table(t5_bucket(i - j, true, 12, 40), h));
  });
  const FalconBiases falcon({0.01, 0.02, 0.013, 0.007}, c.scale);
  check(falcon, [&](Index h, Index, Index j) {
    const auto rounded = [](double number) {
      return static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(number))));
    };
    return c.scale * rounded(of(falcon.slopes, h) * rounded(static_cast<double>(j)));
  });
  const auto weight = random_tensor<S, 1>({32}, 6), bias = random_tensor<S, 1>({32}, 7);
  const auto out_weight = random_tensor<S, 2>({4, 32}, 8);
  const auto out_bias = random_tensor<S, 1>({4}, 9);
  const FireBiases<S> fire({weight, bias, out_weight, out_bias}, 0.1, 100.5, 1e-6);
  check(fire, [&](Index h, Index i, Index j) {
    const double x = std::log1p(0.1 * distance(i, j)) /
                     (std::log1p(0.1 * std::max(100.5, static_cast<double>(i))) + 1e-6);
    double sum = static_cast<double>(out_bias(h));
    for (Index u = 0; u < 32; ++u) {
      const double unit = static_cast<double>(weight(u)) * x + static_cast<double>(bias(u));
      sum += static_cast<double>(out_weight(h, u)) * std::max(unit, 0.0);
    }
    return sum;
  });
}

TEMPLATE_LIST_TEST_CASE("large scores stay finite and right", "[attention]", support::TestScalars) {
  using S = TestType;
  Case<S> c({.B = 1, .T = 100, .H = 2, .G = 2, .K = 4, .V = 5, .past = {60}});
  // Products of small whole numbers are exact, so that scores of +-1e4 are too.
  const auto make_whole = [](auto& x) {
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::round(2 * x.data()[i]);
  };
  make_whole(c.q_buffer), make_whole(c.keys);
  c.scale = 1024;
  check_forms(c, c.expected(), Causal{}, PlainScore{c.scale});
}

TEMPLATE_LIST_TEST_CASE("attention bits depend on the row and its positions alone", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  for (const Form form : {Form::parallel, Form::recurrent}) {
    Context context;
    context.set_poison(true);
    const Sizes sizes{.B = 3,
                      .T = form == Form::parallel ? 300 : 2,
                      .H = 6,
                      .G = 3,
                      .K = 10,
                      .V = 18,
                      .past = {0, 700, 77}};
    Case<S> c(sizes);
    c.run(form, context);
    const Tensor<S, 3> whole = c.copy_of_o();
    const Tensor<S, 2> whole_sum = c.log_sum_exp;
    const auto clear = [&] { fill(c.o(), S(0)), fill(c.log_sum_exp.view(), S(0)); };
    const auto check = [&] {
      CHECK(same_bits(c.o(), whole.view()));
      CHECK(same_bits(c.log_sum_exp.view(), whole_sum.view()));
    };

    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      threaded.set_poison(true);
      clear();
      c.run(form, threaded);
      check();
    }
    clear();
    for (Index b = 0; b < sizes.B; ++b) c.run_part(form, b, 0, sizes.T, context);  // alone
    check();
    clear();
    for (Index b = 0; b < sizes.B; ++b) {
      for (Index first = 0, count = 1; first < sizes.T; first += count, count = 2 * count + 3) {
        count = std::min(count, sizes.T - first);  // pieces of other lengths, so in other panels
        c.run_part(form, b, first, count, context);
      }
    }
    check();
  }
}

TEMPLATE_LIST_TEST_CASE("a segment's bits do not depend on its company", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  // Rows in any order, two of them left out.
  constexpr Form parallel = Form::parallel, recurrent = Form::recurrent;
  const std::vector<Segment> segments{{4, 0, 65, parallel},  {1, 65, 1, recurrent},
                                      {6, 66, 7, recurrent}, {0, 73, 130, parallel},
                                      {5, 203, 1, parallel}, {2, 204, 1, recurrent}};
  const Index T = 205, H = 4, G = 2, K = 10, V = 6, capacity = 900;
  const auto q = random_tensor<S, 3>({T, H, K}, 1);
  const auto keys = random_tensor<S, 4>({7, G, capacity, K}, 2);
  const auto values = random_tensor<S, 4>({7, G, capacity, V}, 3);
  Tensor<Index, 1> past({7});
  for (Index b = 0; b < 7; ++b) past(b) = 110 * b;
  past(2) = 899, past(3) = 5000;
  const auto run = [&](Index first, Index count, Segments of, Context& context, const View<S, 3>& o,
                       const View<S, 2>& sums) {
    const auto tokens = [&](const auto& view) { return view.slice(axis::time, first, count); };
    attention(tokens(q.view()), keys, values, past, Blocks{}, PlainScore{0.4}, tokens(o),
              Call(context, of), tokens(sums));
  };
  for (const Precision precision : {Precision::fp32, Precision::bf16x3, Precision::bf16}) {
    Context serial;
    serial.set_poison(true), serial.set_precision(precision);
    Tensor<S, 3> alone({T, H, V}), o({T, H, V});
    Tensor<S, 2> alone_sums({T, H}), sums({T, H});
    for (Segment segment : segments) {
      const Index first = std::exchange(segment.first, 0);
      run(first, segment.count, Segments(&segment, 1), serial, alone.view(), alone_sums.view());
    }
    for (const Index workers : {0, 1, 3}) {
      support::ThreadExecutor executor(std::max<Index>(workers, 1));
      Context context = workers == 0 ? Context() : Context(executor);
      context.set_poison(true), context.set_precision(precision);
      fill(o.view(), S(0)), fill(sums.view(), S(0));
      run(0, T, segments, context, o.view(), sums.view());
      CHECK(same_bits(o.view(), alone.view()));
      CHECK(same_bits(sums.view(), alone_sums.view()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("segments that attend to themselves are rows of a cache of their own",
                        "[attention]", support::TestScalars) {
  using S = TestType;
  const std::vector<Segment> segments{
      {9, 0, 70, Form::parallel}, {0, 70, 1, Form::recurrent}, {3, 71, 131, Form::parallel}};
  const Index T = 202, H = 4, G = 2, K = 10, V = 6;
  const auto q = random_tensor<S, 3>({T, H, K}, 1), k = random_tensor<S, 3>({T, G, K}, 2);
  const auto v = random_tensor<S, 3>({T, G, V}, 3);
  const auto check = [&](auto mask, Span asking) {
    Context context;
    context.set_poison(true);
    Tensor<S, 3> o({T, H, V}), expected({T, H, V});
    Tensor<S, 2> sums({T, H}), expected_sums({T, H});
    self_attention(q, k, v, mask, PlainScore{0.4}, o.view(), Call(context, segments), sums.view(),
                   asking);
    for (const Segment& segment : segments) {
      const auto part = [&](const auto& view, Index first, Index count) {
        return view.slice(axis::time, segment.first + first, count);
      };
      const auto as_cache = [&](const Tensor<S, 3>& x) {
        const auto of_segment = part(x.view(), 0, segment.count);
        return heads_first(of_segment.template insert<0>());
      };
      const Index first = std::min(asking.begin, segment.count);
      const Index count = std::min(asking.end, segment.count) - first;
      if (count == 0) continue;
      attention(part(q.view(), first, count), as_cache(k), as_cache(v),
                View<const Index, 1>(&first, {1}), WithEnd{mask, segment.count}, PlainScore{0.4},
                part(expected.view(), first, count),
                TestCall(context, {{0, 0, count, Form::parallel}}),
                part(expected_sums.view(), first, count));
    }
    CHECK(same_bits(o.view(), expected.view()));
    CHECK(same_bits(sums.view(), expected_sums.view()));
    support::ThreadExecutor executor(3);
    Context threaded(executor);
    fill(o.view(), S(0)), fill(sums.view(), S(0));
    self_attention(q, k, v, mask, PlainScore{0.4}, o.view(), Call(threaded, segments), sums.view(),
                   asking);
    CHECK(same_bits(o.view(), expected.view()));
  };
  constexpr Index all = std::numeric_limits<Index>::max();
  for (const Span asking : {Span{0, all}, Span{5, all}, Span{0, 5}, Span{71, all}}) {
    check(Band::everything(), asking);
    check(Band{.back = 9, .ahead = 4}, asking);
    check(Causal{}, asking);
  }
}

TEMPLATE_LIST_TEST_CASE("panels are scaled transposes", "[attention]", support::TestScalars) {
  using S = TestType;
  for (const Index rows : {1, 3, 4, 7, 64}) {
    for (const Index columns : {1, 2, 4, 5, 10, 70}) {
      for (const Index gap : {0, 90}) {  // in memory first the one, then the other lies closer
        INFO("rows " << rows << " columns " << columns << " gap " << gap);
        const auto from = random_tensor<S, 2>({rows, columns + gap}, 1);
        Tensor<S, 2> to({columns, rows + 3});
        fill(to.view(), S(-77));
        detail::scale_transposed<S>(from.view().template slice<1>(gap, columns), S(0.3),
                                    to.view().template slice<1>(1, rows));
        bool same = true;
        for (Index i = 0; i < columns; ++i) {
          for (Index row = 0; row < rows; ++row) {
            same &= to(i, row + 1) == S(0.3) * from(row, gap + i);
          }
          same &= to(i, 0) == -77 && to(i, rows + 1) == -77 && to(i, rows + 2) == -77;
        }
        CHECK(same);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("NaN and infinity reach those who see them and nobody else", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  const Sizes sizes{.B = 2, .T = 140, .H = 4, .G = 2, .K = 10, .V = 9, .past = {50, 3}, .spare = 3};
  const S nan = std::numeric_limits<S>::quiet_NaN(), infinity = std::numeric_limits<S>::infinity();
  const auto check = [&](Form form, auto&& spoil, auto&& spoiled, auto mask) {
    Context context;
    context.set_poison(true);
    Case<S> c(sizes);
    c.run(form, context, mask, PlainScore{c.scale});
    const Tensor<S, 3> clean = c.copy_of_o();
    spoil(c);
    c.run(form, context, mask, PlainScore{c.scale});
    bool contained = true, arrived = true;
    for (Index b = 0; b < sizes.B; ++b) {
      for (Index t = 0; t < sizes.T; ++t) {
        for (Index h = 0; h < sizes.H; ++h) {
          const Index token = b * sizes.T + t;
          const auto o = c.o()[token][h];
          if (spoiled(b, sizes.past[static_cast<std::size_t>(b)] + t, h)) {
            arrived &= !std::isfinite(o[0]);
          } else {
            contained &= same_bits(o, clean[token][h]);
          }
        }
      }
    }
    CHECK(contained);
    CHECK(arrived);
  };
  const auto check_both = [&](auto... arguments) {
    check(Form::parallel, arguments...);
    check(Form::recurrent, arguments...);
  };
  for (const S value : {nan, infinity}) {
    check_both([&](Case<S>& c) { fill(c.values[1][0][90], value); },
               [](Index b, Index i, Index h) { return b == 1 && h < 2 && i >= 90; }, Causal{});
    check_both([&](Case<S>& c) { fill(c.values[0][1][90], value); },
               [](Index b, Index i, Index h) { return b == 0 && h >= 2 && i >= 90 && i < 115; },
               SinksAndWindow{0, 25});
  }
  check_both([&](Case<S>& c) { c.keys(0, 1, 77, 4) = nan; },
             [](Index b, Index i, Index h) { return b == 0 && h >= 2 && i >= 77; }, Causal{});
  check_both([&](Case<S>& c) { c.q()(140 + 20, 3, 5) = nan; },
             [](Index b, Index i, Index h) { return b == 1 && h == 3 && i == 23; }, Causal{});
}

TEMPLATE_LIST_TEST_CASE("a key whose score is minus infinity has no weight", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  context.set_poison(true);
  Case<S> c({.B = 1, .T = 80, .H = 1, .G = 1, .K = 3, .V = 4, .past = {0}});
  for (Index i = 0; i < c.q_buffer.size(); ++i)
    c.q_buffer.data()[i] = std::abs(c.q_buffer.data()[i]) + S(0.1);
  for (Index j = 0; j < 80; ++j) {
    if (j < 10 || j % 3 == 0) fill(c.keys[0][0][j], -std::numeric_limits<S>::infinity());
  }
  const auto expected =
      c.expected([](Index, Index, Index i, Index j) { return j <= i && j >= 10 && j % 3 != 0; },
                 [](Index, double product, Index) { return product; });
  const auto check = [&] {
    CHECK(support::relative_error(View<const S, 3>(c.o()), expected.o.view()) <= tolerance<S>());
    bool zeros = true;
    for (Index t = 0; t < 10; ++t) zeros &= c.o()(t, 0, 0) == 0 && std::isinf(c.log_sum_exp(t, 0));
    CHECK(zeros);
  };
  c.run(Form::parallel, context);
  check();
  fill(c.o(), S(1));
  c.run(Form::recurrent, context);
  check();
}

TEST_CASE("the recurrent form allocates nothing, however long the cache has grown", "[attention]") {
  Context context;
  Tensor<float, 3> q({2, 4, 8}), o({2, 4, 8});
  Tensor<float, 4> keys({2, 2, 3000, 8});
  const TestCall call(context, 2, 1, Form::recurrent);
  Tensor<Index, 1> past({2});
  const auto step = [&](Index position) {
    past(0) = position, past(1) = position / 2;
    attention(q, keys, keys, past, Causal{}, PlainScore{}, o.view(), call);
  };
  step(0);
  const auto before = support::allocations();
  for (const Index position : {1, 500, 600, 2999}) step(position);
  CHECK(support::allocations() == before);
}

TEST_CASE("attention says what does not fit before it writes", "[attention]") {
  Context context;
  Tensor<float, 3> q({6, 4, 8}), o({6, 4, 5});
  Tensor<float, 4> keys({2, 2, 9, 8}), values({2, 2, 9, 5});
  Tensor<Index, 1> past({2});
  fill(o.view(), 3.0F);
  const auto message = [&](const auto&... arguments) -> std::string {
    try {
      attention(arguments..., Causal{}, PlainScore{}, o.view(), TestCall(context, 2, 3));
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const auto names = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(names(message(Tensor<float, 3>({6, 4, 7}), keys, values, past), "keys"));
  CHECK(names(message(q, keys, Tensor<float, 4>({2, 2, 8, 5}), past), "values"));
  CHECK(names(message(Tensor<float, 3>({4, 4, 8}), keys, values, past),
              "q has shape [4, 4, 8], expected [6"));
  CHECK(names(message(q, keys, values, Tensor<Index, 1>({3})), "past"));
  CHECK(names(message(q, Tensor<float, 4>({2, 3, 9, 8}), values, past), "4 query heads"));
  const auto strided = keys.view().split<3>(4, 2).at<4>(0);
  CHECK(names(message(Tensor<float, 3>({6, 4, 4}), strided, values, past), "stride 2"));
  past(1) = 7;
  CHECK_THROWS_AS(attention(q, keys, values, past, Causal{}, PlainScore{}, o.view(),
                            TestCall(context, 2, 3, Form::recurrent)),
                  CapacityError);
  for (Index i = 0; i < o.size(); ++i) REQUIRE(o.data()[i] == 3);
}

TEMPLATE_LIST_TEST_CASE("bands of keys", "[attention]", support::TestScalars) {
  using S = TestType;
  const auto plain = [](Index, double product, Index) { return product; };
  for (const auto& [T, past] : {std::array<Index, 2>{150, 0}, {70, 77}, {1, 1130}}) {
    Case<S> c({.B = 2, .T = T, .H = 4, .G = 2, .K = 9, .V = 6, .past = {past, past / 3 + 2}});
    for (const Band& mask : {Band::window(1), Band::window(40), Band::window(64), Band::leading(3),
                             Band::leading(70)}) {
      INFO("T " << T << " back " << mask.back << " last " << mask.last);
      const auto sees = [&](Index, Index, Index i, Index j) {
        return j <= i && j < mask.last && i - j <= mask.back;
      };
      check_forms(c, c.expected(sees, plain), mask, PlainScore{c.scale});
    }
    // The last query of row 0 would look behind the end of the cache.
    Context context;
    CHECK_THROWS_AS(c.run(Form::parallel, context, Band{.ahead = 9}, PlainScore{c.scale}),
                    CapacityError);
  }
  Case<S> c({.B = 2, .T = 150, .H = 4, .G = 2, .K = 9, .V = 6, .past = {30, 30}});
  const Band around{.last = 180, .back = 20, .ahead = 9};
  const auto sees = [&](Index, Index, Index i, Index j) { return i - j <= 20 && j - i <= 9; };
  check_forms(c, c.expected(sees, plain), around, PlainScore{c.scale});
}

TEMPLATE_LIST_TEST_CASE("published scores", "[attention]", support::TestScalars) {
  using S = TestType;
  for (const auto& [T, past] : {std::array<Index, 2>{150, 0}, {70, 77}, {1, 130}}) {
    Case<S> c({.B = 2, .T = T, .H = 4, .G = 2, .K = 9, .V = 6, .past = {past, past / 3 + 2}});
    const auto causal = [](Index, Index, Index i, Index j) { return j <= i; };
    const auto capped = [](Index, double product, Index) { return 2 * std::tanh(product / 2); };
    check_forms(c, c.expected(causal, capped), Causal{}, SoftCap(c.scale, 2));
    const auto slopes = alibi_slopes(4);
    const auto biased = [&](Index h, double product, Index distance) {
      return product - slopes[static_cast<std::size_t>(h)] * static_cast<double>(distance);
    };
    const LinearBiases biases(slopes);
    check_forms(c, c.expected(causal, biased), Causal{}, DistanceBias(PlainScore{c.scale}, biases));
  }
}

TEMPLATE_LIST_TEST_CASE("attention over a ring in pieces is attention over all of the cache",
                        "[attention]", support::TestScalars) {
  using S = TestType;
  const Index T = 300;
  Case<S> c({.B = 2, .T = T, .H = 4, .G = 2, .K = 9, .V = 6, .past = {0, 0}});
  for (const Index width : {1, 7, 64, 65, 130, 400}) {
    const Band mask = Band::window(width);
    Context context;
    context.set_poison(true);
    c.run(Form::parallel, context, mask, PlainScore{c.scale});
    const Index rows = width + 3;
    const auto pieces = [&](const std::vector<Index>& lengths, Context& by) {
      Tensor<S, 4> keys({2, 2, rows, 9}), values({2, 2, rows, 6});
      Tensor<S, 3> o({2 * T, 4, 6});
      Tensor<Index, 1> past({2});
      for (std::size_t piece = 0; past(0) < T; ++piece) {
        const Index first = past(0), count = std::min(T - first, lengths[piece % lengths.size()]);
        const Form form = count == 1 ? Form::recurrent : Form::parallel;
        // The same tokens of both rows behind each other.
        const auto gathered = [&](const View<const S, 4>& x) {  // [2, T, heads, width]
          Tensor<S, 3> part({2 * count, x.extent(2), x.extent(3)});
          copy(x.template slice<1>(first, count), part.view().template split<0>(2, count));
          return part;
        };
        const View<S, 4> all = c.q().template split<0>(2, T);
        Tensor<S, 3> part_o({2 * count, 4, 6});
        ring_attention(gathered(all), gathered(heads_first(c.keys.view())),
                       gathered(heads_first(c.values.view())), past, mask, PlainScore{c.scale},
                       keys.view(), values.view(), part_o.view(), TestCall(by, 2, count, form));
        copy(part_o.view().template split<0>(2, count),
             o.view().template split<0>(2, T).template slice<1>(first, count));
        past(0) += count, past(1) += count;
      }
      CHECK(same_bits(keys[1][1][(T - 1) % rows], c.keys[1][1][T - 1]));
      return o;
    };
    for (const auto& lengths : {std::vector<Index>{1}, {T}, {64}, {1, 90, 17}}) {
      INFO("width " << width << " first piece " << lengths[0]);
      const auto o = pieces(lengths, context);
      CHECK(support::relative_error(o.view(), View<const S, 3>(c.o())) <= tolerance<S>());
      if (lengths[0] == 64) CHECK(same_bits(o.view(), c.o()));  // such a cut changes no bit
      support::ThreadExecutor executor(3);
      Context threaded(executor);
      CHECK(same_bits(pieces(lengths, threaded).view(), o.view()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("attention of many tokens and any head size", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  constexpr std::array<std::array<Index, 2>, 4> widths{{{1, 7}, {72, 64}, {7, 72}, {128, 128}}};
  std::size_t turn = 0;
  for (const Index T : {383, 384, 385}) {
    const auto [K, V] = widths[turn++];
    INFO("T " << T << " K " << K << " V " << V);
    Case<S> c({.B = 1, .T = T, .H = 2, .G = 1, .K = K, .V = V, .past = {turn == 2 ? 40 : 0}});
    check_forms(c, c.expected(), Causal{}, PlainScore{c.scale});
  }
}

TEST_CASE("attention on matrix units is that in fp32 to the error of their numbers",
          "[attention]") {
  const auto plain = [](Index, double product, Index) { return product; };
  const auto causal = [](Index, Index, Index i, Index j) { return j <= i; };
  for (const auto& [precision, bound] :
       {std::pair{Precision::bf16x3, 2e-5}, {Precision::bf16, 1e-2}}) {
    Context context;
    context.set_poison(true);
    context.set_precision(precision);
    const auto check = [&, limit = bound](Case<float>& c, const auto& expected, auto... policies) {
      c.run(Form::parallel, context, policies...);
      CHECK(support::relative_error(View<const float, 3>(c.o()), expected.o.view()) <= limit);
      CHECK(support::relative_error(c.log_sum_exp.view(), expected.log_sum_exp.view()) <= limit);
      CHECK(c.gaps_are_untouched());
    };
    constexpr std::array<std::array<Index, 2>, 5> widths{
        {{64, 64}, {1, 7}, {7, 72}, {72, 1}, {128, 128}}};
    std::size_t turn = 0;
    for (const Index T : {31, 32, 33, 63, 64, 65, 130, 385}) {
      for (const Index past : {0, 77}) {
        const auto [K, V] = widths[turn++ % widths.size()];
        INFO("T " << T << " past " << past << " K " << K << " V " << V);
        Case<float> c({.B = 2, .T = T, .H = 4, .G = 2, .K = K, .V = V, .past = {past, past / 3}});
        check(c, c.expected(causal, plain), Causal{}, PlainScore{c.scale});
      }
    }
    Case<float> c({.B = 2, .T = 150, .H = 4, .G = 2, .K = 9, .V = 6, .past = {70, 2}, .spare = 3});
    for (const auto& mask : {SinksAndWindow{0, 1}, SinksAndWindow{5, 20}, SinksAndWindow{70, 65}}) {
      const auto sees = [&](Index, Index, Index i, Index j) {
        return j <= i && (j < mask.sinks || i - j < mask.width);
      };
      check(c, c.expected(sees, plain), mask, PlainScore{c.scale});
    }
    check(c,
          c.expected(
              [](Index b, Index h, Index i, Index j) {
                return Blocks{b, h}.sees(i, j);
              },
              plain),
          Blocks{}, PlainScore{c.scale});
    const auto capped = [](Index, double product, Index) { return 2 * std::tanh(product / 2); };
    check(c, c.expected(causal, capped), Causal{}, SoftCap(c.scale, 2));
    c.run(Form::parallel, context, LateCausal{100}, PlainScore{c.scale});
    CHECK(c.o()(29, 1, 0) == 0);
    CHECK(c.o()(30, 1, 0) != 0);
  }
}

TEST_CASE("attention bits on matrix units depend on the row and its positions alone",
          "[attention]") {
  for (const Precision precision : {Precision::bf16x3, Precision::bf16}) {
    Context context;
    context.set_poison(true);
    context.set_precision(precision);
    const Sizes sizes{.B = 2, .T = 300, .H = 6, .G = 3, .K = 40, .V = 18, .past = {0, 77}};
    Case<float> c(sizes);
    c.run(Form::parallel, context);
    const Tensor<float, 3> whole = c.copy_of_o();

    for (const Index workers : {1, 2, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      threaded.set_poison(true);
      threaded.set_precision(precision);
      fill(c.o(), 0.0F);
      c.run(Form::parallel, threaded);
      CHECK(same_bits(c.o(), whole.view()));
    }
    fill(c.o(), 0.0F);
    for (Index b = 0; b < sizes.B; ++b) c.run_part(Form::parallel, b, 0, sizes.T, context);
    CHECK(same_bits(c.o(), whole.view()));
    fill(c.o(), 0.0F);
    for (Index b = 0; b < sizes.B; ++b) {
      for (Index first = 0, count = 1; first < sizes.T; first += count, count += 7) {
        count = std::min(count, sizes.T - first);
        c.run_part(Form::parallel, b, first, count, context);
      }
    }
    CHECK(same_bits(c.o(), whole.view()));
  }
}

TEST_CASE("hidden numbers that are not finite stay unseen by matrix units", "[attention]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Precision precision : {Precision::bf16x3, Precision::bf16}) {
    for (const float value : {nan, infinity}) {
      Context context;
      context.set_poison(true);
      context.set_precision(precision);
      const Sizes sizes{
          .B = 2, .T = 140, .H = 4, .G = 2, .K = 10, .V = 9, .past = {50, 3}, .spare = 3};
      Case<float> c(sizes);
      c.run(Form::parallel, context);
      const Tensor<float, 3> clean = c.copy_of_o();
      fill(c.values[1][0][90], value), c.keys(1, 0, 99, 4) = value;
      c.run(Form::parallel, context);
      bool contained = true, arrived = true;
      const double bound = precision == Precision::bf16 ? 1e-2 : 2e-5;
      for (Index b = 0; b < sizes.B; ++b) {
        for (Index t = 0; t < sizes.T; ++t) {
          for (Index h = 0; h < sizes.H; ++h) {
            const Index token = b * sizes.T + t;
            const auto o = c.o()[token][h];
            const Index position = sizes.past[static_cast<std::size_t>(b)] + t;
            if (b == 1 && h < 2 && position >= 90) {
              arrived &= !std::isfinite(o[0]);
            } else if (b == 1 && h < 2 && position >= 64) {  // of a tile that has such a value
              for (Index e = 0; e < sizes.V; ++e) {
                contained &= std::abs(static_cast<double>(o[e] - clean(token, h, e))) <= bound;
              }
            } else {
              contained &= same_bits(o, clean[token][h]);
            }
          }
        }
      }
      CHECK(contained);
      CHECK(arrived);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("fewer heads of keys or of values are read in turn", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  const Index T = 70, H = 8, G = 4;
  Context context;
  const auto q = random_tensor<S, 3>({2 * T, H, 9}, 1);
  const auto keys = random_tensor<S, 4>({2, G, T, 9}, 2),
             values = random_tensor<S, 4>({2, G, T, 5}, 3);
  Tensor<Index, 1> past({2});
  const auto attended = [&](const auto& some_keys, const auto& some_values, Form form) {
    Tensor<S, 3> o({2 * T, H, 5});
    attention(q, some_keys, some_values, past, Causal{}, PlainScore{}, o.view(),
              TestCall(context, 2, T, form));
    return o;
  };
  const auto first = [](const Tensor<S, 4>& heads, Index count) {
    return heads.view().template slice<1>(0, count);
  };
  const auto in_turn = [](const Tensor<S, 4>& heads, Index count) {
    Tensor<S, 4> all(heads.shape());
    for (Index g = 0; g < G; ++g) {
      copy(heads.view().template at<1>(g % count), all.view().template at<1>(g));
    }
    return all;
  };
  for (const Form form : {Form::parallel, Form::recurrent}) {
    for (const Index count : {1, 2}) {
      CHECK(same_bits(attended(first(keys, count), values, form).view(),
                      attended(in_turn(keys, count), values, form).view()));
      CHECK(same_bits(attended(keys, first(values, count), form).view(),
                      attended(keys, in_turn(values, count), form).view()));
    }
    CHECK_THROWS_AS(attended(first(keys, 3), values, form), ShapeError);
    CHECK_THROWS_AS(attended(keys, first(values, 3), form), ShapeError);
  }
}

TEMPLATE_LIST_TEST_CASE("parts of the keys merge", "[attention]", support::TestScalars) {
  using S = TestType;
  Case<S> c({.B = 2, .T = 60, .H = 4, .G = 2, .K = 9, .V = 6, .past = {20, 0}});
  const auto expected = c.expected();
  Context context;
  Tensor<S, 3> other({120, 4, 6});
  Tensor<S, 2> other_sum({120, 4});
  for (const Index first : {0, 1, 33, 90}) {  // with the last, one part is empty
    c.run(Form::parallel, context, Band::window(200, first), PlainScore{c.scale});
    attention(c.q(), c.keys, c.values, c.past, Band::leading(first), PlainScore{c.scale},
              other.view(), TestCall(context, 2, 60), other_sum.view());
    merge_attention(other.view(), other_sum.view(), c.o(), c.log_sum_exp.view());
    CHECK(support::relative_error(View<const S, 3>(c.o()), expected.o.view()) <= tolerance<S>());
    CHECK(support::relative_error(c.log_sum_exp.view(), expected.log_sum_exp.view()) <=
          tolerance<S>());
  }
}

TEMPLATE_LIST_TEST_CASE("what a bias by distance fades out ends in zeros", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  // Values end after 30 tokens; 350 later their weights leave the range of numbers.
  const Index T = 500;
  const LinearBiases biases({std::is_same_v<S, float> ? 0.25 : 2});
  const Tensor<S, 3> q({T, 1, 4});
  const Tensor<S, 4> keys({1, 1, T, 4});
  Tensor<S, 4> values({1, 1, T, 5});
  Tensor<S, 3> o({T, 1, 5});
  copy(support::random_tensor<S, 2>({30, 5}, 1).view(),
       values.view()[0][0].template slice<0>(0, 30));
  const Tensor<Index, 1> past({1});
  Context context;
  for (const Form form : {Form::parallel, Form::recurrent}) {
    attention(q, keys, values, past, Causal{}, DistanceBias(PlainScore{}, biases), o.view(),
              TestCall(context, 1, T, form));
    Index subnormal = 0;
    for (Index i = 0; i < o.size(); ++i) {
      subnormal += std::fpclassify(o.data()[i]) == FP_SUBNORMAL ? 1 : 0;
    }
    CHECK(subnormal == 0);
    CHECK(o(T / 2, 0, 0) != 0);
    CHECK(o(T - 1, 0, 0) == 0);
  }
}
