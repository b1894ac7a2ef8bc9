#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <vector>

#include "seqmix/kernels/memory/dplr.hpp"
#include "support/call.hpp"
#include "support/company.hpp"
#include "support/compare.hpp"
#include "support/memory.hpp"
#include "support/random.hpp"
#include "support/scalars.hpp"
#include "support/thread_executor.hpp"

using namespace seqmix;
using support::algorithms;
using support::check_law;
using support::check_within;
using support::flat;
using support::poisoned;
using support::random_tensor;
using support::same_bits;
using support::TestCall;

namespace {

template <class S>
using Result = support::MemoryResult<S>;

template <class S>
struct Case {
  Tensor<S, 4> r, g, k, v, a, b, state;

  /// Transitions that shrink: b = -rate a with a unit vector a, as RWKV-7 has them.
  Case(Index B, Index T, Index H, Index K, Index V)
      : r(random_tensor<S, 4>({B, T, H, K}, 1)),
        g(random_tensor<S, 4>({B, T, H, K}, 2)),
        k(random_tensor<S, 4>({B, T, H, K}, 3)),
        v(random_tensor<S, 4>({B, T, H, V}, 4)),
        a(random_tensor<S, 4>({B, T, H, K}, 5)),
        b(random_tensor<S, 4>({B, T, H, K}, 6)),
        state(random_tensor<S, 4>({B, H, K, V}, 7)) {
    for (Index i = 0; i < g.size(); ++i) g.data()[i] = -std::exp(2 * g.data()[i] - 2);
    for (Index row = 0; row < B * T * H; ++row) {
      S square = 0;
      for (Index i = row * K; i < (row + 1) * K; ++i) square += a.data()[i] * a.data()[i];
      for (Index i = row * K; i < (row + 1) * K; ++i) {
        a.data()[i] /= std::sqrt(square);
        b.data()[i] = -a.data()[i] / (1 + std::exp(-b.data()[i]));
      }
    }
  }
  /// Tokens [first, first + count) of all rows behind each other.
  void run(View<S, 4> memory, View<S, 3> o, Index first, Index count, const Call& call) const {
    const auto part = [&](const auto& x) { return flat(x).slice(axis::time, first, count); };
    dplr_state(part(r), part(g), part(k), part(v), part(a), part(b), memory,
               o.slice(axis::time, first, count), call);
  }
  /// Tokens [first, first + count) of each row, one row a call.
  void run(Result<S>& result, Index first, Index count, Context& context) const {
    const Form form = count == 1 ? Form::recurrent : Form::parallel;
    for (Index row = 0; row < v.extent(0); ++row) {
      run(result.state, flat(result.o), row * v.extent(1) + first, count,
          TestCall(context, {{row, 0, count, form}}));
    }
  }
  Result<S> whole(Context& context) const {
    Result<S> result = support::fresh(*this);
    const Index rows = v.extent(0), T = v.extent(1);
    run(result.state, flat(result.o), 0, rows * T,
        TestCall(context, rows, T, T == 1 ? Form::recurrent : Form::parallel));
    return result;
  }

  /// The recurrence as it is written, in R.
  template <class R = double>
  Result<R> literal() const {
    const auto d = [](S x) { return static_cast<R>(x); };
    std::vector<R> found(static_cast<std::size_t>(v.extent(3)));
    return support::recurrence<R>(
        *this, [&](Index row, Index t, Index h, View<R, 2> memory, View<R, 1> o) {
          std::fill(found.begin(), found.end(), R(0));
          for (Index i = 0; i < k.extent(3); ++i) {
            const R in = d(a(row, t, h, i));
            const R* const cells = &memory(i, 0);
            for (std::size_t j = 0; j < found.size(); ++j) found[j] += in * cells[j];
          }
          const S* const values = &v(row, t, h, 0);
          for (Index i = 0; i < k.extent(3); ++i) {
            const R decay = std::exp(d(g(row, t, h, i))), key = d(k(row, t, h, i));
            const R out = d(b(row, t, h, i)), query = d(r(row, t, h, i));
            R* const cells = &memory(i, 0);
            for (std::size_t j = 0; j < found.size(); ++j) {
              cells[j] = decay * cells[j] + out * found[j] + key * d(values[j]);
              o.data()[j] += query * cells[j];
            }
          }
        });
  }
};

}  // namespace

