#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "seqmix/kernels/memory/key_sum.hpp"
#include "support/call.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::flat;
using support::random_tensor;
using support::relative_error;
using support::same_bits;
using support::TestCall;

namespace {

struct Sums {
  Tensor<double, 3> o, state;
};

/// The recurrence as it is written; `log` maps (b, t, h, channel) to the log decay.
Sums literal(const Tensor<double, 4>& q, const Tensor<double, 4>& k, const Tensor<double, 3>& state,
             double scale, auto&& log) {
  Sums result{Tensor<double, 3>({q.extent(0), q.extent(1), q.extent(2)}), state};
  for (Index b = 0; b < q.extent(0); ++b) {
    for (Index t = 0; t < q.extent(1); ++t) {
      for (Index h = 0; h < q.extent(2); ++h) {
        for (Index i = 0; i < q.extent(3); ++i) {
          double& z = result.state(b, h, i);
          z = std::exp(log(b, t, h, i)) * z + k(b, t, h, i);
          result.o(b, t, h) += scale * q(b, t, h, i) * z;
        }
      }
    }
  }
  return result;
}

template <class Decay>
Sums run(const Tensor<double, 4>& q, const Tensor<double, 4>& k, const Tensor<double, 3>& state,
         double scale, const Decay& decay, Context& context) {
  Sums result{Tensor<double, 3>({q.extent(0), q.extent(1), q.extent(2)}), state};
  fill(result.o.view(), std::numeric_limits<double>::quiet_NaN());
  key_sum(flat(q), flat(k), decay, scale, result.state.view(), flat(result.o),
          TestCall(context, q.extent(0), q.extent(1)));
  return result;
}

}  // namespace

TEST_CASE("key_sum is its recurrence with every decay, and the same with any threads",
          "[key_sum]") {
  const Index B = 2, H = 3;
  for (const Index K : {1, 7, 8, 17, 64}) {
    for (const Index T : {1, 31, 32, 33, 130}) {
      INFO("K " << K << " T " << T);
      const auto q = random_tensor<double, 4>({B, T, H, K}, 1);
      const auto k = random_tensor<double, 4>({B, T, H, K}, 2);
      const auto state = random_tensor<double, 3>({B, H, K}, 3);
      auto log = random_tensor<double, 4>({B, T, H, K}, 4), factors = log;
      for (Index i = 0; i < log.size(); ++i) {
        log.data()[i] = i % 11 == 0 ? -1e4 : -std::abs(log.data()[i]);
        factors.data()[i] = std::exp(log.data()[i]);
      }
      Tensor<double, 3> head_log({B, T, H});
      copy(log.view().at<3>(0), head_log.view());
      const Tensor<double, 1> constant = random_tensor<double, 1>({H}, 5);
      Tensor<double, 1> kept({H});
      for (Index h = 0; h < H; ++h) kept[h] = std::exp(-std::abs(constant[h]));

      const auto check = [&](const auto& decay, auto&& log_of) {
        const Sums expected = literal(q, k, state, 0.3, log_of);
        Context serial = support::poisoned();
        const Sums got = run(q, k, state, 0.3, decay, serial);
        CHECK(relative_error(got.o.view(), expected.o.view()) < 1e-13);
        CHECK(relative_error(got.state.view(), expected.state.view()) < 1e-13);
        support::ThreadExecutor executor(3);
        Context context(executor);
        const Sums parallel = run(q, k, state, 0.3, decay, context);
        CHECK(same_bits(parallel.o.view(), got.o.view()));
        CHECK(same_bits(parallel.state.view(), got.state.view()));
      };
      check(NoDecay{}, [](auto...) { return 0.0; });
      check(ScalarDecay<double>{flat(head_log)},
            [&](Index b, Index t, Index h, Index) { return head_log(b, t, h); });
      check(VectorDecay<double>{flat(log)},
            [&](Index b, Index t, Index h, Index i) { return log(b, t, h, i); });
      check(VectorFactors<double>{flat(factors)},
            [&](Index b, Index t, Index h, Index i) { return log(b, t, h, i); });
      check(ConstantDecay<double>{kept},
            [&](Index, Index, Index h, Index) { return -std::abs(constant[h]); });
    }
  }
}

TEST_CASE("key_sum of a segment has the same bits in any company", "[key_sum]") {
  const Index rows = 5, T = 1 + 65 + 7 + 33, H = 3, K = 19;
  // Row 3 is in none.
  const Segment segments[] = {{4, 0, 1, Form::recurrent},
                              {1, 1, 65, Form::parallel},
                              {0, 66, 7, Form::recurrent},
                              {2, 73, 33, Form::parallel}};
  const auto q = random_tensor<float, 3>({T, H, K}, 1), k = random_tensor<float, 3>({T, H, K}, 2);
  auto log = random_tensor<float, 3>({T, H, K}, 3);
  for (Index i = 0; i < log.size(); ++i) log.data()[i] = -std::abs(log.data()[i]);
  const auto before = random_tensor<float, 3>({rows, H, K}, 4);
  const auto check = [&](const auto& decay_of) {
    auto state = before;
    Tensor<float, 2> o({T, H});
    Context context;
    for (const auto& [row, first, count, form] : segments) {
      const auto part = [from = first, tokens = count](const auto& x) {
        return x.view().slice(axis::time, from, tokens);
      };
      const Segment alone[] = {{row, 0, count, form}};
      key_sum(part(q), part(k), decay_of(part(log)), 0.3, state.view(),
              o.view().slice(axis::time, first, count), Call(context, alone));
    }
    for (const Index workers : {1, 3}) {
      support::ThreadExecutor executor(workers);
      Context threads(executor);
      Tensor<float, 3> wide({rows, H + 2, K + 1});  // rows may lie at any stride
      const auto window = wide.view().slice(axis::head, 1, H).slice(axis::channel, 1, K);
      copy(before.view(), window);
      Tensor<float, 2> mixed({T, H});
      key_sum(q, k, decay_of(log.view()), 0.3, window, mixed.view(), Call(threads, segments));
      CHECK(same_bits(mixed.view(), o.view()));
      CHECK(same_bits(View<const float, 3>(window), state.view()));
      CHECK(same_bits(window[3], before.view()[3]));
    }
  };
  check([](View<const float, 3>) { return NoDecay{}; });
  check([](View<const float, 3> logs) { return VectorDecay<float>{logs}; });
  check([](View<const float, 3> logs) { return ScalarDecay<float>{logs.at(axis::channel, 0)}; });
}

TEST_CASE("key_sum names an operand that does not fit", "[key_sum]") {
  const auto q = random_tensor<double, 3>({10, 3, 4}, 1);
  Tensor<double, 3> state({2, 3, 5});
  Tensor<double, 2> o({10, 3});
  Context context;
  CHECK_THROWS_AS(key_sum(q, q, NoDecay{}, 1, state.view(), o.view(), TestCall(context, 2, 5)),
                  ShapeError);
}
