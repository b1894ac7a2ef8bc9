#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/core/tensor.hpp"
#include "seqmix/kernels/attention/xpos.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"

using namespace seqmix;
using support::random_tensor;
using support::relative_error;
using support::TestCall;

namespace {

constexpr Index H = 4, G = 2, K = 7, pairs = 3, offset = 1;
constexpr double base = 64;

/// Both factors as the paper has them, counted from the first token.
template <class S>
Tensor<S, 3> direct(const Tensor<S, 3>& q, const Tensor<S, 4>& keys, const Tensor<S, 4>& values,
                    Index past, RotaryLayout layout) {
  const Index T = q.extent(0);
  const auto factor = [](Index n, Index position) {
    const double zeta = (static_cast<double>(2 * n) / (2 * pairs) + 0.4) / 1.4;
    return std::pow(zeta, static_cast<double>(position) / base);
  };
  const auto pair_of = [&](Index i) {
    if (i < offset) return Index{-1};
    return layout == RotaryLayout::interleaved ? (i - offset) / 2 : (i - offset) % pairs;
  };
  Tensor<S, 3> o({T, H, K});
  for (Index t = 0; t < T; ++t) {
    for (Index h = 0; h < H; ++h) {
      std::vector<double> weights;
      double total = 0;
      for (Index j = 0; j <= past + t; ++j) {
        double score = 0;
        for (Index i = 0; i < K; ++i) {
          const Index n = pair_of(i);
          const double up = n < 0 ? 1 : factor(n, past + t), down = n < 0 ? 1 : factor(n, -j);
          score += static_cast<double>(q(t, h, i)) * up *
                   (static_cast<double>(keys(0, h / 2, j, i)) * down);
        }
        weights.push_back(std::exp(score / std::sqrt(K)));
        total += weights.back();
      }
      for (Index i = 0; i < K; ++i) {
        double sum = 0;
        for (std::size_t j = 0; j < weights.size(); ++j) {
          sum += weights[j] * static_cast<double>(values(0, h / 2, static_cast<Index>(j), i));
        }
        o(t, h, i) = static_cast<S>(sum / total);
      }
    }
  }
  return o;
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("xpos from any centre is what the paper has from the first token", "[xpos]",
                        support::TestScalars) {
  using S = TestType;
  Context context;
  context.set_poison(true);
  const XPosDecay decay(2 * pairs, base);
  const auto values = random_tensor<S, 4>({1, G, 700, K}, 3);
  const auto keys = random_tensor<S, 4>({1, G, 700, K}, 2);
  const ComposedScore<S> score(1 / std::sqrt(double{K}), {});
  for (const auto layout : {RotaryLayout::half_split, RotaryLayout::interleaved}) {
    for (const auto& [before, T] :
         {std::pair<Index, Index>{0, 300}, {77, 5}, {511, 2}, {512, 70}, {600, 100}, {699, 1}}) {
      const auto q = random_tensor<S, 3>({T, H, K}, 1);
      Tensor<S, 3> o({T, H, K});
      Tensor<Index, 1> past({1});
      past(0) = before;
      const TestCall call(context, 1, T, T == 1 ? Form::recurrent : Form::parallel);
      xpos_attention<S>(q, keys.view(), values.view(), past, decay, layout, offset, score, o.view(),
                        call);
      const auto expected = direct(q, keys, values, before, layout);
      // A power of ζ has the error of its exponent, which grows with the distance.
      const double exponent = static_cast<double>(before + T) / base;
      CHECK(relative_error(o.view(), expected.view()) <
            (8 + exponent) * static_cast<double>(std::numeric_limits<S>::epsilon()));
    }
  }
}

TEST_CASE("xpos overflows at no position", "[xpos]") {
  Context context;
  const Index seen = 60000;  // where ζ_0^-(j / 64) is 10^510
  const XPosDecay decay(2 * pairs, base);
  const auto keys = random_tensor<float, 4>({1, 1, seen, K}, 1);
  const auto values = random_tensor<float, 4>({1, 1, seen, K}, 2);
  const auto q = random_tensor<float, 3>({2, 1, K}, 3);
  Tensor<float, 3> o({2, 1, K});
  Tensor<Index, 1> past({1});
  past(0) = seen - 2;
  xpos_attention<float>(q, keys.view(), values.view(), past, decay, RotaryLayout::half_split, 0,
                        ComposedScore<float>(1, {}), o.view(), TestCall(context, 1, 2));
  for (Index i = 0; i < o.size(); ++i) CHECK(std::isfinite(o.data()[i]));
}

TEST_CASE("xpos has the same bits wherever a call is cut at multiples of 64", "[xpos]") {
  Context context;
  const XPosDecay decay(2 * pairs, base);
  const Index T = 300, before = 11;
  const auto keys = random_tensor<float, 4>({1, G, before + T, K}, 1);
  const auto values = random_tensor<float, 4>({1, G, before + T, K}, 2);
  const auto q = random_tensor<float, 3>({T, H, K}, 3);
  const auto attend = [&](const std::vector<Index>& cuts) {
    Tensor<float, 3> o({T, H, K});
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      const Index first = cuts[i], count = cuts[i + 1] - first;
      Tensor<Index, 1> past({1});
      past(0) = before + first;
      xpos_attention<float>(q.view().slice(axis::time, first, count), keys.view(), values.view(),
                            past, decay, RotaryLayout::half_split, 0, ComposedScore<float>(0.3, {}),
                            o.view().slice(axis::time, first, count), TestCall(context, 1, count));
    }
    return o;
  };
  const auto whole = attend({0, T});
  CHECK(support::same_bits(attend({0, 64, T}).view(), whole.view()));
  CHECK(support::same_bits(attend({0, 192, 256, T}).view(), whole.view()));
}