TEMPLATE_LIST_TEST_CASE("dplr_state: both algorithms are the literal recurrence", "[dplr]",
                        support::TestScalars) {
  using S = TestType;
  const double bound = 40 * static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const Index T : {1, 2, 15, 16, 17, 31, 32, 33, 70}) {
    for (const auto& [K, V] : {std::pair<Index, Index>{1, 1},
                               {5, 7},
                               {8, 64},
                               {64, 64},
                               {65, 16},
                               {33, 131},
                               {9, 300}}) {
      const Case<S> c(2, T, 2, K, V);
      const auto expected = c.literal();
      for (const Algorithm algorithm : algorithms) {
        Context context = poisoned(algorithm);
        const auto got = c.whole(context);
        CAPTURE(T, K, V, static_cast<int>(algorithm));
        check_within(bound, got, expected);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("dplr_state: both algorithms obey the law for decays of every size",
                        "[dplr]", support::TestScalars) {
  using S = TestType;
  // Each log alone, then all of them in turn, so that resets lie inside of chunks.
  constexpr double logs[] = {0, -1e-3, -5, -50, -1e4};
  for (std::size_t regime = 0; regime <= std::size(logs); ++regime) {
    Case<S> c(1, 150, 2, 17, 19);
    for (Index i = 0; i < c.g.size(); ++i) {
      const bool in_turn = regime == std::size(logs);
      c.g.data()[i] =
          static_cast<S>(logs[in_turn ? static_cast<std::size_t>(i * i % 41) % 5 : regime]);
    }
    const auto expected = c.literal();
    const auto twin = c.template literal<S>();
    for (const Algorithm algorithm : algorithms) {
      Context context = poisoned(algorithm);
      const auto check = [&](const Result<S>& got) {
        CAPTURE(regime, static_cast<int>(algorithm));
        check_law(got, twin, expected);
      };
      check(c.whole(context));
      auto pieces = support::fresh(c);
      Index first = 0;
      for (const Index count : {1, 40, 1, 1, 16, 64, 27}) {
        c.run(pieces, first, count, context);
        first += count;
      }
      check(pieces);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("dplr_state has the same bits for any cut, threads, row and stride",
                        "[dplr]", support::TestScalars) {
  using S = TestType;
  const Index B = 3, T = 67, H = 2, K = 17, V = 300;
  const Case<S> c(B, T, H, K, V);
  for (const Algorithm algorithm : algorithms) {
    Context context = poisoned(algorithm);
    const auto expected = c.whole(context);
    // The recurrence cuts anywhere, chunks at blocks.
    for (const Index piece : {1, 23, 32, 64}) {
      if (algorithm == Algorithm::chunked && piece % detail::packed_tokens != 0) continue;
      auto pieces = support::fresh(c);
      for (Index t = 0; t < T; t += piece) c.run(pieces, t, std::min(piece, T - t), context);
      CHECK(pieces == expected);
    }
    for (const int workers : {2, 3}) {
      support::ThreadExecutor executor(workers);
      Context threaded(executor);
      threaded.set_algorithm(algorithm);
      CHECK(c.whole(threaded) == expected);
    }
    // Values, outputs and the state between other numbers.
    Tensor<S, 3> wide({B * T, H, 2 * V + 3});
    Tensor<S, 4> wide_state({B, H, K + 1, V + 3});
    const auto in = wide.view().slice(axis::channel, 1, V),
               out = wide.view().slice(axis::channel, V + 2, V);
    const auto state = wide_state.view().template slice<2>(1, K).template slice<3>(2, V);
    copy(flat(c.v), in), copy(c.state.view(), state);
    dplr_state(flat(c.r), flat(c.g), flat(c.k), in, flat(c.a), flat(c.b), state, out,
               TestCall(context, B, T));
    CHECK(same_bits(out, flat(expected.o)));
    CHECK(same_bits(state, expected.state.view()));
    for (Index row = 0; row < B * T * H; ++row) {
      const S* const numbers = wide.data() + row * (2 * V + 3);
      CHECK((numbers[0] == 0 && numbers[V + 1] == 0 && numbers[2 * V + 2] == 0));
    }
  }
}

TEST_CASE("dplr_state: segments keep their bits in any company, rows left out their numbers",
          "[dplr]") {
  using support::company_rows, support::company_tokens, support::row_without_company;
  for (const auto& [H, K, V] : {Shape<3>{6, 17, 37}.extents, {1, 40, 300}}) {
    const Case<float> c(1, company_tokens, H, K, V);
    const Result<float> fresh{Tensor<float, 4>(c.v.shape()),
                              random_tensor<float, 4>({company_rows, H, K, V}, 8)};
    const auto run = [&](Index first, Index count, Result<float>& result, const Call& call) {
      c.run(result.state, flat(result.o), first, count, call);
    };
    for (const Algorithm algorithm : algorithms) {
      CAPTURE(H, K, V, static_cast<int>(algorithm));
      const Result<float> got = support::check_company(fresh, run, std::equal_to<>(), algorithm);
      CHECK(same_bits(got.state.view()[row_without_company],
                      fresh.state.view()[row_without_company]));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("dplr_state is finite for extreme decays, and NaN stays in its head",
                        "[dplr]", support::TestScalars) {
  using S = TestType;
  Case<S> c(1, 50, 3, 9, 13);
  for (Index i = 0; i < c.g.size(); ++i)
    c.g.data()[i] = i % 3 == 0 ? S(0) : S(i % 3 == 1 ? -1e4 : -90);
  for (Index i = 0; i < c.k.size(); ++i) c.k.data()[i] *= S(1e3);
  Case<S> other = c;
  other.k(0, 20, 1, 4) = std::numeric_limits<S>::quiet_NaN();
  for (const Algorithm algorithm : algorithms) {
    Context context = poisoned(algorithm);
    const auto clean = c.whole(context), sick = other.whole(context);
    for (Index i = 0; i < clean.o.size(); ++i) REQUIRE(std::isfinite(clean.o.data()[i]));
    for (Index i = 0; i < clean.state.size(); ++i) {
      REQUIRE((std::isnormal(clean.state.data()[i]) || clean.state.data()[i] == 0));
    }
    CHECK(std::isnan(sick.o(0, 20, 1, 0)));
    for (const Index h : {0, 2}) {
      CHECK(same_bits(sick.o.view().template at<2>(h), clean.o.view().template at<2>(h)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("dplr_state: a token changes nothing before it", "[dplr]",
                        support::TestScalars) {
  using S = TestType;
  const Index T = 50, K = 17;
  const Case<S> c(1, T, 1, K, 13);
  for (const Algorithm algorithm : algorithms) {
    Context context = poisoned(algorithm);
    const auto before = c.whole(context);
    for (const Index changed : {0, 5, 16, 31, 49}) {
      Case<S> other = c;
      for (Tensor<S, 4>* tensor : {&other.r, &other.k, &other.v, &other.a, &other.b}) {
        fill(tensor->view().template slice<1>(changed, 1), S(0.5));
      }
      fill(other.g.view().template slice<1>(changed, 1), S(-3));
      const auto after = other.whole(context);
      const auto part = [](const auto& result, Index first, Index count) {
        return result.o.view().template slice<1>(first, count);
      };
      CHECK(same_bits(part(after, 0, changed), part(before, 0, changed)));
      CHECK_FALSE(same_bits(part(after, changed, 1), part(before, changed, 1)));
    }
  }
}

TEST_CASE("dplr_state of nothing is nothing, and wrong shapes throw", "[dplr]") {
  Context context;
  const Case<float> nothing(2, 0, 2, 4, 4), c(1, 3, 2, 4, 5);
  CHECK(same_bits(nothing.whole(context).state.view(), nothing.state.view()));
  auto result = support::fresh(c);
  Tensor<float, 4> o({1, 3, 2, 5}), other({1, 2, 5, 4});
  const auto run_with = [&](const Tensor<float, 4>& k, const Tensor<float, 4>& v,
                            Tensor<float, 4>& state) {
    dplr_state(flat(c.r), flat(c.g), flat(k), flat(v), flat(c.a), flat(c.b), state, flat(o),
               TestCall(context, 1, 3));
  };
  CHECK_NOTHROW(run_with(c.k, c.v, result.state));
  CHECK_THROWS_AS(run_with(c.k, c.v, other), ShapeError);
  CHECK_THROWS_AS(run_with(c.k, c.r, result.state), ShapeError);
  CHECK_THROWS_AS(run_with(c.v, c.v, result.state), ShapeError);
}
