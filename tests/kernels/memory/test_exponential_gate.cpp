#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include "seqmix/kernels/memory/exponential_gate.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
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

struct Gates {
  Tensor<double, 3> input, forget, floor;
  Tensor<double, 2> maximum;
};

Gates run(Gates gates, Context& context, Index pieces = 1) {
  const Index count = gates.input.extent(1) / pieces;
  for (Index i = 0; i < pieces; ++i) {
    for (Index row = 0; row < gates.input.extent(0); ++row) {
      const auto part = [&](auto& tensor) {
        return tensor.view()[row].slice(axis::time, i * count, count);
      };
      exponential_gates(part(gates.input), part(gates.forget), gates.maximum.view(),
                        part(gates.floor), TestCall(context, {{row, 0, count, Form::parallel}}));
    }
  }
  return gates;
}

}  // namespace

TEST_CASE("exponential gates are the recurrence of their maximum", "[exponential_gate]") {
  for (const Index H : {1, 3, 8, 19}) {
    for (const double size : {1.0, 1e4}) {
      const Index T = 60;
      Gates gates{random_tensor<double, 3>({2, T, H}, 1), random_tensor<double, 3>({2, T, H}, 2),
                  Tensor<double, 3>({2, T, H}), random_tensor<double, 2>({2, H}, 3)};
      for (Index i = 0; i < gates.input.size(); ++i) {
        gates.input.data()[i] *= size;
        gates.forget.data()[i] = -std::abs(gates.forget.data()[i] * size);
      }
      Context serial;
      Gates got = gates;
      exponential_gates(flat(got.input), flat(got.forget), got.maximum.view(), flat(got.floor),
                        TestCall(serial, 2, T));
      for (Index b = 0; b < 2; ++b) {
        for (Index h = 0; h < H; ++h) {
          double m = gates.maximum(b, h);
          for (Index t = 0; t < T; ++t) {
            const double kept = gates.forget(b, t, h) + m, in = gates.input(b, t, h);
            m = std::max(kept, in);
            CHECK(std::abs(got.input(b, t, h) - std::exp(in - m)) < 1e-15);
            CHECK(got.forget(b, t, h) == kept - m);
            if (size == 1) CHECK(std::abs(got.floor(b, t, h) / std::exp(-m) - 1) < 1e-15);
          }
          CHECK(got.maximum(b, h) == m);
        }
      }
      support::ThreadExecutor executor(2);
      Context context(executor);
      const Gates cut = run(gates, context, 5);
      CHECK(same_bits(cut.input.view(), got.input.view()));
      CHECK(same_bits(cut.forget.view(), got.forget.view()));
      CHECK(same_bits(cut.floor.view(), got.floor.view()));
    }
  }
}

TEST_CASE("segments of exponential gates keep their bits in any company", "[exponential_gate]") {
  const Index T = support::company_tokens, H = 11;
  const auto same = [](const Gates& a, const Gates& b) {
    return same_bits(a.input.view(), b.input.view()) &&
           same_bits(a.forget.view(), b.forget.view()) &&
           same_bits(a.floor.view(), b.floor.view()) &&
           same_bits(a.maximum.view(), b.maximum.view());
  };
  const auto go = [](Index first, Index count, Gates& gates, const Call& call) {
    const auto part = [&](auto& tensor) {
      return tensor.view()[0].slice(axis::time, first, count);
    };
    exponential_gates(part(gates.input), part(gates.forget), gates.maximum.view(),
                      part(gates.floor), call);
  };
  const Gates gates{random_tensor<double, 3>({1, T, H}, 1), random_tensor<double, 3>({1, T, H}, 2),
                    Tensor<double, 3>({1, T, H}),
                    random_tensor<double, 2>({support::company_rows, H}, 3)};
  const Gates got = support::check_company(gates, go, same);
  CHECK(same_bits(got.maximum.view()[support::row_without_company],
                  gates.maximum.view()[support::row_without_company]));
}
