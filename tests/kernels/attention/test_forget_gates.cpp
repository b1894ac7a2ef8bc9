#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/attention/attention.hpp"
#include "seqmix/kernels/attention/composed_score.hpp"
#include "seqmix/kernels/attention/forget_gates.hpp"
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

constexpr Index H = 2, K = 5;

/// A row of `past` tokens and T new ones, whose gates let little through now and then.
template <class S>
struct Case {
  Index past, T;
  Tensor<S, 3> q;                   // [T, H, K]
  Tensor<S, 4> keys, values, logs;  // [1, H, past + T, K or 1]
  ComposedScore<S> score{0.4, {}};

  Case(Index before, Index tokens, double reset)
      : past(before),
        T(tokens),
        q(random_tensor<S>(Shape<3>{tokens, H, K}, 1)),
        keys(random_tensor<S>(Shape<4>{1, H, before + tokens, K}, 2)),
        values(random_tensor<S>(Shape<4>{1, H, before + tokens, K}, 3)),
        logs(random_tensor<S>(Shape<4>{1, H, before + tokens, 1}, 4)) {
    for (Index h = 0; h < H; ++h) {
      for (Index j = 0; j < past + T; ++j) {
        S& log = logs(0, h, j, 0);
        log = j % 37 == 17 + h ? static_cast<S>(-reset) : -std::abs(log) / 50;
      }
    }
  }
  /// Of the tokens [first, first + count) of the T.
  Tensor<S, 3> run(Form form, Context& context, Index first, Index count) const {
    const Index before = past + first;
    Tensor<Index, 1> tokens({1});
    tokens[0] = before;
    Tensor<S, 2> fresh({count, H});
    for (Index t = 0; t < count; ++t) {
      for (Index h = 0; h < H; ++h) fresh(t, h) = logs(0, h, before + t, 0);
    }
    Tensor<S, 3> o({count, H, K});
    const TestCall call(context, 1, count, form);
    const ForgetGates<S> gates(fresh, logs.view(), tokens, 0, call);
    attention(q.view().slice(axis::time, first, count), keys.view(), values.view(), tokens.view(),
              Causal{}, AnyScore<S>(score).with(&gates), o.view(), call);
    return o;
  }
  Tensor<double, 3> expected() const {
    Tensor<double, 3> o({T, H, K});
    for (Index t = 0; t < T; ++t) {
      for (Index h = 0; h < H; ++h) {
        double forgotten = 0, total = 0;
        for (Index j = past + t; j >= 0; --j) {
          double product = 0;
          for (Index e = 0; e < K; ++e) {
            product += static_cast<double>(q(t, h, e)) * static_cast<double>(keys(0, h, j, e));
          }
          const double weight = std::exp(0.4 * product + forgotten);
          total += weight;
          for (Index e = 0; e < K; ++e) {
            o(t, h, e) += weight * static_cast<double>(values(0, h, j, e));
          }
          forgotten += static_cast<double>(logs(0, h, j, 0));
        }
        for (Index e = 0; e < K; ++e) o(t, h, e) /= total;
      }
    }
    return o;
  }
};

}  // namespace

TEMPLATE_LIST_TEST_CASE("what a gate forgets costs what follows no digit", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  auto context = support::poisoned();
  const double most = std::numeric_limits<S>::max() / 1e3;
  for (const double reset : {0.0, 3.0, 1e6, most}) {
    const auto check = [&](Index past, Index T) {
      INFO("reset " << reset << " past " << past << " T " << T);
      const Case<S> c(past, T, reset);
      const auto expected = c.expected();
      for (const Form form : {Form::parallel, Form::recurrent}) {
        CHECK(support::relative_error(c.run(form, context, 0, T).view(), expected.view()) <=
              64 * static_cast<double>(std::numeric_limits<S>::epsilon()));
      }
    };
    check(0, 1), check(0, 150), check(61, 9), check(64, 130), check(700, 3), check(90, 300);
  }
}

TEMPLATE_LIST_TEST_CASE("what gates forget depends on no cut or thread", "[attention]",
                        support::TestScalars) {
  using S = TestType;
  auto context = support::poisoned();
  const Case<S> c(30, 150, 5);
  const auto whole = c.run(Form::parallel, context, 0, 150);
  for (Index first = 0; first < 150; first += 64) {
    const Index count = std::min<Index>(64, 150 - first);
    CHECK(same_bits(c.run(Form::parallel, context, first, count).view(),
                    whole.view().slice(axis::time, first, count)));
  }
  support::ThreadExecutor executor(3);
  Context threaded(executor);
  CHECK(same_bits(c.run(Form::parallel, threaded, 0, 150).view(), whole.view()));
}
